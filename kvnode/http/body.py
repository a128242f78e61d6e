"""A request's body: bounded in size and in time, and refused before it is read where that can be known."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from kvnode.deadline import remaining_s
from kvnode.errors import BadRequest, TooLarge, UnsupportedMediaType
from kvnode.http.credentials import check_still_admitted
from kvnode.http.request import KnownRequest

if TYPE_CHECKING:
    from kvnode.http.connection import Connection

BODY_DEADLINE_S: Final = 30.0
TAKES_IN_A_TURN: Final = 64  # of a body that is taken in pieces; what is done with each takes some microseconds


def connection_of(request: web.BaseRequest) -> Connection:
    """The connection that a request came on: `Server` makes no others."""
    return cast("Connection", request.protocol)


def whole_body(request: web.BaseRequest, bytes_max: int) -> bytes | None:
    """The body where all of it is there, which is nearly always; None where it is still to come. Raises as below."""
    if type(request) is KnownRequest:  # heads with a Content-Encoding or a Content-Range are not kept
        body = request.body
        if len(body) > bytes_max:
            raise _too_large(bytes_max)
        return body
    _check_form(request)
    content = request.content
    if not content.is_eof():
        length = request.content_length
        if length is not None and length > bytes_max:
            raise _too_large(bytes_max)
        return None
    body = content.read_nowait(-1)
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    return body


async def read_body(request: web.BaseRequest, bytes_max: int) -> bytes:
    """The whole body, `bytes_max` at most. TooLarge, UnsupportedMediaType or BadRequest, all definite."""
    body = whole_body(request, bytes_max)
    if body is None:
        # What is announced is not held for it, or a line of text would hold as much as a body: what comes is.
        connection_of(request).budgets.bodies.require(request.content_length or 0)
        if hdrs.EXPECT in request.headers:
            _invite(request)
        body = await _collect(request, bytes_max)
        check_still_admitted(request)  # by now, so long after its head
    return body


def _check_form(request: web.BaseRequest) -> None:
    headers = request.headers
    if hdrs.CONTENT_ENCODING in headers and headers[hdrs.CONTENT_ENCODING].strip().lower() not in ("", "identity"):
        # Values are stored as they come: unpacking one would hide its size from the bound until it is too late.
        raise UnsupportedMediaType("The body has a Content-Encoding; send it as it is, without compression.")
    if hdrs.CONTENT_RANGE in headers:  # RFC 9110, 14.5: a part of a value would be stored as the whole of it
        raise BadRequest("The body has a Content-Range, and no request here takes a part of one; send the whole.")


class BodyStream:
    """A body of any size, taken in pieces: no more of it is read than is taken, and so its sender waits.

    `end` has to be called. What is raised is definite: BadRequest, UnsupportedMediaType, Overloaded, Unauthorized.
    """

    def __init__(self, request: web.BaseRequest) -> None:
        _check_form(request)
        self._request = request
        self._connection = connection_of(request)
        self._rest = request.body if type(request) is KnownRequest else b""
        self._at = 0  # so much of that is taken already
        self._taken = 0
        self._takes = 0
        self._connection.reading = True
        if hdrs.EXPECT in request.headers and not request.content.is_eof():
            _invite(request)

    async def take(self, size: int) -> bytes:
        """So many bytes, fewer where the body ends before. They have to come within BODY_DEADLINE_S."""
        self._takes += 1
        if self._takes % TAKES_IN_A_TURN == 0:
            await asyncio.sleep(0)  # many small pieces may be there at once
        end = self._at + size
        if end <= len(self._rest):
            piece, self._at = self._rest[self._at : end], end
            return piece
        pieces, content = [self._rest[self._at :]], self._request.content
        have = len(pieces[0])
        deadline_s = remaining_s(BODY_DEADLINE_S)
        try:
            async with asyncio.timeout(deadline_s):
                while have < size and not content.at_eof():
                    piece = await content.readany()
                    pieces.append(piece)
                    have += len(piece)
                    self._taken += len(piece)
                    self._connection.taken(content, self._taken)
                    self._connection.budgets.bodies.require(0)
        except TimeoutError:
            message = f"The body did not go on within {max(0.0, deadline_s):.3g} s."
            raise BadRequest(message, "request_timeout") from None
        except (web.RequestPayloadError, HttpProcessingError):
            raise BadRequest("The body is not framed as HTTP says; check Content-Length or the chunks.") from None
        except ConnectionError:
            raise BadRequest("The client went away before its body was complete.") from None
        whole = b"".join(pieces)
        self._rest, self._at = whole[size:], 0
        return whole[:size]

    def end(self) -> None:
        self._connection.reading = False


def _invite(request: web.BaseRequest) -> None:
    """Answers `Expect: 100-continue` (RFC 9110, 10.1.1); curl waits a second for it before a large body."""
    if request.headers[hdrs.EXPECT].strip().lower() == "100-continue" and request.version >= HttpVersion11:
        transport = request.transport
        if transport is not None:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def _collect(request: web.BaseRequest, bytes_max: int) -> bytes:
    content, connection = request.content, connection_of(request)
    pieces: list[bytes] = []
    size = 0
    deadline_s = remaining_s(BODY_DEADLINE_S)
    connection.reading = True
    try:
        async with asyncio.timeout(deadline_s):
            while not content.at_eof():
                pieces.append(await content.readany())
                size += len(pieces[-1])
                if size > bytes_max:
                    raise _too_large(bytes_max)
                connection.budgets.bodies.require(0)
        return b"".join(pieces)
    except TimeoutError:
        raise BadRequest(f"The body did not arrive within {max(0.0, deadline_s):.3g} s.", "request_timeout") from None
    except (web.RequestPayloadError, HttpProcessingError):
        raise BadRequest("The body is not framed as HTTP says; check Content-Length or the chunks.") from None
    except ConnectionError:
        raise _gone() from None
    except RuntimeError:  # what aiohttp raises for a connection that was lost before the body was asked for
        if request.transport is not None:
            raise
        raise _gone() from None
    finally:
        connection.reading = False
        # The stream keeps the error that ended it, which knows this frame, which knows the stream: the pieces would be
        # there until the garbage collector comes, which may be never.
        pieces.clear()


def _gone() -> BadRequest:
    return BadRequest("The client went away before its body was complete.")


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"The body is larger than {bytes_max} bytes.")
