"""An answer, written to the connection in one piece.

aiohttp's `web.Response` builds a header map, runs signals, and encodes the map again for each answer. A node's
answers are small, complete and known in advance, so their header lines are made as bytes once: the same
aiohttp server answers twice as many requests per second this way (`Answer` has the three members that
aiohttp's `RequestHandler` asks of a response: `prepare`, `write_eof`, `keep_alive`).
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from json.encoder import encode_basestring
from typing import Any, Final

from aiohttp import HttpVersion11, web

from kvnode.http.budget import SMALL_BYTES, Hold

WRITE_DEADLINE_S: Final = 30.0  # for a client to take all of an answer; the budget of answers may not wait so long

# What a node says is about now and for whoever asked: no cache keeps it (a proxy may keep a 404 that says nothing,
# RFC 9111, 4.2.2), and no browser takes it for another type than the one that stands there.
PRIVATE: Final = b"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
JSON_TYPE: Final = b"Content-Type: application/json\r\n" + PRIVATE
TEXT_TYPE: Final = b"Content-Type: text/plain; charset=utf-8\r\n" + PRIVATE
# For values: anyone who may write a key chooses the bytes and their Content-Type. Opened in a browser, they are a page
# without scripts, forms, an origin or any other source; and no other site's page gets them as a script or an image.
VALUE: Final = (
    PRIVATE + b"Content-Security-Policy: sandbox; default-src 'none'\r\nCross-Origin-Resource-Policy: same-origin\r\n"
)

_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
STATUS_LINE_200: Final = _STATUS_LINES[200]
_BODILESS: Final = frozenset((204, 304))


class Answer:
    """Status, header lines (each ended by CR LF) and the whole body. Framing and `Connection` are added here."""

    __slots__ = ("_request", "body", "close", "headers", "hold", "keep_alive", "stamp", "status")

    def __init__(self, status: int, headers: bytes, body: bytes = b"", *, close: bool = False) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.close = close  # the connection cannot be used again
        self.stamp = b""  # the lines that every answer of this node carries (app.Stamp)
        self.keep_alive = False
        self.hold: Hold | None = None  # its part of the budget of answers, where it is large
        self._request: web.BaseRequest | None = None

    def holding(self, hold: Hold) -> Answer:
        """With the part of the budget that was asked for before it was made; a small one needs none."""
        if len(self.body) > SMALL_BYTES:
            hold.resize(len(self.body))
            self.hold = hold
        return self

    def settle(self, request: web.BaseRequest) -> None:
        """Whether to keep the connection: not with a request body still unread (it may never come)."""
        self.keep_alive = request.keep_alive and not self.close and request.content.is_eof()

    def encoded(self, request: web.BaseRequest) -> bytes:
        """All of it, once settled."""
        body, status = self.body, self.status
        if self.keep_alive and status == 200 and request.version is HttpVersion11 and request.method != "HEAD":
            # Nearly every answer. The same as below, without the questions.
            head = b"%b%b%bContent-Length: %d\r\n\r\n" % (STATUS_LINE_200, self.stamp, self.headers, len(body))
            return head + body
        head, body = self.parts(request)
        return head + body

    def parts(self, request: web.BaseRequest) -> tuple[bytes, bytes]:
        """The head and what follows it, once settled."""
        body, status = self.body, self.status
        length = b"" if status in _BODILESS else b"Content-Length: %d\r\n" % len(body)
        if self.keep_alive:
            # HTTP/1.0 closes unless told otherwise, HTTP/1.1 the other way round.
            connection = b"" if request.version >= HttpVersion11 else b"Connection: keep-alive\r\n"
        else:
            connection = b"Connection: close\r\n"
        if request.method == "HEAD" or status in _BODILESS:
            body = b""
        head = b"%b%b%b%b%b\r\n" % (_STATUS_LINES[status], self.stamp, self.headers, length, connection)
        return head, body

    async def drained(self, request: web.BaseRequest, transport: asyncio.Transport) -> bool:
        """Waits until the client has taken all of it, and says `keep_alive`. ConnectionError for one that does not."""
        try:
            async with asyncio.timeout(WRITE_DEADLINE_S):
                await request.writer.drain()
        except TimeoutError:
            transport.abort()
            raise ConnectionResetError("the client does not read its answer") from None
        return self.keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        self._request = request
        self.settle(request)

    async def write_eof(self, chunk: bytes = b"") -> None:
        """Writes everything. ConnectionError where the client has gone or stopped reading."""
        request = self._request
        transport = None if request is None else request.transport
        if request is None or transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        self._request = None
        connection: Any = request.protocol
        taken = connection.put(request, self)
        self.body = b""  # aiohttp's task keeps an answer until the next request comes, which may be a long time
        if not taken:
            await self.drained(request, transport)


def json_bytes(document: Any) -> bytes:
    """Compact JSON in UTF-8 and a line end, for terminals."""
    return (json_text(document) + "\n").encode("utf-8", "replace")


def json_text(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def json_string(text: str) -> str:
    """`text` as a JSON string, quotes included (for the small answers that are built by hand)."""
    return encode_basestring(text)


def json_answer(status: int, document: Any, headers: bytes = b"") -> Answer:
    return Answer(status, JSON_TYPE + headers, json_bytes(document))
