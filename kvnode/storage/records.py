"""The journal's records: how each is framed, and reading them back.

    record = 0xC4 'R' | length u32 | crc u32 | kind u8 | body          length counts kind and body
    kinds  : ENTRY      index u64 | term u64 | command
             TRUNCATE   index u64                 this entry and all behind it are gone
             BASE       index u64 | term u64      the log starts anew behind a snapshot of this index
             STATE      term u64 | vote (UTF-8)   Raft's hard state (Raft §5.1, figure 2)
             SYNCED     at u64 | durable u64      this record is at byte `at`; those below `durable` were on disk before

All integers are little-endian. What is not one of these is left to the reader (`segments`, `tail`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

ENTRY: Final = 1
TRUNCATE: Final = 2
BASE: Final = 3
STATE: Final = 4
SYNCED: Final = 5

RECORD_BYTES_MAX: Final = 16 * 1_048_576
NO_OP: Final = b"\x01"  # PySyncObj's no-op command; stands in for an entry that only a snapshot still holds
REGULAR: Final = 0  # the first byte of an entry that is the state machine's: PySyncObj's kind for a command

MARK: Final = b"\xc4R"
FRAME: Final = struct.Struct("<2sII")
PAIR: Final = struct.Struct("<QQ")
ONE: Final = struct.Struct("<Q")
_ENTRY_HEAD: Final = struct.Struct("<BQQ")

Entry = tuple[bytes, int, int]  # (command, index, term), in the order that PySyncObj keeps them


def entry_record(command: bytes, index: int, term: int) -> tuple[bytes, bytes]:
    """An ENTRY record as (head, command): the command itself is not copied."""
    head = _ENTRY_HEAD.pack(ENTRY, index, term)
    crc = zlib.crc32(command, zlib.crc32(head))
    return FRAME.pack(MARK, len(head) + len(command), crc) + head, command


def entry_sum(head: bytes) -> int:
    """The checksum in the head of an ENTRY record: of its index, its term and its command."""
    return int.from_bytes(head[6:10], "little")


def entry_place(body: memoryview) -> tuple[int, int]:
    """(index, term) of an ENTRY or BASE record."""
    index, term = PAIR.unpack_from(body)
    return index, term


def truncate_record(index: int) -> bytes:
    return _record(TRUNCATE, ONE.pack(index))


def base_record(index: int, term: int) -> bytes:
    return _record(BASE, PAIR.pack(index, term))


def state_record(term: int, vote: str | None) -> bytes:
    return _record(STATE, ONE.pack(term) + (vote or "").encode())


def synced_record(at: int, durable: int) -> bytes:
    return _record(SYNCED, PAIR.pack(at, durable))


def _record(kind: int, body: bytes) -> bytes:
    content = bytes((kind,)) + body
    return FRAME.pack(MARK, len(content), zlib.crc32(content)) + content


def records(data: bytes, offset: int) -> Iterator[tuple[int, int, memoryview]]:
    """(end offset, kind, body) of each good record from `offset` on; stops at the first that is not."""
    view = memoryview(data)
    while offset + FRAME.size < len(data):
        mark, length, crc = FRAME.unpack_from(data, offset)
        start, end = offset + FRAME.size, offset + FRAME.size + length
        if mark != MARK or not 1 <= length <= RECORD_BYTES_MAX or end > len(data):
            return
        content = view[start:end]
        if zlib.crc32(content) != crc:
            return
        yield end, content[0], content[1:]
        offset = end


def kinds_in(data: bytes) -> Iterator[int]:
    """The kinds of the good records in `data`, wherever they start."""
    at = data.find(MARK)
    while at != -1:
        for _, kind, _ in records(data, at):
            yield kind
            break
        at = data.find(MARK, at + 1)
