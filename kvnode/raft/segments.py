"""The journal's files: append-only segments of checksummed records.

A segment is named `journal-<number>` and starts with a header; records follow without gaps.

    header = "KVNJ" | version u16 | number u64 | cluster id 16 bytes | crc u32
    record = 0xC4 'R' | length u32 | crc u32 | kind u8 | body          length counts kind and body
    kinds  : ENTRY      index u64 | term u64 | command
             TRUNCATE   index u64                 this entry and all behind it are gone
             BASE       index u64 | term u64      the log starts anew behind a snapshot of this index
             STATE      term u64 | vote (UTF-8)   Raft's hard state (Raft §5.1, figure 2)

All integers are little-endian. One stream holds entries, truncations and hard state, so that their order on
disk is the order in which they happened and one fdatasync covers them all. A new segment repeats the hard
state, so that older segments can be unlinked whole.

What a crash may leave is an unfinished tail in the last segment; it is cut off. Anything else that does not
check out is damage, and the node refuses to start rather than guess (PySyncObj quirks R11, R12).
"""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from kvnode.errors import StartupError
from kvnode.raft.disk import Disk

ENTRY: Final = 1
TRUNCATE: Final = 2
BASE: Final = 3
STATE: Final = 4

SEGMENT_BYTES: Final = 64 * 1_048_576
RECORD_BYTES_MAX: Final = 16 * 1_048_576
CLUSTER_ID_BYTES: Final = 16

_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_MARK: Final = b"\xc4R"
_PREFIX: Final = struct.Struct("<2sII")
_HEADER: Final = struct.Struct("<4sHQ16s")
_MAGIC: Final = b"KVNJ"
_VERSION: Final = 1
HEADER_BYTES: Final = _HEADER.size + 4
_PAIR: Final = struct.Struct("<QQ")
_ONE: Final = struct.Struct("<Q")
_ENTRY_HEAD: Final = struct.Struct("<BQQ")


Entry = tuple[bytes, int, int]  # (command, index, term), in the order that PySyncObj keeps them


def entry_record(command: bytes, index: int, term: int) -> tuple[bytes, bytes]:
    """An ENTRY record as (head, command): the command itself is not copied."""
    head = _ENTRY_HEAD.pack(ENTRY, index, term)
    crc = zlib.crc32(command, zlib.crc32(head))
    return _PREFIX.pack(_MARK, len(head) + len(command), crc) + head, command


def entry_sum(head: bytes) -> int:
    """The checksum in the head of an ENTRY record: of its index, its term and its command."""
    return int.from_bytes(head[6:10], "little")


def entry_place(body: bytes | memoryview) -> tuple[int, int]:
    """(index, term) of an ENTRY record's body."""
    index, term = _PAIR.unpack_from(body)
    return index, term


def truncate_record(index: int) -> bytes:
    return _record(TRUNCATE, _ONE.pack(index))


def base_record(index: int, term: int) -> bytes:
    return _record(BASE, _PAIR.pack(index, term))


def state_record(term: int, vote: str | None) -> bytes:
    return _record(STATE, _ONE.pack(term) + (vote or "").encode())


def _record(kind: int, body: bytes) -> bytes:
    content = bytes((kind,)) + body
    return _PREFIX.pack(_MARK, len(content), zlib.crc32(content)) + content


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
    last_index: int  # the highest entry index in it, 0 where it has none


class Segments:
    """The segment files of one journal. Used by one thread at a time; errors are `OSError`."""

    def __init__(self, disk: Disk, cluster_id: bytes, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._disk = disk
        self._cluster_id = cluster_id
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []

    def recover(self) -> Recovered:
        """Reads everything that is there. Raises StartupError on damage, naming file, offset and remedy."""
        names = [name for name in self._disk.names() if name.startswith("journal-")]
        recovered = Recovered()
        for position, name in enumerate(names):
            data = self._disk.read(name)
            is_last = position == len(names) - 1
            if is_last and len(data) < HEADER_BYTES:
                # A crash between creating the file and syncing its header: nothing in it was ever promised.
                self._disk.unlink(name)
                recovered.cut_bytes += len(data)
                break
            number = self._check_header(name, data)
            if self._segments and number != self._segments[-1].number + 1:
                raise self._damaged(name, 0, "the segment before it is missing")
            segment = _Segment(name, number, len(data), 0)
            end = self._replay(segment, data, recovered)
            if end < len(data):
                self._check_tail(name, data, end, is_last)
            if is_last and end == HEADER_BYTES:
                # A crash within `_rotate`, as above. The next rotation makes it again, with the hard state at its
                # head: without that, dropping the segments before it would drop term and vote (R10).
                self._disk.unlink(name)
                recovered.cut_bytes += len(data)
                break
            if end < len(data):
                self._disk.truncate(name, end)
                recovered.cut_bytes += len(data) - end
                segment.bytes = end
            self._segments.append(segment)
        return recovered

    def append(self, buffers: Sequence[bytes], last_index: int, state: bytes, sync: bool) -> None:
        """Appends records; durable on return if `sync`. `state` is repeated at the head of a new segment.

        Raises OutOfSpace with the files as they were: the same call may be made again. Any other error, and any
        error of a sync, leaves nobody knowing what is on the disk.
        """
        if not self._segments or self._segments[-1].bytes >= self._segment_bytes:
            self._rotate(state)
        segment = self._segments[-1]
        try:
            self._disk.append(segment.name, buffers)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            # What a refused write left behind was never synced nor promised: with it gone, the file is as before.
            self._disk.truncate(segment.name, segment.bytes)
            raise OutOfSpace from error
        segment.bytes += sum(map(len, buffers))
        segment.last_index = max(segment.last_index, last_index)
        if sync:
            self._disk.sync(segment.name)

    def sync(self) -> None:
        if self._segments:
            self._disk.sync(self._segments[-1].name)

    def drop_before(self, first_index: int) -> None:
        """Unlinks the leading segments that hold no entry from `first_index` on; never the last segment."""
        dropped = False
        while len(self._segments) > 1 and self._segments[0].last_index < first_index:
            self._disk.unlink(self._segments.pop(0).name)
            dropped = True
        if dropped:
            self._disk.sync_directory()

    @property
    def disk_bytes(self) -> int:
        return sum(segment.bytes for segment in self._segments)

    def _rotate(self, state: bytes) -> None:
        number = self._segments[-1].number + 1 if self._segments else 1
        if self._segments:
            self._disk.sync(self._segments[-1].name)
        name = f"journal-{number:012d}"
        head = _HEADER.pack(_MAGIC, _VERSION, number, self._cluster_id)
        buffers = [head + zlib.crc32(head).to_bytes(4, "little"), state]
        try:
            self._disk.append(name, buffers)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            if name in self._disk.names():
                self._disk.unlink(name)
            raise OutOfSpace from error
        self._disk.sync(name)
        self._disk.sync_directory()
        self._segments.append(_Segment(name, number, sum(map(len, buffers)), 0))

    def _check_header(self, name: str, data: bytes) -> int:
        head, crc = data[: _HEADER.size], data[_HEADER.size : HEADER_BYTES]
        if len(crc) < 4 or zlib.crc32(head).to_bytes(4, "little") != crc:
            raise self._damaged(name, 0, "its header does not check out")
        magic, version, number, cluster_id = _HEADER.unpack(head)
        if magic != _MAGIC or version != _VERSION:
            raise StartupError(
                f"{self._disk.where(name)} is a journal of another format (version {version}): "
                "start it with the kvnode version that wrote it."
            )
        if cluster_id != self._cluster_id:
            raise StartupError(
                f"{self._disk.where(name)} belongs to another cluster: give this node a --data-dir of its own."
            )
        return int(number)

    def _replay(self, segment: _Segment, data: bytes, into: Recovered) -> int:
        """Applies the records of one segment; returns the offset behind the last good one."""
        end = HEADER_BYTES
        entries = into.entries
        for offset, kind, body in records(data, end):
            if kind == ENTRY:
                index, term = entry_place(body)
                if entries and index != entries[-1][1] + 1:
                    raise self._damaged(segment.name, end, f"entry {index} follows entry {entries[-1][1]}")
                entries.append((bytes(body[_PAIR.size :]), index, term))
                segment.last_index = max(segment.last_index, index)
            elif kind == TRUNCATE:
                (index,) = _ONE.unpack_from(body)
                if entries:
                    del entries[max(0, index - entries[0][1]) :]
            elif kind == BASE:
                index, term = _PAIR.unpack_from(body)
                entries[:] = [(NO_OP, index, term)]
                segment.last_index = max(segment.last_index, index)
            elif kind == STATE:
                (into.term,) = _ONE.unpack_from(body)
                into.vote = bytes(body[_ONE.size :]).decode() or None
            else:
                raise self._damaged(segment.name, end, f"it holds a record of the unknown kind {kind}")
            end = offset
        return end

    def _check_tail(self, name: str, data: bytes, end: int, is_last: bool) -> None:
        if not is_last:
            raise self._damaged(name, end, "a record does not check out and a later segment exists")
        at = data.find(_MARK, end + 1)
        while at != -1:
            if next(records(data, at), None) is not None:
                raise self._damaged(name, end, "a record does not check out and good ones follow it")
            at = data.find(_MARK, at + 1)

    def _damaged(self, name: str, offset: int, what: str) -> JournalDamaged:
        return JournalDamaged(self._disk.where(name), name, offset, what)


NO_OP: Final = b"\x01"  # PySyncObj's no-op command; stands in for an entry that only a snapshot still holds


def records(data: bytes, offset: int) -> Iterator[tuple[int, int, memoryview]]:
    """(end offset, kind, body) of each good record from `offset` on; stops at the first that is not."""
    view = memoryview(data)
    while offset + _PREFIX.size < len(data):
        mark, length, crc = _PREFIX.unpack_from(data, offset)
        start, end = offset + _PREFIX.size, offset + _PREFIX.size + length
        if mark != _MARK or not 1 <= length <= RECORD_BYTES_MAX or end > len(data):
            return
        content = view[start:end]
        if zlib.crc32(content) != crc:
            return
        yield end, content[0], content[1:]
        offset = end
