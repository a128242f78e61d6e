"""A request that came whole: aiohttp's `BaseRequest`, made without what no handler here asks for.

Most of `BaseRequest.__init__` is the URL, taken apart and put together, and three questions to the socket. Handlers
here work from the raw target, and few ask for the rest; it is there all the same, made when it is asked for.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage, StreamWriter


class Request(web.BaseRequest):
    """Neither `url` nor what derives from it, no `app`, no `task`: nothing here uses them.

    What every request is asked for is plain attributes: aiohttp's are computed when they are first asked for, and kept
    in a dict from then on.
    """

    __slots__ = ("content", "headers", "keep_alive", "method", "raw_path", "version")

    def __init__(self, message: RawRequestMessage, payload: StreamReader, protocol: web.RequestHandler) -> None:
        self._message = message
        self._payload = payload
        self._protocol = protocol
        self.content = payload
        self.headers = self._headers = message.headers
        self.keep_alive = not message.should_close
        self.method = self._method = message.method
        self.raw_path = message.path
        self.version = self._version = message.version
        self._cache: dict[str, Any] = {}
        self._transport_peername = protocol.peername
        self._transport_sslcontext = protocol.ssl_context

    @property
    def writer(self) -> AbstractStreamWriter:
        return StreamWriter(self._protocol, asyncio.get_running_loop())
