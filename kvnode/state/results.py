"""What the state machine answers to a command, and how an answer is kept for a retry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgpack

from kvnode.state.items import Item, unpacked
from kvnode.state.limits import LEASE_ID_MAX, MSGPACK_INT_MAX, OPERATIONS_MAX, counter_fault

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


class Written(NamedTuple):
    """A put was applied: the store's new revision, the key's version (1 for a new key), its lease (0: none).

    A tuple, unlike its siblings: each node makes one for each put, and a frozen dataclass takes four times as long.
    """

    revision: int
    version: int
    lease: int = 0

    @property
    def created(self) -> bool:
        return self.version == 1


@dataclass(frozen=True, slots=True)
class Deleted:
    """`deleted` keys went away at `revision`; 0 keys leave the revision as it was."""

    deleted: int
    revision: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The expectation did not hold; `mod_revision` is the key's present one, 0 where it does not exist."""

    revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Invalid:
    """The command is not one that this state machine knows; it changed nothing, on any node."""

    revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class KeyRotated:
    """The session key's number now; not `adopted` where another change came first."""

    number: int
    adopted: bool


@dataclass(frozen=True, slots=True)
class IdempotencyMismatch:
    """The idempotency key belongs to another request, whose outcome stands; this one changed nothing."""

    revision: int


@dataclass(frozen=True, slots=True)
class Got:
    """What a transaction read of one key: its marks, all 0 where it did not exist, and its item.

    The item is a reference to the bytes that the store keeps (`items.packed`), since every node that applies the
    transaction makes one of these and only the node that answers needs the value. In an outcome that is given again
    it is None where the key has changed since (`idempotency.py`).
    """

    create_revision: int
    mod_revision: int
    version: int
    packed: bytes | None

    @property
    def item(self) -> Item | None:
        """A copy of the value and its marks, made when it is asked for."""
        return None if self.packed is None else unpacked(self.packed)


@dataclass(frozen=True, slots=True)
class TxnResult:
    """A transaction was carried out: which branch ran, and what became of each of its operations, in order."""

    succeeded: bool
    revision: int
    results: tuple[Written | Deleted | Got, ...]


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease was granted or renewed."""

    lease: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Revoked:
    """A lease that had `ttl_s` was ended, and `deleted` keys with it; 0 keys leave the revision as it was."""

    lease: int
    ttl_s: int
    deleted: int
    revision: int


@dataclass(frozen=True, slots=True)
class LeaseMissing:
    """The lease is not there, or not any more; nothing was changed."""

    revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class LeasesFull:
    """There are as many leases as there may be; nothing was changed. Not kept: the same request may pass later."""

    revision: int


@dataclass(frozen=True, slots=True)
class OutcomesFull:
    """There is no room for another outcome beside the young ones; nothing was changed. Not kept, as above."""

    revision: int


@dataclass(frozen=True, slots=True)
class ReadsTooLarge:
    """The transaction would read more bytes than one may; nothing was changed. Not kept, as above."""

    revision: int


@dataclass(frozen=True, slots=True)
class RangeRead:
    """What a range held at `revision`: keys with the items that the store keeps, references and no copies; how many
    keys there are in it all, and whether a limit left some out. Of a count alone there are no items."""

    items: tuple[tuple[str, bytes], ...]
    count: int
    more: bool
    revision: int


@dataclass(frozen=True, slots=True)
class PutDone:
    """A put of etcd's was applied. `previous`: the item before it, where it was asked for and there was one."""

    revision: int
    version: int
    lease: int
    previous: bytes | None


@dataclass(frozen=True, slots=True)
class RangeDeleted:
    """`deleted` keys went away at `revision`; 0 keys leave the revision as it was. `previous`: where asked for."""

    deleted: int
    revision: int
    previous: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class PastRead:
    """In the place of a range of the past, read before the transaction was proposed (`etcd_requests.Past`).

    `revision` is the store's where the range stands in the transaction.
    """

    revision: int


@dataclass(frozen=True, slots=True)
class TxnDone:
    """A transaction of etcd's was carried out: which branch ran, and what became of each of its operations, in order.

    `revision` is the store's after it, of a nested one as far as the whole has come.
    """

    succeeded: bool
    revision: int
    results: tuple[RangeRead | PutDone | RangeDeleted | PastRead | TxnDone, ...]


@dataclass(frozen=True, slots=True)
class KeyMissing:
    """A put that keeps the key's value or lease found no key; nothing was changed."""

    revision: int


@dataclass(frozen=True, slots=True)
class FutureRevision:
    """A transaction reads at a revision that is still to come; nothing was changed."""

    revision: int


@dataclass(frozen=True, slots=True)
class LeaseExists:
    """The id that a client chose for its lease is in use; nothing was changed."""

    revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class TokenChanged:
    """An access token was made or revoked; the revision stays, since no key has changed."""

    revision: int
    token_id: str


@dataclass(frozen=True, slots=True)
class TokenMissing:
    """There is no such token, or not any more."""

    revision: int


@dataclass(frozen=True, slots=True)
class TokensFull:
    """There are as many tokens as there may be; nothing was changed."""

    revision: int


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The session has ended, by this or before; the revision stays, since no key has changed."""

    revision: int


@dataclass(frozen=True, slots=True)
class LevelRaised:
    """The cluster's feature level now; the revision stays, since no key has changed."""

    revision: int
    level: int


@dataclass(frozen=True, slots=True)
class ClockAdvanced:
    """The second that the replicated clock shows now; the revision stays, since no key has changed."""

    revision: int
    clock_s: int


@dataclass(frozen=True, slots=True)
class Replaced:
    """All contents gave way to those of a backup."""

    revision: int
    items: int


@dataclass(frozen=True, slots=True)
class Staged:
    """So many pieces of the backup are there, and the next one is that number; the revision stays until the end."""

    revision: int
    pieces: int


@dataclass(frozen=True, slots=True)
class RestoreMissing:
    """There is no restore of that id: it has ended, or another one has begun. Nothing was changed."""

    revision: int


@dataclass(frozen=True, slots=True)
class LeaseForeign:
    """The lease is another one's than the token's that named it; nothing was changed."""

    revision: int
    lease: int


Result = (
    Written | Deleted | Refused | Invalid | IdempotencyMismatch | TxnResult | Granted | Revoked | LeaseMissing
    | LeasesFull | ReadsTooLarge | TokenChanged | TokenMissing | TokensFull | KeyRotated | Replaced | LevelRaised
    | SessionEnded | Staged | RestoreMissing | OutcomesFull | ClockAdvanced
    | RangeDeleted | TxnDone | KeyMissing | FutureRevision | LeaseExists | LeaseForeign
)  # fmt: skip

# The results that a retry can be given again (`idempotency.py`), by their number in a snapshot.
_CONCLUDED: Final = 4
_REPEATABLE: Final[dict[int, type[Any]]] = {
    1: Written, 2: Deleted, 3: Refused, _CONCLUDED: TxnResult, 5: Granted, 6: Revoked, 7: LeaseMissing, 8: Got,
}  # fmt: skip
_LEASE_AT: Final = {1: 2, 5: 0, 6: 0, 7: 1}  # which of their fields is the id of a lease: a client may have chosen it
_IN_A_TRANSACTION: Final = (Written, Deleted, Got)


def encode_result(result: Result) -> bytes:
    """A result that is kept for a retry: `[number, field, ...]`; a transaction's are `[number, field, ...]` each."""
    if isinstance(result, TxnResult):
        return _pack((_CONCLUDED, result.succeeded, result.revision, [_fields(each) for each in result.results]))
    return _pack(_fields(result))


def _fields(result: Result | Got) -> tuple[int, ...]:
    if isinstance(result, Written):
        return (1, result.revision, result.version, *((result.lease,) if result.lease else ()))
    if isinstance(result, Deleted):
        return (2, result.deleted, result.revision)
    if isinstance(result, Refused):
        return (3, result.revision, result.mod_revision)
    if isinstance(result, Granted):
        return (5, result.lease, result.ttl_s)
    if isinstance(result, Revoked):
        return (6, result.lease, result.ttl_s, result.deleted, result.revision)
    if isinstance(result, LeaseMissing):
        return (7, result.revision, result.lease)
    if isinstance(result, Got):
        return (8, result.create_revision, result.mod_revision, result.version)
    raise TypeError(f"{type(result).__name__} is no outcome that is kept")


def decode_result(encoded: bytes, most: int = MSGPACK_INT_MAX) -> Result | None:
    """The inverse; None for bytes that `encode_result` does not write, or where a number is above `most`."""
    try:
        number, *fields = msgpack.unpackb(
            encoded, max_array_len=OPERATIONS_MAX, max_map_len=0, max_str_len=0, max_bin_len=0, max_ext_len=0
        )
        if number != _CONCLUDED:
            result = _result(number, fields, most)
            return None if isinstance(result, Got) else result
        succeeded, revision, parts = fields
        results = tuple(_result(*_head(part), most) for part in parts)
    except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException):
        return None
    if type(succeeded) is not bool or counter_fault("revision", revision, 0, most) is not None:
        return None
    return TxnResult(succeeded, revision, results) if all(isinstance(r, _IN_A_TRANSACTION) for r in results) else None


def _head(part: list[Any]) -> tuple[int, list[Any]]:
    number, *fields = part
    return number, fields


def _result(number: int, fields: list[Any], most: int) -> Any:
    """Raises ValueError, TypeError or KeyError for what is none."""
    lease_at = _LEASE_AT.get(number)
    for at, field in enumerate(fields):
        if type(field) is not int or not 0 <= field <= (LEASE_ID_MAX if at == lease_at else most):
            raise ValueError
    if number == _CONCLUDED:
        raise ValueError
    kind = _REPEATABLE[number]
    return kind(*fields, None) if kind is Got else kind(*fields)
