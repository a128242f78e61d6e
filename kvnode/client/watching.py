"""The client's side of a watch: one unbroken sequence of changes out of as many streams as it takes.

A stream that breaks, ends or falls silent is taken up again at the next node, from the last id that came. The changes
of one revision are handed on when its id has come, so none is handed on twice, whatever a break cut through.
"""

from __future__ import annotations

import asyncio
import json
import logging
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import uniform
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from kvnode import errors
from kvnode.client.access import Unreachable, Untrusted, no_connection
from kvnode.client.answers import Answer, refusal, shaped

CONNECT_S: Final = 2.0
HEAD_S: Final = 6.0  # a node begins its answer within the 3 s that a read may take: one that does not is frozen
SILENCE_S: Final = 25.0  # a node sends something every 10 s: one that missed two heartbeats is gone
# Between two rounds over all nodes: the first short against an election; a watch may wait for a day for a cluster that
# is down, so the last is no burden to one that comes up.
PAUSE_S: Final = 0.1
PAUSE_S_MAX: Final = 2.0
EVENT_BYTES_MAX: Final = 256 * 1_048_576  # of one revision: what claims to be longer is not a node

log: Final = logging.getLogger("kvnode.client")


@dataclass(frozen=True, slots=True)
class Event:
    """One change. `kind` is put, delete or expire; only a put has a value, `create_revision` and `version`."""

    kind: str
    key: str
    revision: int
    value: bytes = b""
    content_type: str = ""
    create_revision: int = 0
    version: int = 0


async def watch(
    session: Callable[[], aiohttp.ClientSession],
    urls: Sequence[str],
    query: Mapping[str, str],
    revision: int | None,
    patience_s: float,
) -> AsyncIterator[Event]:
    """Every change from `revision` on (None: from now), until the caller stops listening.

    Goes on for ever, without a leader too, once any node has answered. Raises Unreachable where none has within
    `patience_s`, Untrusted at once where TLS fails with all; Compacted when no node knows what comes next, or those
    that may know are not there for `patience_s`; and refusals that time does not mend (BadRequest, no right to it).
    """
    clock = asyncio.get_running_loop().time
    gone: dict[str, errors.Compacted] = {}
    untrusted: set[str] = set()
    heard_at, turn, answered, warned = clock(), 0, False, False
    pause_s = PAUSE_S
    while True:
        url = urls[turn % len(urls)]
        failure: errors.KvnodeError = errors.Unavailable(f"{url} ended the watch.")
        try:
            # That a node begins to stream is not enough: it may have to say at once that it cannot.
            async for newest, events in _stream(session(), url, query, revision):
                if revision is None or newest >= revision:
                    gone.clear()
                revision = newest + 1
                for event in events:
                    yield event
                heard_at, answered, warned, pause_s = clock(), True, False, PAUSE_S  # however long the caller took
        except errors.Compacted as e:
            gone[url] = failure = e
            answered = True
            if len(gone) == len(set(urls)):
                raise
        except Untrusted as e:
            untrusted.add(url)
            if not answered and untrusted == set(urls):
                raise
            failure = e
        except Unreachable as e:
            failure = e
        except errors.Unavailable as e:
            failure, answered = e, True
        except errors.Definite as e:
            if e.code != errors.TooManyRequests.code:
                raise
            failure, answered = e, True
        turn += 1
        if clock() - heard_at >= patience_s:
            if gone:
                raise next(iter(gone.values()))
            if not answered:
                raise failure
            if not warned:
                warned = True
                log.warning("No node has streamed for %.0f s, trying again: %s", clock() - heard_at, failure.message)
        if turn % len(urls) == 0:
            await asyncio.sleep(pause_s * uniform(0.75, 1.25))
            pause_s = min(PAUSE_S_MAX, 2 * pause_s)


async def _stream(
    session: aiohttp.ClientSession, url: str, query: Mapping[str, str], revision: int | None
) -> AsyncIterator[tuple[int, list[Event]]]:
    """(revision, changes) as one node tells them, and without changes as it says that it is there. Ends with it."""
    wanted = dict(query) | ({} if revision is None else {"from_revision": str(revision)})
    target = URL(f"{url}/v1/watch?{urlencode(wanted, quote_via=quote, safe='')}", encoded=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    try:
        async with asyncio.timeout(HEAD_S):
            begun = await session.get(target, timeout=timeout, allow_redirects=False)
        async with begun as response:
            if response.status != 200:
                raise refusal(url, Answer(response.status, response.headers, await response.read()), True)
            newest = shaped(lambda: int(response.headers["Kvnode-Revision"]))
            if revision is None:
                yield newest, []
            events: list[Event] = []
            opened = False
            async for block in _blocks(response.content):
                kind, identity, data = _read(block)
                if kind == "compacted":
                    raise errors.Compacted(str(data.get("message")), cast("int | None", data.get("oldest_revision")))
                if kind in ("put", "delete", "expire"):
                    events.append(shaped(lambda kind=kind, data=data: _event(kind, data)))  # type: ignore[misc]
                if identity is not None and (opened or identity > newest):
                    newest = identity
                    yield newest, events
                    events = []
                elif not kind and opened:
                    yield newest, []
                opened = True
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as e:
        raise no_connection(url, e) from None
    except (aiohttp.ClientError, TimeoutError, OSError):
        raise errors.Unavailable(f"{url} does not answer, or the connection to it broke.") from None


async def _blocks(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """What stands between two empty lines; an unfinished block at the end is dropped (HTML Standard, 9.2.6)."""
    held = bytearray()
    async for piece in content.iter_any():
        searched = max(0, len(held) - 1)
        held += piece
        while (end := held.find(b"\n\n", searched)) >= 0:
            block = bytes(held[:end])
            del held[: end + 2]
            searched = 0
            yield block
        if len(held) > EVENT_BYTES_MAX:
            raise errors.KvnodeError("The stream is not a kvnode node's; does the URL point at one?")


def _read(block: bytes) -> tuple[str, int | None, dict[str, Any]]:
    """(event, id, data) of a block; comments have none of them."""
    found: dict[bytes, bytes] = {}
    for line in block.split(b"\n"):
        name, _, text = line.partition(b":")
        found[name] = text.removeprefix(b" ")
    identity = found.get(b"id")
    data = shaped(lambda: json.loads(found.get(b"data", b"{}")))
    return found.get(b"event", b"").decode(), None if identity is None else shaped(lambda: int(identity)), data


def _event(kind: str, data: Mapping[str, Any]) -> Event:
    if kind != "put":
        return Event(kind, data["key"], data["mod_revision"])
    return Event(
        kind,
        data["key"],
        data["mod_revision"],
        b64decode(data["value"]),
        data["content_type"],
        data["create_revision"],
        data["version"],
    )
