"""The load itself: so many clients at once, until it has had its time or its number of requests, or is stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from kvnode.tools.bench.client import CONNECT_S, Client
from kvnode.tools.bench.place import Place
from kvnode.tools.bench.tally import Tally
from kvnode.tools.bench.workload import WRITES, Workload

TICK_S: Final = 0.25


@dataclass(frozen=True)
class Plan:
    """`duration_s` and, if not None, `requests`: whichever comes first. `rate`: requests/s at most, None for no bound.

    `timeout_s` is for one answer, and for all that are under way at the end.
    """

    clients: int
    duration_s: float
    requests: int | None
    rate: float | None
    timeout_s: float


class Load:
    """Satisfies client.Director. Clients begin at one place after another, and so each has its share of them."""

    def __init__(self, plan: Plan, workload: Workload, places: Sequence[Place]) -> None:
        self._plan = plan
        self.tally = Tally(workload.kinds)
        self.elapsed_s = 0.0
        self.busy_s = 0.0  # this process's processor time meanwhile
        self._begun = self._deadline = 0.0
        self._given_up = float("inf")
        self._issued = 0
        self._stopped = False
        self._done = asyncio.Event()
        turned = [[*places[i:], *places[:i]] for i in range(len(places))]
        self._clients = [Client(self, workload, turned[i % len(turned)]) for i in range(plan.clients)]
        self._running = len(self._clients)

    async def run(self, tick: Callable[[Load], None]) -> None:
        """Returns once every client has had its last answer; bounded by the time for that and for connecting."""
        try:
            await asyncio.gather(*(each.connect() for each in self._clients))  # the first request finds out why not
            self._begun, used_s = time.monotonic(), time.process_time()
            self._deadline = self._begun + self._plan.duration_s
            if self._stopped:
                self._deadline = self._begun
            for each in self._clients:
                each.proceed()
            counted = 0
            while not self._done.is_set():
                try:
                    async with asyncio.timeout(TICK_S):
                        await self._done.wait()
                except TimeoutError:
                    self._supervise()
                # At the end, what never comes is waited for: without a success more, that is no time of the load.
                if not self._stopped or self.tally.succeeded > counted:
                    counted = self.tally.succeeded
                    self.elapsed_s, self.busy_s = time.monotonic() - self._begun, time.process_time() - used_s
                tick(self)
        finally:
            for each in self._clients:
                each.close()

    def stop(self) -> None:
        """The requests that are under way are the last ones."""
        if not self._stopped:
            self._stopped, self._given_up = True, time.monotonic() + self._plan.timeout_s + 2 * CONNECT_S
        for each in self._clients:
            each.halt()

    def _supervise(self) -> None:
        if not self._stopped and time.monotonic() >= self._deadline:
            self.stop()
        for each in self._clients:
            each.check(self._plan.timeout_s)
        if time.monotonic() >= self._given_up:
            self._done.set()

    # --- what a client asks and says -------------------------------------------------------------

    def due(self) -> float | None:
        plan, now = self._plan, time.monotonic()
        if self._stopped or now >= self._deadline or self._issued == plan.requests:
            return None
        if plan.rate is None:
            due = now
        else:
            # Counted from the beginning: what a slow answer held up is late, and its latency says so.
            due = self._begun + self._issued / plan.rate
            if due >= self._deadline:
                return None
        self._issued += 1
        return due

    def succeeded(self, kind: str, seconds: float) -> None:
        self.tally.by_kind[kind].success(seconds)

    def failed(self, kind: str, code: str, is_unknown: bool) -> None:
        self.tally.by_kind[kind].failure(code, is_unknown and kind in WRITES)

    def ended(self) -> None:
        self._running -= 1
        if not self._running:
            self._done.set()
