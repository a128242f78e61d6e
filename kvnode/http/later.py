"""Later: an answer that waits for one thing, and needs no task of its own for that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from kvnode.http.answer import Answer

T = TypeVar("T")


class Later(Generic[T]):
    """`render` makes the answer of what `future` gives, or says what else it waits for; both may raise.

    To be awaited like any other; a connection that has nothing else to do puts a callback on the future instead.
    """

    __slots__ = ("future", "render")

    def __init__(self, future: asyncio.Future[T], render: Callable[[T], Answer | Awaitable[Answer]]) -> None:
        self.future = future
        self.render = render

    def __await__(self) -> Generator[Any, Any, Answer]:
        result = yield from self.future.__await__()
        outcome = self.render(result)
        if isinstance(outcome, Answer):
            return outcome
        return (yield from outcome.__await__())
