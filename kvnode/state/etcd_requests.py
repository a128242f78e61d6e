"""etcd's requests on keys: ranges, puts, deletions of ranges, and transactions of these that nest; as commands. Pure.

    [ETCD_TXN, [compare, ...], [operation, ...] if all hold, [operation, ...] otherwise]
    [ETCD_DELETE, [start, end, previous?]]
    compare    = [start, end, target, sign, operand]
    operation  = [RANGE, start, end, limit, sort by, sort, flags, least and most mod, least and most create revision]
               | [PUT, key, value, lease, flags] | [DELETE, start, end, previous?] | [TXN, compares, success, failure]
               | [PAST, revision]

Zeros at the end of an operation are left out. `start` and `end` are a span's (`spans.py`). Numbers of targets, signs
and sorts are etcd's. From feature level 1 on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgpack

from kvnode.state.commands import ETCD_DELETE, ETCD_TXN, encode_put
from kvnode.state.limits import (
    INT64_MAX,
    KEY_BYTES_MAX,
    LEASE_ID_MAX,
    NESTING_MAX,
    OPERATIONS_MAX,
    OPERATIONS_NESTED_MAX,
    VALUE_BYTES_MAX,
    deletion_fault,
    span_fault,
    text_fault,
)
from kvnode.state.spans import Span

# etcd's numbers.
KEY: Final = 0  # what a range is sorted by
VERSION: Final = 1
CREATE: Final = 2
MOD: Final = 3
VALUE: Final = 4
UNSORTED: Final = 0
ASCEND: Final = 1
DESCEND: Final = 2
COMPARE_VERSION: Final = 0  # what is compared
COMPARE_CREATE: Final = 1
COMPARE_MOD: Final = 2
COMPARE_VALUE: Final = 3
COMPARE_LEASE: Final = 4
EQUAL: Final = 0  # how
GREATER: Final = 1
LESS: Final = 2
NOT_EQUAL: Final = 3

# Operations in a command.
RANGE: Final = 0
PUT: Final = 1
DELETE: Final = 2
TXN: Final = 3
PAST: Final = 4
KEYS_ONLY: Final = 1  # flags of a range
COUNT_ONLY: Final = 2
PREVIOUS: Final = 1  # flags of a put
KEEP_VALUE: Final = 2
KEEP_LEASE: Final = 4

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


# --- what is asked ---------------------------------------------------------------------------------


class Compare(NamedTuple):
    """That a field of each key of a span stands to the operand as `sign` says; of a span without keys, that 0 does.

    The operand is bytes for a value, else an int of 64 bits with a sign.
    """

    span: Span
    target: int
    sign: int
    operand: bytes | int

    @property
    def packed(self) -> list[Any]:
        return [*self.span, self.target, self.sign, self.operand]


class Range(NamedTuple):
    """The keys of a span, `limit` of them (0: all) behind order and filters. A filter of 0 is none."""

    span: Span
    limit: int = 0
    sort_by: int = KEY
    sort: int = UNSORTED
    keys_only: bool = False
    count_only: bool = False
    min_mod: int = 0
    max_mod: int = 0
    min_create: int = 0
    max_create: int = 0

    @property
    def packed(self) -> list[Any]:
        flags = KEYS_ONLY * self.keys_only | COUNT_ONLY * self.count_only
        filters = (self.min_mod, self.max_mod, self.min_create, self.max_create)
        return _short([RANGE, *self.span, self.limit, self.sort_by, self.sort, flags, *filters], 3)


class Past(NamedTuple):
    """In the place of a range at a past revision. It is read by the node that was asked, before the transaction is
    proposed, as nodes know different stretches of the past; what has passed does not change any more."""

    revision: int

    @property
    def packed(self) -> list[Any]:
        return [PAST, self.revision]


class Put(NamedTuple):
    """`ignore_value` and `ignore_lease` keep what the key has, and need it to be there. Otherwise it has `lease` from
    now on, 0: none."""

    key: str
    value: bytes
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False

    @property
    def packed(self) -> list[Any]:
        flags = PREVIOUS * self.prev_kv | KEEP_VALUE * self.ignore_value | KEEP_LEASE * self.ignore_lease
        return _short([PUT, self.key, self.value, self.lease, flags], 3)

    def encode(self) -> bytes:
        """A plain PUT where that does the same, which is answered with Written; else a transaction, with TxnDone."""
        if self.prev_kv or self.ignore_value or self.ignore_lease:
            return Txn((), (self,), ()).encode()
        return encode_put(self.key, self.value, "", None, None, self.lease, 0)


class DeleteRange(NamedTuple):
    """The keys of a span go away."""

    span: Span
    prev_kv: bool = False

    @property
    def packed(self) -> list[Any]:
        return _short([DELETE, *self.span, int(self.prev_kv)], 3)

    def encode(self) -> bytes:
        """A command of its own, which a node with a full disk still takes; answered with RangeDeleted."""
        return bytes(_pack((ETCD_DELETE, (*self.span, int(self.prev_kv)))))


class Txn(NamedTuple):
    """At most OPERATIONS_MAX of each on every path into its depth, OPERATIONS_NESTED_MAX and TRANSACTION_BYTES_MAX in
    all. `fault` says what is wrong with one."""

    compares: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...]

    @property
    def packed(self) -> list[Any]:
        branches = ([operation.packed for operation in branch] for branch in (self.success, self.failure))
        return [TXN, [compare.packed for compare in self.compares], *branches]

    def encode(self) -> bytes:
        return encode_packed(self.packed)

    def spans(self) -> Iterator[Span]:
        """All that it compares, reads, writes and deletes, whichever branch it is in."""
        for compare in self.compares:
            yield compare.span
        for each in (*self.success, *self.failure):
            if isinstance(each, Txn):
                yield from each.spans()
            elif isinstance(each, Put):
                yield Span(each.key)
            elif not isinstance(each, Past):
                yield each.span

    @property
    def writes(self) -> bool:
        """Whether it may change anything. One that does not need not be proposed: `evaluate`."""
        return any(
            each.writes if isinstance(each, Txn) else isinstance(each, Put | DeleteRange)
            for each in (*self.success, *self.failure)
        )


Operation = Range | Past | Put | DeleteRange | Txn


def encode_packed(packed: list[Any]) -> bytes:
    """The command of a `Txn.packed`."""
    return bytes(_pack((ETCD_TXN, *packed[1:])))


def _short(fields: list[Any], least: int) -> list[Any]:
    while len(fields) > least and fields[-1] == 0 and type(fields[-1]) is not bytes:
        fields.pop()
    return fields


# --- what a decoded one must look like -------------------------------------------------------------

TOO_MANY: Final = f"a transaction has up to {OPERATIONS_MAX} comparisons, and so many operations in each branch"
TOO_DEEP: Final = (
    f"transactions nest up to {NESTING_MAX} deep, with up to {OPERATIONS_NESTED_MAX} comparisons and operations in all"
)
DUPLICATE: Final = "a transaction puts a key twice, or puts and deletes it"
_LENGTHS: Final = {RANGE: (3, 11), PUT: (3, 5), DELETE: (3, 4), TXN: (4, 4), PAST: (2, 2)}


def transaction_fault(command: list[Any]) -> str | None:
    """What is wrong with the inside of a decoded ETCD_TXN, or of a `Txn.packed`: TOO_MANY, TOO_DEEP, DUPLICATE or a
    clause; None where it can be carried out. Total.
    """
    found = _Faults()
    wrong = found.transaction(command, OPERATIONS_MAX, 1)
    return found.clash(command)[2] if wrong is None and found.may_clash else wrong


class _Faults:
    """One look at a transaction: how much there is of it in all."""

    def __init__(self) -> None:
        self.left = OPERATIONS_NESTED_MAX
        self.may_clash = False  # a branch has two operations

    def transaction(self, txn: list[Any], most: int, depth: int) -> str | None:
        """As etcd counts: what this one has of its most numerous list is not left for those within it."""
        parts = txn[1:4]
        if not all(type(part) is list for part in parts):
            return "a transaction has three lists"
        widest = max(map(len, parts))
        if widest > most:
            return TOO_MANY
        self.left -= sum(map(len, parts))
        if depth > NESTING_MAX or self.left < 0:
            return TOO_DEEP
        compares, *branches = parts
        for compare in compares:
            if (wrong := compare_fault(compare)) is not None:
                return wrong
        for branch in branches:
            self.may_clash |= len(branch) > 1
            for operation in branch:
                wrong = operation_fault(operation)
                if wrong is None and operation[0] == TXN:
                    wrong = self.transaction(operation, most - widest, depth + 1)
                if wrong is not None:
                    return wrong
        return None

    def clash(self, txn: list[Any]) -> tuple[set[str], list[tuple[str, str | None]], str | None]:
        """The keys that a transaction may put, the spans that it may delete, and DUPLICATE where one revision could
        have two of these for a key. Its two branches never run both."""
        puts: set[str] = set()
        deletes: list[tuple[str, str | None]] = []
        for branch in txn[2:4]:
            written, deleted, wrong = self._branch(branch)
            if wrong is not None:
                return puts, deletes, wrong
            puts |= written
            deletes += deleted
        return puts, deletes, None

    def _branch(self, branch: list[Any]) -> tuple[set[str], list[tuple[str, str | None]], str | None]:
        owners: dict[str, int] = {}  # key -> which operation of the branch puts it
        deletes: list[tuple[int, tuple[str, str | None]]] = []
        for number, operation in enumerate(branch):
            kind = operation[0]
            if kind == TXN:
                written, deleted, wrong = self.clash(operation)
            else:
                written = {operation[1]} if kind == PUT else set()
                deleted, wrong = [(operation[1], operation[2])] if kind == DELETE else [], None
            if wrong is not None or not owners.keys().isdisjoint(written):
                return set(), [], DUPLICATE
            owners |= dict.fromkeys(written, number)
            deletes += [(number, each) for each in deleted]
        wrong = DUPLICATE if deletes and owners and _meet(owners, deletes) else None
        return set(owners), [each for _, each in deletes], wrong


def _meet(owners: dict[str, int], deletes: list[tuple[int, tuple[str, str | None]]]) -> bool:
    """Whether an operation deletes what another one puts. O(n log n), as thousands of either may be sent."""
    keys = sorted(owners)
    other = [len(keys)] * (len(keys) + 1)  # the next place where another operation than that of this key puts one
    for at in range(len(keys) - 2, -1, -1):
        other[at] = at + 1 if owners[keys[at]] != owners[keys[at + 1]] else other[at + 1]
    for owner, (start, end) in deletes:
        if end is None:
            if owners.get(start, owner) != owner:
                return True
            continue
        first, behind = bisect_left(keys, start), bisect_left(keys, end) if end else len(keys)
        if first < behind and (owners[keys[first]] != owner or other[first] < behind):
            return True
    return False


def compare_fault(compare: Any) -> str | None:
    if type(compare) is not list or len(compare) != 5:
        return "a comparison has a start, an end, a target, a sign and an operand"
    start, end, target, sign, operand = compare
    if type(target) is not int or type(sign) is not int:
        return "a comparison has a number for its target and its sign"
    if not (COMPARE_VERSION <= target <= COMPARE_LEASE and EQUAL <= sign <= NOT_EQUAL):
        return "a comparison has a target from 0 to 4 and a sign from 0 to 3"
    is_value = type(operand) is bytes and len(operand) <= VALUE_BYTES_MAX
    if not (is_value if target == COMPARE_VALUE else _is_int64(operand)):
        return "a comparison has an operand that fits its target"
    return span_fault(start, end)


def operation_fault(operation: Any) -> str | None:
    """Of a nested transaction, its outside alone."""
    if type(operation) is not list or not operation or type(operation[0]) is not int or operation[0] not in _LENGTHS:
        return "unknown operation"
    kind, *fields = operation
    least, most = _LENGTHS[kind]
    if not least <= len(operation) <= most:
        return "unknown operation"
    if kind == RANGE:
        if not all(map(_is_int64, fields[2:])):
            return "a range has whole numbers behind its bounds"
        _, sort_by, sort, flags, *_ = (*fields[2:], 0, 0, 0, 0)
        if not (KEY <= sort_by <= VALUE and UNSORTED <= sort <= DESCEND and 0 <= flags <= KEYS_ONLY | COUNT_ONLY):
            return "a range has an order and flags that there are"
        return span_fault(fields[0], fields[1])
    if kind == PUT:
        key, value, lease, flags = (*fields, 0, 0)[:4]
        if type(value) is not bytes or len(value) > VALUE_BYTES_MAX:
            return f"a value is 0 to {VALUE_BYTES_MAX} bytes"
        if type(lease) is not int or not 0 <= lease <= LEASE_ID_MAX or type(flags) is not int or not 0 <= flags <= 7:
            return "a put has a lease and flags"
        if (value and flags & KEEP_VALUE) or (lease and flags & KEEP_LEASE):
            return "a put that keeps the value or the lease brings none"
        return text_fault("key", key, 1, KEY_BYTES_MAX)
    if kind == DELETE:
        return deletion_fault([*fields, 0][:3])
    if kind == PAST and not (_is_int64(fields[0]) and fields[0] > 0):
        return "a revision of the past is a whole number above 0"
    return None


def _is_int64(number: Any) -> bool:
    return type(number) is int and -INT64_MAX - 1 <= number <= INT64_MAX
