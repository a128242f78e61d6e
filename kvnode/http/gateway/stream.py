"""Answers that are streams of messages: chunked, each message a chunk of its own that ends in a newline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiohttp import HttpVersion11, web

from kvnode.http.answer import JSON_TYPE, Answer

LAST: Final = b"0\r\n\r\n"


def chunk(message: bytes) -> bytes:
    """A message as a chunk (RFC 9112, 7.1): clients read one by one, and take each for a whole message."""
    return b"%x\r\n%b\r\n" % (len(message), message)


class Chunks(Answer):
    """Messages that are all there: an answer that ends."""

    __slots__ = ("_messages",)

    def __init__(self, messages: Iterable[bytes]) -> None:
        self._messages = tuple(messages)
        super().__init__(200, JSON_TYPE, b"".join(self._messages))

    def encoded(self, request: web.BaseRequest) -> bytes:
        if request.version < HttpVersion11:  # knows no chunks
            return super().encoded(request)
        connection = b"" if self.keep_alive else b"Connection: close\r\n"
        head = b"HTTP/1.1 200 OK\r\n%b%bTransfer-Encoding: chunked\r\n%b\r\n" % (self.stamp, self.headers, connection)
        return b"".join((head, *map(chunk, self._messages), LAST))
