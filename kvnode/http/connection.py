"""One client's connection: aiohttp's, with answers to what is no request, and news for an answer that goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from aiohttp import web

from kvnode.http.answer import Answer


class Listener(Protocol):
    """Who wants to know what becomes of the connection while it is being answered."""

    def paused(self) -> None:
        """The client does not take what it was sent as fast as that."""

    def resumed(self) -> None:
        """It has taken nearly all of it."""

    def lost(self) -> None:
        """The connection is gone."""


class Connection(web.RequestHandler):
    """`listener` is nobody but for watches; `malformed` answers bytes that are no request."""

    __slots__ = ("_malformed", "listener")

    def __init__(
        self, server: web.Server, malformed: Callable[[BaseException | None], Answer], **settings: Any
    ) -> None:
        super().__init__(server, **settings)
        self._malformed = malformed
        self.listener: Listener | None = None

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
        super().connection_lost(exc)
