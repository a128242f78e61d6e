"""What may be cut off the end of the journal at a start, and what may not.

A crash leaves an unfinished tail: bytes of the last flight, whose sync had not returned, whole or in part, in any
order of their blocks. Nothing in it was acknowledged, so it is cut. A disk that loses or alters the same bytes
*after* the sync leaves what looks alike, and to cut that would be to forget a promise. To tell the two apart the
journal says how far it was durable, in two places, and never with a sync that a write would have to wait for:

- each flight begins with a SYNCED record. Found whole behind a bad record, it proves that the bad one was durable;
- `tail.mark`, a file of its own, away from what it vouches for, is written when the journal has been quiet for a
  moment, now and then where it never is, and at a clean stop. The journal must reach as far as it says, which also
  finds a file that became shorter or is missing.

Neither covers the last flight before power fails, within that moment after its sync. There, the checksum
itself still finds one flipped bit: a record that is valid once one bit is turned back is not what a crash leaves (but
for the last few bytes of a record at a block's edge, which a block that never arrived may have taken).

What cannot be detected: more than one bad bit, in the last flight of all, of a node that lost power within QUIET_S of
having synced it; or all that was written since the last note wiped out, up to the very end of the file. The cut is
logged. If the flight was acknowledged, this node has lost its copy of it, and a vote in it, without knowing; the
cluster relies on the other copies. Every log that acknowledges after one sync has this limit (Alagappan et
al., Protocol-Aware Recovery for Consensus-Based Storage, FAST 2018).
"""

from __future__ import annotations

import errno
import struct
import zlib
from typing import Final, NamedTuple

from kvnode.errors import StartupError
from kvnode.storage.disk import Disk
from kvnode.storage.records import (
    FRAME,
    MARK,
    PAIR,
    RECORD_BYTES_MAX,
    SYNCED,
    records,
)

FILE: Final = "tail.mark"
BLOCK_BYTES: Final = 512  # the smallest that any disk writes
QUIET_S: Final = 0.25
NOTE_AT_LEAST_EVERY_S: Final = 5.0
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)

_MAGIC: Final = b"KVNT"
_VERSION: Final = 1
_MARK: Final = struct.Struct("<4sH16sQQ")
_SYNCED_FRAME: Final = MARK + (1 + PAIR.size).to_bytes(4, "little")
_CRC_POLYNOMIAL: Final = 0xEDB8_8320


class Durable(NamedTuple):
    """The first `bytes` bytes of segment `number`, and all segments before it, were on disk."""

    number: int
    bytes: int


def read_mark(disk: Disk, cluster_id: bytes) -> Durable:
    """What `tail.mark` says; nothing where there is none. Raises StartupError where it does not check out."""
    if FILE not in disk.names():
        return Durable(0, 0)
    data = disk.read(FILE)
    head, crc = data[: _MARK.size], data[_MARK.size :]
    if len(head) < _MARK.size or zlib.crc32(head).to_bytes(4, "little") != crc:
        raise StartupError(
            f"The file {disk.where(FILE)} is damaged at byte 0: the disk has altered it; check the disk, then remove "
            "this file to start the node without the check that it is for."
        )
    magic, version, owner, number, durable_bytes = _MARK.unpack(head)
    if (magic, version) != (_MAGIC, _VERSION):
        raise StartupError(f"{disk.where(FILE)} is of another format: start it with the kvnode version that wrote it.")
    if owner != cluster_id:
        raise StartupError(f"{disk.where(FILE)} belongs to another cluster: give this node a --data-dir of its own.")
    return Durable(number, durable_bytes)


def write_mark(disk: Disk, cluster_id: bytes, durable: Durable) -> None:
    """Replaces the mark as a whole. A full disk leaves the one before it, which is as true and says less."""
    head = _MARK.pack(_MAGIC, _VERSION, cluster_id, *durable)
    part = f"{FILE}.part"
    try:
        if part in disk.names():
            disk.unlink(part)
        disk.append(part, [head + zlib.crc32(head).to_bytes(4, "little")])
        disk.sync(part)
        disk.rename(part, FILE)
        disk.sync_directory()
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise


def damage(data: bytes, end: int, durable_bytes: int) -> str | None:
    """Why what follows `end`, where a segment's good records stop, is not the tail of a crash; None where it may be."""
    if durable_bytes > end:
        return f"it was on disk up to byte {durable_bytes}"
    at = data.find(_SYNCED_FRAME, end)
    while at != -1:
        _, kind, body = next(records(data, at), (0, 0, memoryview(b"")))
        if kind == SYNCED:
            place, known_bytes = PAIR.unpack_from(body)
            if place == at and known_bytes > end:
                return f"it was on disk before the next flight was written, from byte {at} on"
        at = data.find(_SYNCED_FRAME, at + 1)
    if _is_one_bit_off(data, end):
        return "one bit of it is not as it was written"
    return None


def _is_one_bit_off(data: bytes, at: int) -> bool:
    """Whether the record at `at` would check out if a single bit were turned over, in its frame or its content."""
    if at + FRAME.size >= len(data):
        return False
    frame = int.from_bytes(data[at : at + FRAME.size], "little")
    for bit in range(6 * 8):  # the mark and the length
        mark, length, crc = FRAME.unpack((frame ^ 1 << bit).to_bytes(FRAME.size, "little"))
        end = at + FRAME.size + length
        if mark == MARK and _fits(length, end, data) and zlib.crc32(memoryview(data)[at + FRAME.size : end]) == crc:
            return not _may_be_a_lost_block(data, at, end, at + bit // 8)
    mark, length, crc = FRAME.unpack_from(data, at)
    end = at + FRAME.size + length
    if mark != MARK or not _fits(length, end, data):
        return False
    turned = turned_byte(zlib.crc32(memoryview(data)[at + FRAME.size : end]) ^ crc, length)
    return turned is not None and not _may_be_a_lost_block(data, at, end, at + FRAME.size + turned)


def _fits(length: int, end: int, data: bytes) -> bool:
    return 1 <= length <= RECORD_BYTES_MAX and end <= len(data)


def turned_byte(difference: int, length: int) -> int | None:
    """Where one turned bit makes two CRC-32 of `length` bytes differ so; negative in the checksum before them.

    A CRC is linear: a turned bit changes it by a value that depends on nothing but how many bits follow.
    """
    if difference.bit_count() == 1:
        return (difference.bit_length() - 1) // 8 - 4
    of_bit = _CRC_POLYNOMIAL  # the very last
    for following in range(8 * length):
        if of_bit == difference:
            return length - 1 - following // 8
        of_bit = (of_bit >> 1) ^ (_CRC_POLYNOMIAL if of_bit & 1 else 0)
    return None


def _may_be_a_lost_block(data: bytes, at: int, end: int, turned: int) -> bool:
    """Whether a block that never arrived can look like one turned bit: a few bytes of a record that it ends or begins.

    Disks write blocks whole, so a record within one block is there as it was written, or not at all.
    """
    first = turned - turned % BLOCK_BYTES
    part = data[max(at, first) : min(end, first + BLOCK_BYTES)]
    return len(part) < end - at and (len(part) < 4 or not any(part))
