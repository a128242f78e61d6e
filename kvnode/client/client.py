"""The asyncio client: keys, transactions, batches, watches and the cluster. How a call is sent is in `calls.py`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, Self, cast
from urllib.parse import quote, urlencode

from kvnode import errors
from kvnode.client import shapes
from kvnode.client.access import OPEN, Access
from kvnode.client.answers import Answer, cluster_of, error_of, etag_revision, parsed, shaped
from kvnode.client.calls import (
    IDEMPOTENCY_KEY,
    JSON,
    PAUSE_S,
    RESEND_S,
    SETTLED,
    TRY_S_MIN,
    Calls,
    json_bytes,
    once,
)
from kvnode.client.entries import TOGETHER_BYTES_MAX, delete_entry, get_entry, put_entry
from kvnode.client.leases import Leases
from kvnode.client.lock import TTL_S, Lock
from kvnode.client.misuse import WrongValue, header, octets, seconds, text, whole
from kvnode.client.records import Batched, Item, Listed, Page, Put, Txn, concluded, listed, read, written
from kvnode.client.transactions import Entry
from kvnode.client.watching import Event, watch

Consistency = Literal["linearizable", "stale"]

MEMBERS: Final = "/admin/api/v1/members"
DRAIN: Final = "/admin/api/v1/drain"
SESSION_KEY: Final = "/admin/api/v1/session-key"
TOKENS: Final = "/admin/api/v1/tokens"
PAGE_KEYS_MAX: Final = 1_000
BINARY: Final = "application/octet-stream"


class Listing(AsyncIterator[Listed]):
    """The keys of a range, one by one. `watch_from` is 0 until the first page has come."""

    def __init__(self, page: Callable[[str], Awaitable[Page]]) -> None:
        """`page` gives the keys from a start on. No cursor: one of this version is none to a node of 0.1.0."""
        self.watch_from = 0
        self._items = self._walk(page)

    async def _walk(self, page: Callable[[str], Awaitable[Page]]) -> AsyncGenerator[Listed]:
        start = ""
        while True:
            found = await page(start)
            # A stale page may be older than the one before it: then what it misses is to be watched as well.
            self.watch_from = min(self.watch_from or found.watch_from, found.watch_from)
            for item in found.items:
                yield item
            if found.cursor is None:
                return
            start = found.items[-1].key + "\0"  # nothing sorts between the two

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Listed:
        return await anext(self._items)

    async def aclose(self) -> None:
        await self._items.aclose()


class Client:
    """Talks to a cluster by any of its nodes' base URLs, the first one first. Use as an async context manager.

    `timeout_s` bounds each call as a whole, over all nodes and retries. Every write carries an idempotency key.
    Failures are `kvnode.errors`: a Definite one was not applied, after an Indefinite one nobody knows.
    `access`: a token, and whose certificates are trusted.
    """

    def __init__(self, urls: str | Sequence[str], timeout_s: float = 10.0, *, access: Access = OPEN) -> None:
        self._calls = Calls(urls, timeout_s, access)
        self.timeout_s = timeout_s
        self.leases = Leases(self._calls)

    async def __aenter__(self) -> Self:
        self._calls.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._calls.close()

    # --- keys -------------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        content_type: str | None = None,
        if_match: int | None = None,
        if_absent: bool = False,
        ttl: int | None = None,
        lease: int | None = None,
        idempotency_key: str | None = None,
    ) -> Put:
        """Sets the key. `if_match`: only while its mod_revision is this; `if_absent`: only while it does not exist.

        `ttl` in whole seconds, or the id of a `lease`: the key leaves with it; without either it stays.
        `idempotency_key`: the caller's own, 1 to 64 printable ASCII characters, for a put that it may repeat later.
        """
        data = bytes(octets(value))
        headers = {"Content-Type": header("The content type", content_type or BINARY), **_if_match(if_match)}
        headers |= once(idempotency_key)
        if if_absent:
            headers["If-None-Match"] = "*"
        leasing = {
            name: str(whole(name, given)) for name, given in (("ttl", ttl), ("lease", lease)) if given is not None
        }
        path, operation = _key_path(key, **leasing), ""
        if if_match is None and not if_absent and len(data) < TOGETHER_BYTES_MAX:
            operation = put_entry(key, data, headers["Content-Type"], leasing, headers[IDEMPOTENCY_KEY])
        body = parsed(await self._calls.call("PUT", path, headers, data, operation=operation))
        return shaped(lambda: written(body))

    async def get(self, key: str, consistency: Consistency = "linearizable", *, revision: int | None = None) -> Item:
        """The key's value; raises KeyNotFound. `revision`: as it was then; Compacted where that is forgotten."""
        then = {} if revision is None else {"revision": str(whole("revision", revision))}
        path, stale = _key_path(key, consistency=consistency, **then), consistency == "stale"
        operation = "" if then else get_entry(key, stale)
        answer = await self._calls.call("GET", path, in_order=stale, operation=operation)
        found, headers = answer.document, answer.headers
        if found is not None:
            return shaped(lambda: read(key, found))
        return shaped(
            lambda: Item(
                key,
                answer.body,
                headers.get("Content-Type", ""),
                cast(int, etag_revision(headers)),
                int(headers["Kvnode-Revision"]),
                _number(headers.get("Kvnode-Lease")),
                _number(headers.get("Kvnode-TTL")),
            )
        )

    async def delete(self, key: str, *, if_match: int | None = None, idempotency_key: str | None = None) -> int:
        """Removes the key and returns the revision; raises KeyNotFound. `idempotency_key` as in `put`."""
        headers = _if_match(if_match) | once(idempotency_key)
        path = _key_path(key)
        operation = "" if if_match is not None else delete_entry(key, headers[IDEMPOTENCY_KEY])
        body = parsed(await self._calls.call("DELETE", path, headers, operation=operation))
        return shaped(lambda: int(body["revision"]))

    async def delete_prefix(self, prefix: str, *, idempotency_key: str | None = None) -> int:
        """Removes all keys that begin with `prefix`, which is not empty, in one step; returns how many."""
        if not text("The prefix", prefix):
            raise WrongValue("The prefix is empty: it has one character at least.")
        path = "/v1/kv?" + _query({"prefix": prefix})
        body = parsed(await self._calls.call("DELETE", path, once(idempotency_key)))
        return shaped(lambda: int(body["deleted"]))

    async def list(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        limit: int = PAGE_KEYS_MAX,
        cursor: str | None = None,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
    ) -> Page:
        """One page of keys in byte order, of those in [start, end) where these are given; limit 1 to 1,000."""
        query = {"prefix": prefix, "limit": str(whole("limit", limit)), "consistency": consistency}
        optional = {"start": start, "end": end, "cursor": cursor, "keys_only": "true" if keys_only else ""}
        query |= {name: given for name, given in optional.items() if given}
        answer = await self._calls.call("GET", "/v1/kv?" + _query(query), in_order=consistency == "stale")
        body = parsed(answer)
        known = 0 if cursor else shaped(lambda: int(body["revision"])) + 1  # what a node of 0.1.0 leaves out
        return shaped(
            lambda: Page(
                tuple(map(listed, body["items"])),
                body.get("cursor"),
                body["revision"],
                int(body.get("watch_from", known)),
            )
        )

    def iterate(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
    ) -> Listing:
        """Every key of a range in byte order, fetched page by page; each page is of its own moment.

        The result's `watch_from` is the revision to watch from, so that no change between the pages is missed.
        """
        return Listing(
            lambda behind: self.list(
                prefix, start=max(start, behind), end=end, keys_only=keys_only, consistency=consistency
            )
        )

    async def count(self, prefix: str = "", *, consistency: Consistency = "linearizable") -> int:
        """How many keys begin with `prefix`."""
        path = "/v1/kv?" + _query({"prefix": prefix, "count": "only", "consistency": consistency})
        body = parsed(await self._calls.call("GET", path, in_order=consistency == "stale"))
        return shaped(lambda: int(body["count"]))

    # --- several keys -----------------------------------------------------------------------------

    async def txn(
        self,
        compare: Sequence[Entry] = (),
        success: Sequence[Entry] = (),
        failure: Sequence[Entry] = (),
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Txn:
        """All or nothing, in one revision: `success` where every comparison holds, otherwise `failure`.

        The entries are what `when`, `put`, `get`, `delete` and `delete_prefix` make, or their JSON; up to 128 of each.
        `timeout_s`: for this call, in place of the client's.
        """
        document = {"compare": [*compare], "success": [*success], "failure": [*failure]}
        data = json_bytes(document)
        if timeout_s is not None:
            seconds("timeout_s", timeout_s)
        headers = {**JSON, **once(idempotency_key)}
        body = parsed(await self._calls.call("POST", "/v1/txn", headers, data, timeout_s=timeout_s))
        return shaped(lambda: concluded(body))

    async def batch(self, operations: Sequence[Entry], *, idempotency_key: str | None = None) -> Sequence[Batched]:
        """Up to 1,000 independent writes, made by `put` and `delete`: what became of each, in order.

        Sent again, under the same key, while some were refused for the moment or are in doubt, for RESEND_S at most.
        """
        headers, data = {**JSON, **once(idempotency_key)}, json_bytes({"operations": [*operations]})
        clock = asyncio.get_running_loop().time
        deadline = clock() + min(self._calls.timeout_s, RESEND_S)
        results: Sequence[Batched] = []
        while True:
            try:
                answer = await self._calls.call("POST", "/v1/batch", headers, data, timeout_s=deadline - clock())
            except errors.KvnodeError as error:
                if results:  # some of it was carried out: what was learned about each counts
                    return [_after(each, error) if isinstance(each, errors.Unavailable) else each for each in results]
                raise
            now = shaped(lambda: [_batched(each) for each in parsed(answer)["results"]])  # noqa: B023
            before: Sequence[Batched | None] = results or [answer.doubt] * len(now)
            results = [_settled(*each) for each in zip(before, now, strict=True)]
            again = any(isinstance(each, errors.Unavailable | errors.Indefinite) for each in results)
            if not again or clock() + PAUSE_S + TRY_S_MIN >= deadline:
                return results
            await asyncio.sleep(PAUSE_S)

    # --- what happens -----------------------------------------------------------------------------

    def watch(
        self, prefix: str = "", *, key: str | None = None, from_revision: int | None = None
    ) -> AsyncIterator[Event]:
        """Every change to one key, or to all that begin with `prefix`, from `from_revision` on (None: from now).

        Goes on across leader changes and lost nodes without a gap or a repetition, for as long as it is iterated,
        without a leader too; the logger `kvnode.client` warns after `timeout_s` of that. Raises Compacted (list, and
        watch on from the listing's `watch_from`), BadRequest; Unreachable where no node answers at first.
        """
        query = {"prefix": text("The prefix", prefix)} if key is None else {"key": text("The key", key)}
        if from_revision is not None:
            whole("from_revision", from_revision)
        return watch(lambda: self._calls.streams, self._calls.urls, query, from_revision, self._calls.timeout_s)

    def lock(self, name: str, *, ttl_s: int = TTL_S, value: bytes | None = None) -> Lock:
        """A lock that no two clients hold at a time; `value` is what others see of its holder."""
        return Lock(self, name, ttl_s=ttl_s, value=value)

    # --- the cluster ------------------------------------------------------------------------------

    async def cluster(self) -> dict[str, Any]:
        """The cluster as the first node that answers sees it: the body of `GET /admin/api/v1/cluster`."""
        return cluster_of(await self._calls.call("GET", "/admin/api/v1/cluster", in_order=True))

    async def look(self, url: str, path: str, timeout_s: float = 2.0) -> Answer | None:
        """One GET to exactly this node, whatever it answers; None where it did not in time. For diagnosis."""
        return await self._calls.look(url, path, timeout_s)

    async def transfer(self, to: str | None = None) -> tuple[str, int]:
        """Hands leadership to `to`, or to the fittest member; (leader id, term) once it is confirmed."""
        if to is not None and not text("The node that is to lead", to):
            raise WrongValue("The node that is to lead has a name; without one the fittest is chosen.")
        data = json.dumps({} if to is None else {"to": to}).encode()
        body = parsed(await self._calls.call("POST", "/admin/api/v1/leader/transfer", JSON, data))
        return shaped(lambda: (str(body["leader_id"]), int(body["term"])))

    async def restore(self, backup: bytes) -> dict[str, Any]:
        """The contents of a backup file take the place of all keys, in one revision."""
        kind = {"Content-Type": "application/octet-stream"}
        return parsed(await self._calls.call("POST", "/admin/api/v1/restore", kind, backup), shapes.RESTORED)

    async def drain(self, node: str | None = None, force: bool = False) -> dict[str, Any]:
        """`node` is drained, None for the one that answers first: its probes fail, it hands over, and it still serves.

        Raises LastReadyNode where no other node is ready, unless forced.
        """
        document = {"node": node} if node is not None else {}
        data = json.dumps(document | {"force": True} if force else document).encode()
        return parsed(await self._calls.call("POST", DRAIN, JSON, data, in_order=True), shapes.DRAINED)

    async def undrain(self, node: str | None = None) -> dict[str, Any]:
        """`node`, None for the one that answers first, takes new work again."""
        query = {"node": node} if node is not None else {}
        path = DRAIN + ("?" + urlencode(query) if query else "")
        return parsed(await self._calls.call("DELETE", path, in_order=True), shapes.DRAINED)

    async def members(self) -> dict[str, Any]:
        """The configuration: the body of `GET /admin/api/v1/members`."""
        return parsed(await self._calls.call("GET", MEMBERS, in_order=True), shapes.MEMBERS)

    async def change_members(self, method: str, path: str, **document: Any) -> dict[str, Any]:
        """POST a member, or to `/ID/promote`, or DELETE `/ID`; the configuration that came of it."""
        data = json.dumps(document).encode()
        return parsed(await self._calls.call(method, MEMBERS + path, JSON, data), shapes.MEMBERS)

    async def session_key(self) -> dict[str, Any]:
        """Which key signs admin sessions, by its fingerprint: the body of `GET /admin/api/v1/session-key`."""
        return parsed(await self._calls.call("GET", SESSION_KEY, in_order=True), shapes.SESSION_KEY)

    async def rotate_session_key(self, grace_s: int) -> dict[str, Any]:
        """Another key from now on; `grace_s` seconds long what the one before it signed is accepted."""
        data = json.dumps({"grace_s": grace_s}).encode()
        return parsed(await self._calls.call("POST", SESSION_KEY + "/rotate", JSON, data), shapes.SESSION_KEY)

    async def tokens(self) -> dict[str, Any]:
        """The access tokens: the body of `GET /admin/api/v1/tokens`."""
        return parsed(await self._calls.call("GET", TOKENS), shapes.TOKENS)

    async def change_tokens(self, method: str, path: str, **document: Any) -> dict[str, Any]:
        """POST a token to be made, or `/TOKEN/rotate`; PATCH or DELETE `/TOKEN`. What the node answers."""
        shape = {"POST": shapes.MADE_TOKEN, "PATCH": shapes.TOKEN}.get(method, shapes.REVOKED_TOKEN)
        return parsed(await self._calls.call(method, TOKENS + path, JSON, json.dumps(document).encode()), shape)


def _batched(result: Mapping[str, Any]) -> Batched:
    if "error" in result:
        return error_of(str(result["error"]), str(result["message"]), result.get("outcome") == "unknown")
    return int(result["revision"]) if "deleted" in result else written(result)


def _settled(before: Batched | None, now: Batched) -> Batched:
    """What is known of a write that was `before` and is `now`: a later refusal settles nothing that was in doubt."""
    if isinstance(before, errors.Indefinite) and isinstance(now, errors.Definite) and not isinstance(now, SETTLED):
        return before
    return now


def _after(refusal: errors.Unavailable, error: errors.KvnodeError) -> errors.KvnodeError:
    """What is known of a write that was refused, and sent again in a request that failed with `error`."""
    return error if isinstance(error, errors.Indefinite) else refusal


def _key_path(key: str, **query: str) -> str:
    if not text("The key", key):
        raise WrongValue("The key is empty: it has one character at least.")
    try:
        path = "/v1/kv/" + quote(key, safe="")
    except UnicodeEncodeError:
        raise WrongValue("The key is not UTF-8 text.") from None
    # A segment of dots alone would be folded by servers and proxies on the way, and quote() leaves dots as they are.
    path = path.replace(".", "%2E") if set(key) == {"."} else path
    return f"{path}?{_query(query)}" if query else path


def _query(parameters: Mapping[str, str]) -> str:
    for name, given in parameters.items():
        text(f"The {name}", given)
    try:
        return urlencode(parameters, quote_via=quote, safe="")
    except UnicodeEncodeError:
        raise WrongValue("A prefix or the end of a range is not UTF-8 text.") from None


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{whole("if_match", revision)}"'}


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
