"""etcd's calls on keys: range, put and deleterange. `txn.py` reads and shows the same operations within transactions.

Each call that reads comes in two ways. Nearly all reads are small: they are answered where they arrive. What reads more
than SMALL_BYTES collects references to its items in slices, between which everything else goes on; what changes
meanwhile is undone out of the history, so that the answer is of one revision all the same. Then its part of the budget
of answers is held, and it is made into text in slices.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Awaitable, Iterable
from itertools import islice
from time import monotonic
from typing import Any, Final, NamedTuple

from aiohttp import web

from kvnode.errors import Overloaded
from kvnode.http.answer import JSON_TYPE, Answer
from kvnode.http.body import read_body, whole_body
from kvnode.http.budget import SMALL_BYTES, Budgets
from kvnode.http.consistency import stale
from kvnode.http.credentials import REVIEW_S, check_still_admitted
from kvnode.http.gateway.errors import (
    FUTURE_REVISION,
    INVALID_ARGUMENT,
    KEY_NOT_FOUND,
    LEASE_GIVEN,
    LEASE_NOT_FOUND,
    NO_KEY,
    NOT_FOUND,
    OUT_OF_RANGE,
    TOO_LARGE,
    VALUE_GIVEN,
    Status,
)
from kvnode.http.gateway.header import Headers
from kvnode.http.gateway.message import Fields, boolean, data, enum, int64, message, plain_put, table
from kvnode.http.group import Group
from kvnode.http.later import Later
from kvnode.http.past import range_at
from kvnode.http.request import KnownRequest
from kvnode.http.rights import READ, WRITE, Rights, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.http.writing import not_written
from kvnode.metrics.recent import Traffic
from kvnode.state.commands import Delete, encode_put
from kvnode.state.etcd import Order, OverBudget, ReadBudget, read_range, select
from kvnode.state.etcd_requests import DESCEND, KEY, UNSORTED, DeleteRange, Put, Range
from kvnode.state.items import MARKS, content_of, lease_of, value_bytes
from kvnode.state.limits import TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX
from kvnode.state.results import (
    Deleted,
    FutureRevision,
    KeyMissing,
    LeaseMissing,
    PutDone,
    RangeDeleted,
    RangeRead,
    ReadsTooLarge,
    Result,
    TxnDone,
    Written,
)
from kvnode.state.spans import Span, key_of, signed, span, unsigned

BODY_BYTES_MAX: Final = 2 * TRANSACTION_BYTES_MAX
# Of one answer, half of what all clients together may leave unread. A client that wants more reads it by pages.
ANSWER_BYTES_MAX: Final = 32 * 1_048_576
ITEM_BYTES: Final = 192  # what an item takes in an answer at most, beside its key and its value
SLICE_KEYS: Final = 4_096  # collected before others get their turn: a few milliseconds
SLICE_ITEMS: Final = 64  # made into text before others are asked whether they need the loop
# A sort is one step, and holds the loop for it: 50 ms at the most.
SORTED_KEYS_MAX: Final = 65_536
UNBOUNDED: Final = 1 << 62
TRIES: Final = 3  # for what is larger than the history that its changes would be undone by

PUT: Final = table(key=data, value=data, lease=int64, prev_kv=boolean, ignore_value=boolean, ignore_lease=boolean)
DELETE_RANGE: Final = table(key=data, range_end=data, prev_kv=boolean)
RANGE: Final = table(
    key=data,
    range_end=data,
    limit=int64,
    revision=int64,
    sort_order=enum("NONE", "ASCEND", "DESCEND"),
    sort_target=enum("KEY", "VERSION", "CREATE", "MOD", "VALUE"),
    serializable=boolean,
    keys_only=boolean,
    count_only=boolean,
    min_mod_revision=int64,
    max_mod_revision=int64,
    min_create_revision=int64,
    max_create_revision=int64,
)
_PLAIN_PUT: Final = {"key", "value"}
_ONE_KEY: Final = {"key"}


def routes(group: Group, budgets: Budgets, headers: Headers, traffic: Traffic) -> dict[str, Methods]:
    keys = Keys(group, budgets, headers, traffic)
    return {
        "/v3/kv/range": {"POST": Endpoint(keys.range, right=READ, scoped=True)},
        "/v3/kv/put": {"POST": Endpoint(keys.put, right=WRITE, scoped=True)},
        "/v3/kv/deleterange": {"POST": Endpoint(keys.delete_range, right=WRITE, scoped=True)},
    }


class Keys:
    """The handlers."""

    __slots__ = ("_budgets", "_group", "_headers", "_traffic")

    def __init__(self, group: Group, budgets: Budgets, headers: Headers, traffic: Traffic) -> None:
        self._traffic = traffic
        self._group = group
        self._budgets = budgets
        self._headers = headers

    # --- put ---------------------------------------------------------------------------------------

    def put(self, request: web.BaseRequest, rest: str, query: str) -> Awaitable[Answer]:
        body = whole_body(request, BODY_BYTES_MAX)
        if body is None or len(body) > SMALL_BYTES:
            return self._put_as_it_comes(request, body)
        plain = plain_put(body)
        if plain is None:
            return self._put(request, message(body, PUT))
        self._headers.check_ready()
        key = single_key(plain[0])
        if not (type(request) is KnownRequest and request.free):
            rights_of(request).check_key(key)
        self._traffic.left -= 1
        if self._traffic.left <= 0:
            self._traffic.wrote(key)
        command = encode_put(key, plain[1], "", None, None, 0, 0)
        return Later(self._group.propose(command), self._was_put)

    def _was_put(self, result: Result) -> Answer:
        if type(result) is not Written:
            raise refusal(result)
        return Answer(200, JSON_TYPE, self._headers.alone(result.revision))

    async def _put_as_it_comes(self, request: web.BaseRequest, body: bytes | None) -> Answer:
        return await self._put(request, await large_message(request, self._budgets, body, PUT))

    def _put(self, request: web.BaseRequest, sent: dict[str, Any]) -> Awaitable[Answer]:
        headers = self._headers
        headers.check_ready()
        rights = rights_of(request)
        if sent.keys() == _PLAIN_PUT:
            key, value = single_key(sent["key"]), checked_value(sent["value"])
            command = encode_put(key, value, "", None, None, 0, 0)
        else:
            put = put_in(sent)
            check_lease(self._group, rights, put.lease)
            key, command = put.key, put.encode()
            if put.lease:
                command = rights.on_leases(self._group.store, command, (put.lease,))
        rights.check_key(key)
        self._traffic.left -= 1
        if self._traffic.left <= 0:
            self._traffic.wrote(key)

        def was_put(result: Result) -> Answer:
            if type(result) is Written:
                return self._was_put(result)
            if type(result) is not TxnDone:
                raise refusal(result)
            done = result.results[0]
            assert isinstance(done, PutDone)
            return message_answer(headers.of(result.revision), *previous(key, done))

        return Later(self._group.propose(command), was_put)

    # --- deleterange -------------------------------------------------------------------------------

    async def delete_range(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        sent = await large_message(request, self._budgets, None, DELETE_RANGE)
        self._headers.check_ready()
        delete = delete_in(sent)
        check_span(rights_of(request), delete.span)
        self._traffic.wrote_each((delete.span.start,))
        one = delete.span.end is None and not delete.prev_kv
        result = await self._group.propose(Delete(delete.span.start).encode() if one else delete.encode())
        if isinstance(result, Deleted):
            result = RangeDeleted(result.deleted, result.revision, ())
        if not isinstance(result, RangeDeleted):
            raise refusal(result)
        if sum(len(packed) for _, packed in result.previous) > SMALL_BYTES:
            await self._budgets.turns.take(done=True)
        return message_answer(self._headers.of(result.revision), *deletion(result))

    # --- range -------------------------------------------------------------------------------------

    def range(self, request: web.BaseRequest, rest: str, query: str) -> Answer | Awaitable[Answer]:
        body = whole_body(request, BODY_BYTES_MAX)
        if body is None or len(body) > SMALL_BYTES:
            return self._range_as_it_comes(request, body)
        return self._range(request, message(body, RANGE))

    async def _range_as_it_comes(self, request: web.BaseRequest, body: bytes | None) -> Answer:
        return await _awaited(self._range(request, await large_message(request, self._budgets, body, RANGE)))

    def _range(self, request: web.BaseRequest, sent: dict[str, Any]) -> Answer | Awaitable[Answer]:
        self._headers.check_ready()
        wanted = range_in(sent)
        check_span(rights_of(request), wanted.range.span)
        self._traffic.left -= 1
        if self._traffic.left <= 0:
            self._traffic.read(wanted.range.span.start)
        if wanted.serializable:
            stale(self._group)
            return self._read(request, wanted)
        began_at = monotonic()
        read_index = self._group.read_index()
        if read_index is None:
            return self._read_in_time(request, wanted, 0.0)

        def read(index: int | None) -> Answer | Awaitable[Answer]:
            waited_s = monotonic() - began_at
            if waited_s > REVIEW_S:
                check_still_admitted(request)
            if self._group.holds(index):
                return self._read(request, wanted)
            return self._read_in_time(request, wanted, waited_s)

        return Later(read_index, read)

    async def _read_in_time(self, request: web.BaseRequest, wanted: Wanted, waited_s: float) -> Answer:
        await self._group.read_barrier(waited_s)
        check_still_admitted(request)
        return await _awaited(self._read(request, wanted))

    def _read(self, request: web.BaseRequest, wanted: Wanted) -> Answer | Awaitable[Answer]:
        store, asked = self._group.store, wanted.range
        if wanted.revision > 0:
            return self._read_past(wanted)
        if wanted.is_plain:  # one key, and nothing else: most reads
            packed = store.packed(asked.span.start)
            if packed is None:
                return message_answer(self._headers.of(store.revision))
            if len(packed) <= SMALL_BYTES:
                pieces = b"".join(item(asked.span.start, packed))[:-1]
                return message_answer(self._headers.of(store.revision), b',"kvs":[', pieces, b'],"count":"1"')
        try:
            read = read_range(store, asked, ReadBudget(SMALL_BYTES))
        except OverBudget:
            return self._read_in_slices(request, asked)
        return message_answer(self._headers.of(store.revision), *range_read(read, asked.keys_only))

    async def _read_past(self, wanted: Wanted) -> Answer:
        """As far back as this node's history goes."""
        await self._budgets.turns.take()
        read, keys_only = past_range(self._group, wanted), wanted.range.keys_only
        hold = self._budgets.answers.hold(_answers_bytes(read.items, keys_only))
        header = self._headers.of(self._group.store.revision)
        return message_answer(header, *range_read(read, keys_only)).holding(hold)

    async def _read_in_slices(self, request: web.BaseRequest, asked: Range) -> Answer:
        for _ in range(TRIES):
            read = await self._collected(asked)
            if read is not None:
                break
        else:
            raise Overloaded("The keys change faster than so many of them can be read: ask for less at a time.")
        turns, keys_only = self._budgets.turns, asked.keys_only
        hold = self._budgets.answers.hold(_answers_bytes(read.items, keys_only))
        pieces: list[bytes] = []
        made = 0
        for number, (key, packed) in enumerate(read.items):
            pieces += item(key, packed, keys_only)
            made += len(packed)
            if made > SMALL_BYTES or number % SLICE_ITEMS == 0:
                made = 0
                await turns.take()
        await turns.take()
        check_still_admitted(request)
        return message_answer(self._headers.of(read.revision), *_range_fields(read, pieces)).holding(hold)

    async def _collected(self, asked: Range) -> RangeRead | None:
        """What a range holds that is too much for one step. None: more has changed meanwhile than the history holds."""
        store, history, (start, end) = self._group.store, self._group.watches.history, asked.span
        stop = start + "\0" if end is None else end or None
        revision, count = store.revision, store.count(start, stop)
        order = Order(*asked.packed[3:])
        is_sorted = order.sort_by != KEY or order.sort == DESCEND or order.filters
        if is_sorted and count > SORTED_KEYS_MAX:
            raise Status(INVALID_ARGUMENT, TOO_LARGE)
        wanted = count if is_sorted or not asked.limit else min(count, asked.limit)
        found: list[tuple[str, bytes]] = []  # what is as it was at that revision
        size = 0
        at: str | None = start
        while at is not None and len(found) < wanted:
            await self._budgets.turns.take()
            most = min(SLICE_KEYS, wanted - len(found))
            these = list(islice(store.walk_packed(at, stop), most))
            at = these[-1][0] + "\0" if len(these) == most else None
            these = [entry for entry in these if MARKS.unpack_from(entry[1])[1] <= revision]
            found += these
            if not is_sorted:
                size += _answers_bytes(these, asked.keys_only)
            if size > ANSWER_BYTES_MAX:
                raise Status(INVALID_ARGUMENT, TOO_LARGE)
        if store.revision != revision:
            if revision + 1 < history.oldest:
                return None
            before = history.undone(asked.span.holds, revision)
            found = [entry for entry in found if entry[0] not in before]
            found += [(key, packed) for key, packed in before.items() if packed and (at is None or key < at)]
            found.sort()
        if not is_sorted:
            return RangeRead(tuple(found[:wanted]), count, wanted < count, revision)
        descending = order.sort_by == KEY and order.sort == DESCEND
        read = select(reversed(found) if descending else found, count, order, ReadBudget(UNBOUNDED), revision)
        if _answers_bytes(read.items, asked.keys_only) > ANSWER_BYTES_MAX:
            raise Status(INVALID_ARGUMENT, TOO_LARGE)
        return read


async def _awaited(outcome: Answer | Awaitable[Answer]) -> Answer:
    return outcome if isinstance(outcome, Answer) else await outcome


# --- what is asked ---------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """A range, and when it is to be read: at a `revision` of the past, or (0) now."""

    range: Range
    revision: int
    serializable: bool
    is_plain: bool = False  # of one key alone


async def large_message(
    request: web.BaseRequest, budgets: Budgets, body: bytes | None, fields: Fields
) -> dict[str, Any]:
    """A message that may be large, or is still on its way (`body` None)."""
    if body is None:
        body = await read_body(request, BODY_BYTES_MAX)
    if len(body) > SMALL_BYTES:
        await budgets.turns.take()
    return message(body, fields)


def single_key(key: bytes) -> str:
    if not key:
        raise Status(INVALID_ARGUMENT, NO_KEY)
    try:
        return key_of(key)
    except ValueError as fault:
        raise Status(INVALID_ARGUMENT, _sentence(fault)) from None


def span_in(sent: dict[str, Any]) -> Span:
    """The keys that a message names by `key` and `range_end`."""
    key = sent.get("key")
    if not key:
        raise Status(INVALID_ARGUMENT, NO_KEY)
    try:
        return span(key, sent.get("range_end", b""))
    except ValueError as fault:
        raise Status(INVALID_ARGUMENT, _sentence(fault)) from None


def _sentence(fault: ValueError) -> str:
    clause = str(fault)
    return f"{clause[:1].upper()}{clause[1:]}."


def checked_value(value: bytes) -> bytes:
    if len(value) > VALUE_BYTES_MAX:
        raise Status(INVALID_ARGUMENT, TOO_LARGE)
    return value


def put_in(sent: dict[str, Any]) -> Put:
    key, value, lease = single_key(sent.get("key", b"")), checked_value(sent.get("value", b"")), sent.get("lease", 0)
    ignore_value, ignore_lease = sent.get("ignore_value", False), sent.get("ignore_lease", False)
    if ignore_value and value:
        raise Status(INVALID_ARGUMENT, VALUE_GIVEN)
    if ignore_lease and lease:
        raise Status(INVALID_ARGUMENT, LEASE_GIVEN)
    return Put(key, value, unsigned(lease), sent.get("prev_kv", False), ignore_value, ignore_lease)


def delete_in(sent: dict[str, Any]) -> DeleteRange:
    return DeleteRange(span_in(sent), sent.get("prev_kv", False))


def range_in(sent: dict[str, Any]) -> Wanted:
    get = sent.get
    if sent.keys() == _ONE_KEY:
        return Wanted(Range(Span(single_key(sent["key"]))), 0, False, True)
    if len(sent) == 1:
        asked = Range(span_in(sent))
    else:
        asked = Range(
            span_in(sent),
            max(0, get("limit", 0)),
            get("sort_target", KEY),
            get("sort_order", UNSORTED),
            get("keys_only", False),
            get("count_only", False),
            max(0, get("min_mod_revision", 0)),
            max(0, get("max_mod_revision", 0)),
            max(0, get("min_create_revision", 0)),
            max(0, get("max_create_revision", 0)),
        )
    return Wanted(asked, get("revision", 0), get("serializable", False))


def check_span(rights: Rights, keys: Span) -> None:
    """Raises OutsidePrefixes for keys that a token has no right to."""
    if keys.end is None:
        rights.check_key(keys.start)
    else:
        rights.check_range(keys.start, keys.end or None)


def check_lease(group: Group, rights: Rights, lease: int) -> None:
    """Raises OutsidePrefixes for a lease that is another's, or that others' keys go away with."""
    rights.check_lease(group.store, lease)


def past_range(group: Group, wanted: Wanted) -> RangeRead:
    """A range at a revision that this store has had; TRANSACTION_READ_BYTES_MAX of it. Compacted, or Status."""
    if wanted.revision > group.store.revision:
        raise Status(OUT_OF_RANGE, FUTURE_REVISION)
    try:
        return range_at(group, wanted.range, wanted.revision, ReadBudget())
    except OverBudget:
        raise Status(INVALID_ARGUMENT, TOO_LARGE) from None


# --- what is answered ------------------------------------------------------------------------------


def message_answer(header: str, *fields: bytes) -> Answer:
    """A message whose fields behind the header each begin with a comma."""
    if not fields:
        return Answer(200, JSON_TYPE, f'{{"header":{header}}}'.encode())
    return Answer(200, JSON_TYPE, b"".join((f'{{"header":{header}'.encode(), *fields, b"}")))


def item(key: str, packed: bytes, keys_only: bool = False) -> tuple[bytes, ...]:
    """`{"key":…},`: one key and its item, in pieces, with a comma behind it."""
    create_revision, mod_revision, version, _ = MARKS.unpack_from(packed)
    name = b2a_base64(key.encode(), newline=False)
    begin = b'{"key":"%b","create_revision":"%d","mod_revision":"%d","version":"%d"' % (
        name, create_revision, mod_revision, version,
    )  # fmt: skip
    lease = lease_of(packed)
    end = b',"lease":"%d"},' % signed(lease) if lease else b"},"
    if keys_only or not value_bytes(packed):
        return begin, end
    return begin, b',"value":"', b2a_base64(content_of(packed)[1], newline=False), b'"', end


def range_read(read: RangeRead, keys_only: bool) -> list[bytes]:
    """The fields of a range's answer behind its header."""
    pieces: list[bytes] = []
    for key, packed in read.items:
        pieces += item(key, packed, keys_only)
    return _range_fields(read, pieces)


def _range_fields(read: RangeRead, pieces: list[bytes]) -> list[bytes]:
    if pieces:
        pieces.insert(0, b',"kvs":[')
        pieces[-1] = pieces[-1][:-1] + b"]"
    if read.more:
        pieces.append(b',"more":true')
    if read.count:
        pieces.append(b',"count":"%d"' % read.count)
    return pieces


def previous(key: str, done: PutDone) -> list[bytes]:
    """The field of a put's answer with what was before it, where it was asked for and there was something."""
    if done.previous is None:
        return []
    pieces = [b',"prev_kv":', *item(key, done.previous)]
    pieces[-1] = pieces[-1][:-1]
    return pieces


def deletion(result: RangeDeleted) -> list[bytes]:
    """The fields of a deletion's answer behind its header."""
    pieces = [b',"deleted":"%d"' % result.deleted] if result.deleted else []
    if result.previous:
        pieces.append(b',"prev_kvs":[')
        for key, packed in result.previous:
            pieces += item(key, packed)
        pieces[-1] = pieces[-1][:-1] + b"]"
    return pieces


def refusal(result: Result) -> Exception:
    """The error for what the state machine did not carry out."""
    if isinstance(result, LeaseMissing):
        return Status(NOT_FOUND, LEASE_NOT_FOUND)
    if isinstance(result, KeyMissing):
        return Status(INVALID_ARGUMENT, KEY_NOT_FOUND)
    if isinstance(result, FutureRevision):
        return Status(OUT_OF_RANGE, FUTURE_REVISION)
    if isinstance(result, ReadsTooLarge):
        return Status(INVALID_ARGUMENT, TOO_LARGE)
    return not_written(result)


def _answers_bytes(items: Iterable[tuple[str, bytes]], keys_only: bool) -> int:
    """What items take in an answer at most."""
    count = size = 0
    for key, packed in items:
        count += 1
        size += len(key) + (0 if keys_only else value_bytes(packed))
    return ITEM_BYTES * count + 4 * size // 3
