"""Keys and values: PUT, GET, HEAD, DELETE under /v1/kv/, and the listing at /v1/kv."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Final

from aiohttp import hdrs, web
from multidict import istr

from kvnode.commands import CONTENT_TYPE_BYTES_MAX, IDEMPOTENCY_KEY_CHARS_MAX, VALUE_BYTES_MAX, Delete, Put
from kvnode.errors import BadRequest, IdempotencyKeyReused, KeyNotFound, PreconditionFailed, Starting
from kvnode.http.answer import JSON_TYPE, Answer, json_answer, json_string
from kvnode.http.body import read_body
from kvnode.http.etags import check_read, write_expectation
from kvnode.http.group import Group
from kvnode.http.paths import Query, decode_key
from kvnode.http.route import Methods
from kvnode.items import prefix_end
from kvnode.raft.status import applied_lag
from kvnode.results import Deleted, Invalid, Refused, Result, Reused, Written

PAGE_KEYS_MAX: Final = 1_000
PAGE_KEYS_DEFAULT: Final = 100
# A page ends early rather than grow past this: a thousand keys of 1 MiB would be more than a gigabyte of answer.
PAGE_VALUE_BYTES: Final = 2_097_152
BINARY: Final = "application/octet-stream"
IDEMPOTENCY_KEY: Final = istr("Idempotency-Key")


def routes(group: Group) -> dict[str, Methods]:
    keys = Keys(group)
    return {
        "/v1/kv": {"GET": keys.list, "HEAD": keys.list},
        "/v1/kv/{key}": {"GET": keys.get, "HEAD": keys.get, "PUT": keys.put, "DELETE": keys.delete},
    }


class Keys:
    """The handlers. Each bounds what it was sent before it asks the group for anything."""

    __slots__ = ("_group",)

    def __init__(self, group: Group) -> None:
        self._group = group

    async def put(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        key = decode_key(rest)
        _refuse_unsupported(query)
        idempotency_key = _idempotency_key(request)
        expect = write_expectation(request, may_create=True)
        content_type = _content_type(request)
        value = await read_body(request, VALUE_BYTES_MAX)
        result = await self._group.propose(Put(key, value, content_type, expect, idempotency_key).encode())
        if type(result) is Written:
            revision, version = result.revision, result.version
            created = "true" if version == 1 else "false"
            body = f'{{"key":{json_string(key)},"revision":{revision},"version":{version},"created":{created}}}\n'
            return Answer(
                200, b'%bETag: "%d"\r\nKvnode-Revision: %d\r\n' % (JSON_TYPE, revision, revision), body.encode()
            )
        raise _not_written(result)

    async def delete(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        key = decode_key(rest)
        _refuse_unsupported(query)
        idempotency_key = _idempotency_key(request)
        expect = write_expectation(request, may_create=False)
        result = await self._group.propose(Delete(key, expect, idempotency_key).encode())
        if type(result) is Deleted:
            if result.deleted == 0:
                raise KeyNotFound("The key does not exist.")
            body = b'{"deleted":%d,"revision":%d}\n' % (result.deleted, result.revision)
            return Answer(200, JSON_TYPE + b"Kvnode-Revision: %d\r\n" % result.revision, body)
        raise _not_written(result)

    async def get(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        key = decode_key(rest)
        headers = await self._consistency(Query(query)) if query else await self._linearizable()
        store = self._group.store
        item = store.get(key)
        if item is None:
            raise KeyNotFound("The key does not exist.")
        headers += b'ETag: "%d"\r\nKvnode-Revision: %d\r\n' % (item.mod_revision, store.revision)
        if check_read(request, item.mod_revision):
            return Answer(304, headers)
        content_type = item.content_type
        if not content_type or not content_type.isprintable():  # a line break in it would forge header lines
            content_type = BINARY
        # Anybody who may write a key chooses its type: a browser must not guess a more dangerous one.
        headers += b"Content-Type: %b\r\nX-Content-Type-Options: nosniff\r\n" % content_type.encode()
        return Answer(200, headers, item.value)

    async def list(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        parameters = Query(query)
        start, end = _bounds(parameters)
        limit = _limit(parameters)
        keys_only = parameters.flag("keys_only")
        headers = await self._consistency(parameters)
        store = self._group.store
        revision = store.revision
        found = store.range(start, end, limit + 1)
        items: list[dict[str, Any]] = []
        value_bytes = 0
        for key, item in found[:limit]:
            fields: dict[str, Any] = {"key": key}
            if not keys_only:
                value_bytes += len(item.value)
                if value_bytes > PAGE_VALUE_BYTES and items:
                    break
                fields["value"] = b64encode(item.value).decode()
            fields |= {
                "create_revision": item.create_revision,
                "mod_revision": item.mod_revision,
                "version": item.version,
            }
            items.append(fields)
        page: dict[str, Any] = {"items": items}
        if len(items) < len(found):
            page["cursor"] = urlsafe_b64encode(items[-1]["key"].encode()).decode()
        page["revision"] = revision
        return json_answer(200, page, headers + b"Kvnode-Revision: %d\r\n" % revision)

    async def _linearizable(self) -> bytes:
        await self._group.read_barrier()
        return b""

    async def _consistency(self, parameters: Query) -> bytes:
        """Waits for what `?consistency` asks; returns the header lines that say how stale the answer may be."""
        wanted = parameters.get("consistency", "linearizable")
        if wanted == "linearizable":
            return await self._linearizable()
        if wanted != "stale":
            raise BadRequest("The query parameter 'consistency' is 'linearizable' or 'stale'.")
        status = self._group.status()
        if not status.started:
            # What is in memory now is not an old state of the store but a part of one.
            raise Starting("This node is still loading its data; send the request again, here or elsewhere.")
        return b"Kvnode-Applied-Lag: %d\r\n" % applied_lag(status)


def _not_written(result: Result) -> Exception:
    """The error for a command that the state machine understood and did not carry out."""
    if isinstance(result, Refused):
        if result.mod_revision == 0:
            return PreconditionFailed("The key does not exist, and the request's condition needs it to.", None)
        return PreconditionFailed(
            "The key is at another revision than the request's condition asks for.", result.mod_revision
        )
    if isinstance(result, Reused):
        # The IETF draft on this header has 422 here; this API says 400 for every request that cannot be right.
        return IdempotencyKeyReused(
            "This Idempotency-Key was sent before with another request, whose outcome stands; send a new one."
        )
    if isinstance(result, Invalid):
        return BadRequest(f"The cluster refused the write: {result.reason}.")
    raise TypeError(f"the state machine answered a write with {type(result).__name__}")


def _refuse_unsupported(query: str) -> None:
    """A write that asks for a promise this node cannot keep is refused rather than carried out without it."""
    if query:
        parameters = Query(query)
        for name in ("ttl", "lease"):
            if name in parameters:
                raise BadRequest(f"The query parameter '{name}' is not supported by this version.")


def _idempotency_key(request: web.BaseRequest) -> str | None:
    """The key as it was sent, quotes included where there are any; None without one."""
    if IDEMPOTENCY_KEY not in request.headers:
        return None
    keys = request.headers.getall(IDEMPOTENCY_KEY)
    if len(keys) > 1:
        raise BadRequest("The request has more than one Idempotency-Key; send one of them.")
    key = keys[0]
    if not (1 <= len(key) <= IDEMPOTENCY_KEY_CHARS_MAX and key.isascii() and key.isprintable()):
        raise BadRequest(f"An Idempotency-Key is 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters.")
    return key


def _content_type(request: web.BaseRequest) -> str:
    """The Content-Type as it was sent, '' without one; it comes back with the value."""
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    if len(content_type) > CONTENT_TYPE_BYTES_MAX:
        raise BadRequest(f"The Content-Type is longer than {CONTENT_TYPE_BYTES_MAX} bytes.")
    if not (content_type.isascii() and content_type.isprintable()):
        raise BadRequest("The Content-Type has characters that are not printable ASCII.")
    return content_type


def _bounds(parameters: Query) -> tuple[str, str | None]:
    """Where a listing starts and ends: the prefix, cut to [start, end) and to what follows the cursor."""
    prefix = parameters.get("prefix", "")
    start = max(prefix, parameters.get("start", ""))
    ends = [end for end in (prefix_end(prefix), parameters.get("end") or None) if end is not None]
    if "cursor" in parameters:
        try:
            last = urlsafe_b64decode(parameters["cursor"].encode("ascii")).decode()
        except ValueError:
            raise BadRequest("The cursor is not one that this API gave out; begin the listing again.") from None
        start = max(start, last + "\0")  # nothing sorts between a key and itself followed by a zero
    return start, min(ends, default=None)


def _limit(parameters: Query) -> int:
    text = parameters.get("limit", str(PAGE_KEYS_DEFAULT))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else 0
    if not 1 <= limit <= PAGE_KEYS_MAX:
        raise BadRequest(f"The query parameter 'limit' is a number from 1 to {PAGE_KEYS_MAX}.")
    return limit
