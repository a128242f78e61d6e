"""What all writes share: their Idempotency-Key, and the error for one that the state machine did not carry out."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from zlib import crc32

from aiohttp import web

from kvnode.errors import (
    BadRequest,
    IdempotencyKeyReused,
    LeaseNotFound,
    PreconditionFailed,
    TooLarge,
    TooManyLeases,
    TooManyRequests,
)
from kvnode.http.credentials import admission_of
from kvnode.http.group import Group
from kvnode.http.heads import IDEMPOTENCY_KEY
from kvnode.http.request import KnownRequest
from kvnode.http.rights import Rights, lease_outside, rights_of
from kvnode.net.proxies import client_network
from kvnode.state.commands import IdempotencyKey
from kvnode.state.limits import (
    IDEMPOTENCY_KEY_CHARS_MAX,
    REPEAT_WINDOW_S,
    SOURCE_MAX,
    TRANSACTION_READ_BYTES_MAX,
)
from kvnode.state.results import (
    IdempotencyMismatch,
    Invalid,
    LeaseForeign,
    LeaseMissing,
    LeasesFull,
    OutcomesFull,
    ReadsTooLarge,
    Refused,
    Result,
)

if TYPE_CHECKING:
    from kvnode.http.connection import Connection


def idempotency_key(request: web.BaseRequest, group: Group, batch: bool = False) -> IdempotencyKey:
    """What the request's Idempotency-Key is remembered by (`named`); None without one."""
    if type(request) is KnownRequest:
        key = request.key
        if key is None:
            return None
    elif IDEMPOTENCY_KEY in request.headers:
        keys = request.headers.getall(IDEMPOTENCY_KEY)
        if len(keys) > 1:
            raise BadRequest("The request has more than one Idempotency-Key; send one of them.")
        key = keys[0]
    else:
        return None
    return named(key, rights_of(request), source_of(request, group, batch))


def named(key: str, rights: Rights, source: int) -> IdempotencyKey:
    """What a key is remembered by: the key as it was sent, quotes included where there are any, or what a token with
    prefixes has in its place (`Rights.idempotency_key`); with whose write it is. Raises BadRequest for what is no key.
    """
    if not (1 <= len(key) <= IDEMPOTENCY_KEY_CHARS_MAX and key.isascii() and key.isprintable()):
        raise BadRequest(f"An Idempotency-Key is 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters.")
    if rights.owner:
        key = rights.idempotency_key(key)
    return (key, source) if source else key


def source_of(request: web.BaseRequest, group: Group, batch: bool = False) -> int:
    """Whose write it is, as a number, once every member knows of that: the token's, or the client's address. 0 before.

    The batches of a client count apart from its other writes, so that a bulk load does not stand in the way of a lock.
    """
    if group.store.level < 1:
        return 0
    admission = admission_of(request)
    connection = cast("Connection", request.protocol)
    who = client_network(connection.client(request)) if admission is None else f"token {admission.token.id}"
    return 1 + crc32((f"batch {who}" if batch else who).encode()) % SOURCE_MAX


def not_written(result: Result) -> Exception:
    """The error for a command that the state machine understood and did not carry out."""
    if isinstance(result, Refused):
        if result.mod_revision == 0:
            return PreconditionFailed("The key does not exist, and the request's condition needs it to.", None)
        return PreconditionFailed(
            "The key is at another revision than the request's condition asks for.", result.mod_revision
        )
    if isinstance(result, IdempotencyMismatch):
        # The IETF draft on this header has 422 here; this API says 400 for every request that cannot be right.
        return IdempotencyKeyReused(
            "This Idempotency-Key was sent before with another request, whose outcome stands; send a new one."
        )
    if isinstance(result, LeaseMissing):
        return LeaseNotFound("The lease does not exist, or not any more.")
    if isinstance(result, LeaseForeign):
        return lease_outside(result.lease)
    if isinstance(result, LeasesFull):
        return TooManyLeases("The cluster holds as many leases as it may; let some end, or share one among keys.")
    if isinstance(result, OutcomesFull):
        return TooManyRequests(
            f"This client has sent more writes with an Idempotency-Key in the last {REPEAT_WINDOW_S} s than the "
            "cluster can remember: send the request again in a moment, under the same key."
        )
    if isinstance(result, ReadsTooLarge):
        return reads_too_large()
    if isinstance(result, Invalid):
        return BadRequest(f"The cluster refused the write: {result.reason}.")
    raise TypeError(f"the state machine answered a write with {type(result).__name__}")


def reads_too_large() -> TooLarge:
    return TooLarge(f"The transaction reads more than {TRANSACTION_READ_BYTES_MAX} bytes of values; split it.")
