"""Snapshot files: written beside the running store, published by one rename, trusted only whole.

    file   = head | chunk ... | end
    head   = "KVNS" | version u16 | cluster id 16 bytes | index u64 | term u64 | members u32 bytes
             | digest known u8 | digest u64 | members | crc u32          members: `Configuration.packed`
    chunk  = length u32 | crc u32 | data                 as `StoreView.snapshot_chunks` cuts them
    end    = 0 u32 | crc u32 of all chunk checksums | chunk count u64

Named `snapshot-<index>-<term>`. While it is written or received its name ends in `.part`; such a file is
nobody's promise and is removed at start. A published file that does not check out stops the node: to go on
without it would be to forget what was acknowledged (PySyncObj quirk R11). Version 1 has no digest
(`node/divergence.py`); before version 3, members are the names of the first cluster alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import msgpack

from kvnode.configuration import Configuration, named, unpacked
from kvnode.errors import StartupError
from kvnode.state.limits import CHUNK_BYTES_MAX, COUNTER_MAX
from kvnode.state.store import KeyValueStore
from kvnode.state.view import StoreView
from kvnode.storage.disk import Disk

_HEAD: Final = struct.Struct("<4sH16sQQI")
_DIGEST: Final = struct.Struct("<?Q")
_CHUNK: Final = struct.Struct("<II")
_COUNT: Final = struct.Struct("<Q")
_MAGIC: Final = b"KVNS"
_VERSION: Final = 3
_VERSION_WITH_NAMES: Final = 2
_VERSION_WITHOUT_DIGEST: Final = 1
_MEMBERS_BYTES_MAX: Final = 65_536
_WRITE_BYTES: Final = 1_048_576
_SYNC_BYTES: Final = 8 * 1_048_576  # all at once at the end, and the journal's own sync would wait behind it
PART: Final = ".part"
KEEP: Final = 2  # the newest, and the one before it for a follower that is still fetching it


class Damaged(Exception):
    """A snapshot file is not whole; the text says why, and `offset` about where."""

    offset = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One published snapshot: the state after entry `index` of `term`, and the configuration that counted there.

    `digest` is that of all that was applied up to `index`; None where it is not known.
    """

    name: str
    index: int
    term: int
    configuration: Configuration
    size_bytes: int
    digest: int | None = None

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(sorted(self.configuration.members))


class Snapshots:
    """The snapshots in one directory. `write` and `load` may run in a worker thread; errors of the disk are OSError.

    `rest` is called by the thread that writes, between steps of a few milliseconds (`pace.py`).
    """

    def __init__(self, disk: Disk, cluster_id: bytes, rest: Callable[[], None] = lambda: None) -> None:
        self.disk = disk
        self._cluster_id = cluster_id
        self._rest = rest
        self.newest: Snapshot | None = None
        self._known: dict[int, Snapshot] = {}  # by index: those that a peer may fetch
        self.written = self.failed = self.installed = 0  # since the process began

    def recover(self, load: Callable[[Iterable[bytes]], KeyValueStore] = KeyValueStore.load_snapshot) -> KeyValueStore:
        """Removes leftovers and loads the newest snapshot; an empty store where there is none. `load` makes a store of
        a snapshot's chunks; all but `kvnode recover` take the usual one."""
        for name in self.disk.names():
            if name.startswith("snapshot-") and name.endswith(PART):
                self.disk.unlink(name)
        names = self._published()
        if not names:
            return KeyValueStore()
        try:
            newest, store = self.load(names[-1], load)
            self.published(newest)
        except Damaged as damage:
            raise StartupError(
                f"The snapshot {self.disk.where(names[-1])} is damaged before byte {damage.offset} ({damage}): "
                "this node will not start without what it held; restore the file from a copy, or move the data "
                "directory away and let the node catch up from its peers as a new node."
            ) from damage
        return store

    def write(
        self, index: int, term: int, members: Configuration, view: StoreView, digest: int | None = None
    ) -> Snapshot:
        """Writes and publishes the state `view`; on return it is durable. Runs in a worker thread."""
        name = _name(index, term)
        part = name + PART
        if part in self.disk.names():
            self.disk.unlink(part)
        try:
            self._write(part, self._head(index, term, members, digest), view)
            self._publish(part, name)
        except OSError:
            if part in self.disk.names():
                self.disk.unlink(part)  # half a snapshot is of no use, and the space may be what is missing
            self.failed += 1
            raise
        self.written += 1
        return Snapshot(name, index, term, members, self.disk.size(name), digest)

    def _write(self, part: str, head: bytes, view: StoreView) -> None:
        buffers, waiting, unsynced = [head], 0, 0
        crcs, count = 0, 0
        for chunk in view.snapshot_chunks(self._rest):
            crc = zlib.crc32(chunk)
            crcs = zlib.crc32(crc.to_bytes(4, "little"), crcs)
            count += 1
            buffers += (_CHUNK.pack(len(chunk), crc), chunk)
            waiting += len(chunk)
            if waiting >= _WRITE_BYTES:
                self.disk.append(part, buffers)
                unsynced += waiting
                buffers, waiting = [], 0
                if unsynced >= _SYNC_BYTES:
                    self.disk.sync(part)
                    unsynced = 0
        buffers.append(_CHUNK.pack(0, crcs) + _COUNT.pack(count))
        self.disk.append(part, buffers)

    def adopt(self, part: str, index: int, term: int) -> tuple[Snapshot, KeyValueStore]:
        """Verifies a received file whole, loads it and publishes it. Raises Damaged. Runs in a worker thread."""
        snapshot, store = self.load(part)
        if (snapshot.index, snapshot.term) != (index, term):
            raise Damaged("it is not the snapshot that was offered")
        name = _name(index, term)
        self._publish(part, name)
        self.installed += 1
        return replace(snapshot, name=name), store

    def published(self, snapshot: Snapshot) -> None:
        """`snapshot` is on disk: offered from now on, unless a peer's newer one came meanwhile."""
        self._known[snapshot.index] = snapshot
        if self.newest is None or snapshot.index > self.newest.index:
            self.newest = snapshot

    def retire(self, wanted: frozenset[int] = frozenset()) -> Callable[[], None] | None:
        """From now on only the newest KEEP snapshots are published, and those at `wanted`.

        The job that removes the files of all older ones, for a worker thread; None where there are none.
        """
        gone = [index for index in sorted(self._known)[:-KEEP] if index not in wanted]
        if not gone:
            return None
        for index in gone:
            del self._known[index]
        kept = {snapshot.name for snapshot in self._known.values()}
        newest = max(kept)  # a file behind it may be one that a worker has just published
        return lambda: self.remove(*(name for name in self._published() if name < newest and name not in kept))

    def remove(self, *names: str) -> None:
        """Files that are not needed any more, and those of them that are there. Runs in a worker thread."""
        present = set(self.disk.names())
        for name in names:
            if name in present:
                self.disk.unlink(name)

    def published_at(self, index: int) -> Snapshot | None:
        """The snapshot at `index`, if it is still kept."""
        return self._known.get(index)

    def load(
        self, name: str, load: Callable[[Iterable[bytes]], KeyValueStore] = KeyValueStore.load_snapshot
    ) -> tuple[Snapshot, KeyValueStore]:
        """Reads one file to its end. Raises Damaged unless every byte of it checks out and all is within its limits."""
        reader = _Reader(lambda offset, length: self.disk.read(name, offset, length))
        try:
            return self._load(name, reader, load)
        except Damaged as damage:
            damage.offset = reader.offset
            raise

    def _load(
        self, name: str, reader: _Reader, load: Callable[[Iterable[bytes]], KeyValueStore]
    ) -> tuple[Snapshot, KeyValueStore]:
        magic, version, cluster_id, index, term, members_bytes = _HEAD.unpack(head := reader.take(_HEAD.size))
        if magic != _MAGIC or not 1 <= version <= _VERSION or members_bytes > _MEMBERS_BYTES_MAX:
            raise Damaged("it does not start like a snapshot of this version")
        known, digest = False, 0
        if version > _VERSION_WITHOUT_DIGEST:
            known, digest = _DIGEST.unpack(more := reader.take(_DIGEST.size))
            head += more
        packed = reader.take(members_bytes)
        if reader.take(4) != zlib.crc32(head + packed).to_bytes(4, "little"):
            raise Damaged("its head does not check out")
        if cluster_id != self._cluster_id:
            raise Damaged("it belongs to another cluster")
        try:
            members = unpacked(packed) if version > _VERSION_WITH_NAMES else named(*msgpack.unpackb(packed))
        except (TypeError, ValueError) as error:
            raise Damaged(f"its list of members cannot be read: {error}") from error
        try:
            store = load(reader.chunks())
        except ValueError as error:
            raise Damaged(str(error)) from error
        if max(index, term) > COUNTER_MAX:
            raise Damaged(f"its index and its term are at most {COUNTER_MAX}")
        if reader.offset != self.disk.size(name):
            raise Damaged("something follows its end")
        return Snapshot(name, index, term, members, reader.offset, digest if known else None), store

    def _head(self, index: int, term: int, members: Configuration, digest: int | None) -> bytes:
        packed = members.packed
        head = _HEAD.pack(_MAGIC, _VERSION, self._cluster_id, index, term, len(packed))
        head += _DIGEST.pack(digest is not None, digest or 0) + packed
        return head + zlib.crc32(head).to_bytes(4, "little")

    def _publish(self, part: str, name: str) -> None:
        self.disk.sync(part)
        self.disk.rename(part, name)
        self.disk.sync_directory()

    def _published(self) -> list[str]:
        return [name for name in self.disk.names() if name.startswith("snapshot-") and not name.endswith(PART)]


def _name(index: int, term: int) -> str:
    return f"snapshot-{index:020d}-{term}"


class _Reader:
    """Reads a file from front to back in pieces, so that a big snapshot is never in memory twice."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._buffer = b""
        self._start = 0
        self.offset = 0

    def take(self, length: int) -> bytes:
        if self._start + length > len(self._buffer):
            rest = self._buffer[self._start :]
            self._buffer = rest + self._read(self.offset + len(rest), max(_WRITE_BYTES, length - len(rest)))
            self._start = 0
        piece = self._buffer[self._start : self._start + length]
        if len(piece) < length:
            raise Damaged("it ends too early")
        self._start += length
        self.offset += length
        return piece

    def chunks(self) -> Iterator[bytes]:
        crcs, count = 0, 0
        while True:
            length, crc = _CHUNK.unpack(self.take(_CHUNK.size))
            if length == 0:
                if crc != crcs or _COUNT.unpack(self.take(_COUNT.size))[0] != count:
                    raise Damaged("its end does not check out")
                return
            if length > CHUNK_BYTES_MAX:
                raise Damaged(f"a chunk of {length} bytes is over the bound")
            chunk = self.take(length)
            if zlib.crc32(chunk) != crc:
                raise Damaged(f"the chunk before byte {self.offset} does not check out")
            crcs = zlib.crc32(crc.to_bytes(4, "little"), crcs)
            count += 1
            yield chunk
