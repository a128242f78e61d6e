"""The listing at /v1/kv: a range of keys, in pages."""

from __future__ import annotations

from base64 import b64decode, b64encode, urlsafe_b64encode
from typing import Any, Final

from aiohttp import hdrs, web

from kvnode.commands import DeletePrefix
from kvnode.errors import BadRequest
from kvnode.http.answer import Answer, json_answer
from kvnode.http.consistency import consistency
from kvnode.http.group import Group
from kvnode.http.leases import remaining_s
from kvnode.http.paths import Query
from kvnode.http.route import Endpoint, Methods
from kvnode.http.writing import idempotency_key, not_written
from kvnode.items import prefix_end
from kvnode.limits import KEY_BYTES_MAX, text_fault
from kvnode.results import Deleted

PAGE_KEYS_MAX: Final = 1_000
PAGE_KEYS_DEFAULT: Final = 100
# A page ends early rather than grow past this: a thousand keys of 1 MiB would be more than a gigabyte of answer.
PAGE_VALUE_BYTES: Final = 2_097_152


def routes(group: Group) -> dict[str, Methods]:
    listing = Listing(group)
    some = Endpoint(listing.list, "prefix", "start", "end", "limit", "cursor", "keys_only", "count", "consistency")
    return {"/v1/kv": {"GET": some, "HEAD": some, "DELETE": Endpoint(listing.delete, "prefix")}}


class Listing:
    """The handlers."""

    __slots__ = ("_group",)

    def __init__(self, group: Group) -> None:
        self._group = group

    async def list(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        parameters = Query(query)
        first, end = _bounds(parameters)
        start = max(first, _behind_cursor(parameters))
        limit = _limit(parameters)
        counted = parameters.get("count", "false")
        if counted != "only":
            counted = "true" if parameters.flag("count") else "false"
        keys_only = parameters.flag("keys_only")
        headers = await consistency(self._group, parameters)
        store = self._group.store
        revision = store.revision
        if counted == "only":
            counts = {"count": store.count(first, end), "revision": revision}
            return json_answer(200, counts, headers + b"Kvnode-Revision: %d\r\n" % revision)
        items: list[dict[str, Any]] = []
        value_bytes, more = 0, False
        for key, item in store.walk(start, end):
            if more := len(items) == limit:
                break
            fields: dict[str, Any] = {"key": key}
            if not keys_only:
                value_bytes += len(item.value)
                if more := value_bytes > PAGE_VALUE_BYTES and bool(items):
                    break
                fields["value"] = b64encode(item.value).decode()
                if item.content_type:
                    fields["content_type"] = item.content_type
            fields |= {
                "create_revision": item.create_revision,
                "mod_revision": item.mod_revision,
                "version": item.version,
            }
            if item.lease:
                fields |= {"lease": item.lease, "ttl": remaining_s(self._group, item.lease)}
            items.append(fields)
        page: dict[str, Any] = {"items": items}
        if more:
            page["cursor"] = urlsafe_b64encode(items[-1]["key"].encode()).decode()
        if counted == "true":
            page["count"] = store.count(first, end)
        page["revision"] = revision
        return json_answer(200, page, headers + b"Kvnode-Revision: %d\r\n" % revision)

    async def delete(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        """All keys with a prefix, in one step."""
        parameters = Query(query)
        prefix = parameters.get("prefix", "")
        if text_fault("prefix", prefix, 1, KEY_BYTES_MAX) is not None:
            raise BadRequest(f"A DELETE here takes a 'prefix' of 1 to {KEY_BYTES_MAX} bytes.")
        if hdrs.IF_MATCH in request.headers or hdrs.IF_NONE_MATCH in request.headers:
            raise BadRequest("The deletion of a prefix takes no condition; a transaction does.")
        result = await self._group.propose(DeletePrefix(prefix, idempotency_key(request)).encode())
        if type(result) is not Deleted:
            raise not_written(result)
        outcome = {"deleted": result.deleted, "revision": result.revision}
        return json_answer(200, outcome, b"Kvnode-Revision: %d\r\n" % result.revision)


def _bounds(parameters: Query) -> tuple[str, str | None]:
    """Where a listing starts and ends: the prefix, cut to [start, end)."""
    prefix = parameters.get("prefix", "")
    start = max(prefix, parameters.get("start", ""))
    ends = [end for end in (prefix_end(prefix), parameters.get("end") or None) if end is not None]
    return start, min(ends, default=None)


def _behind_cursor(parameters: Query) -> str:
    """Where a page starts: behind the last key of the one before, whatever was written or deleted meanwhile."""
    if "cursor" not in parameters:
        return ""
    try:
        last = b64decode(parameters["cursor"].encode("ascii"), b"-_", validate=True).decode()
    except ValueError:
        raise BadRequest("The cursor is not one that this API gave out; begin the listing again.") from None
    return last + "\0"  # nothing sorts between a key and itself followed by a zero


def _limit(parameters: Query) -> int:
    text = parameters.get("limit", str(PAGE_KEYS_DEFAULT))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else 0
    if not 1 <= limit <= PAGE_KEYS_MAX:
        raise BadRequest(f"The query parameter 'limit' is a number from 1 to {PAGE_KEYS_MAX}.")
    return limit
