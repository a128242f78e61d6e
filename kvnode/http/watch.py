"""Watching: GET /v1/watch, as a stream of events or, with `wait`, as one answer with what has happened."""

from __future__ import annotations

import asyncio
from typing import Final, cast

from aiohttp import web
from multidict import istr

from kvnode.config import values
from kvnode.deadline import remaining_s
from kvnode.errors import BadRequest, Compacted, Starting
from kvnode.http.answer import JSON_TYPE, Answer
from kvnode.http.budget import Budgets
from kvnode.http.connection import Connection
from kvnode.http.credentials import admission_of
from kvnode.http.events import SENTENCES, fields
from kvnode.http.group import Group
from kvnode.http.paths import Query
from kvnode.http.rights import READ, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.http.stream import HEARTBEAT_S, EventStream, Streams
from kvnode.state.changes import KIND_NAMES
from kvnode.state.limits import KEY_BYTES_MAX
from kvnode.watch.audience import Piece, Selector

WAIT_S_MAX: Final = 60.0
PAGE_BYTES: Final = 2_097_152  # a long poll's answer ends behind the revision that goes past this
REVISION_DIGITS_MAX: Final = 18
LAST_EVENT_ID: Final = istr("Last-Event-ID")


def routes(group: Group, budgets: Budgets, heartbeat_s: float = HEARTBEAT_S) -> dict[str, Methods]:
    watches = Watches(group, budgets, Streams(group, heartbeat_s))
    parameters = ("key", "prefix", "from_revision", "wait", "consistency")
    return {"/v1/watch": {"GET": Endpoint(watches.watch, *parameters, right=READ, scoped=True)}}


class Watches:
    """The handler. What is wrong with a request is a plain error, before anything is streamed."""

    __slots__ = ("_budgets", "_group", "_streams")

    def __init__(self, group: Group, budgets: Budgets, streams: Streams) -> None:
        self._group = group
        self._budgets = budgets
        self._streams = streams

    async def watch(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        parameters = Query(query)
        selector = _selector(parameters)
        rights = rights_of(request)
        if selector.is_prefix:
            rights.check_prefix(selector.text)
        else:
            rights.check_key(selector.text)
        wait_s = _wait_s(parameters)
        from_revision = await self._from_revision(request, parameters)
        if wait_s is not None:
            return await self._poll(request, selector, from_revision, wait_s)
        stream = EventStream(self._streams)
        stream.watch(self._group.watches.watch(selector, from_revision, stream.flush))
        return stream

    async def _from_revision(self, request: web.BaseRequest, parameters: Query) -> int:
        """The first revision that the client asks for.

        Without one it is the next after a linearizable read: whatever is acknowledged after the request came is told.
        One that it names needs no such read, for all that follows it is told in order; only a node that has not come
        that far makes sure that it exists.
        """
        linearizable = parameters.get("consistency", "linearizable") == "linearizable"
        if not linearizable and parameters["consistency"] != "stale":
            raise BadRequest("The query parameter 'consistency' is 'linearizable' or 'stale'.")
        named = _named_revision(request, parameters)
        if not self._group.status().started:
            raise Starting("This node is still loading its data; send the request again, here or elsewhere.")
        store = self._group.store
        if linearizable and (named is None or named > store.revision + 1):
            await self._group.read_barrier()
            if named is not None and named > store.revision + 1:
                raise BadRequest(
                    f"Revision {named} is still to come: the store is at {store.revision}, so the first that can be "
                    f"watched from is {store.revision + 1}. Was the revision another cluster's?"
                )
        return store.revision + 1 if named is None else named

    async def _poll(self, request: web.BaseRequest, selector: Selector, from_revision: int, wait_s: float) -> Answer:
        """What there is, as soon as there is something; nothing after `wait_s`, or when the node shuts down."""
        poll = _Poll()
        watcher = self._group.watches.watch(selector, from_revision, poll.woken.set)
        connection = cast(Connection, request.protocol)
        connection.listener = poll
        wait_s = remaining_s(wait_s)
        self._streams.admit(watcher, admission_of(request))
        try:
            pieces = watcher.take(PAGE_BYTES)
            try:
                async with asyncio.timeout(wait_s):
                    while not pieces and watcher.ending is None and not poll.is_lost:
                        await poll.woken.wait()
                        poll.woken.clear()
                        pieces = watcher.take(PAGE_BYTES)
            except TimeoutError:
                pass
            ending = watcher.ending
            if not pieces and ending is not None and ending.reason == "compacted":
                raise Compacted(SENTENCES["compacted"], ending.oldest)
            # By reference so far: a change wakes every poll that waits for it, and each has a page of its own.
            answers = self._budgets.answers
            hold = answers.hold(sum(piece.bytes + piece.bytes // 3 for piece in pieces))
            revision = watcher.revision
            await self._budgets.turns.take()
            return _page(pieces, revision).holding(hold)
        finally:
            connection.listener = None
            self._streams.dismiss(watcher)
            watcher.close()


class _Poll:
    """A long poll as its connection knows it: there is nothing to do but to notice that the client has gone."""

    __slots__ = ("is_lost", "woken")

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.is_lost = False

    def paused(self) -> None:
        pass

    def resumed(self) -> None:
        pass

    def lost(self) -> None:
        self.is_lost = True
        self.woken.set()


def _page(pieces: list[Piece], revision: int) -> Answer:
    made = [b'{"events":[']
    for piece in pieces:
        for change in piece.block:
            made += (b'{"event":"%b",' % KIND_NAMES[change[0]].encode(), *fields(change), b"},")
    if pieces:
        made[-1] = b"}"  # no comma after the last
    made.append(b'],"revision":%d,"from_revision":%d}\n' % (revision, revision + 1))
    return Answer(200, b"%bKvnode-Revision: %d\r\n" % (JSON_TYPE, revision), b"".join(made))


def _selector(parameters: Query) -> Selector:
    if "key" in parameters and "prefix" in parameters:
        raise BadRequest("The query parameters 'key' and 'prefix' exclude each other; send one of them.")
    is_prefix = "key" not in parameters
    name, text = ("prefix", parameters.get("prefix", "")) if is_prefix else ("key", parameters["key"])
    if not is_prefix and not text:
        raise BadRequest("The query parameter 'key' is empty; an empty 'prefix' watches every key.")
    if len(text.encode()) > KEY_BYTES_MAX:
        raise BadRequest(f"The query parameter '{name}' is longer than {KEY_BYTES_MAX} bytes of UTF-8.")
    return Selector(text, is_prefix)


def _wait_s(parameters: Query) -> float | None:
    if "wait" not in parameters:
        return None
    try:
        return values.duration(parameters["wait"], 0.0, WAIT_S_MAX)
    except values.Malformed:
        raise BadRequest(
            f"The query parameter 'wait' is a time up to {WAIT_S_MAX:g}s with its unit, such as 30s."
        ) from None


def _named_revision(request: web.BaseRequest, parameters: Query) -> int | None:
    """Where the client wants to begin. A browser that reconnects repeats its URL: the id is newer, and counts."""
    named = None
    if "from_revision" in parameters:
        named = _number(parameters["from_revision"])
        if not named:
            raise BadRequest("The query parameter 'from_revision' is the number of a revision, from 1 up.")
    if LAST_EVENT_ID in request.headers:
        given = request.headers.getall(LAST_EVENT_ID)
        last = _number(given[0]) if len(given) == 1 else None
        if last is None:
            raise BadRequest(
                "The header Last-Event-ID is not an id that this API gave out; leave it out to begin anew."
            )
        named = last + 1
    return named


def _number(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= REVISION_DIGITS_MAX
    return int(text) if is_number else None
