"""The journal's files: append-only segments of checksummed records.

A segment is named `journal-<number>` and starts with a header; `records` follow without gaps.

    header = "KVNJ" | version u16 | number u64 | cluster id 16 bytes | crc u32

One stream holds entries, truncations and hard state, so that their order on disk is the order in which they
happened and one fdatasync covers them all. A new segment repeats the hard state, so that older segments can be
unlinked whole. Version 1 had no SYNCED records; it is read, and what follows goes into a new segment.

What a crash may leave is an unfinished tail in the last segment; it is cut off. Anything else that does not
check out is damage, and the node refuses to start rather than guess (PySyncObj quirks R11, R12). `tail` tells
the one from the other.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kvnode.errors import StartupError
from kvnode.metrics.meters import SECONDS, Histogram
from kvnode.storage import tail
from kvnode.storage.disk import Disk
from kvnode.storage.records import (
    BASE,
    ENTRY,
    NO_OP,
    ONE,
    PAIR,
    STATE,
    SYNCED,
    TRUNCATE,
    Entry,
    entry_place,
    kinds_in,
    records,
    synced_record,
)
from kvnode.storage.tail import NO_SPACE, Durable, turned_byte

SEGMENT_BYTES: Final = 64 * 1_048_576
CLUSTER_ID_BYTES: Final = 16

_HEADER: Final = struct.Struct("<4sHQ16s")
_MAGIC: Final = b"KVNJ"
_VERSION: Final = 2
_VERSION_WITHOUT_SYNCED: Final = 1
HEADER_BYTES: Final = _HEADER.size + 4


class JournalDamaged(StartupError):
    """A segment does not check out: `file`, the byte `offset` in it, and `what` was found there."""

    def __init__(self, where: str, file: str, offset: int, what: str) -> None:
        super().__init__(
            f"The journal file {where} is damaged at byte {offset} ({what}): this node will not "
            "guess what was there; move its data directory away and let it catch up from its peers as a new node, "
            "or restore the file from a copy."
        )
        self.file, self.offset, self.what = file, offset, what


class OutOfSpace(Exception):
    """The file system is full; nothing was written, and the same write may be tried again."""


@dataclass(slots=True)
class Recovered:
    """What the segments say: the log, the hard state, and whether an unfinished tail was cut off."""

    entries: list[Entry] = field(default_factory=list)
    term: int = 0
    vote: str | None = None
    cut_bytes: int = 0


@dataclass(slots=True)
class _Segment:
    name: str
    number: int
    bytes: int
    last_index: int = 0  # the highest entry index in it, 0 where it has none
    synced_bytes: int = 0  # on disk for certain, …
    told_bytes: int = 0  # … and of that, what its latest SYNCED record says
    version: int = _VERSION


class Segments:
    """The segment files of one journal. Used by one thread at a time; errors are `OSError`."""

    def __init__(self, disk: Disk, cluster_id: bytes, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._disk = disk
        self._cluster_id = cluster_id
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._noted = Durable(0, 0)
        self.sync_s = Histogram(SECONDS)

    def recover(self) -> Recovered:
        """Reads everything that is there. Raises StartupError on damage, naming file, offset and remedy.

        What it returns is on disk: the process before this one may have died between a write and its sync, and
        what only the page cache holds must not be promised by the next one either.
        """
        # Before the journal: where a node runs meanwhile (`kvnode verify`), it only moves on.
        durable = self._noted = tail.read_mark(self._disk, self._cluster_id)
        names = [name for name in self._disk.names() if name.startswith("journal-")]
        if names:
            self._disk.settle(names[-1])  # those before it were synced when it was begun
            self._disk.sync_directory()
        recovered = Recovered()
        for position, name in enumerate(names):
            self._recover(name, position == len(names) - 1, durable, recovered)
        last = self._segments[-1].number if self._segments else 0
        if durable.number > last:
            raise self._damaged(_name(durable.number), 0, "it is missing, and it was on disk")
        return recovered

    def _recover(self, name: str, is_last: bool, durable: Durable, into: Recovered) -> None:
        data = self._disk.read(name)
        known_bytes = durable.bytes if name == _name(durable.number) else 0
        if is_last and not known_bytes and _is_unfinished(data):
            self._disk.unlink(name)
            into.cut_bytes += len(data)
            return
        number, version = self._check_header(name, data)
        if self._segments and number != self._segments[-1].number + 1:
            raise self._damaged(name, 0, "the segment before it is missing")
        segment = _Segment(name, number, len(data), version=version)
        end = self._replay(segment, data, into)
        if end < max(len(data), known_bytes):
            self._check_tail(segment, data, end, is_last, known_bytes)
        if is_last and end == HEADER_BYTES:
            # A crash within `_rotate`, too. The next rotation makes it again, with the hard state at its head:
            # without that, dropping the segments before it would drop term and vote (R10).
            self._disk.unlink(name)
            into.cut_bytes += len(data)
            return
        if end < len(data):
            self._disk.truncate(name, end)
            into.cut_bytes += len(data) - end
        segment.bytes = segment.synced_bytes = end
        self._segments.append(segment)

    def append(self, buffers: Sequence[bytes], last_index: int, state: bytes, sync: bool) -> None:
        """Appends records; durable on return if `sync`. `state` is repeated at the head of a new segment.

        Raises OutOfSpace with the files as they were: the same call may be made again. After any other error, and
        any error of a sync, it is unknown what is on the disk.
        """
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.bytes >= self._segment_bytes or segment.version != _VERSION:
            segment = self._rotate(state)
        if segment.synced_bytes > segment.told_bytes:
            buffers = [synced_record(segment.bytes, segment.synced_bytes), *buffers]
        try:
            self._disk.append(segment.name, buffers)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            # What a refused write left behind was never synced nor promised: with it gone, the file is as before.
            self._disk.truncate(segment.name, segment.bytes)
            raise OutOfSpace from error
        segment.bytes += sum(map(len, buffers))
        segment.told_bytes = segment.synced_bytes
        segment.last_index = max(segment.last_index, last_index)
        if sync:
            self.sync()

    def sync(self) -> None:
        if self._segments:
            segment, began_at = self._segments[-1], time.monotonic()
            self._disk.sync(segment.name)
            self.sync_s.observe(time.monotonic() - began_at)
            segment.synced_bytes = segment.bytes

    def note_durable(self) -> None:
        """Says in `tail.mark` how far the last sync reached. For quiet moments: it costs syncs of its own."""
        if self._segments:
            durable = Durable(self._segments[-1].number, self._segments[-1].synced_bytes)
            if durable != self._noted:
                tail.write_mark(self._disk, self._cluster_id, durable)
                self._noted = durable

    def drop_before(self, first_index: int) -> None:
        """Unlinks the leading segments that hold no entry from `first_index` on; never the last segment.

        One by one: were the second gone before the first, a crash in between would leave a gap like a lost file.
        """
        while len(self._segments) > 1 and self._segments[0].last_index < first_index:
            self._disk.unlink(self._segments.pop(0).name)
            self._disk.sync_directory()

    @property
    def disk_bytes(self) -> int:
        return sum(segment.bytes for segment in self._segments)

    def _rotate(self, state: bytes) -> _Segment:
        number = self._segments[-1].number + 1 if self._segments else 1
        if self._segments:
            self.sync()
        name = _name(number)
        head = _HEADER.pack(_MAGIC, _VERSION, number, self._cluster_id)
        buffers = [head + zlib.crc32(head).to_bytes(4, "little"), state]
        try:
            self._disk.append(name, buffers)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            if name in self._disk.names():
                self._disk.unlink(name)
            raise OutOfSpace from error
        self._disk.sync(name)
        self._disk.sync_directory()
        size = sum(map(len, buffers))
        self._segments.append(_Segment(name, number, size, synced_bytes=size, told_bytes=HEADER_BYTES))
        return self._segments[-1]

    def _check_header(self, name: str, data: bytes) -> tuple[int, int]:
        if _header_difference(data) != 0:
            raise self._damaged(name, 0, "its header does not check out")
        magic, version, number, cluster_id = _HEADER.unpack_from(data)
        if magic != _MAGIC or version not in (_VERSION, _VERSION_WITHOUT_SYNCED):
            raise StartupError(
                f"{self._disk.where(name)} is a journal of another format (version {version}): "
                "start it with the kvnode version that wrote it."
            )
        if cluster_id != self._cluster_id:
            raise StartupError(
                f"{self._disk.where(name)} belongs to another cluster: give this node a --data-dir of its own."
            )
        return int(number), int(version)

    def _replay(self, segment: _Segment, data: bytes, into: Recovered) -> int:
        """Applies the records of one segment; returns the offset behind the last good one."""
        end = HEADER_BYTES
        entries = into.entries
        for offset, kind, body in records(data, end):
            if kind == ENTRY:
                index, term = entry_place(body)
                if entries and index != entries[-1][1] + 1:
                    raise self._damaged(segment.name, end, f"entry {index} follows entry {entries[-1][1]}")
                entries.append((bytes(body[PAIR.size :]), index, term))
                segment.last_index = max(segment.last_index, index)
            elif kind == TRUNCATE:
                (index,) = ONE.unpack_from(body)
                if entries:
                    del entries[max(0, index - entries[0][1]) :]
            elif kind == BASE:
                index, term = PAIR.unpack_from(body)
                entries[:] = [(NO_OP, index, term)]
                segment.last_index = max(segment.last_index, index)
            elif kind == STATE:
                (into.term,) = ONE.unpack_from(body)
                into.vote = bytes(body[ONE.size :]).decode() or None
            elif kind != SYNCED:
                raise self._damaged(segment.name, end, f"it holds a record of the unknown kind {kind}")
            end = offset
        return end

    def _check_tail(self, segment: _Segment, data: bytes, end: int, is_last: bool, known_bytes: int) -> None:
        """Raises unless what follows the last good record may be what a crash left unfinished."""
        if not is_last:
            raise self._damaged(segment.name, end, "a record does not check out and a later segment exists")
        what = tail.damage(data, end, known_bytes)
        if what is not None:
            raise self._damaged(segment.name, end, f"a record does not check out and {what}")

    def _damaged(self, name: str, offset: int, what: str) -> JournalDamaged:
        return JournalDamaged(self._disk.where(name), name, offset, what)


def _name(number: int) -> str:
    return f"journal-{number:012d}"


def _header_difference(data: bytes) -> int | None:
    """The checksum that a header should have, xor that which it has; None where it is cut short."""
    if len(data) < HEADER_BYTES:
        return None
    return zlib.crc32(data[: _HEADER.size]) ^ int.from_bytes(data[_HEADER.size : HEADER_BYTES], "little")


def _is_unfinished(data: bytes) -> bool:
    """Whether the last segment may be what a crash left of one whose head was never synced.

    Such a file holds at most a header and a repeated hard state, and any of its blocks may be missing.
    """
    difference = _header_difference(data)
    if difference is None:
        return True
    if difference == 0 or turned_byte(difference, _HEADER.size) is not None:
        return False
    return all(kind == STATE for kind in kinds_in(data))
