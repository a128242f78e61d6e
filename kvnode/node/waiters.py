"""Many tasks waiting for one event, each with its own deadline, none of them left behind in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

Future = asyncio.Future  # of somebody who waits; for those who have no business with the loop beside it


class Waiters(Generic[T]):
    """Those who wait for one event. A waiter that gives up or is cancelled disturbs no other."""

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[T | None]] = set()

    async def wait(self, timeout_s: float) -> T | None:
        """The event's value, or None when `timeout_s` has passed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T | None] = loop.create_future()
        self._futures.add(future)
        timer = loop.call_later(timeout_s, _give_up, future)
        try:
            return await future
        finally:
            timer.cancel()
            self._futures.discard(future)

    def resolve(self, value: T | None) -> None:
        """The event has happened (None: it never will). Whoever comes later waits for the next one."""
        futures, self._futures = self._futures, set()
        for future in futures:
            if not future.done():
                future.set_result(value)

    def __len__(self) -> int:
        return len(self._futures)


def _give_up(future: asyncio.Future[T | None]) -> None:
    if not future.done():
        future.set_result(None)


class Rounds(Generic[T]):
    """Waiters for numbered events that are settled in order: settling one settles all before it.

    Made for tens of thousands of waits a second: a wait is one future and no timer. Whoever owns the rounds calls
    `expire` by the clock, and a wait lasts so much longer than asked for, at the most.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.waiting: dict[int, list[tuple[float, asyncio.Future[T | None]]]] = {}

    def wait(self, number: int, timeout_s: float) -> asyncio.Future[T | None]:
        """The event's value, or None when `timeout_s` has passed. Each caller has a future of its own to await."""
        future: asyncio.Future[T | None] = self._loop.create_future()
        waiter = (self._clock() + timeout_s, future)
        waiters = self.waiting.get(number)
        if waiters is None:
            self.waiting[number] = [waiter]
        else:
            waiters.append(waiter)
        return future

    def settle(self, number: int, value: T | None) -> None:
        for earlier in [n for n in self.waiting if n <= number]:
            for _, future in self.waiting.pop(earlier):
                if not future.done():
                    future.set_result(value)

    def expire(self) -> None:
        """Gives None to those whose time is over, and forgets who has given up."""
        now = self._clock()
        for number, waiters in list(self.waiting.items()):
            for deadline, future in waiters:
                if deadline <= now and not future.done():
                    future.set_result(None)
            left = self.waiting[number] = [waiter for waiter in waiters if not waiter[1].done()]
            if not left:
                del self.waiting[number]
