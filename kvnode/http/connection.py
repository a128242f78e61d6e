"""One client's connection: aiohttp's, with a fast path for most requests, and signals for streaming answers.

aiohttp takes every request through a waiter, two tasks and a response object, which costs several times the work of
the node. So a request that arrived whole, with no unanswered request before it, is answered where it arrives
(`_at_once`). aiohttp's own path takes all others: bodies still on their way, pipelined requests, requests that the
logs follow, malformed bytes. Both use the same connection: aiohttp's task sleeps on its waiter, and does not see
messages that arrive meanwhile until the fast path hands them over.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol, cast

from aiohttp import web
from aiohttp.web_protocol import _ErrInfo

from kvnode.http.answer import WRITE_DEADLINE_S, Answer
from kvnode.http.arrivals import Arrivals, head_size
from kvnode.http.budget import AT_ONCE_BYTES, SMALL_BYTES, UNCOUNTED_BYTES, Budgets, Hold
from kvnode.http.credentials import Admission
from kvnode.http.heads import END, METHODS, REQUEST_LINE, Head, Heads
from kvnode.http.later import Later
from kvnode.http.request import KnownRequest, Request
from kvnode.net.tls import common_name

# For the head of a connection's first request, and of any other from the first piece that came alone: silence, or one
# byte a minute, would hold a place for ever.
HEAD_S: Final = 30.0
# While the node stops: for a new connection's first request, which follows it by one way through the network.
FIRST_S: Final = 0.25
PARTING_S: Final = 0.25  # for a client to close an idle connection after this node has; it takes a round trip
TLS_COPIES: Final = 2  # at least: what was encrypted already is kept apart from what was not
# Between two requests: what nginx gives its clients. Balancers keep idle connections to servers for less (nginx 60 s,
# HAProxy as long as its client stays), so that a request seldom meets a connection that is just closing.
IDLE_S: Final = 75.0
UNKNOWN_MAX: Final = 16  # a client whose head is new each time (it says the time, say) is not learned any more


class Listener(Protocol):
    """Who wants to know what becomes of the connection while it is being answered."""

    def paused(self) -> None:
        """The client does not take what it was sent as fast as that."""

    def resumed(self) -> None:
        """It has taken nearly all of it."""

    def lost(self) -> None:
        """The connection is gone."""


class ConnectionLimits(Protocol):
    """Who counts connections."""

    def came(self, connection: Connection) -> None: ...
    def went(self, connection: Connection) -> None: ...


class App(Protocol):
    """Who answers; `app.App` says how."""

    budgets: Budgets
    heads: Heads
    traces: bool

    def client(self, request: web.BaseRequest) -> str: ...
    def begin(
        self, request: web.BaseRequest, path: str = "", query: str = "", admitted: bool = False
    ) -> Answer | Awaitable[Answer]: ...
    def failed(self, request: web.BaseRequest, error: Exception) -> Answer: ...
    async def awaited(self, request: web.BaseRequest, outcome: Awaitable[Answer]) -> Answer: ...
    def held(self, method: str, answer: Answer) -> Answer: ...
    def sealed(self, answer: Answer, queued: bool = False) -> Answer: ...
    def lines_of_200(self) -> bytes: ...
    def malformed(self, error: BaseException | None) -> Answer: ...
    def follows(self, request: web.BaseRequest) -> bool: ...


class Connection(Arrivals):
    """`listener` is None unless a watch is answered here."""

    __slots__ = (
        "_app",
        "_asleep",
        "_between",
        "_came_at",
        "_late",
        "_limits",
        "_named",
        "_parting",
        "_pending",
        "_unknown",
        "_unread",
        "_welcome",
        "admitted",
        "believed",
        "common_name",
        "credential",
        "host",
        "listener",
    )

    def __init__(self, server: web.Server, app: App, **settings: Any) -> None:
        super().__init__(server, app.budgets, **settings)
        self._app = app
        self._welcome = True
        self._between = True  # the parser has all of a request, and nothing of the next one
        self._unknown = 0  # requests in a row whose head was not known
        self._asleep: asyncio.Future[None] | None = None  # aiohttp's waiter, while a request is answered without it
        self._pending: tuple[Request, Any] | None = None
        self._late: asyncio.TimerHandle | None = None
        self._unread: Hold | None = None  # what the client was sent and has not taken
        self.listener: Listener | None = None
        self._limits: ConnectionLimits | None = None
        self._came_at = 0.0
        self._named = ""
        self._parting = False
        self.common_name: str | None = None  # of the client's certificate, where the node asks for one
        self.believed: bool | None = None  # whether it is a balancer's that may say who its client is (door.Door)
        self.admitted: Head | None = None  # the head that was admitted without credentials, for any path (door.Door)
        self.credential: tuple[str | None, Admission] | None = None  # of the last request (credentials.Credentials)
        self.host: str | None = "\n"  # the last that passed (door.Door), None without one; at first what none can say

    @property
    def address(self) -> str:
        """The client's, by the connection itself or by what its balancer said in front of it."""
        if not self._named and isinstance(self.peername, tuple):
            self._named = self.peername[0]
        return self._named

    def client(self, request: web.BaseRequest) -> str:
        """The client's address, as trusted balancers name it."""
        return self._app.client(request)

    def counted(self, limits: ConnectionLimits, address: str) -> Connection:
        """Called before `connection_made`: who counts the connection, and the client's address if it is known."""
        self._limits, self._named = limits, address
        return self

    def refused(self, refuse: Callable[[web.BaseRequest], Awaitable[Answer]]) -> None:
        """From now on `refuse` answers every request on this connection."""
        self._welcome = False
        self._request_handler = cast(Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], refuse)

    @property
    def idle_since(self) -> float | None:
        """By the loop's clock: since when no request is under way; None while one is. The head of a request that is
        still arriving makes none: it would hold the connection with one byte.
        """
        if self._kept is not None:
            return None
        if not self._request_in_progress and (self._close or self._force_close):
            return self._came_at  # all is said, and the client takes its time to read it
        waiter = self._waiter
        if self._request_in_progress or waiter is None or waiter.done() or self._messages:
            return None
        return max(self._came_at, self._next_keepalive_close_time - self._keepalive_timeout)

    @property
    def arriving(self) -> bool:
        """A later request than the first has begun to arrive."""
        return self._late is not None and self._request_count > 0

    def has_queued(self, request: web.BaseRequest) -> bool:
        """Whether whole requests wait behind `request`, which is being answered."""
        return bool(self._messages) and self._welcome and request.keep_alive

    def part(self) -> None:
        """Ends the connection if it is idle and nothing has come for it, so that a client loses no request by it.

        The kernel is asked what the loop has not read yet. A client that writes at this very moment reads an orderly
        end of the stream, so it may repeat its request at another node; a reset would leave the outcome unknown.
        """
        transport = self.transport
        if transport is None or self._parting or self.idle_since is None or self.arriving:
            return
        if self._request_count == 0 and self._loop.time() - self._came_at < FIRST_S:
            return
        if _unread(transport):
            return
        self._parting = True
        self.close()  # what comes from here on is not taken
        if transport.can_write_eof():
            transport.write_eof()
            self._loop.call_later(PARTING_S, self.force_close)
        else:
            self.force_close()

    def force_close(self) -> None:
        """As aiohttp's. What is written already may still be on its way to a client that does not take it: for
        WRITE_DEADLINE_S, not for ever.
        """
        transport = self.transport
        super().force_close()
        if transport is not None and transport.get_write_buffer_size():
            self._loop.call_later(WRITE_DEADLINE_S, transport.abort)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._carrier = carrier = cast(asyncio.Transport, transport)
        # From the first bytes that the kernel does not take `pause_writing` says so, and `resume_writing` once all is
        # taken.
        carrier.set_write_buffer_limits(high=1, low=0)
        self._came_at = self._loop.time()
        self._late = self._loop.call_later(HEAD_S, self.force_close)
        if self.ssl_context is not None:
            self.common_name = common_name(carrier.get_extra_info("peercert"))
        if self._limits is not None:
            self._limits.came(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Reached for bytes that are no request alone: `App.handle` lets no failure of a handler through."""
        return cast(web.StreamResponse, self._app.malformed(exc))

    # --- the short way ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._between and self._is_known(data):
            return
        self._between = False
        if len(data) > AT_ONCE_BYTES and not self.budgets.reads.now():
            self._put_off(data)
            return
        waiter = self._waiter
        if waiter is None or waiter.done() or not self._welcome:
            requests = self._request_count
            super().data_received(data)  # something is being answered: what comes is queued behind it
            if self._messages:
                self._in_time()
            self._count(len(data), self._request_count - requests)
            return
        self._waiter = None  # aiohttp notes what came, and wakes nobody
        super().data_received(data)
        self._waiter = waiter
        if not self._messages:
            if self._late is None and not self._upgraded:  # a request has begun, and the rest of its head is to come
                self._late = self._loop.call_later(HEAD_S, self.force_close)
            self._count(len(data), 0)
            if self._messages and not waiter.done():
                waiter.set_result(None)  # its head is too long
            return
        large = len(data) + self._head_bytes > UNCOUNTED_BYTES
        if self._late is not None:
            self._in_time()
        if (large and self._has_large_head()) or not self._at_once(waiter, data):
            waiter.set_result(None)
            self._count(len(data), len(self._messages))

    def _is_known(self, data: bytes) -> bool:
        """Answers, or begins to, where `data` is one whole request with a head that is known."""
        waiter, app = self._waiter, self._app
        if waiter is None or waiter.done() or self._close or self._force_close or app.traces or not self._welcome:
            return False
        line = REQUEST_LINE.match(data)
        if line is None:
            return False
        begin = line.end()
        end = data.find(END, begin) + 4
        head, key = app.heads.find(data[begin:end]), None
        if head is None:
            found = app.heads.find_keyed(data, begin, end)
            if found is None:
                return False
            head, key = found
        if len(data) - end != head.body_bytes:
            return False
        if self._late is not None:
            self._in_time()
        self._request_count += 1
        self._unknown = 0
        self._asleep, self._waiter = waiter, None
        self._request_in_progress = True
        method, raw_path, raw_query = line.groups()
        path = target = raw_path.decode()
        query = ""
        if raw_query is not None:
            query = raw_query.decode()
            target = f"{path}?{query}"
        free = head is self.admitted
        request = KnownRequest(head, METHODS[method], target, data[end:], self, free, key)
        self._proceed(request, app.begin(request, path, query, free))
        return True

    def _has_large_head(self) -> bool:
        """Whether the first that waits is of a size that has to be counted while it is being answered."""
        return head_size(self._messages[0][0]) > UNCOUNTED_BYTES

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
            self._head_bytes = 0

    def _at_once(self, waiter: asyncio.Future[None], data: bytes) -> bool:
        """Answers the one request that waits, or begins to. False: it is for aiohttp's task."""
        message, payload = self._messages[0]
        if len(self._messages) > 1 or self._upgraded or not payload.is_eof() or isinstance(message, _ErrInfo):
            return False
        request = Request(message, payload, self)
        if self._app.follows(request):
            return False
        self._messages.popleft()
        assert self._parser is not None
        self._parser.message_consumed()
        if self._unknown < UNKNOWN_MAX:
            self._unknown += 1
            self._between = self._app.heads.are_of(data, message, payload.total_bytes)
        self._asleep, self._waiter = waiter, None
        self._request_in_progress = True
        self._proceed(request, self._app.begin(request))
        return True

    def _proceed(self, request: Request, outcome: Answer | Awaitable[Answer]) -> None:
        if type(outcome) is Later:
            self._pending = (request, outcome.render)
            outcome.future.add_done_callback(self._settled)
        elif type(outcome) is Answer:
            self._send(request, outcome)
        else:
            self._take_time(request, self._finish(request, outcome))

    def _settled(self, future: asyncio.Future[Any]) -> None:
        assert self._pending is not None
        request, render = self._pending
        try:
            outcome = render(future.result())
        except asyncio.CancelledError:
            self._over(False)
            return
        except Exception as error:
            outcome = self._app.failed(request, error)
        if type(outcome) is Answer:
            self._send(request, outcome)
        else:
            self._proceed(request, outcome)

    def _send(self, request: Request, answer: Answer) -> None:
        """Writes an answer that is complete."""
        transport = self.transport
        if transport is None:
            self._over(False)
            return
        if type(request) is KnownRequest and answer.status == 200 and not answer.close and request.method != "HEAD":
            # Nearly every answer, in fewer steps: the same as below, as nothing of this request is to come any more.
            body = answer.body
            plain = len(body) <= SMALL_BYTES and not self._messages and self._newest is None and self._arrived is None
            if plain and (lines := self._app.lines_of_200()):
                transport.write(b"%b%bContent-Length: %d\r\n\r\n%b" % (lines, answer.headers, len(body), body))
                if not self._paused:
                    self._over(True)
                    return
                self._hold_unread()
                answer.keep_alive, answer.body = True, b""
                self._take_time(request, answer.drained(request, transport))
                return
        if len(answer.body) > SMALL_BYTES:
            answer = self._app.held(request.method, answer)
        self._app.sealed(answer, bool(self._messages) and request.keep_alive)
        answer.settle(request)
        if self.put(request, answer):
            self._over(answer.keep_alive)
        else:
            answer.body = b""
            self._take_time(request, answer.drained(request, transport))

    def put(self, request: web.BaseRequest, answer: Answer) -> bool:
        """Writes an answer that is settled. False: the client does not take all of it at once."""
        transport = self.transport
        assert transport is not None
        if self._newest is not None:
            self.drop_body(request)
        if self._arrived is not None and not self._messages:
            self._framing = 0
            self._arrived.release()
            self._arrived = None
        hold, answer.hold = answer.hold, None
        if hold is None:
            transport.write(answer.encoded(request))
            if not self._paused:
                return True
            self._hold_unread()
            return False
        self._unread = hold
        head, body = answer.parts(request)
        if self.ssl_context is None:
            transport.writelines((head, body))
        else:
            rest = memoryview(body)
            transport.writelines((head, rest[:-1]))
            transport.write(rest[-1:])  # as below
        if not self._paused:
            self._taken()
            return True
        self._hold_unread()
        return False

    def put_piece(self, piece: bytes) -> None:
        """Writes a piece of a streaming answer. Writing must not be paused."""
        transport = self.transport
        if transport is None:
            return
        if self.ssl_context is None or len(piece) <= UNCOUNTED_BYTES:
            transport.write(piece)
            return
        # asyncio's TLS transport accepts the first write at any size, and counts it as unsent only with the next one.
        self._unread = self.budgets.answers.hold_anyway(TLS_COPIES * len(piece))
        rest = memoryview(piece)
        transport.write(rest[:-1])
        transport.write(rest[-1:])
        if not self._paused:
            self._taken()

    def _take_time(self, request: Request, work: Coroutine[Any, Any, bool]) -> None:
        """Runs `work`, which returns whether to keep the connection. Holds the task: the loop refers to it weakly."""
        task = self._loop.create_task(work)
        self._pending = (request, task)
        task.add_done_callback(self._finished)

    async def _finish(self, request: Request, outcome: Answer | Awaitable[Answer]) -> bool:
        """Awaits a slow answer and writes it. Returns whether to keep the connection."""
        if isinstance(outcome, Answer):
            answer = outcome
        else:
            answer = await self._app.awaited(request, outcome)
        if len(answer.body) > SMALL_BYTES:
            answer = self._app.held(request.method, answer)
        self._app.sealed(answer, self.has_queued(request))
        await answer.prepare(request)
        await answer.write_eof()
        return answer.keep_alive

    def _finished(self, task: asyncio.Task[bool]) -> None:
        if task.cancelled():
            self._over(False)
            return
        error = task.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.log_exception("an answer could not be written", exc_info=error)
        self._over(error is None and task.result())

    def _over(self, goes_on: bool) -> None:
        """The answer is sent, or its client has gone: hands the connection back to aiohttp's task."""
        waiter, self._asleep, self._pending = self._asleep, None, None
        assert waiter is not None
        self._waiter = waiter
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        if not goes_on:
            self.force_close()
        elif self._close or self._force_close:
            waiter.cancel()
        elif self._messages:
            if not waiter.done():
                waiter.set_result(None)
        else:
            self._next_keepalive_close_time = close_at = self._loop.time() + self._keepalive_timeout
            if self._keepalive_handle is None:
                self._keepalive_handle = self._loop.call_at(close_at, self._process_keepalive)

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """As aiohttp's: waits for what is being answered, and ends it when the time is over."""
        await super().shutdown(timeout)
        if self._pending is not None and isinstance(self._pending[1], asyncio.Task):
            self._pending[1].cancel()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # A stream asks for it with every piece that is read of it, which parses nothing once more and asks the socket.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    # --- news ------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._hold_unread()
        if self.listener is not None:
            self.listener.paused()

    def _hold_unread(self) -> None:
        """Counts what the client has not taken. Writing may have been paused before: by the session tickets of TLS."""
        transport = self._carrier
        if transport is None or (self._unread is not None and self._unread.waits):
            return
        if self._unread is None:
            size = transport.get_write_buffer_size()
            if size <= UNCOUNTED_BYTES:
                return  # tickets on their way: no reason to cut off a client that has not even asked yet
            self._unread = self.budgets.answers.hold_anyway(size)
        if not self._unread.wait(transport):
            self.budgets.answers.cut += 1
            transport.abort()  # nothing gentler gives the memory back

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()
        if self.listener is not None:
            self.listener.resumed()

    def _taken(self) -> None:
        """All that was written is with the client's kernel or ours, or the client is gone."""
        if self._unread is not None:
            self._unread.release()
            self._unread = None

    def connection_lost(self, exc: BaseException | None) -> None:
        # aiohttp lets a handler run on when its client has gone, which is right for a write and wrong for a watch.
        if self.listener is not None:
            self.listener.lost()
        if self._limits is not None:
            self._limits.went(self)
        self._carrier = None
        self._taken()
        if self._arrived is not None:
            self._arrived.release()
            self._arrived = None
        self._in_time()
        if exc is not None and not isinstance(exc, ConnectionError):
            # Broken TLS raises ssl.SSLError, which a handler that awaits the rest of a body would report as a fault.
            exc = ConnectionResetError(str(exc))
        self._kept = None
        task = self._task_handler
        super().connection_lost(exc)
        self._let_go(task)


def _unread(transport: asyncio.Transport) -> bool:
    """Whether bytes have arrived that the loop has not read yet."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
    except OSError:
        return False  # the connection is gone
    return count[0] > 0
