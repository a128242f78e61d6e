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
    """Neither `url` nor what derives from it, no `app`, no `task`: nothing here uses them."""

    def __init__(self, message: RawRequestMessage, payload: StreamReader, protocol: web.RequestHandler) -> None:
        self._message = message
        self._payload = payload
        self._protocol = protocol
        self._headers = message.headers
        self._method = message.method
        self._version = message.version
        self._cache: dict[str, Any] = {}
        self._transport_peername = protocol.peername
        self._transport_sslcontext = protocol.ssl_context

    @property
    def writer(self) -> AbstractStreamWriter:
        return StreamWriter(self._protocol, asyncio.get_running_loop())
