"""The asyncio client: tries the next node when that is safe.

After a refused connection and a definite 503 it always is: nothing was applied. A read may be tried again after
anything else as well, and so may a put or delete: each carries an idempotency key, under which the cluster carries
it out once, however often it arrives. Anything else whose connection broke, or whose answer did not come, raises
`OutcomeUnknown` at once; a put or delete does so when its fate was not learned in time.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, cast
from urllib.parse import quote, urlencode
from uuid import uuid4

import aiohttp
from yarl import URL

from kvnode import errors
from kvnode.answers import Answer, etag_revision, parsed, refusal, shaped
from kvnode.watching import Event, watch

Consistency = Literal["linearizable", "stale"]

CONNECT_S: Final = 2.0
ATTEMPT_S: Final = 6.0  # for one keyed write at one node: a node answers within 5 s, so what takes longer is lost
MEMBERS: Final = "/admin/api/v1/members"
# How long after it was first sent a write of unknown outcome is sent again. The cluster remembers a bounded number of
# writes (README.md); beyond its window a repetition would be a new write, so this stays far inside it.
RESEND_S: Final = 10.0
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
IDEMPOTENCY_KEY_CHARS_MAX: Final = 64
PAUSE_S: Final = 0.1  # between two rounds over all nodes: short against an election, long against a busy loop


@dataclass(frozen=True, slots=True)
class Item:
    """A key with its value and revisions; `revision` is the store's when it was read."""

    key: str
    value: bytes
    content_type: str
    mod_revision: int
    revision: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A key of a listing; `value` is empty where only keys were asked for."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a listing; `cursor` asks for the next, None at the end."""

    items: tuple[Listed, ...]
    cursor: str | None
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    revision: int
    version: int
    created: bool


class Client:
    """Talks to a cluster by any of its nodes' base URLs, the first one first. Use as an async context manager.

    `timeout_s` bounds each call as a whole, over all nodes and retries.
    """

    def __init__(self, urls: Sequence[str], timeout_s: float = 10.0) -> None:
        if not urls:
            raise errors.BadRequest("No node to talk to: give at least one URL.")
        self._urls = [_checked(url) for url in urls]
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        session = aiohttp.ClientSession(auto_decompress=False)
        # aiohttp sends a PUT or DELETE a second time by itself when the connection breaks before the answer. A
        # conditional write that was applied would then be told that it failed. There is no public switch.
        session._retry_connection = False
        self._session = session
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    # --- keys -------------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        content_type: str | None = None,
        if_match: int | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> Put:
        """Sets the key. `if_match`: only while its mod_revision is this; `if_absent`: only while it does not exist.

        `idempotency_key`: the caller's own, 1 to 64 printable ASCII characters, for a put that it may repeat later.
        """
        headers = {"Content-Type": content_type or "application/octet-stream", **_if_match(if_match)}
        headers |= _once(idempotency_key)
        if if_absent:
            headers["If-None-Match"] = "*"
        body = parsed(await self._call("PUT", _key_path(key), headers=headers, data=value))
        return shaped(lambda: Put(body["revision"], body["version"], body["created"]))

    async def get(self, key: str, consistency: Consistency = "linearizable") -> Item:
        """The key's value; raises KeyNotFound."""
        answer = await self._call("GET", _key_path(key, consistency=consistency))
        headers = answer.headers
        return shaped(
            lambda: Item(
                key,
                answer.body,
                headers.get("Content-Type", ""),
                cast(int, etag_revision(headers)),
                int(headers["Kvnode-Revision"]),
            )
        )

    async def delete(self, key: str, *, if_match: int | None = None, idempotency_key: str | None = None) -> int:
        """Removes the key and returns the revision; raises KeyNotFound. `idempotency_key` as in `put`."""
        headers = _if_match(if_match) | _once(idempotency_key)
        body = parsed(await self._call("DELETE", _key_path(key), headers=headers))
        return shaped(lambda: int(body["revision"]))

    async def list(
        self,
        prefix: str = "",
        *,
        limit: int = 1_000,
        cursor: str | None = None,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
    ) -> Page:
        """One page of keys in byte order; limit 1 to 1,000."""
        query = {"prefix": prefix, "limit": str(limit), "consistency": consistency}
        query |= {"keys_only": "true"} if keys_only else {}
        query |= {"cursor": cursor} if cursor is not None else {}
        body = parsed(await self._call("GET", f"/v1/kv?{urlencode(query, quote_via=quote, safe='')}"))
        return shaped(lambda: Page(tuple(map(_listed, body["items"])), body.get("cursor"), body["revision"]))

    def watch(
        self, prefix: str = "", *, key: str | None = None, from_revision: int | None = None
    ) -> AsyncIterator[Event]:
        """Every change to one key, or to all that begin with `prefix`, from `from_revision` on (None: from now).

        Goes on across leader changes and lost nodes without a gap or a repetition, for as long as it is iterated; a
        node that streams nothing within `timeout_s` is given up with all others. Raises Compacted (list, and watch on
        from the listing's revision + 1), BadRequest, Unavailable.
        """
        assert self._session is not None, "use `async with Client(...)`"
        query = {"prefix": prefix} if key is None else {"key": key}
        return watch(self._session, self._urls, query, from_revision, self._timeout_s)

    # --- the cluster ------------------------------------------------------------------------------

    async def cluster(self) -> dict[str, Any]:
        """The cluster as the first node that answers sees it: the body of `GET /admin/api/v1/cluster`."""
        return parsed(await self._call("GET", "/admin/api/v1/cluster"))

    async def transfer(self, to: str | None = None) -> tuple[str, int]:
        """Hands leadership to `to`, or to the fittest member; (leader id, term) once it is confirmed."""
        data = json.dumps({"to": to} if to else {}).encode()
        headers = {"Content-Type": "application/json"}
        body = parsed(await self._call("POST", "/admin/api/v1/leader/transfer", headers=headers, data=data))
        return shaped(lambda: (str(body["leader_id"]), int(body["term"])))

    async def members(self) -> dict[str, Any]:
        """The configuration: the body of `GET /admin/api/v1/members`."""
        return parsed(await self._call("GET", MEMBERS))

    async def change_members(self, method: str, path: str, **document: Any) -> dict[str, Any]:
        """POST a member, or to `/ID/promote`, or DELETE `/ID`; the configuration that came of it."""
        headers, data = {"Content-Type": "application/json"}, json.dumps(document).encode()
        return parsed(await self._call(method, MEMBERS + path, headers=headers, data=data))

    # --- one call, any node -----------------------------------------------------------------------

    async def _call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, data: bytes | None = None
    ) -> Answer:
        """The first answer that settles the call. Raises the typed error of a refusal, Unavailable, OutcomeUnknown."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timeout_s
        headers = headers or {}
        doubt: errors.OutcomeUnknown | None = None
        while True:
            refused_everywhere, last = True, cast("errors.KvnodeError | None", None)
            for url in self._urls:
                began = clock()
                if began >= deadline:
                    break
                try:
                    return await self._send(url, method, path, headers, data, deadline - began)
                except _Unreachable as e:
                    last = last or e
                except errors.Unavailable as e:
                    refused_everywhere, last = False, e
                except errors.OutcomeUnknown as e:
                    if IDEMPOTENCY_KEY not in headers:
                        raise
                    if doubt is None:
                        deadline = min(deadline, began + RESEND_S)
                    doubt = e
                except _SETTLED:
                    raise
                except errors.KvnodeError:
                    # This attempt failed for sure; what became of an earlier one is as unknown as before.
                    if doubt is not None:
                        raise doubt from None
                    raise
            # Where nothing listens at all, waiting is no help: whoever called should see that at once.
            if last is not None and refused_everywhere and doubt is None:
                raise last
            if clock() + PAUSE_S >= deadline:
                raise doubt or last or errors.Unavailable(f"No node answered within {self._timeout_s:g} s.")
            await asyncio.sleep(PAUSE_S)

    async def _send(
        self, url: str, method: str, path: str, headers: Mapping[str, str], data: bytes | None, timeout_s: float
    ) -> Answer:
        assert self._session is not None, "use `async with Client(...)`"
        is_read = method == "GET"
        if is_read and len(self._urls) > 1:
            timeout_s /= 2  # one frozen node must leave time to ask the next
        elif IDEMPOTENCY_KEY in headers:
            timeout_s = min(timeout_s, ATTEMPT_S)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_S, timeout_s / 2))
        try:
            async with self._session.request(
                method,
                URL(url + path, encoded=True),  # as it stands: yarl would fold `a/../b` and `%2F`
                headers=headers,
                data=data,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                answer = Answer(response.status, response.headers, await response.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise _Unreachable(f"Nothing answers at {url}; is the node running?") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            if is_read:
                raise errors.Unavailable(f"{url} did not answer: {_reason(e)}.") from None
            raise errors.OutcomeUnknown(
                f"{url} did not answer ({_reason(e)}): the request may or may not have been carried out."
            ) from None
        if answer.status < 300:
            return answer
        raise refusal(url, answer, is_read)


def _checked(url: str) -> str:
    try:
        parsed = URL(url)
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise errors.BadRequest(f"{url!r} is no URL of a node; write such as http://127.0.0.1:8001.")
    return url.rstrip("/")


class _Unreachable(errors.Unavailable):
    """No connection: nothing was sent."""


# Refusals that the state machine gives, and gives again to a repetition: they settle what became of a keyed write.
_SETTLED: Final = (errors.KeyNotFound, errors.PreconditionFailed, errors.IdempotencyKeyReused)


def _reason(e: Exception) -> str:
    return "timed out" if isinstance(e, TimeoutError) else "the connection broke"


def _key_path(key: str, **query: str) -> str:
    try:
        path = "/v1/kv/" + quote(key, safe="")
    except UnicodeEncodeError:
        raise errors.BadRequest("The key is not UTF-8 text.") from None
    # A segment of dots alone would be folded by servers and proxies on the way, and quote() leaves dots as they are.
    path = path.replace(".", "%2E") if set(key) == {"."} else path
    return f"{path}?{urlencode(query)}" if query else path


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"If-Match": f'"{revision}"'}


def _once(idempotency_key: str | None) -> dict[str, str]:
    """The header under which a write may be sent any number of times; a key of its own where none is given."""
    key = uuid4().hex if idempotency_key is None else idempotency_key
    if not (1 <= len(key) <= IDEMPOTENCY_KEY_CHARS_MAX and key.isascii() and key.isprintable()):
        raise errors.BadRequest(f"An idempotency key is 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters.")
    return {IDEMPOTENCY_KEY: key}


def _listed(item: Mapping[str, Any]) -> Listed:
    value = b64decode(item.get("value") or "")
    return Listed(item["key"], value, item["create_revision"], item["mod_revision"], item["version"])
