"""Keys and values: PUT, GET, HEAD, DELETE under /v1/kv/."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from functools import partial
from typing import Final

from aiohttp import hdrs, web

from kvnode.errors import BadRequest, KeyNotFound
from kvnode.http.answer import JSON_TYPE, VALUE, Answer, json_string
from kvnode.http.body import read_body, whole_body
from kvnode.http.budget import SMALL_BYTES, Budgets
from kvnode.http.consistency import consistency, stale
from kvnode.http.credentials import REVIEW_S, check_still_admitted
from kvnode.http.etags import check_read, write_expectation
from kvnode.http.group import Group
from kvnode.http.heads import content_type_fault
from kvnode.http.later import Later
from kvnode.http.leases import leasing, remaining_s
from kvnode.http.past import asked_revision, item_at
from kvnode.http.paths import Query, decode_key
from kvnode.http.request import KnownRequest
from kvnode.http.rights import READ, WRITE, Rights, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.http.writing import idempotency_key, not_written
from kvnode.metrics.recent import Traffic
from kvnode.state.commands import Delete, Put, encode_put
from kvnode.state.items import MARKS, Item, unpacked
from kvnode.state.limits import VALUE_BYTES_MAX
from kvnode.state.results import Deleted, Result, Written

BINARY: Final = "application/octet-stream"
_FOUND: Final = VALUE + b'ETag: "%d"\r\nKvnode-Revision: %d\r\n'
_PLAIN: Final = _FOUND + b"Content-Type: %b\r\n" % BINARY.encode()
_WRITTEN: Final = JSON_TYPE + b'ETag: "%d"\r\nKvnode-Revision: %d\r\n'


def routes(group: Group, budgets: Budgets, traffic: Traffic | None = None) -> dict[str, Methods]:
    keys = Keys(group, budgets, Traffic() if traffic is None else traffic)
    get = Endpoint(keys.get, "consistency", "revision", right=READ, scoped=True)
    put = Endpoint(keys.put, "lease", "ttl", right=WRITE, scoped=True)
    delete = Endpoint(keys.delete, right=WRITE, scoped=True)
    return {"/v1/kv/{key}": {"GET": get, "HEAD": get, "PUT": put, "DELETE": delete}}


class Keys:
    """The handlers. Each bounds what it was sent before it asks the group for anything."""

    __slots__ = ("_clock", "_group", "_traffic", "_turns")

    def __init__(self, group: Group, budgets: Budgets, traffic: Traffic) -> None:
        self._group = group
        self._traffic = traffic
        self._turns = budgets.turns
        self._clock = budgets.clock

    def put(self, request: web.BaseRequest, rest: str, query: str) -> Awaitable[Answer]:
        key = decode_key(rest)
        free = type(request) is KnownRequest and request.free
        if not free:
            rights_of(request).check_key(key)
        self._traffic.left -= 1  # here and below without a call: it is one for each of many requests
        if self._traffic.left <= 0:
            self._traffic.wrote(key)
        if type(request) is KnownRequest and free and not query and len(request.body) <= VALUE_BYTES_MAX:
            # Nearly every put of an open node. Heads with a condition are not kept.
            name = None if request.key is None else idempotency_key(request, self._group)
            command = encode_put(key, request.body, request.head.content_type, None, name, 0, 0)
            return Later(self._group.propose(command), partial(_put, key))
        rights = rights_of(request)
        lease, ttl_s = leasing(Query(query)) if query else (0, 0)
        rights.check_lease(self._group.store, lease)
        idempotency = idempotency_key(request, self._group)
        expect = write_expectation(request, may_create=True)
        content_type = _content_type(request)
        value = whole_body(request, VALUE_BYTES_MAX)
        if value is None:
            put = Put(key, b"", content_type, expect, idempotency, lease, ttl_s)
            return self._put_as_it_comes(request, put, rights)
        command = encode_put(key, value, content_type, expect, idempotency, lease, ttl_s)
        if lease:
            command = rights.on_leases(self._group.store, command, (lease,))
        return Later(self._group.propose(command), partial(_put, key))

    async def _put_as_it_comes(self, request: web.BaseRequest, put: Put, rights: Rights) -> Answer:
        # The command alone is kept while it waits, or the value would be there twice.
        command = replace(put, value=await read_body(request, VALUE_BYTES_MAX)).encode()
        if put.lease:
            command = rights.on_leases(self._group.store, command, (put.lease,))
        return _put(put.key, await self._group.propose(command))

    def delete(self, request: web.BaseRequest, rest: str, query: str) -> Awaitable[Answer]:
        key = decode_key(rest)
        rights_of(request).check_key(key)
        self._traffic.left -= 1
        if self._traffic.left <= 0:
            self._traffic.wrote(key)
        idempotency = idempotency_key(request, self._group)
        expect = write_expectation(request, may_create=False)
        return Later(self._group.propose(Delete(key, expect, idempotency).encode()), _deleted)

    def get(self, request: web.BaseRequest, rest: str, query: str) -> Answer | Awaitable[Answer]:
        key = decode_key(rest)
        free = type(request) is KnownRequest and request.free
        if not free:
            rights_of(request).check_key(key)
        self._traffic.left -= 1
        if self._traffic.left <= 0:
            self._traffic.read(key)
        if query == "consistency=stale":  # which waits for nothing
            return self._found(request, key, stale(self._group))
        if query:
            return self._get_as_asked(request, key, Query(query))
        began_at = self._clock()
        read_index = self._group.read_index()
        if read_index is None:
            return self._get_in_time(request, key, 0.0)

        def read(index: int | None) -> Answer | Awaitable[Answer]:
            if not free and self._clock() - began_at > REVIEW_S:
                check_still_admitted(request)
            if self._group.holds(index):
                return (free and self._found_plain(key)) or self._found(request, key, b"")
            return self._get_in_time(request, key, self._clock() - began_at)

        return Later(read_index, read)

    async def _get_in_time(self, request: web.BaseRequest, key: str, waited_s: float) -> Answer:
        await self._group.read_barrier(waited_s)
        outcome = self._found(request, key, b"")
        return outcome if isinstance(outcome, Answer) else await outcome

    async def _get_as_asked(self, request: web.BaseRequest, key: str, parameters: Query) -> Answer:
        then = asked_revision(parameters)
        headers = await consistency(self._group, parameters)
        if then is None:
            outcome = self._found(request, key, headers)
            return outcome if isinstance(outcome, Answer) else await outcome
        await self._turns.take()  # it may look through all that is kept of the past
        return self._shown(request, item_at(self._group, key, then), headers, then)

    def _found(self, request: web.BaseRequest, key: str, headers: bytes) -> Answer | Awaitable[Answer]:
        packed = self._group.store.packed(key)
        if packed is not None and len(packed) > SMALL_BYTES:
            return self._found_in_turn(request, key, headers)
        return self._shown(request, None if packed is None else unpacked(packed), headers)

    def _found_plain(self, key: str) -> Answer | None:
        """For a request without a condition: as `_found`, where the value has no type, no lease and is small."""
        store = self._group.store
        packed = store.packed(key)
        if packed is None or len(packed) > SMALL_BYTES:
            return None
        _, mod_revision, _, name_bytes = MARKS.unpack_from(packed)
        if name_bytes:
            return None
        return Answer(200, _PLAIN % (mod_revision, store.revision), packed[MARKS.size :])

    async def _found_in_turn(self, request: web.BaseRequest, key: str, headers: bytes) -> Answer:
        """A large one: copying it for hundreds of clients in one turn of the loop would hold up everything else."""
        await self._turns.take()
        return self._shown(request, self._group.store.get(key), headers)

    def _shown(self, request: web.BaseRequest, item: Item | None, headers: bytes, then: int | None = None) -> Answer:
        store = self._group.store
        if item is None:
            missing = KeyNotFound(
                "The key does not exist." if then is None else "The key did not exist at that revision."
            )
            missing.applied_lag = self._group.applied_lag() if headers else None
            raise missing
        headers += _FOUND % (item.mod_revision, then or store.revision)
        if item.lease and then is None:
            left_s = remaining_s(self._group, item.lease)
            headers += b"Kvnode-Lease: %d\r\nKvnode-TTL: %d\r\n" % (item.lease, left_s)
        if check_read(request, item.mod_revision):
            return Answer(304, headers)
        content_type = item.content_type
        if not content_type or not content_type.isprintable():  # a line break in it would forge header lines
            content_type = BINARY
        return Answer(200, headers + b"Content-Type: %b\r\n" % content_type.encode(), item.value)


def _put(key: str, result: Result) -> Answer:
    if type(result) is not Written:
        raise not_written(result)
    revision, version, lease = result
    created = "true" if version == 1 else "false"
    end = f',"lease":{lease}}}\n' if lease else "}\n"
    body = f'{{"key":{json_string(key)},"revision":{revision},"version":{version},"created":{created}{end}'
    return Answer(200, _WRITTEN % (revision, revision), body.encode())


def _deleted(result: Result) -> Answer:
    if type(result) is not Deleted:
        raise not_written(result)
    if result.deleted == 0:
        raise KeyNotFound("The key does not exist.")
    body = b'{"deleted":%d,"revision":%d}\n' % (result.deleted, result.revision)
    return Answer(200, JSON_TYPE + b"Kvnode-Revision: %d\r\n" % result.revision, body)


def _content_type(request: web.BaseRequest) -> str:
    """The Content-Type as it was sent, '' without one; it comes back with the value."""
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    if (fault := content_type_fault(content_type)) is not None:
        raise BadRequest(fault)
    return content_type
