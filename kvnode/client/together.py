"""Calls that one client has under way travel together: one request to a node for many of them (`POST /v1/batch`).

A call that is alone is sent at once and by itself. What comes while it is under way waits for its end, and goes
together: nothing waits for a time, and no call waits longer than for the request before it, or for BEHIND_S where
that takes longer. Many that come at once need not wait for it either: some requests may be under way side by side.

Only the first try of a call travels so. The node settles each for itself, under the call's own idempotency key, as if
it had come alone; and what it did not settle goes on alone (`calls.py`), with its own deadline, doubt and repetitions.
So a request that got no answer leaves each of its writes in doubt, and each is sent again by itself under its key.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Any, Final

from kvnode import errors
from kvnode.client.answers import error_of, not_a_node

TOGETHER_MAX: Final = 128  # in one request: more would save nothing, and the first would wait for the last
TOGETHER_CHARS_MAX: Final = 262_144
ENTRY_CHARS_MAX: Final = 16_384  # larger ones gain nothing: base64 costs them more than a request
BEHIND_S: Final = 0.1
SIDE_BY_SIDE: Final = 4  # requests of one kind to one node
CROWD: Final = 16  # so many that wait go without waiting for the request before them
# A node that does not take calls together is asked for none so long: it may be another one by then.
APART_S: Final = 30.0

# Codes whose sentence speaks of the batch, or that a call alone would not have met: it is told by its own request.
_ALONE: Final = frozenset(("bad_request", "too_large", "forbidden"))

Outcome = dict[str, Any] | None  # None: the call goes by itself
Send = Callable[[bytes, float], Awaitable[list[dict[str, Any]]]]


class Share:
    """One call that waits to travel, or travels: its operation as JSON, and until when it waits for its outcome."""

    __slots__ = ("deadline", "operation", "outcome")

    def __init__(self, operation: str, deadline: float, outcome: asyncio.Future[Outcome]) -> None:
        self.operation = operation
        self.deadline = deadline
        self.outcome = outcome

    def settle(self, result: dict[str, Any], is_read: bool) -> None:
        if self.outcome.done():
            return  # its caller has gone
        code = result.get("error")
        if code is None:
            self.outcome.set_result(result)
        elif code in _ALONE:
            self.outcome.set_result(None)
        else:
            unknown = result.get("outcome") == "unknown" and not is_read
            self.outcome.set_exception(error_of(str(code), str(result.get("message", "")), unknown))

    def fail(self, error: BaseException) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(copy(error))  # each caller raises its own


class Lane:
    """The calls of one kind to one node. `send` posts a batch with the time that it has, and gives its results."""

    __slots__ = ("_flights", "_landed", "_late", "_loop", "_send", "_waiting", "apart_until", "is_read", "under_way")

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send, is_read: bool) -> None:
        self._loop = loop
        self._send = send
        self._waiting: deque[Share] = deque()
        self._landed = False  # what is under way has ended, and those that it woke may have more to send
        self._late: asyncio.TimerHandle | None = None
        self._flights: set[asyncio.Task[None]] = set()  # the loop refers to its tasks weakly
        self.is_read = is_read
        self.under_way = 0
        self.apart_until = 0.0

    @property
    def is_free(self) -> bool:
        """Whether a call goes by itself and at once."""
        return not (self.under_way or self._landed or self._waiting)

    def join(self, operation: str, deadline: float) -> asyncio.Future[Outcome]:
        share = Share(operation, deadline, self._loop.create_future())
        waiting = self._waiting
        waiting.append(share)
        if len(waiting) == CROWD and self.under_way < SIDE_BY_SIDE and not self._landed:
            self._go_soon()
        elif self._late is None:
            self._late = self._loop.call_later(BEHIND_S, self._go)
        return share.outcome

    def landed(self) -> None:
        """What was under way has ended: what waits goes, once those that it woke have had their turn."""
        self.under_way -= 1
        if not self._landed:
            self._go_soon()

    def ended_alone(self) -> None:
        """As `landed`, for a call that went by itself: its caller has not gone on yet, and may be the only one."""
        self.under_way -= 1
        if self._waiting and not self._landed:
            self._go_soon()

    def _go_soon(self) -> None:
        self._landed = True
        self._loop.call_soon(self._go)

    def _go(self) -> None:
        self._landed = False
        if self._late is not None:
            self._late.cancel()
            self._late = None
        while self._waiting:
            shares: list[Share] = []
            size = 0
            while self._waiting and len(shares) < TOGETHER_MAX and size < TOGETHER_CHARS_MAX:
                share = self._waiting.popleft()
                if not share.outcome.done():  # its caller has not gone
                    shares.append(share)
                    size += len(share.operation)
            if len(shares) > 1:
                self.under_way += 1
                flight = self._loop.create_task(self._travel(shares))
                self._flights.add(flight)
                flight.add_done_callback(self._flights.discard)
            elif shares:
                shares[0].outcome.set_result(None)

    async def _travel(self, shares: list[Share]) -> None:
        try:
            operations = ",".join([share.operation for share in shares])
            body = f'{{"independent":true,"operations":[{operations}]}}'.encode()
            left_s = min([share.deadline for share in shares]) - self._loop.time()
            results = await self._send(body, left_s)
            if len(results) != len(shares):
                raise not_a_node()
            for share, result in zip(shares, results, strict=True):
                share.settle(result, self.is_read)
        except (errors.Unavailable, errors.Indefinite) as error:
            self._fail(shares, error)
        except errors.Definite as error:
            # Nothing was done, and no call is told why: an older node does not know `independent`, a balancer may let
            # no such path through, a token may have been revoked. Each asks by itself, and gets its own answer.
            if not isinstance(error, errors.TooManyRequests):
                self.apart_until = self._loop.time() + APART_S
            for share in shares:
                if not share.outcome.done():
                    share.outcome.set_result(None)
        except BaseException as error:
            self._fail(shares, error)
            if not isinstance(error, Exception):
                raise
        finally:
            self.landed()

    def _fail(self, shares: list[Share], error: BaseException) -> None:
        for share in shares:
            share.fail(error)

    def close(self) -> None:
        """The client is closed: what waits finds out by itself."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        for share in self._waiting:
            if not share.outcome.done():
                share.outcome.set_result(None)
        self._waiting.clear()
