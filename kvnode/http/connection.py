"""One client's connection: aiohttp's, with answers to what is no request, and news for an answer that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

from aiohttp import web

from kvnode.http.answer import Answer
from kvnode.tokens import Token


class Listener(Protocol):
    """Who wants to know what becomes of the connection while it is being answered."""

    def paused(self) -> None:
        """The client does not take what it was sent as fast as that."""

    def resumed(self) -> None:
        """It has taken nearly all of it."""

    def lost(self) -> None:
        """The connection is gone."""


class Guests(Protocol):
    """Who counts connections."""

    def came(self, connection: Connection) -> None: ...
    def went(self, connection: Connection) -> None: ...


class Connection(web.RequestHandler):
    """`listener` is nobody but for watches; `malformed` answers bytes that are no request."""

    __slots__ = ("_guests", "_malformed", "_named", "believed", "credential", "listener")

    def __init__(
        self, server: web.Server, malformed: Callable[[BaseException | None], Answer], **settings: Any
    ) -> None:
        super().__init__(server, **settings)
        self._malformed = malformed
        self.listener: Listener | None = None
        self._guests: Guests | None = None
        self._named = ""
        self.believed: bool | None = None  # whether it is a balancer's that may say who its client is (door.Door)
        self.credential: tuple[str, Token] | None = None  # the last valid one that came (door.Door)

    @property
    def address(self) -> str:
        """The client's, by the connection itself or by what its balancer said in front of it."""
        if not self._named and isinstance(self.peername, tuple):
            self._named = self.peername[0]
        return self._named

    def counted(self, guests: Guests, address: str) -> Connection:
        """Before the connection is made: who counts it, and its client's address where that is known already."""
        self._guests, self._named = guests, address
        return self

    def refused(self, refuse: Callable[[web.BaseRequest], Awaitable[Answer]]) -> None:
        """Whatever is asked on this connection, `refuse` answers it."""
        self._request_handler = cast(Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], refuse)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._guests is not None:
            self._guests.came(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Reached for bytes that are no request alone: `App.handle` lets no failure of a handler through."""
        return cast(web.StreamResponse, self._malformed(exc))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.listener is not None:
            self.listener.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.listener is not None:
            self.listener.resumed()

    def connection_lost(self, exc: BaseException | None) -> None:
        # aiohttp lets a handler run on when its client has gone, which is right for a write and wrong for a watch.
        if self.listener is not None:
            self.listener.lost()
        if self._guests is not None:
            self._guests.went(self)
        if exc is not None and not isinstance(exc, ConnectionError):
            # Broken TLS ends in an ssl.SSLError, and whoever waits for the rest of a body would take it for a fault.
            exc = ConnectionResetError(str(exc))
        super().connection_lost(exc)
