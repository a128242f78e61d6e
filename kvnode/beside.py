"""Commands on what stands beside single keys: leases, tokens, the session key, the feature level, all contents at once.

Pure.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import msgpack

from kvnode.commands import LEVEL, REPLACE, SESSION, TOKEN_CREATE
from kvnode.leases import change_lease
from kvnode.limits import CONTENTS_BYTES_MAX
from kvnode.results import Invalid, LevelRaised, Replaced, Result
from kvnode.session import change_session

if TYPE_CHECKING:
    from kvnode.store import KeyValueStore


def change_beside(store: KeyValueStore, kind: int, request: list[Any]) -> Result:
    """Carries out a command without a fault."""
    if kind == REPLACE:
        return _replace(store, request[1])
    if kind == LEVEL:
        store.level = max(store.level, request[1])
        return LevelRaised(store.revision, store.level)
    if kind >= TOKEN_CREATE:
        return store.tokens.change(kind, request[1], store.revision)
    return change_session(store, request) if kind == SESSION else change_lease(store, kind, request[1])


def packed_contents(chunks: list[bytes]) -> bytes:
    """The argument of REPLACE: `StoreView.chunks`, compressed."""
    return zlib.compress(msgpack.packb(chunks, use_bin_type=True))


def _replace(store: KeyValueStore, packed: bytes) -> Result:
    """All keys and leases give way to those of a backup, in one revision above both.

    Tokens, the session key, the feature level and what is remembered of idempotency keys stay: they belong to the
    cluster, not to the data, and a write that was carried out before must not be carried out again.
    """
    try:
        inflate = zlib.decompressobj()
        chunks = msgpack.unpackb(inflate.decompress(packed, CONTENTS_BYTES_MAX), max_ext_len=0)
        if not inflate.eof or type(chunks) is not list or any(type(chunk) is not bytes for chunk in chunks):
            raise ValueError("what it holds is not whole, or too much")
        contents = store.load(chunks)
    except (ValueError, zlib.error, struct.error, msgpack.exceptions.UnpackException) as error:
        return Invalid(store.revision, f"the backup cannot be read: {error}")
    store.replace(contents, max(store.revision, contents.revision) + 1)
    return Replaced(store.revision, len(store))
