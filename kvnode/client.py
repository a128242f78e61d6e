"""The asyncio client: tries the next node when that is safe, and never when a write's fate is unknown.

Safe are a refused connection and a definite 503: nothing was applied. A read may also be tried again after
anything else. A write whose connection broke, or whose answer did not come, raises `OutcomeUnknown` at once.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeVar, cast
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from kvnode import errors

Consistency = Literal["linearizable", "stale"]

T = TypeVar("T")

CONNECT_S: Final = 2.0
PAUSE_S: Final = 0.1  # between two rounds over all nodes: short against an election, long against a busy loop

_BY_CODE: Final = {
    kind.code: kind
    for kind in (
        errors.BadRequest, errors.TooLarge, errors.UnsupportedMediaType, errors.NotFound, errors.Unavailable,
        errors.NoLeader, errors.NotLeader, errors.Unverified, errors.Overloaded, errors.ShuttingDown,
        errors.Starting, errors.DiskFull, errors.KeyNotFound, errors.Conflict, errors.OutcomeUnknown,
    )
}  # fmt: skip


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


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


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
    ) -> Put:
        """Sets the key. `if_match`: only while its mod_revision is this; `if_absent`: only while it does not exist."""
        headers = {"Content-Type": content_type or "application/octet-stream", **_if_match(if_match)}
        if if_absent:
            headers["If-None-Match"] = "*"
        body = _json(await self._call("PUT", _key_path(key), headers=headers, data=value))
        return _shaped(lambda: Put(body["revision"], body["version"], body["created"]))

    async def get(self, key: str, consistency: Consistency = "linearizable") -> Item:
        """The key's value; raises KeyNotFound."""
        answer = await self._call("GET", _key_path(key, consistency=consistency))
        headers = answer.headers
        return _shaped(
            lambda: Item(
                key,
                answer.body,
                headers.get("Content-Type", ""),
                cast(int, _revision(headers)),
                int(headers["Kvnode-Revision"]),
            )
        )

    async def delete(self, key: str, *, if_match: int | None = None) -> int:
        """Removes the key and returns the revision; raises KeyNotFound."""
        body = _json(await self._call("DELETE", _key_path(key), headers=_if_match(if_match)))
        return _shaped(lambda: int(body["revision"]))

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
        body = _json(await self._call("GET", f"/v1/kv?{urlencode(query, quote_via=quote, safe='')}"))
        return _shaped(lambda: Page(tuple(map(_listed, body["items"])), body.get("cursor"), body["revision"]))

    # --- the cluster ------------------------------------------------------------------------------

    async def cluster(self) -> dict[str, Any]:
        """The cluster as the first node that answers sees it: the body of `GET /admin/api/v1/cluster`."""
        return _json(await self._call("GET", "/admin/api/v1/cluster"))

    async def transfer(self, to: str | None = None) -> tuple[str, int]:
        """Hands leadership to `to`, or to the fittest member; (leader id, term) once it is confirmed."""
        data = json.dumps({"to": to} if to else {}).encode()
        headers = {"Content-Type": "application/json"}
        body = _json(await self._call("POST", "/admin/api/v1/leader/transfer", headers=headers, data=data))
        return _shaped(lambda: (str(body["leader_id"]), int(body["term"])))

    # --- one call, any node -----------------------------------------------------------------------

    async def _call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, data: bytes | None = None
    ) -> _Answer:
        """The first answer that settles the call. Raises the typed error of a refusal, Unavailable, OutcomeUnknown."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while True:
            refused_everywhere, last = True, cast("errors.KvnodeError | None", None)
            for url in self._urls:
                remaining_s = deadline - asyncio.get_running_loop().time()
                if remaining_s <= 0:
                    break
                try:
                    return await self._send(url, method, path, headers or {}, data, remaining_s)
                except _Unreachable as e:
                    last = last or e
                except errors.Unavailable as e:
                    refused_everywhere, last = False, e
            # Where nothing listens at all, waiting is no help: whoever called should see that at once.
            if last is not None and refused_everywhere:
                raise last
            if asyncio.get_running_loop().time() + PAUSE_S >= deadline:
                raise last or errors.Unavailable(f"No node answered within {self._timeout_s:g} s.")
            await asyncio.sleep(PAUSE_S)

    async def _send(
        self, url: str, method: str, path: str, headers: Mapping[str, str], data: bytes | None, timeout_s: float
    ) -> _Answer:
        assert self._session is not None, "use `async with Client(...)`"
        is_read = method == "GET"
        if is_read and len(self._urls) > 1:
            timeout_s /= 2  # one frozen node must leave time to ask the next
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
                answer = _Answer(response.status, response.headers, await response.read())
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
        raise _refusal(url, answer, is_read)


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


def _revision(headers: Mapping[str, str]) -> int | None:
    tag = headers.get("ETag", "").strip('"')
    return int(tag) if tag.isdigit() else None


def _listed(item: Mapping[str, Any]) -> Listed:
    value = b64decode(item.get("value") or "")
    return Listed(item["key"], value, item["create_revision"], item["mod_revision"], item["version"])


def _json(answer: _Answer) -> dict[str, Any]:
    try:
        body = json.loads(answer.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _not_a_node()
    return body


def _shaped(read: Callable[[], T]) -> T:
    """What `read` takes out of an answer; an answer of another shape is nobody's KeyError."""
    try:
        return read()
    except (KeyError, TypeError, ValueError):
        raise _not_a_node() from None


def _not_a_node() -> errors.KvnodeError:
    return errors.KvnodeError("The answer is not a kvnode node's; does the URL point at one?")


def _refusal(url: str, answer: _Answer, is_read: bool) -> errors.KvnodeError:
    """The one place where a status and a JSON body become a typed error."""
    try:
        body = _json(answer)
        code, message = str(body["error"]), str(body["message"])
    except (errors.KvnodeError, KeyError):
        return _foreign_refusal(url, answer.status, is_read)
    if answer.status in (401, 403):
        return errors.Definite(message, code="not_allowed")
    if code == errors.PreconditionFailed.code:
        return errors.PreconditionFailed(message, _revision(answer.headers))
    if body.get("outcome") == "unknown" and not is_read:
        return errors.OutcomeUnknown(message)
    if kind := _BY_CODE.get(code):
        return kind(message)
    if answer.status == 503:
        return errors.Unavailable(message, code)
    return errors.Definite(message, code) if answer.status < 500 else errors.KvnodeError(message, code)


def _foreign_refusal(url: str, status: int, is_read: bool) -> errors.KvnodeError:
    """What a balancer in front says for itself: its 503 means that no node took the request."""
    if status == 503:
        return errors.Unavailable(f"{url} has no node to hand the request to.")
    if status in (401, 403):
        return errors.Definite(f"{url} does not allow this.", code="not_allowed")
    if status in (502, 504):
        if is_read:
            return errors.Unavailable(f"{url} lost the node that was to answer (status {status}).")
        return errors.OutcomeUnknown(
            f"{url} lost the node that had the request: it may or may not have been carried out."
        )
    return errors.KvnodeError(f"{url} answered {status}, and not as a kvnode node does; does the URL point at one?")
