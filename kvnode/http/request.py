"""A request that came whole: aiohttp's `BaseRequest`, made without what no handler here asks for.

Most of `BaseRequest.__init__` is the URL, taken apart and put together, and three questions to the socket. Handlers
here work from the raw target, and few ask for the rest; it is there all the same, made when it is asked for.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD

from kvnode.http.heads import Head


class Request(web.BaseRequest):
    """Neither `url` nor what derives from it, no `app`, no `task`: nothing here uses them.

    What every request is asked for is plain attributes: aiohttp's are computed when they are first asked for, and kept
    in a dict from then on.
    """

    __slots__ = ("body", "content", "headers", "keep_alive", "method", "raw_path", "version")

    def __init__(self, message: RawRequestMessage, payload: StreamReader, protocol: web.RequestHandler) -> None:
        self._message = message
        self._payload = payload
        self._protocol = protocol
        self.body = b""  # all of it, where its head was known (`KnownRequest`)
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


class KnownRequest(Request):
    """A request whose head was known (`heads.py`), with its body as it came. `content` is at its end.

    `free`: the door lets anybody in with this head, and so who asks has every right. `key`: its Idempotency-Key, which
    is none of `headers`, None without one.
    """

    __slots__ = ("free", "head", "key")

    def __init__(
        self,
        head: Head,
        method: str,
        target: str,
        body: bytes,
        protocol: web.RequestHandler,
        free: bool,
        key: str | None,
    ) -> None:
        self.head = head
        self.free = free
        self.key = key
        self._protocol = protocol
        self.body = body
        self.content = EMPTY_PAYLOAD
        self.headers = head.headers
        self.keep_alive = True
        self.method = method
        self.raw_path = target
        self.version = HttpVersion11
        self._cache = {}

    @property
    def body_exists(self) -> bool:
        return bool(self.body)

    # What `BaseRequest` reads from.
    _message = property(lambda self: self.head.message)
    _payload = property(lambda self: self.content)
    _read_bytes = property(lambda self: self.body)
    _headers = property(lambda self: self.headers)
    _method = property(lambda self: self.method)
    _version = property(lambda self: self.version)
    _transport_peername = property(lambda self: self._protocol.peername)
    _transport_sslcontext = property(lambda self: self._protocol.ssl_context)
