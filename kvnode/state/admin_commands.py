"""Commands on what stands beside single keys: leases, tokens, session keys, sessions, the level, whole backups.

Pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import msgpack

from kvnode.state.commands import (
    ADVANCE_CLOCK,
    END_SESSION,
    LEVEL,
    REPLACE,
    RESTORE_ABORT,
    RESTORE_BEGIN,
    RESTORE_PIECE,
    SESSION,
    TOKEN_CREATE,
    TOKEN_PUT,
    TOKEN_REVOKE,
)
from kvnode.state.leases import change_lease
from kvnode.state.limits import (
    CHUNK_BYTES_MAX,
    CONTENTS_BYTES_MAX,
    CONTENTS_CHUNKS_MAX,
    COUNTER_MAX,
    restored_fault,
)
from kvnode.state.results import (
    ClockAdvanced,
    Invalid,
    LevelRaised,
    Replaced,
    RestoreMissing,
    Result,
    Staged,
)
from kvnode.state.session_keys import change_session
from kvnode.state.staged_restore import Staging
from kvnode.state.view import unpack_chunk

if TYPE_CHECKING:
    from kvnode.state.store import KeyValueStore


INFLATED_BYTES: Final = 262_144  # of what a REPLACE brings, at a time


def change_beside(store: KeyValueStore, kind: int, request: list[Any]) -> Result:
    """Carries out a command without a fault."""
    if kind == REPLACE:
        return _replace(store, *request[1:])
    if kind == LEVEL:
        if not store.level and not store.revision:
            store.revision = 1  # as an empty store of etcd's has it, whose clients take 0 for no answer
        raised = LevelRaised(store.revision, max(store.level, request[1]))
        store.outcomes.begin_time()
        store.level = raised.level
        return raised
    if kind >= END_SESSION and store.level < 1:
        return Invalid(store.revision, "unknown command")  # as the members say that know no such command
    if kind == ADVANCE_CLOCK:
        advanced = ClockAdvanced(store.revision, max(store.outcomes.clock_s, request[1]))
        store.outcomes.advance(request[1])
        return advanced
    if RESTORE_BEGIN <= kind <= RESTORE_ABORT:
        return _change_staging(store, kind, request[1])
    if kind == END_SESSION:
        return store.ended_sessions.end(request[1], store.revision, store.tokens.may_name)
    if kind == TOKEN_PUT:
        return store.tokens.put(request[1][0], request[1][1], store.revision)
    if kind >= TOKEN_CREATE:
        changed = store.tokens.change(kind, request[1], store.revision, store.level)
        if kind == TOKEN_REVOKE:
            store.ended_sessions.forget(request[1])  # last: from here on nothing raises, so nothing is taken back
        return changed
    return change_session(store, request) if kind == SESSION else change_lease(store, kind, *request[1:])


def packed_contents(chunks: list[bytes]) -> bytes:
    """The argument of REPLACE: `StoreView.chunks`, compressed."""
    compress, packer = zlib.compressobj(), msgpack.Packer(use_bin_type=True)
    parts = [compress.compress(packer.pack_array_header(len(chunks)))]
    parts += (compress.compress(packer.pack(chunk)) for chunk in chunks)  # one by one: not all of it once more
    parts.append(compress.flush())
    return b"".join(parts)


def read_replacement(load: Callable[[Iterable[bytes]], KeyValueStore], packed: bytes) -> KeyValueStore | str:
    """What a REPLACE brings, as a store that `load` makes, or why it cannot be read. Pure, in any thread."""
    try:
        contents = load(_chunks(packed))
        if (fault := restored_fault(contents.revision, contents.leases.last_id)) is not None:
            raise ValueError(fault)
    except (ValueError, zlib.error, msgpack.exceptions.UnpackException) as error:
        return f"the backup cannot be read: {error}"
    return contents


def _replace(store: KeyValueStore, packed: bytes, leap: int = 0) -> Result:
    """A backup in one command, as it comes below feature level 1, where it has no leap."""
    if leap and store.level < 1:
        return Invalid(store.revision, "unknown command")  # as the members say that know no such field
    read, store.replacement = store.replacement, None
    ahead = read is not None and read[0] == packed
    contents = read[1] if read is not None and ahead else read_replacement(store.load, packed)
    if isinstance(contents, str):
        return Invalid(store.revision, contents)
    if store.level < 1 and contents.tokens.scoped:  # as the members say that cannot read such a token
        return Invalid(store.revision, "the backup cannot be read: it holds tokens of a later version")
    if contents.leases.shared and store.level < 1:  # as the members say that know no such leases
        return Invalid(store.revision, "the backup cannot be read: it has leases with ids that clients chose")
    replaced = _take_over(store, contents, contents.revision, leap)
    if isinstance(replaced, Invalid):
        return replaced
    if ahead:
        store.former = contents  # it has what was here now, which is not to be brought back by the same backup
    return replaced


def _take_over(store: KeyValueStore, contents: KeyValueStore, former: int, leap: int) -> Result:
    """All keys and leases give way to those of a backup of revision `former`, in one revision above both; by `leap`
    more than one.

    Tokens, sessions, their key, the feature level and what is remembered of idempotency keys stay: they belong to the
    cluster, not to the data, and a write that was carried out before must not be carried out again.
    """
    revision = max(store.revision, former) + leap + 1
    last_lease_id = max(store.leases.last_id, contents.leases.last_id) + leap
    if max(revision, last_lease_id) > COUNTER_MAX:
        return Invalid(store.revision, f"revisions and lease ids end at {COUNTER_MAX}")
    replaced = Replaced(revision, len(contents))
    store.replace(contents, revision, last_lease_id)
    return replaced


def _change_staging(store: KeyValueStore, kind: int, argument: list[Any]) -> Result:
    """Carries out a step of a restore (`staged_restore.py`) that has no fault."""
    staging = store.staging
    if kind == RESTORE_BEGIN:
        if staging is None or staging.id != argument[0]:  # otherwise it has begun, and is asked for again
            staging = Staging(*argument)
            store.stage(staging)
        return Staged(store.revision, staging.pieces)
    if staging is None or staging.id != argument[0]:
        return RestoreMissing(store.revision)
    if kind == RESTORE_ABORT:
        store.stage(None)
        return Staged(store.revision, 0)
    if kind == RESTORE_PIECE:
        if argument[1] == staging.pieces:  # otherwise it is there already, or one before it is not
            try:
                staging.feed(unpack_chunk(argument[2]))
            except ValueError as error:
                return Invalid(store.revision, f"the backup cannot be read: {error}")
        return Staged(store.revision, staging.pieces)
    contents = store.staged()
    if argument[1] != staging.pieces or not staging.whole or contents is None:
        return Invalid(store.revision, "the backup is not whole")
    replaced = _take_over(store, contents, staging.revision, argument[2])
    if isinstance(replaced, Invalid):
        return replaced
    store.staging, store.former = None, contents  # `contents` holds the old state now, until a worker releases it
    return replaced


def _chunks(packed: bytes) -> Iterator[bytes]:
    """The inverse of `packed_contents`, one by one. Nothing but bytes is decoded: nested lists could take a hundred
    times the memory of what they are read from. Raises ValueError, zlib.error or UnpackException."""
    inflate = _Inflate(packed)
    unpacker = msgpack.Unpacker(
        inflate, read_size=INFLATED_BYTES, max_array_len=0, max_map_len=0, max_str_len=0, max_ext_len=0,
        max_bin_len=CHUNK_BYTES_MAX, max_buffer_size=CONTENTS_BYTES_MAX,
    )  # fmt: skip
    count = unpacker.read_array_header()
    if count > CONTENTS_CHUNKS_MAX:
        raise ValueError("it holds too many chunks")
    for _ in range(count):
        chunk = unpacker.unpack()
        if type(chunk) is not bytes:
            raise ValueError("it holds something else than chunks")
        yield chunk
    inflate.read(INFLATED_BYTES)  # sees the end, where it comes with nothing
    if unpacker.tell() != inflate.bytes or not inflate.whole:
        raise ValueError("what it holds is not whole, or too much, or something follows its end")


class _Inflate:
    """What was compressed, as a file, up to CONTENTS_BYTES_MAX: a restore is in memory often enough without it."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._inflate = zlib.decompressobj()
        self.bytes = 0  # so many were read

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end. Raises zlib.error."""
        size = min(size, CONTENTS_BYTES_MAX - self.bytes)
        if not size or self._inflate.eof:
            return b""
        piece = self._inflate.decompress(self._packed, size)
        self._packed = self._inflate.unconsumed_tail
        self.bytes += len(piece)
        return piece

    @property
    def whole(self) -> bool:
        """The end has been seen, and nothing is behind it."""
        return self._inflate.eof and not self._inflate.unused_data
