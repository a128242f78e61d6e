"""etcd's requests on keys (`etcd_requests.py`), carried out on the store. Pure.

What etcd promises of a transaction: all comparisons, nested ones too, are made before its first operation, and decide
which operations will run; what could refuse one of these is asked next; then they run in order, see each other, and
share one revision. A key is put once, in whatever depth, and not put and deleted. (etcd: `server/etcdserver/apply.go`
of 3.5, `checkIntervals` in `api/v3rpc/key.go`.)

Unlike etcd's a transaction has a bound on what it reads. It is met in the middle, so what was changed until then is
taken back (`OverBudget`): to look at everything twice would cost each transaction that keeps within the bound.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvnode.state.changes import CHANGE_DELETE
from kvnode.state.etcd_requests import (
    COMPARE_LEASE,
    COMPARE_VALUE,
    COUNT_ONLY,
    CREATE,
    DELETE,
    DESCEND,
    KEEP_LEASE,
    KEEP_VALUE,
    KEY,
    KEYS_ONLY,
    MOD,
    PAST,
    PREVIOUS,
    PUT,
    RANGE,
    TXN,
    UNSORTED,
    VALUE,
    VERSION,
    Range,
)
from kvnode.state.items import MARKS, content_of, lease_of, unpacked, value_bytes, value_slice
from kvnode.state.limits import TRANSACTION_READ_BYTES_MAX, VISIT_BYTES
from kvnode.state.results import (
    FutureRevision,
    KeyMissing,
    LeaseMissing,
    PastRead,
    PutDone,
    RangeDeleted,
    RangeRead,
    ReadsTooLarge,
    TxnDone,
)
from kvnode.state.spans import signed

if TYPE_CHECKING:
    from kvnode.state.store import KeyValueStore

# How a present field may stand to an operand, by etcd's numbers.
SIGNS: Final[tuple[Callable[[Any, Any], bool], ...]] = (operator.eq, operator.gt, operator.lt, operator.ne)

# --- reading ---------------------------------------------------------------------------------------


class OverBudget(Exception):
    """A request reads more than one may."""


class ReadBudget:
    """What one request may still read: keys and values, and VISIT_BYTES for each key that it looks at."""

    __slots__ = ("left",)

    def __init__(self, left: int = TRANSACTION_READ_BYTES_MAX) -> None:
        self.left = left

    def take(self, size: int) -> None:
        """Raises OverBudget."""
        self.left -= size
        if self.left < 0:
            raise OverBudget


class Order(NamedTuple):
    """What a range asks for beside its span."""

    limit: int = 0
    sort_by: int = KEY
    sort: int = UNSORTED
    flags: int = 0
    min_mod: int = 0
    max_mod: int = 0
    min_create: int = 0
    max_create: int = 0

    @property
    def filters(self) -> bool:
        return bool(self.min_mod or self.max_mod or self.min_create or self.max_create)

    def admits(self, packed: bytes) -> bool:
        """Whether the filters let a packed item through."""
        create, mod, _, _ = MARKS.unpack_from(packed)
        return (
            self.min_mod <= mod
            and self.min_create <= create
            and (not self.max_mod or mod <= self.max_mod)
            and (not self.max_create or create <= self.max_create)
        )


_SORT_KEYS: Final[dict[int, Callable[[tuple[str, bytes]], Any]]] = {
    VERSION: lambda entry: MARKS.unpack_from(entry[1])[2],
    CREATE: lambda entry: MARKS.unpack_from(entry[1])[0],
    MOD: lambda entry: MARKS.unpack_from(entry[1])[1],
    VALUE: lambda entry: content_of(entry[1])[1].tobytes(),
}


def read_range(store: KeyValueStore, request: Range, budget: ReadBudget | None = None) -> RangeRead:
    """What a range holds now. Raises OverBudget where it reads more than `budget` (None: any amount)."""
    _, start, end, *order = request.packed
    return _read(store, start, end, Order(*order), budget or ReadBudget(1 << 62), store.revision)


def _read(
    store: KeyValueStore, start: str, end: str | None, order: Order, budget: ReadBudget, revision: int
) -> RangeRead:
    if end is None:
        packed = store.packed(start)
        if packed is None:
            return RangeRead((), 0, False, revision)
        count, source = 1, iter(((start, packed),))
    else:
        count = store.count(start, end or None)
        descending = order.sort == DESCEND and order.sort_by == KEY
        source = store.walk_packed(start, end or None, reverse=descending) if count else iter(())
    if order.flags & COUNT_ONLY:
        return RangeRead((), count, False, revision)
    return select(source, count, order, budget, revision)


def select(
    source: Iterable[tuple[str, bytes]], count: int, order: Order, budget: ReadBudget, revision: int
) -> RangeRead:
    """Filters, order and limit over items that come by key; downwards, where that is the order that is wanted."""
    entries = iter(source)
    if order.filters:
        entries = filter(lambda entry: order.admits(entry[1]), _visited(entries, budget))
    elif order.sort_by != KEY:
        entries = _visited(entries, budget)
    if order.sort_by != KEY:
        if order.sort_by == VALUE:
            entries = _valued(entries, budget)
        entries = iter(sorted(entries, key=_SORT_KEYS[order.sort_by], reverse=order.sort == DESCEND))
    limit = max(0, order.limit)
    keys_only = order.flags & KEYS_ONLY
    items: list[tuple[str, bytes]] = []
    for entry in islice(entries, limit) if limit else entries:
        budget.take(VISIT_BYTES + len(entry[0]) + (0 if keys_only else value_bytes(entry[1])))
        items.append(entry)
    more = bool(limit) and next(entries, None) is not None
    return RangeRead(tuple(items), count, more, revision)


def _visited(entries: Iterator[tuple[str, bytes]], budget: ReadBudget) -> Iterator[tuple[str, bytes]]:
    for entry in entries:
        budget.take(VISIT_BYTES)
        yield entry


def _valued(entries: Iterator[tuple[str, bytes]], budget: ReadBudget) -> Iterator[tuple[str, bytes]]:
    """To sort by values copies them all."""
    for entry in entries:
        budget.take(value_bytes(entry[1]))
        yield entry


# --- carrying out ----------------------------------------------------------------------------------


def evaluate(store: KeyValueStore, packed: Sequence[Any]) -> TxnDone | FutureRevision | ReadsTooLarge:
    """The answer to a `Txn.packed` that writes nothing, from the store as it is now."""
    try:
        done = transact_etcd(store, packed)
    except OverBudget:
        return ReadsTooLarge(store.revision)
    assert isinstance(done, TxnDone | FutureRevision)  # only puts are refused otherwise
    return done


def delete_range(store: KeyValueStore, fields: list[Any]) -> RangeDeleted:
    """Carries out an ETCD_DELETE. Raises OverBudget."""
    run = _Run(store)
    deleted = run.delete(*fields)
    run.settle()
    return deleted


def transact_etcd(store: KeyValueStore, request: Sequence[Any]) -> TxnDone | LeaseMissing | KeyMissing | FutureRevision:
    """Carries out an ETCD_TXN that has no fault. Raises OverBudget, with a part of it done."""
    run = _Run(store)
    chosen = run.judge(request)
    if (refusal := run.put_refusal(chosen) or run.past_refusal(chosen)) is not None:
        return refusal
    done = run.carry_out(chosen)
    run.settle()
    return done


class _Chosen(NamedTuple):
    """A transaction whose comparisons were made: the operations that will run, the nested ones chosen as well."""

    succeeded: bool
    operations: list[list[Any] | _Chosen]


class _Run:
    """One request on its way through the store."""

    __slots__ = ("_budget", "_changed", "_next", "_store")

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._budget = ReadBudget()
        self._changed = False
        self._next = store.revision + 1

    @property
    def _revision(self) -> int:
        """The store's, as far as the request has come."""
        return self._next if self._changed else self._next - 1

    def settle(self) -> None:
        if self._changed:
            self._store.revision = self._next
            self._store.leases.settle()

    # --- before anything changes -------------------------------------------------------------------

    def judge(self, request: Sequence[Any]) -> _Chosen:
        """Makes all comparisons that decide what will run."""
        _, compares, success, failure = request
        succeeded = all(map(self._holds, compares))
        branch = success if succeeded else failure
        return _Chosen(succeeded, [self.judge(each) if each[0] == TXN else each for each in branch])

    def _holds(self, compare: Sequence[Any]) -> bool:
        start, end, target, sign, operand = compare
        if end is None:
            packed = self._store.packed(start)
            return _compares(packed, target, sign, operand)
        empty = True
        for _, packed in self._store.walk_packed(start, end or None):
            self._budget.take(VISIT_BYTES)
            empty = False
            if not _compares(packed, target, sign, operand):
                return False
        return not empty or _compares(None, target, sign, operand)

    def put_refusal(self, chosen: _Chosen) -> LeaseMissing | KeyMissing | None:
        """Why one of the puts that will run cannot be."""
        store = self._store
        for each in chosen.operations:
            refusal: LeaseMissing | KeyMissing | None = None
            if isinstance(each, _Chosen):
                refusal = self.put_refusal(each)
            elif each[0] == PUT:
                key, _, lease, flags = (*each[1:], 0, 0)[:4]
                if flags & (KEEP_VALUE | KEEP_LEASE) and store.packed(key) is None:
                    refusal = KeyMissing(store.revision)
                elif lease and lease not in store.leases:
                    refusal = LeaseMissing(store.revision, lease)
            if refusal is not None:
                return refusal
        return None

    def past_refusal(self, chosen: _Chosen) -> FutureRevision | None:
        """Whether one of the reads that will run is not of the past."""
        revision = self._store.revision
        for each in chosen.operations:
            if isinstance(each, _Chosen):
                if (refusal := self.past_refusal(each)) is not None:
                    return refusal
            elif each[0] == PAST and each[1] > revision:
                return FutureRevision(revision)
        return None

    # --- in order ------------------------------------------------------------------------------------

    def carry_out(self, chosen: _Chosen) -> TxnDone:
        results: list[RangeRead | PutDone | RangeDeleted | PastRead | TxnDone] = []
        for each in chosen.operations:
            if isinstance(each, _Chosen):
                results.append(self.carry_out(each))
                continue
            kind, *fields = each
            if kind == RANGE:
                start, end, *order = fields
                results.append(_read(self._store, start, end, Order(*order), self._budget, self._revision))
            elif kind == PUT:
                results.append(self._put(*fields))
            elif kind == DELETE:
                results.append(self.delete(*fields))
            else:
                results.append(PastRead(self._revision))
        return TxnDone(chosen.succeeded, self._revision, tuple(results))

    def _put(self, key: str, value: bytes, lease: int = 0, flags: int = 0) -> PutDone:
        store, content_type = self._store, ""
        previous = store.packed(key) if flags else None
        if previous is not None:
            if flags & PREVIOUS:
                self._budget.take(VISIT_BYTES + value_bytes(previous))
            if flags & KEEP_VALUE:
                value, content_type, *_ = unpacked(previous)
            if flags & KEEP_LEASE:
                lease = lease_of(previous)
        written = store.write(key, value, content_type, self._next, lease)
        self._changed = True
        return PutDone(self._next, written.version, lease, previous if flags & PREVIOUS else None)

    def delete(self, start: str, end: str | None, previous: int = 0) -> RangeDeleted:
        store = self._store
        if end is None:
            keys = [start] if store.packed(start) is not None else []
        else:
            keys = store.between(start, end or None)
        gone: list[tuple[str, bytes]] = []
        if previous:
            for key in keys:
                packed = store.packed(key)
                assert packed is not None  # one of the store's own keys
                self._budget.take(VISIT_BYTES + len(key) + value_bytes(packed))
                gone.append((key, packed))
        if keys:
            store.remove(keys, self._next, CHANGE_DELETE)
            self._changed = True
        return RangeDeleted(len(keys), self._revision, tuple(gone))


def _compares(packed: bytes | None, target: int, sign: int, operand: Any) -> bool:
    """Whether a comparison holds for a packed item, None: for a key that is not there, which has 0 and no value."""
    if target == COMPARE_VALUE:
        # One byte more than the operand has decides every comparison, so that no more is copied than was sent.
        return packed is not None and SIGNS[sign](value_slice(packed, len(operand) + 1), operand)
    if packed is None:
        present = 0
    elif target == COMPARE_LEASE:
        present = signed(lease_of(packed))
    else:
        create, mod, version, _ = MARKS.unpack_from(packed)
        present = (version, create, mod)[target]
    return SIGNS[sign](present, operand)
