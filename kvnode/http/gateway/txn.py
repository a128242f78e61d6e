"""etcd's transactions: comparisons, two branches of operations, and transactions among these.

A transaction that changes nothing is not proposed: it is read like a range. One that reads the past has that read on
this node first, since nodes remember different stretches of it (`etcd_requests.Past`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from aiohttp import web

from kvnode.http.answer import Answer
from kvnode.http.body import whole_body
from kvnode.http.budget import SMALL_BYTES, Budgets, Hold
from kvnode.http.consistency import stale
from kvnode.http.credentials import check_still_admitted
from kvnode.http.gateway.errors import (
    DUPLICATE_KEY,
    INVALID_ARGUMENT,
    KEY_NOT_FOUND,
    TOO_LARGE,
    TOO_MANY_OPERATIONS,
    Status,
)
from kvnode.http.gateway.header import Headers
from kvnode.http.gateway.keys import (
    BODY_BYTES_MAX,
    DELETE_RANGE,
    PUT,
    RANGE,
    Wanted,
    check_lease,
    check_span,
    delete_in,
    deletion,
    large_message,
    message_answer,
    past_range,
    previous,
    put_in,
    range_in,
    range_read,
    refusal,
    span_in,
)
from kvnode.http.gateway.message import data, enum, int64, message, raw, read, repeated, table
from kvnode.http.group import Group
from kvnode.http.later import Later
from kvnode.http.rights import READ, Rights, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.metrics.recent import Traffic
from kvnode.state.etcd import evaluate
from kvnode.state.etcd_requests import (
    COMPARE_VALUE,
    DUPLICATE,
    TOO_DEEP,
    TOO_MANY,
    Compare,
    DeleteRange,
    Operation,
    Past,
    Put,
    Range,
    Txn,
    encode_packed,
    transaction_fault,
)
from kvnode.state.items import value_bytes
from kvnode.state.limits import NESTING_MAX, OPERATIONS_MAX, TRANSACTION_BYTES_MAX, TRANSACTION_READ_BYTES_MAX
from kvnode.state.results import PastRead, PutDone, RangeDeleted, RangeRead, TxnDone

_TXN: Final = table(compare=repeated(raw), success=repeated(raw), failure=repeated(raw))
_OPERATION: Final = table(request_range=raw, request_put=raw, request_delete_range=raw, request_txn=raw)
_COMPARE: Final = table(
    result=enum("EQUAL", "GREATER", "LESS", "NOT_EQUAL", strict=True),
    target=enum("VERSION", "CREATE", "MOD", "VALUE", "LEASE", strict=True),
    key=data,
    range_end=data,
    version=int64,
    create_revision=int64,
    mod_revision=int64,
    value=data,
    lease=int64,
)
# The operand of each target, by etcd's numbers.
_OPERANDS: Final = ("version", "create_revision", "mod_revision", "value", "lease")


class Step(NamedTuple):
    """One operation, and what its answer needs: of a read its question, of one of the past what was found as well, of
    a transaction its branches."""

    operation: Operation
    wanted: Wanted | None = None
    past: RangeRead | None = None
    branches: tuple[tuple[Step, ...], tuple[Step, ...]] = ((), ())


def routes(group: Group, budgets: Budgets, headers: Headers, traffic: Traffic) -> dict[str, Methods]:
    transactions = Transactions(group, budgets, headers, traffic)
    return {"/v3/kv/txn": {"POST": Endpoint(transactions.txn, right=READ, scoped=True)}}


class Transactions:
    """The handler. A small transaction that writes is proposed where it arrives, and answered without a task."""

    __slots__ = ("_budgets", "_group", "_headers", "_traffic")

    def __init__(self, group: Group, budgets: Budgets, headers: Headers, traffic: Traffic) -> None:
        self._traffic = traffic
        self._group = group
        self._budgets = budgets
        self._headers = headers

    def txn(self, request: web.BaseRequest, rest: str, query: str) -> Awaitable[Answer]:
        body = whole_body(request, BODY_BYTES_MAX)
        if body is None or len(body) > SMALL_BYTES:
            return self._as_it_comes(request, body)
        return self._begin(request, message(body, _TXN))

    async def _as_it_comes(self, request: web.BaseRequest, body: bytes | None) -> Answer:
        return await self._begin(request, await large_message(request, self._budgets, body, _TXN))

    def _begin(self, request: web.BaseRequest, sent: dict[str, Any]) -> Awaitable[Answer]:
        self._headers.check_ready()
        root = _transaction(sent, 1)
        transaction = root.operation
        assert isinstance(transaction, Txn)
        packed = transaction.packed
        _check(packed)
        steps = list(_steps(root))
        rights = rights_of(request)
        leases = _check_rights(self._group, rights, transaction, steps)
        if not transaction.writes:
            return self._read(request, root, steps, packed)
        command = encode_packed(packed)
        if len(command) > TRANSACTION_BYTES_MAX:
            raise Status(INVALID_ARGUMENT, TOO_LARGE)
        if leases:
            command = rights.on_leases(self._group.store, command, leases)
        if _reads_past(steps):
            return self._propose_with_past(root, command)
        return self._propose(root, steps, command)

    async def _read(self, request: web.BaseRequest, root: Step, steps: Sequence[Step], packed: Sequence[Any]) -> Answer:
        if _reads_past(steps):
            await self._group.read_barrier()
            root = _with_past(self._group, root)
            steps = list(_steps(root))
        reads = [step.wanted for step in steps if step.wanted is not None]
        if reads and all(wanted.serializable for wanted in reads) and not packed[1]:
            stale(self._group)
        else:
            await self._group.read_barrier()
            check_still_admitted(request)
        await self._budgets.turns.take()
        hold = self._budgets.answers.hold(_read_bytes(self._group, steps))
        result = evaluate(self._group.store, packed)
        if type(result) is not TxnDone:
            raise refusal(result)
        if hold.size > SMALL_BYTES:
            await self._budgets.turns.take()
        return self._answer(root, result, hold)

    async def _propose_with_past(self, root: Step, command: bytes) -> Answer:
        await self._group.read_barrier()
        root = _with_past(self._group, root)
        return await self._propose(root, list(_steps(root)), command)

    def _propose(self, root: Step, steps: Sequence[Step], command: bytes) -> Later[Any]:
        # Held before anything is proposed: an answer that finds no room afterwards would leave its client in doubt.
        hold = self._budgets.answers.hold(_read_bytes(self._group, steps))

        def was_proposed(result: Any) -> Answer | Awaitable[Answer]:
            if type(result) is not TxnDone:
                raise refusal(result)
            if hold.size > SMALL_BYTES:
                return self._answer_in_turn(root, result, hold)
            return self._answer(root, result, hold)

        return Later(self._group.propose(command), was_proposed)

    async def _answer_in_turn(self, root: Step, result: TxnDone, hold: Hold) -> Answer:
        await self._budgets.turns.take(done=True)
        return self._answer(root, result, hold)

    def _answer(self, root: Step, result: TxnDone, hold: Hold) -> Answer:
        ran = root.branches[0 if result.succeeded else 1]
        self._traffic.wrote_each(step.operation.key for step in ran if isinstance(step.operation, Put))
        return message_answer(self._headers.of(result.revision), *_done(root, result)).holding(hold)


# --- what is asked ---------------------------------------------------------------------------------


def _transaction(sent: dict[str, Any], depth: int) -> Step:
    if depth > NESTING_MAX or any(len(part) > OPERATIONS_MAX for part in sent.values()):
        raise Status(INVALID_ARGUMENT, TOO_MANY_OPERATIONS)
    compares = tuple(map(_compare, sent.get("compare", ())))
    success, failure = (
        tuple(_step(entry, depth) for entry in sent.get(branch, ())) for branch in ("success", "failure")
    )
    return Step(_txn(compares, success, failure), branches=(success, failure))


def _txn(compares: tuple[Compare, ...], success: tuple[Step, ...], failure: tuple[Step, ...]) -> Txn:
    return Txn(compares, tuple(step.operation for step in success), tuple(step.operation for step in failure))


def _compare(entry: Any) -> Compare:
    sent = read(entry, _COMPARE)
    target = sent.get("target", 0)
    operand = sent.get(_OPERANDS[target], b"" if target == COMPARE_VALUE else 0)
    return Compare(span_in(sent), target, sent.get("result", 0), operand)


def _step(entry: Any, depth: int) -> Step:
    sent = read(entry, _OPERATION)
    if not sent:
        raise Status(INVALID_ARGUMENT, KEY_NOT_FOUND)
    if len(sent) > 1:
        raise Status(INVALID_ARGUMENT, "An operation of a transaction is one request.")
    ((name, request),) = sent.items()
    if name == "request_put":
        return Step(put_in(read(request, PUT)))
    if name == "request_delete_range":
        return Step(delete_in(read(request, DELETE_RANGE)))
    if name == "request_txn":
        return _transaction(read(request, _TXN), depth + 1)
    wanted = range_in(read(request, RANGE))
    return Step(Past(wanted.revision) if wanted.revision > 0 else wanted.range, wanted)


def _check(packed: list[Any]) -> None:
    wrong = transaction_fault(packed)
    if wrong is None:
        return
    if wrong in (TOO_MANY, TOO_DEEP):
        raise Status(INVALID_ARGUMENT, TOO_MANY_OPERATIONS)
    if wrong == DUPLICATE:
        raise Status(INVALID_ARGUMENT, DUPLICATE_KEY)
    raise Status(INVALID_ARGUMENT, f"The transaction cannot be carried out: {wrong}.")


def _check_rights(group: Group, rights: Rights, transaction: Txn, steps: Sequence[Step]) -> tuple[int, ...]:
    """For all that the transaction names, whichever branch will run; the leases of it, for a token with prefixes.

    Raises Forbidden.
    """
    if transaction.writes:
        rights.check_write()
    if not rights.prefixes:
        return ()
    leases: set[int] = set()
    for keys in transaction.spans():
        check_span(rights, keys)
    for step in steps:
        if step.wanted is not None:  # of the past as well
            check_span(rights, step.wanted.range.span)
        if isinstance(step.operation, Put) and step.operation.lease:
            check_lease(group, rights, step.operation.lease)
            leases.add(step.operation.lease)
    return tuple(sorted(leases))


def _steps(root: Step) -> Iterator[Step]:
    """All operations, at any depth, of both branches."""
    for branch in root.branches:
        for step in branch:
            yield step
            if isinstance(step.operation, Txn):
                yield from _steps(step)


def _reads_past(steps: Sequence[Step]) -> bool:
    return any(step.wanted is not None and step.wanted.revision > 0 for step in steps)


def _with_past(group: Group, root: Step) -> Step:
    """The transaction with what its reads of the past have found; what is still to come is the state machine's to
    refuse, which knows whether it is asked for."""
    success, failure = (tuple(_with_past(group, step) for step in branch) for branch in root.branches)
    operation, wanted = root.operation, root.wanted
    if isinstance(operation, Txn):
        return Step(_txn(operation.compares, success, failure), branches=(success, failure))
    if isinstance(operation, Past) and wanted is not None and wanted.revision <= group.store.revision:
        return root._replace(past=past_range(group, wanted))
    return root


def _read_bytes(group: Group, steps: Sequence[Step]) -> int:
    """What the answer may take of the budget: 0 where it is small, the most that one may read where it may be large."""
    size, store = 0, group.store
    for step in steps:
        operation = step.operation
        if step.past is not None:
            size += sum(value_bytes(packed) for _, packed in step.past.items)
        elif isinstance(operation, Range):
            if not operation.count_only:
                start, end = operation.span
                stop = start + "\0" if end is None else end or None
                for key, packed in store.walk_packed(start, stop):
                    size += 256 + len(key) + (0 if operation.keys_only else value_bytes(packed))
                    if size > SMALL_BYTES:
                        break
        elif isinstance(operation, Put):
            before = store.packed(operation.key) if operation.prev_kv else None
            size += len(operation.value) + (0 if before is None else value_bytes(before))
        elif isinstance(operation, DeleteRange) and operation.prev_kv:
            size += SMALL_BYTES
        if size > SMALL_BYTES // 2:
            return TRANSACTION_READ_BYTES_MAX * 3 // 2
    return 0


# --- what is answered ------------------------------------------------------------------------------


def _done(root: Step, result: TxnDone) -> list[bytes]:
    """The fields of a transaction's answer behind its header."""
    pieces = [b',"succeeded":true'] if result.succeeded else []
    if not result.results:
        return pieces
    pieces.append(b',"responses":[')
    for step, each in zip(root.branches[0 if result.succeeded else 1], result.results, strict=True):
        pieces += _response(step, each)
    pieces[-1] = b"}}]"
    return pieces


def _response(step: Step, result: RangeRead | PutDone | RangeDeleted | PastRead | TxnDone) -> list[bytes]:
    """`{"response_…":{…}},`"""
    if isinstance(result, TxnDone):
        return [b'{"response_txn":{"header":{}', *_done(step, result), b"}},"]
    if isinstance(result, PastRead):
        assert step.past is not None
        result, revision = step.past, result.revision
    else:
        revision = result.revision
    header = b'":{"header":{"revision":"%d"}' % revision
    if isinstance(result, PutDone):
        assert isinstance(step.operation, Put)
        return [b'{"response_put', header, *previous(step.operation.key, result), b"}},"]
    if isinstance(result, RangeDeleted):
        return [b'{"response_delete_range', header, *deletion(result), b"}},"]
    assert step.wanted is not None
    return [b'{"response_range', header, *range_read(result, step.wanted.range.keys_only), b"}},"]
