"""Many tasks waiting for one event, each with its own deadline, none of them left behind in memory."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


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
    """Waiters for numbered events that are settled in order: settling one settles all before it."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiters[T]] = {}

    async def wait(self, number: int, timeout_s: float) -> T | None:
        waiters = self._waiting.get(number)
        if waiters is None:
            waiters = self._waiting[number] = Waiters()
        return await waiters.wait(timeout_s)

    def settle(self, number: int, value: T | None) -> None:
        for earlier in [n for n in self._waiting if n <= number]:
            self._waiting.pop(earlier).resolve(value)

    def __len__(self) -> int:
        return sum(len(waiters) for waiters in self._waiting.values())
