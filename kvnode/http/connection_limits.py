"""How many connections there may be, in all and from one client's address.

One too many is told so (429) and closed, which takes a connection for a moment; far too many are closed at once. A
probe is answered all the same: a balancer that is refused would take the node for dead, and send its load elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from kvnode.errors import TooManyRequests
from kvnode.http.answer import Answer
from kvnode.http.connection import Connection
from kvnode.http.door import is_probe

REFUSED_MAX: Final = 256  # that wait for their 429
PATIENCE_S: Final = 5.0  # for a refused one to ask something and hear why


class ConnectionLimits:
    """`most` in all, `most_each` for each address (0: no limit of its own)."""

    def __init__(
        self,
        most: int,
        most_each: int,
        handle: Callable[[web.BaseRequest], Awaitable[Answer]],
        failed: Callable[[TooManyRequests], Answer],
    ) -> None:
        self._most = most
        self._most_each = most_each
        self._handle = handle
        self._failed = failed
        self._welcome = 0
        self._each: dict[str, int] = {}
        self._refused: dict[Connection, asyncio.TimerHandle | None] = {}

    def came(self, connection: Connection) -> None:
        over = self._welcome >= self._most
        if not over and self._most_each:
            address = connection.address
            count = self._each.get(address, 0)
            over = count >= self._most_each
            if not over:
                self._each[address] = count + 1
        if not over:
            self._welcome += 1
            return
        transport = connection.transport
        assert transport is not None
        if len(self._refused) >= REFUSED_MAX:
            self._refused[connection] = None
            transport.abort()
            return
        connection.refused(self._refuse)
        self._refused[connection] = asyncio.get_running_loop().call_later(PATIENCE_S, transport.abort)

    def went(self, connection: Connection) -> None:
        if connection in self._refused:
            timer = self._refused.pop(connection)
            if timer is not None:
                timer.cancel()
            return
        self._welcome -= 1
        if self._most_each:
            address = connection.address
            left = self._each.get(address, 1) - 1
            if left:
                self._each[address] = left
            else:
                self._each.pop(address, None)

    async def _refuse(self, request: web.BaseRequest) -> Answer:
        if is_probe(request.raw_path.partition("?")[0]):
            answer = await self._handle(request)
        else:
            answer = self._failed(TooManyRequests("There are more connections than there may be; try again later."))
        answer.close = True
        return answer
