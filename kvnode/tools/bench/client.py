"""One client of the load: one request at a time, the next one as soon as the last is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic  # uvloop's clock counts whole milliseconds
from typing import Final, Protocol

from kvnode.tools.bench.place import Place
from kvnode.tools.bench.wire import Wire, is_success, refusal
from kvnode.tools.bench.workload import Workload

CONNECT_S: Final = 2.0
PAUSE_S: Final = 0.1  # after what failed: a cluster without a leader must not be stormed


class Director(Protocol):
    """Who says what is to be done next, and counts."""

    def due(self) -> float | None:
        """When the next request is due by time.monotonic(), maybe in the past; None once there is none."""

    def succeeded(self, kind: str, seconds: float) -> None: ...
    def failed(self, kind: str, code: str, is_unknown: bool) -> None: ...
    def ended(self) -> None:
        """This client has had its last answer."""


class Client:
    """Satisfies wire.Asker. Goes to the first of `places`, and to the next one whenever a connection fails."""

    def __init__(self, director: Director, workload: Workload, places: Sequence[Place]) -> None:
        self._loop = asyncio.get_running_loop()
        self._director = director
        self._places = [(each, workload.maker(each)) for each in places]
        self._turn = 0
        self._wire: Wire | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._kind = ""
        self._due = self._sent = 0.0
        self._waits = self._over = False

    async def connect(self) -> bool:
        """Whether there is a connection now."""
        place, _ = self._places[self._turn]
        wire = Wire(self)
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._loop.create_connection(lambda: wire, place.host, place.port, ssl=place.tls)
        except (OSError, TimeoutError, UnicodeError):  # the last one for a host that cannot be a name
            wire.drop()
            self._turn = (self._turn + 1) % len(self._places)
            return False
        self._wire = wire
        return True

    def proceed(self) -> None:
        """To the next request."""
        self._timer = None
        due = self._director.due()
        if due is None:
            self._end()
        elif due > (now := monotonic()):
            self._timer = self._loop.call_later(due - now, self._send)
        else:
            self._send(due)

    def halt(self) -> None:
        """The load is over: an answer that is under way is waited for, a request that is not sent yet is not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._end()

    def check(self, timeout_s: float) -> None:
        """To be called now and then: gives up what has waited for longer."""
        if self._waits and monotonic() - self._sent > timeout_s and self._wire is not None:
            self._wire.drop()
            self.broken(self._wire, "timed_out")

    def close(self) -> None:
        """At once, whatever is under way."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._dialing is not None:
            self._dialing.cancel()
        if self._wire is not None:
            self._wire.drop()

    def answered(self, wire: Wire, head: bytes, body: bytes) -> None:
        self._waits = False
        if is_success(head, body, self._kind == "batch"):
            self._director.succeeded(self._kind, monotonic() - self._due)
            self.proceed()
        else:
            self._failed(*refusal(head, body))

    def broken(self, wire: Wire, code: str) -> None:
        self._waits = False
        self._turn = (self._turn + 1) % len(self._places)
        self._failed(code, True)

    def _send(self, due: float | None = None) -> None:
        """`due`: since when, where the client could not before; what the timer is late by is not the cluster's."""
        self._timer, self._due = None, monotonic() if due is None else due
        self._kind, request = self._places[self._turn][1]()
        if self._wire is None or not self._wire.is_open:
            self._dialing = self._loop.create_task(self._dial())
            return
        self._sent, self._waits = monotonic(), True
        self._wire.send(request)

    async def _dial(self) -> None:
        connected = await self.connect()
        self._dialing = None
        if connected and self._wire is not None and self._wire.is_open:
            self._send(self._due)
        else:
            self._failed("cannot_connect", False)

    def _failed(self, code: str, is_unknown: bool) -> None:
        self._director.failed(self._kind, code, is_unknown)
        self._timer = self._loop.call_later(PAUSE_S, self.proceed)

    def _end(self) -> None:
        if not self._over:
            self.close()
            self._director.ended()
