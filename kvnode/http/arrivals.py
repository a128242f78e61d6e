"""What has arrived on a connection and is not answered yet: how much memory it takes, and what has no room.

The bytes of unfinished and of queued requests are held in the node's budget of bodies (budget.Budgets), and what has to
be parsed waits until a turn of the loop has time for it. What there is no room for is refused with an answer where one
can follow, and ends its connection where not.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from kvnode.errors import Overloaded
from kvnode.http.budget import UNCOUNTED_BYTES, Budgets, Hold

# The request line and all header lines together, and what may follow a body in chunks: what nginx takes by default.
# aiohttp bounds each line (8,190 bytes) and their number (128), which is a megabyte.
HEAD_BYTES_MAX: Final = 32_768
HEAD_COPIES: Final = 5  # a head is kept as it came, and as text, where one wide letter makes all take four bytes each
HEAD_LINE_BYTES: Final = 256  # for the objects of each header line, however short it is


class Arrivals(web.RequestHandler):
    """aiohttp's connection, with an account of what it holds."""

    __slots__ = (
        "_answered",
        "_arrived",
        "_carrier",
        "_dropping",
        "_framing",
        "_head_bytes",
        "_kept",
        "_newest",
        "_newest_bytes",
        "_taken_of",
        "budgets",
        "reading",
    )

    def __init__(self, server: web.Server, budgets: Budgets, **settings: Any) -> None:
        super().__init__(server, **settings)
        self.budgets = budgets
        self._arrived: Hold | None = None  # what came of requests that are not answered yet, where it is much
        self._head_bytes = 0  # of a head that is not complete, or of what follows a body in chunks
        self._framing = 0  # what else came with the last piece and is no body: chunks, the begin of the next request
        self._newest: StreamReader | None = None  # the body that is arriving, and how much of it was counted
        self._newest_bytes = 0
        self._answered: StreamReader | None = None  # a body that is read and dropped: its answer is out before its end
        self._taken_of: tuple[Any, int] = (None, 0)  # a body that is taken in pieces, and how much of it is not held
        self._dropping = False
        self._kept: tuple[bytes, Hold] | None = None  # what came and waits for a turn of the loop to be parsed in
        self.reading = False  # a handler reads the body, and answers when there is no room for it
        self._carrier: asyncio.Transport | None = None  # the transport, for as long as it exists

    def abort(self) -> None:
        """Closes the connection at once and drops unsent bytes."""
        if self._carrier is not None:
            self._carrier.abort()

    def _put_off(self, data: bytes) -> None:
        """Keeps what came until a turn of the loop has time for it; nothing more of the connection is read until then.

        There is room for it, or the connection ends: only what is parsed can be refused with an answer.
        """
        if self._carrier is None:
            return
        bodies = self.budgets.bodies
        waits = self._kept is not None
        if self._kept is not None:
            data = self._kept[0] + data
        self._kept = (data, bodies.hold_anyway(len(data)))
        if not bodies.fits(0):
            self._cut()
            return
        if not waits:
            self._pause_transport_reading()
            self.budgets.reads.wait(self.read_kept)

    def read_kept(self) -> None:
        """Parses what was kept. Nothing where the connection has ended meanwhile."""
        if self._kept is None:
            return
        (data, hold), self._kept = self._kept, None
        hold.release()
        self.data_received(data)
        if not self._reading_paused and not self._buffer_paused:
            self._resume_transport_reading()

    def _resume_transport_reading(self) -> None:
        if self._kept is None:
            super()._resume_transport_reading()

    def _cut(self) -> None:
        """Ends the connection for which there is no room. What it holds goes now, not with the next turn."""
        self.budgets.bodies.cut += 1
        self._kept = None
        self.abort()
        super().force_close()
        self._let_go(self._task_handler)

    def _count(self, size: int, requests: int) -> None:
        """So many bytes came that the short way does not answer at once, and so many requests began in them."""
        newest = self._newest
        body = 0 if newest is None else newest.total_bytes - self._newest_bytes
        if requests:
            rest = self._head_bytes + self._framing + size - body
            for index in range(-requests, 0):
                message, payload = self._messages[index]
                head_bytes = head_size(message)
                rest -= head_bytes + payload.total_bytes
                if head_bytes > HEAD_BYTES_MAX:
                    self._messages[index] = _too_long()
            newest = self._messages[-1][1]
            self._head_bytes, self._framing = 0, max(0, rest)
        elif body:
            self._head_bytes, self._framing = 0, max(0, size - body)
        else:
            self._head_bytes += size
        if newest is None or newest.is_eof():
            self._newest = None
        else:
            self._newest, self._newest_bytes = newest, newest.total_bytes
            if body and newest is self._answered:
                self._drop(newest)
        if self._head_bytes > HEAD_BYTES_MAX:
            if self._waiter is None or (newest is not None and not newest.is_eof()):
                self.abort()  # no answer could follow the one that is under way
            elif not self._messages:
                self._messages.append(_too_long())
        self._hold_arrived()

    def taken(self, content: StreamReader, size: int) -> None:
        """Of the present request's body so many bytes are taken in all, and are not this node's to hold."""
        self._taken_of = content, size
        self._hold_arrived()

    def _hold_arrived(self) -> None:
        """Holds what the present request has brought, and what is queued behind it."""
        current = self._current_request
        size = HEAD_COPIES * (self._head_bytes + self._framing)
        if current is not None:
            size += _head_cost(current._message)
            if current.content is not self._answered:
                taken = self._taken_of[1] if self._taken_of[0] is current.content else 0
                size += current.content.total_bytes - taken
        for message, payload in self._messages:
            size += _head_cost(message)
            if payload is not self._answered:
                size += payload.total_bytes
        hold, transport = self._arrived, self._carrier
        if size <= UNCOUNTED_BYTES or transport is None:
            if hold is not None:
                hold.release()
                self._arrived = None
            return
        bodies = self.budgets.bodies
        if hold is None:
            hold = self._arrived = bodies.hold_anyway(size)
            fits = hold.wait(transport)
        else:
            hold.resize(size)
            fits = bodies.fits(0)
        if not fits and not self.reading:
            if self._waiter is not None and len(self._messages) == 1:
                self._refuse()
            else:
                self._cut()  # others are to be answered first, and all would be read until then

    def _refuse(self) -> None:
        """Answers 503 to the one that waits and was not begun, and drops the rest of it."""
        self._answered = payload = self._messages[0][1]
        try:
            self.budgets.bodies.require(0)
        except Overloaded as error:
            self._messages.clear()
            self._messages.append((_ErrInfo(status=503, exc=error, message=error.message), payload))
        self._drop(payload)
        if self._arrived is not None:
            self._arrived.release()
            self._arrived = None

    def _drop(self, payload: StreamReader) -> None:
        """Drops what has come of a body that is not to be read. Nothing may wait for more of it."""
        if self._dropping or payload.exception() is not None:
            return
        self._dropping = True  # reading lets the parser go on, which comes here again
        try:
            while payload.read_nowait(-1):
                pass
        finally:
            self._dropping = False

    def drop_body(self, request: web.BaseRequest) -> None:
        """Drops what has come and what will come of the body: the answer begins before its end."""
        if self._newest is request.content:
            self._answered = self._newest
            self._drop(request.content)

    def _let_go(self, task: asyncio.Task[None] | None) -> None:
        """Drops what was not read. The garbage collector would find it in its own time: it knows its connection, and is
        known to it.
        """
        current = self._current_request
        unread = [payload for _, payload in self._messages]
        if current is not None and not self.reading and not current.content.is_eof():  # a whole one may still be read
            unread.append(current.content)
        for payload in unread:
            self._drop(payload)
        if task is not None and self._waiter is not None and self._waiter.done():
            task.cancel()  # it was woken for what is not there any more
        self._messages.clear()


def head_size(message: RawRequestMessage | _ErrInfo) -> int:
    """Of the request line and the header lines, in bytes as they came."""
    if isinstance(message, _ErrInfo):
        return 0
    return len(message.path) + sum([len(name) + len(value) + 4 for name, value in message.raw_headers])


def _head_cost(message: RawRequestMessage | _ErrInfo) -> int:
    """In bytes of memory."""
    if isinstance(message, _ErrInfo):
        return 0
    return HEAD_COPIES * head_size(message) + HEAD_LINE_BYTES * len(message.raw_headers)


def _too_long() -> tuple[_ErrInfo, StreamReader]:
    """What aiohttp queues for a line that is too long."""
    error = LineTooLong(b"", HEAD_BYTES_MAX)
    return _ErrInfo(status=400, exc=error, message=error.message), EMPTY_PAYLOAD
