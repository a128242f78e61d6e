"""Many writes that one client waits for together: one future for all of them, however many."""

from __future__ import annotations

import asyncio
from typing import Any

from kvnode.errors import KvnodeError
from kvnode.state.results import Result


class WriteBatch:
    """The outcomes of `count` writes in their order; `done` resolves with them once each has one."""

    def __init__(self, count: int) -> None:
        self.outcomes: list[Result | KvnodeError | None] = [None] * count
        self.left = count
        self.done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

    def settle(self, number: int, outcome: Any) -> None:
        self.outcomes[number] = outcome
        self.left -= 1
        if self.left == 0 and not self.done.done():
            self.done.set_result(self.outcomes)


class Share:
    """One of them, as `proposals.Waiter` wants it: a future without what a future costs."""

    __slots__ = ("_bulk", "_number")

    def __init__(self, bulk: WriteBatch, number: int) -> None:
        self._bulk = bulk
        self._number = number

    def done(self) -> bool:
        return self._bulk.outcomes[self._number] is not None or self._bulk.done.done()

    def set_result(self, result: Any, /) -> None:
        self._bulk.settle(self._number, result)

    def set_exception(self, exception: Any, /) -> None:
        self._bulk.settle(self._number, exception)
