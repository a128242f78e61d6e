"""X-Request-Id: taken over from who asks, or made; said in the answer and in every log line of the request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import Token
from typing import Final

from aiohttp import web
from multidict import istr

from kvnode.http.answer import Answer
from kvnode.http.door import METHOD_CHARS_MAX
from kvnode.http.spans import Spans
from kvnode.logs import request_ids
from kvnode.logs.rate_limited import printable

REQUEST_ID: Final = istr("X-Request-Id")
PATH_CHARS_MAX: Final = 512  # in a log line; a key may be three times as long once it is percent-encoded


class Traced:
    """One request that has an id: `Traced(request)` before the handler, `end(answer)` behind it."""

    __slots__ = ("_began_at", "_id", "_request", "_span", "_spans", "_token")

    def __init__(self, request: web.BaseRequest, spans: Spans | None) -> None:
        sent = request.headers.get(REQUEST_ID, "")
        # One that cannot be used is no reason to refuse a write: it gets another.
        self._id = sent if request_ids.accepted(sent) else request_ids.made()
        self._request = request
        self._token: Token[str | None] = request_ids.request_id.set(self._id)
        self._began_at = time.monotonic()
        self._spans = spans
        self._span = None if spans is None else spans.begin(request, self._id)

    def end(self, answer: Answer, client: Callable[[web.BaseRequest], str] | None) -> None:
        """`client` tells a request's client behind the balancers that are believed; None: do not log it."""
        answer.headers += b"X-Request-Id: %b\r\n" % self._id.encode()
        if self._spans is not None and self._span is not None:
            self._spans.end(self._span, answer.status)
        if request_ids.log.isEnabledFor(logging.INFO):
            self._say(answer.status, None if client is None else client(self._request))
        request_ids.request_id.reset(self._token)  # the connection's next request is another one

    def _say(self, status: int, client: str | None) -> None:
        request, duration_ms = self._request, round((time.monotonic() - self._began_at) * 1_000, 3)
        path = request.raw_path[:PATH_CHARS_MAX].encode("ascii", "backslashreplace").decode()
        method = printable(request.method, METHOD_CHARS_MAX)
        fields = {
            "event": "request",
            "method": method,
            "path": path,
            "status": status,
            "client": client,
        }
        request_ids.log.info(
            "%s %s %d in %g ms.",
            *(method, path, status, duration_ms),
            extra={"fields": fields | {"duration_ms": duration_ms}},
        )
