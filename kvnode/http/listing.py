"""The listing at /v1/kv: a range of keys, in pages."""

from __future__ import annotations

from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from kvnode.errors import BadRequest
from kvnode.http.answer import JSON_TYPE, Answer, json_answer, json_string
from kvnode.http.budget import Budgets
from kvnode.http.consistency import consistency
from kvnode.http.etags import refuse_conditions
from kvnode.http.group import Group
from kvnode.http.leases import remaining_s
from kvnode.http.paths import Query
from kvnode.http.rights import READ, WRITE, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.http.writing import idempotency_key, not_written
from kvnode.metrics.recent import Traffic
from kvnode.state.commands import DeletePrefix
from kvnode.state.items import (
    MARKS,
    content_of,
    lease_of,
    prefix_end,
    value_bytes,
)
from kvnode.state.limits import KEY_BYTES_MAX, text_fault
from kvnode.state.results import Deleted

PAGE_KEYS_MAX: Final = 1_000
PAGE_KEYS_DEFAULT: Final = 100
# Keys and values of a page, two of the largest: it ends early rather than grow past this. A thousand keys of 1 MiB
# would be more than a gigabyte of answer.
PAGE_BYTES: Final = 2 * 1_048_576 + 65_536
REVISION_DIGITS_MAX: Final = 19  # of 2^63
ITEM_BYTES: Final = 176  # what one takes in a page at most, beside its key, its value and its content type


def routes(group: Group, budgets: Budgets, traffic: Traffic | None = None) -> dict[str, Methods]:
    listing = Listing(group, budgets, Traffic() if traffic is None else traffic)
    parameters = ("prefix", "start", "end", "limit", "cursor", "keys_only", "sizes", "count", "consistency")
    some = Endpoint(listing.list, *parameters, right=READ, scoped=True)
    delete = Endpoint(listing.delete, "prefix", right=WRITE, scoped=True)
    return {"/v1/kv": {"GET": some, "HEAD": some, "DELETE": delete}}


class Listing:
    """The handlers."""

    __slots__ = ("_budgets", "_group", "_traffic")

    def __init__(self, group: Group, budgets: Budgets, traffic: Traffic) -> None:
        self._traffic = traffic
        self._group = group
        self._budgets = budgets

    async def list(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        parameters = Query(query)
        first, end = _bounds(parameters)
        rights_of(request).check_range(first, end)
        behind, watched_from = _behind_cursor(parameters)
        start = max(first, behind)
        limit = _limit(parameters)
        counted = parameters.get("count", "false")
        if counted != "only":
            counted = "true" if parameters.flag("count") else "false"
        keys_only, sizes = parameters.flag("keys_only"), parameters.flag("sizes")
        if not sizes:  # the console asks so every second, and is not what it is to show
            self._traffic.left -= 1
            if self._traffic.left <= 0:
                self._traffic.read(parameters.get("prefix") or parameters.get("start", ""))
        headers = await consistency(self._group, parameters)
        await self._budgets.turns.take()
        # Without a cursor a watch begins behind this page. A stale page may be older than the one before it.
        behind_this = self._group.store.revision + 1
        watch_from = behind_this if watched_from is None else min(watched_from, behind_this)
        return self._page(first, start, end, limit, counted, keys_only, sizes, headers, watch_from)

    def _page(
        self,
        first: str,
        start: str,
        end: str | None,
        limit: int,
        counted: str,
        keys_only: bool,
        sizes: bool,
        headers: bytes,
        watch_from: int,
    ) -> Answer:
        """Keys and references to their items first, so that its size is known before any of it is made.

        `watch_from`: the revision behind the listing's first page, 0 where the cursor of a node of 0.1.0 hides it.
        """
        store = self._group.store
        revision = store.revision
        headers += b"Kvnode-Revision: %d\r\n" % revision
        if counted == "only":
            counts = {"count": store.count(first, end), "revision": revision}
            return json_answer(200, counts, headers)
        items: list[tuple[str, str, bytes]] = []
        size, more, last = 0, False, ""
        for key, packed in store.walk_packed(start, end):
            if more := len(items) == limit:
                break
            name = json_string(key)
            bytes_more = len(name) if keys_only else len(name) + value_bytes(packed)
            if more := size + bytes_more > PAGE_BYTES and bool(items):
                break
            size += bytes_more
            items.append((key, name, packed))
            last = key
        hold = self._budgets.answers.hold(size + size // 3 + ITEM_BYTES * len(items))
        pieces = [b'{"items":[']
        for _, name, packed in items:
            pieces += self._item(name, packed, keys_only, sizes)
        if items:
            pieces[-1] = pieces[-1][:-1]  # no comma after the last
        cursor = f'"cursor":"{_cursor(last, watch_from)}",' if more else ""
        count = f'"count":{store.count(first, end)},' if counted == "true" else ""
        watch = f',"watch_from":{watch_from}' if watch_from else ""
        pieces.append(f'],{cursor}{count}"revision":{revision}{watch}}}\n'.encode())
        return Answer(200, JSON_TYPE + headers, b"".join(pieces)).holding(hold)

    def _item(self, name: str, packed: bytes, keys_only: bool, sizes: bool) -> Iterable[bytes]:
        """One item as JSON, a comma behind it. Nothing is copied of its value but what is base64 of it."""
        create_revision, mod_revision, version, _ = MARKS.unpack_from(packed)
        marks = f'"create_revision":{create_revision},"mod_revision":{mod_revision},"version":{version}'
        if sizes:
            marks += f',"size":{value_bytes(packed)}'
        lease = lease_of(packed)
        if lease:
            marks += f',"lease":{lease},"ttl":{remaining_s(self._group, lease)}'
        if keys_only:
            return (f'{{"key":{name},{marks}}},'.encode(),)
        content_type, value = content_of(packed)
        typed = f'"content_type":{json_string(content_type)},' if content_type else ""
        return f'{{"key":{name},"value":"'.encode(), b64encode(value), f'",{typed}{marks}}},'.encode()

    async def delete(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        """All keys with a prefix, in one step."""
        parameters = Query(query)
        prefix = parameters.get("prefix", "")
        if text_fault("prefix", prefix, 1, KEY_BYTES_MAX) is not None:
            raise BadRequest(f"A DELETE here takes a 'prefix' of 1 to {KEY_BYTES_MAX} bytes.")
        rights_of(request).check_prefix(prefix)
        refuse_conditions(request)
        result = await self._group.propose(DeletePrefix(prefix, idempotency_key(request, self._group)).encode())
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


def _cursor(last: str, watch_from: int) -> str:
    """What asks for the page behind `last`: with the revision to watch from, which is the first page's for all."""
    encoded = urlsafe_b64encode(last.encode()).decode()
    return f"{watch_from}.{encoded}" if watch_from else encoded


def _behind_cursor(parameters: Query) -> tuple[str, int | None]:
    """Where a page starts: behind the last key of the page before, also if keys were written or deleted meanwhile.

    And the revision to watch from that the page before named: None without a cursor, 0 where it named none (0.1.0).
    """
    if not parameters.get("cursor"):  # an empty one is a client's for the first page
        return "", None
    revision, dot, encoded = parameters["cursor"].rpartition(".")
    try:
        if dot and not (revision.isascii() and revision.isdigit() and len(revision) <= REVISION_DIGITS_MAX):
            raise ValueError
        last = b64decode(encoded.encode("ascii"), b"-_", validate=True).decode()
    except ValueError:
        raise BadRequest("The cursor is not one that this API gave out; begin the listing again.") from None
    # Nothing sorts between a key and itself followed by a zero.
    return last + "\0", int(revision) if dot else 0


def _limit(parameters: Query) -> int:
    text = parameters.get("limit", str(PAGE_KEYS_DEFAULT))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else 0
    if not 1 <= limit <= PAGE_KEYS_MAX:
        raise BadRequest(f"The query parameter 'limit' is a number from 1 to {PAGE_KEYS_MAX}.")
    return limit
