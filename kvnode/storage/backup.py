"""Backup files: the store as it was at one revision, trusted only whole.

    file   = head | chunk ... | end
    head   = "KVNB" | version u16 | revision u64 | items u64 | cluster id u16 bytes | cluster id | crc u32
    chunk  = length u32 | crc u32 | data                 as `StoreView.chunks` cuts them
    end    = 0 u32 | crc u32 of all chunk checksums | chunk count u64

A file without its end, with a byte altered or with anything behind its end is refused as a whole: a part of a backup
would restore a state that never was.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from kvnode.state.idempotency import Outcomes, Times
from kvnode.state.items import go_on
from kvnode.state.limits import (
    CHUNK_BYTES_MAX,
    LEASES_MAX,
    OUTCOMES_YOUNG_MAX,
    restored_fault,
)
from kvnode.state.session_keys import NONE
from kvnode.state.store import KeyValueStore
from kvnode.state.tokens import Tokens
from kvnode.state.view import (
    Header,
    StoreView,
    read_header,
    unpack_chunk,
)

PIECE_BYTES: Final = 262_144  # what `pieces` hands on at a time
CLUSTER_ID_BYTES_MAX: Final = 256

_HEAD: Final = struct.Struct("<4sHQQH")
_CHUNK: Final = struct.Struct("<II")
_COUNT: Final = struct.Struct("<Q")
_CRC: Final = struct.Struct("<I")
_MAGIC: Final = b"KVNB"
_VERSION: Final = 1


Take = Callable[[int], Awaitable[bytes]]


class Damaged(Exception):
    """The file is no whole backup; the text says why."""


class BackupHead(NamedTuple):
    """What a backup says of itself."""

    revision: int
    items: int
    cluster_id: str


def pieces(view: StoreView, cluster_id: str, rest: Callable[[], None] = go_on) -> Iterator[bytes]:
    """The file's bytes, in pieces of about PIECE_BYTES. `rest` is called after each few milliseconds of work."""
    name = cluster_id.encode()
    # A backup is no place for a key; a cluster made of one has its own, which makes an end of all sessions. It also
    # finds its own feature level, as its members may know less than those of this one, or more.
    # Its leases are of no generation: where it is restored they get that of the restore. Nor of any token, as version
    # 0.1 could not read whose they are. Outcomes have no times.
    leases = view.leases._replace(generation=0, owners=False)
    outcomes = view.outcomes._replace(times=Times(), plain=True)
    view = view._replace(session=NONE, level=0, ended_sessions=(), leases=leases, outcomes=outcomes, staged=None)
    head = _HEAD.pack(_MAGIC, _VERSION, view.revision, len(view.items), len(name)) + name
    buffers, waiting = [head, _CRC.pack(zlib.crc32(head))], 0
    crcs = count = 0
    for chunk in view.chunks(rest):
        crc = zlib.crc32(chunk)
        crcs = zlib.crc32(_CRC.pack(crc), crcs)
        count += 1
        buffers += (_CHUNK.pack(len(chunk), crc), chunk)
        waiting += len(chunk)
        if waiting >= PIECE_BYTES:
            yield b"".join(buffers)
            buffers, waiting = [], 0
    buffers.append(_CHUNK.pack(0, crcs) + _COUNT.pack(count))
    yield b"".join(buffers)


def check(path: Path) -> BackupHead:
    """Reads the file to its end. Raises Damaged unless every byte checks out; OSError."""
    with path.open("rb") as file:
        return read_through(file)


def read_through(file: BinaryIO) -> BackupHead:
    """The same of an open file, which may be a pipe."""
    head = _head(file)
    for _ in _chunks(file):
        pass
    return head


def chunks_of(data: bytes) -> tuple[BackupHead, list[bytes]]:
    """What a whole file holds, as `StoreView.chunks` gave it. Raises Damaged, also where no store can be made of it."""
    file = io.BytesIO(data)
    head, begin = _head(file), file.tell()
    try:
        store = KeyValueStore.load(_chunks(file))
    except ValueError as error:
        raise Damaged(str(error)) from error
    _check_border(head, store)
    del store  # before the same is there again, as chunks
    file.seek(begin)
    return head, list(_chunks(file))


def load(path: Path) -> tuple[BackupHead, KeyValueStore]:
    """The same, and what the file holds as a store. Raises Damaged, OSError."""
    with path.open("rb") as file:
        head = _head(file)
        try:
            store = KeyValueStore.load(_chunks(file))
        except ValueError as error:
            raise Damaged(str(error)) from error
    _check_border(head, store)
    return head, store


def _check_border(head: BackupHead, store: KeyValueStore) -> None:
    """What a backup must be beyond what any snapshot must: a file from outside, made by `pieces`."""
    if (store.revision, len(store)) != (head.revision, head.items):
        raise Damaged("its head does not fit what it holds")
    if (fault := restored_fault(store.revision, store.leases.last_id)) is not None:
        raise Damaged(fault)
    beside = store.session != NONE or store.level or store.ended_sessions.view() or store.leases.generation
    if store.leases.owned:
        raise Damaged("it says whose its leases are, which no backup does")
    if beside or store.staging is not None:
        # The maker of such a file would know the key that signs the new cluster's sessions.
        raise Damaged("it holds a session key, ended sessions, a generation or a feature level, which no backup does")


async def parts(take: Take) -> AsyncIterator[BackupHead | Header | bytes]:
    """A file that comes in pieces: its head, what its first chunk says, and then each chunk of leases and of items.

    `take` gives as many bytes as are asked for, fewer at the file's end alone. A chunk at a time is in memory. What the
    chunks of leases and items hold is the reader's to check. That the file is whole is known when this has ended.
    Raises Damaged.
    """
    packed = await take(_HEAD.size)
    name_bytes = _name_bytes(packed)
    head = _checked_head(packed, await _all_of(take, name_bytes + _CRC.size))
    yield head
    header: Header | None = None
    crcs = count = outcomes = 0
    while True:
        length, crc = _CHUNK.unpack(await _all_of(take, _CHUNK.size))
        if length == 0:
            if crc != crcs or _COUNT.unpack(await _all_of(take, _COUNT.size))[0] != count:
                raise Damaged("its end does not check out")
            if await take(1):
                raise Damaged("something follows its end")
            if header is None or outcomes:
                raise Damaged("it ends too early")
            return
        if length > CHUNK_BYTES_MAX:
            raise Damaged(f"a chunk of {length} bytes is over the bound")
        chunk = await _all_of(take, length)
        if zlib.crc32(chunk) != crc:
            raise Damaged(f"the chunk number {count + 1} does not check out")
        crcs = zlib.crc32(_CRC.pack(crc), crcs)
        count += 1
        if header is None:
            yield (header := _checked_header(head, chunk))
            outcomes = header.outcome_count
        elif outcomes > 0:
            outcomes -= _outcomes(chunk)  # no more of them: the cluster keeps its own
            if outcomes < 0:
                raise Damaged("it holds more outcomes than it promises")
        else:
            yield chunk


def _checked_header(head: BackupHead, chunk: bytes) -> Header:
    try:
        header = read_header(unpack_chunk(chunk))
        Tokens.load(header.small.get("tokens", []))
    except ValueError as error:
        raise Damaged(str(error)) from None
    if (header.revision, header.item_count) != (head.revision, head.items):
        raise Damaged("its head does not fit what it holds")
    if (fault := restored_fault(header.revision, header.last_lease_id)) is not None:
        raise Damaged(fault)
    if header.outcome_count > OUTCOMES_YOUNG_MAX or header.lease_count > LEASES_MAX:
        raise Damaged(f"a backup holds {OUTCOMES_YOUNG_MAX} outcomes and {LEASES_MAX} leases at most")
    if not header.small.keys() <= {"tokens", "renewals"}:
        raise Damaged("it holds a session key, ended sessions, a generation or a feature level, which no backup does")
    return header


def _outcomes(chunk: bytes) -> int:
    """How many outcomes of idempotency keys a chunk holds. Damaged where they are not sound."""
    try:
        elements = unpack_chunk(chunk)
        return len(Outcomes.load(iter([elements]), len(elements)))
    except ValueError as error:
        raise Damaged(str(error)) from None


async def _all_of(take: Take, length: int) -> bytes:
    taken = await take(length)
    if len(taken) < length:
        raise Damaged("it ends too early")
    return taken


def _head(file: BinaryIO) -> BackupHead:
    packed = file.read(_HEAD.size)
    return _checked_head(packed, _take(file, _name_bytes(packed) + _CRC.size))


def _name_bytes(packed: bytes) -> int:
    """How long the cluster's id is that follows the fixed part of a head."""
    if packed[:4] != _MAGIC:
        raise Damaged("it does not start like a backup")
    if len(packed) < _HEAD.size:
        raise Damaged("it ends too early")
    _, version, _, _, name_bytes = _HEAD.unpack(packed)
    if version != _VERSION or name_bytes > CLUSTER_ID_BYTES_MAX:
        raise Damaged("it is not of a version that this kvnode reads")
    return int(name_bytes)


def _checked_head(packed: bytes, rest: bytes) -> BackupHead:
    _, _, revision, items, name_bytes = _HEAD.unpack(packed)
    name = rest[:name_bytes]
    if _CRC.unpack(rest[name_bytes:])[0] != zlib.crc32(packed + name):
        raise Damaged("its head does not check out")
    text = name.decode(errors="replace")  # shown to people: nothing in it may steer their terminal
    return BackupHead(revision, items, "".join(each if each.isprintable() else "\ufffd" for each in text))


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    crcs = count = 0
    while True:
        length, crc = _CHUNK.unpack(_take(file, _CHUNK.size))
        if length == 0:
            if crc != crcs or _COUNT.unpack(_take(file, _COUNT.size))[0] != count:
                raise Damaged("its end does not check out")
            if file.read(1):
                raise Damaged("something follows its end")
            return
        if length > CHUNK_BYTES_MAX:
            raise Damaged(f"a chunk of {length} bytes is over the bound")
        chunk = _take(file, length)
        if zlib.crc32(chunk) != crc:
            raise Damaged(f"the chunk before byte {file.tell()} does not check out")
        crcs = zlib.crc32(_CRC.pack(crc), crcs)
        count += 1
        yield chunk


def _take(file: BinaryIO, length: int) -> bytes:
    taken = file.read(length)
    if len(taken) < length:
        raise Damaged("it ends too early")
    return taken
