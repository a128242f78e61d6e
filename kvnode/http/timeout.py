"""Kvnode-Timeout: how long the sender of a request waits, in seconds. The node answers before that.

A client that gives up without an answer cannot know what became of its write. A node that knows how long it has
answers in time instead: definitely, where the write never left its queue; `outcome_unknown`, where it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable
from typing import Any, Final

from aiohttp import web
from multidict import istr

from kvnode.deadline import deadline
from kvnode.errors import BadRequest, KvnodeError, OutcomeUnknown, Unavailable
from kvnode.http.answer import Answer
from kvnode.http.later import Later
from kvnode.http.route import Handler

TIMEOUT: Final = istr("Kvnode-Timeout")
# From a tenth of a second, which SECONDS says: half of that is left for the node, two looks at its deadlines.
TIMEOUT_S_MAX: Final = 100_000  # a day and more: the node's own deadlines, all of them shorter, hold anyway
# What is kept of the time for the answer's way back: a tenth, within bounds that suit a local and a distant client.
MARGIN_S_MIN: Final = 0.05
MARGIN_S_MAX: Final = 0.5

# In a 503, so that a client knows that this node keeps to the time that it is given; a node of
# 0.1.0 ignores the header and takes five seconds, so there is no use in asking it when less is left.
HONOURED: Final = b"Kvnode-Timeout: honoured\r\n"

SECONDS: Final = r"([1-9][0-9]{0,4}(\.[0-9]{1,9})?|0\.[1-9][0-9]{0,8})"
_SECONDS: Final = re.compile(SECONDS, re.ASCII)


def timeout_s(request: web.BaseRequest) -> float:
    """The header's number of seconds. Requires the header; raises BadRequest for any other text."""
    given = request.headers.getall(TIMEOUT)
    if len(given) != 1 or not _SECONDS.fullmatch(given[0]):
        raise BadRequest(
            f"The header Kvnode-Timeout is one number of seconds from 0.1 to below {TIMEOUT_S_MAX}, such as 2.5."
        )
    return float(given[0])


def begin(request: web.BaseRequest, handler: Handler, rest: str, query: str) -> Answer | Awaitable[Answer]:
    """What the handler gives; what it waits for ends before the sender's time does."""
    time_s = timeout_s(request)
    margin_s = min(MARGIN_S_MAX, max(MARGIN_S_MIN, time_s / 10))
    ends_at = asyncio.get_running_loop().time() + time_s - margin_s
    before = deadline.set(ends_at)
    try:
        outcome = handler(request, rest, query)
    finally:
        deadline.reset(before)  # the connection's next request is another one
    if isinstance(outcome, Answer):
        return outcome
    # A handler that waits until `ends_at` knows the request's outcome. Half a margin later all others are ended.
    if isinstance(outcome, Later):
        return _later(request, outcome, ends_at, margin_s / 2)
    return _in_time(request, outcome, ends_at, margin_s / 2)


def _later(request: web.BaseRequest, later: Later[Any], ends_at: float, grace_s: float) -> Later[Any]:
    """The future has the deadline already; what its answer may wait for gets it."""
    render = later.render

    def rendered(result: object) -> Answer | Awaitable[Answer]:
        outcome = render(result)
        return outcome if isinstance(outcome, Answer) else _in_time(request, outcome, ends_at, grace_s)

    later.render = rendered
    return later


async def _in_time(request: web.BaseRequest, work: Awaitable[Answer], ends_at: float, grace_s: float) -> Answer:
    loop = asyncio.get_running_loop()

    def limit() -> None:
        # Not a timer from the beginning: a loop that is late would run it in one turn with the timers of `ends_at`, and
        # a handler that knows the outcome by those would be ended before it can say so.
        scope.reschedule(max(ends_at + grace_s, loop.time() + grace_s / 2))

    before = deadline.set(ends_at)
    ending = loop.call_at(ends_at, limit)
    try:
        async with asyncio.timeout(None) as scope:
            return await work
    except TimeoutError:
        raise _late(request) from None
    finally:
        ending.cancel()
        # A coroutine that ends with its loop is closed in another context, which has no deadline of this request.
        with contextlib.suppress(ValueError):
            deadline.reset(before)


def _late(request: web.BaseRequest) -> KvnodeError:
    if request.method in ("GET", "HEAD"):
        return Unavailable("The answer was not there within the request's Kvnode-Timeout: ask again, or wait longer.")
    return OutcomeUnknown(
        "The request was not done within its Kvnode-Timeout, and may still be carried out: look at what it changes."
    )
