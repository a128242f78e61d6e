"""A transaction: compare, then one of two lists of operations, in one command and one revision. After etcd's txn.

    [TXN, [compare, ...], [operation, ...] if all hold, [operation, ...] otherwise, idempotency key?]
    compare    = [key, target, operator, operand]
    operation  = [PUT, key, value, content type, lease, ttl] | [DELETE, key] | [DELETE_PREFIX, prefix] | [GET, key]

All comparisons are made before anything changes. The operations of a branch are carried out in order, so a read sees
what the operations before it did. A key is written once in a branch at most: one revision has one value of a key.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import msgpack

from kvnode.state.changes import CHANGE_DELETE
from kvnode.state.commands import (
    DELETE,
    DELETE_PREFIX,
    EXPIRE,
    GRANT,
    PUT,
    RENEW,
    REVOKE,
    TXN,
    IdempotencyKey,
)
from kvnode.state.items import MARKS, value_bytes, value_slice
from kvnode.state.leases import Leases
from kvnode.state.limits import (
    KEY_BYTES_MAX,
    MSGPACK_INT_MAX,
    OPERATIONS_MAX,
    TRANSACTION_READ_BYTES_MAX,
    VALUE_BYTES_MAX,
    lease_fault,
    text_fault,
    value_fault,
)
from kvnode.state.results import (
    Deleted,
    Got,
    Granted,
    Invalid,
    LeaseMissing,
    LeasesFull,
    ReadsTooLarge,
    Refused,
    Result,
    Revoked,
    TxnResult,
    Written,
)

GET: Final = 9

VALUE: Final = 1
VERSION: Final = 2
CREATE_REVISION: Final = 3
MOD_REVISION: Final = 4
EXISTS: Final = 5

OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip


class Space(Protocol):
    """What a transaction needs of the store."""

    revision: int
    level: int
    leases: Leases

    def packed(self, key: str) -> bytes | None: ...
    def with_prefix(self, prefix: str) -> list[str]: ...
    def cannot_lease(self, wanted: list[list[Any]]) -> LeaseMissing | LeasesFull | Invalid | None: ...
    def write(
        self, key: str, value: bytes, content_type: str, revision: int, lease: int = 0, ttl_s: int = 0
    ) -> Written: ...
    def remove(self, keys: list[str], revision: int, kind: int) -> None: ...


Compare = tuple[str, int, str, bytes | int | bool]
Operation = tuple[Any, ...]

_FIELDS: Final = {PUT: 6, DELETE: 2, DELETE_PREFIX: 2, GET: 2}
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


@dataclass(frozen=True, slots=True)
class Txn:
    """At most OPERATIONS_MAX of each; the encoded whole must not exceed TRANSACTION_BYTES_MAX."""

    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...]
    idempotency_key: IdempotencyKey = None

    def encode(self) -> bytes:
        fields = (TXN, self.compare, self.success, self.failure)
        return bytes(_pack(fields if self.idempotency_key is None else (*fields, self.idempotency_key)))


def transaction_fault(command: list[Any]) -> str | None:
    """What is wrong with the inside of a decoded transaction, or None. Total."""
    compares, *branches = command[1:4]
    for part in (compares, *branches):
        if type(part) is not list or len(part) > OPERATIONS_MAX:
            return f"a transaction has up to {OPERATIONS_MAX} comparisons, and so many operations in each branch"
    for compare in compares:
        if fault := compare_fault(compare):
            return fault
    for branch in branches:
        for operation in branch:
            if fault := operation_fault(operation):
                return fault
        if fault := clash(branch):
            return fault
    return None


def compare_fault(compare: Any) -> str | None:
    if type(compare) is not list or len(compare) != 4:
        return "a comparison has a key, a target, an operator and an operand"
    key, target, sign, operand = compare
    if type(sign) is not str or sign not in OPERATORS:
        return "an operator is one of " + " ".join(OPERATORS)
    if target == VALUE:
        fits = type(operand) is bytes and len(operand) <= VALUE_BYTES_MAX
    elif target == EXISTS:
        fits = type(operand) is bool and sign in ("=", "!=")
    else:
        fits = (
            type(target) is int
            and VERSION <= target <= MOD_REVISION
            and type(operand) is int
            and 0 <= operand <= MSGPACK_INT_MAX
        )
    return text_fault("key", key, 1, KEY_BYTES_MAX) if fits else "a comparison has an operand that fits its target"


def operation_fault(operation: Any) -> str | None:
    if type(operation) is not list or not operation or type(operation[0]) is not int:
        return "unknown operation"
    kind = operation[0]
    if len(operation) != _FIELDS.get(kind):
        return "unknown operation"
    if kind == PUT:
        fault = value_fault(operation[2], operation[3]) or lease_fault(operation[4], operation[5])
        if fault is not None:
            return fault
    return text_fault("prefix" if kind == DELETE_PREFIX else "key", operation[1], 1, KEY_BYTES_MAX)


def clash(branch: Sequence[Sequence[Any]]) -> str | None:
    put = [operation[1] for operation in branch if operation[0] == PUT]
    deleted = {operation[1] for operation in branch if operation[0] == DELETE}
    prefixes = tuple(operation[1] for operation in branch if operation[0] == DELETE_PREFIX)
    if len(set(put)) < len(put) or not deleted.isdisjoint(put) or any(key.startswith(prefixes) for key in put):
        return "a branch of a transaction writes a key twice"
    return None


def holds(compare: list[Any], packed: bytes | None) -> bool:
    """Whether a comparison holds for the key's packed item. A key that is not there has the numbers 0, and no value:
    every comparison with its value fails, as in etcd."""
    _, target, sign, operand = compare
    if target == EXISTS:
        present: Any = packed is not None
    elif target == VALUE:
        if packed is None:
            return False
        # One byte more than the operand has decides every comparison, so that no more is copied than was sent.
        present = value_slice(packed, len(operand) + 1)
    elif packed is None:
        present = 0
    else:
        create_revision, mod_revision, version, _ = MARKS.unpack_from(packed)
        present = (version, create_revision, mod_revision)[target - VERSION]
    return OPERATORS[sign](present, operand)


def read_bytes(store: Space, branch: Sequence[Sequence[Any]]) -> int:
    """The total size of the values that a branch reads, its own writes included. Copies no value."""
    size = 0
    put: dict[str, int] = {}
    gone: list[str] = []
    gone_prefixes: tuple[str, ...] = ()
    for kind, key, *rest in branch:
        if kind == PUT:
            put[key] = len(rest[0])
        elif kind == DELETE:
            gone.append(key)
        elif kind == DELETE_PREFIX:
            gone_prefixes += (key,)
        elif key in put:
            size += put[key]
        elif key not in gone and not key.startswith(gone_prefixes):
            packed = store.packed(key)
            size += 0 if packed is None else value_bytes(packed)
    return size


def transact(store: Space, request: list[Any]) -> Result:
    """Carries out one that has no fault. What could refuse it is asked before anything changes."""
    _, compares, success, failure = request
    succeeded = all(holds(compare, store.packed(compare[0])) for compare in compares)
    branch = success if succeeded else failure
    refusal = store.cannot_lease([operation[4:] for operation in branch if operation[0] == PUT])
    if refusal is not None:
        return refusal
    # Nodes of 0.1.0 carry out what is refused here: it counts once the cluster has no such node.
    if store.level >= 1 and read_bytes(store, branch) > TRANSACTION_READ_BYTES_MAX:
        return ReadsTooLarge(store.revision)
    revision, changed = store.revision + 1, False
    results: list[Written | Deleted | Got] = []
    for kind, key, *rest in branch:
        if kind == GET:
            packed = store.packed(key)
            marks = (0, 0, 0) if packed is None else MARKS.unpack_from(packed)
            results.append(Got(marks[0], marks[1], marks[2], packed))
        elif kind == PUT:
            value, content_type, lease, ttl_s = rest
            results.append(store.write(key, value, content_type, revision, lease, ttl_s))
            changed = True
        else:
            keys = store.with_prefix(key) if kind == DELETE_PREFIX else [key] if store.packed(key) is not None else []
            store.remove(keys, revision, CHANGE_DELETE)
            changed = changed or bool(keys)
            results.append(Deleted(len(keys), revision if changed else store.revision))
    if changed:
        store.revision = revision
        store.leases.settle()
    return TxnResult(succeeded, store.revision, tuple(results))


_ANSWERS: Final[dict[int, tuple[type[Any], ...]]] = {
    PUT: (Written, Refused, LeaseMissing),
    DELETE: (Deleted, Refused),
    DELETE_PREFIX: (Deleted,),
    TXN: (TxnResult, LeaseMissing),
    GRANT: (Granted,),
    RENEW: (Granted, LeaseMissing),
    REVOKE: (Revoked, LeaseMissing),
    EXPIRE: (Deleted,),
}


def answers(request: list[Any], first: Result) -> bool:
    """Whether a remembered outcome can be that of the request; one that was read from a file may be any."""
    if not isinstance(first, _ANSWERS.get(request[0], ())):
        return False
    if type(first) is not TxnResult:
        return True
    branch = request[2 if first.succeeded else 3]
    return len(branch) == len(first.results) and all(
        type(result) is (Written if operation[0] == PUT else Got if operation[0] == GET else Deleted)
        for operation, result in zip(branch, first.results, strict=True)
    )


def read_again(store: Space, request: list[Any], first: TxnResult) -> TxnResult:
    """A transaction's first outcome, with the values that it read as far as they are still there.

    Those that add up to more than one may read now, which 0.1.0 had no bound for, count as gone.
    """
    results = list(first.results)
    size = 0
    for number, (result, operation) in enumerate(zip(results, request[2 if first.succeeded else 3], strict=True)):
        if type(result) is Got and result.version > 0:
            packed = store.packed(operation[1])
            if packed is not None and MARKS.unpack_from(packed)[1] == result.mod_revision:
                size += value_bytes(packed)
                if size <= TRANSACTION_READ_BYTES_MAX:
                    results[number] = replace(result, packed=packed)
    return replace(first, results=tuple(results))
