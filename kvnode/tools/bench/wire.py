"""One HTTP/1.1 connection, by hand: a library's client costs several times what a node does for a request.

Takes answers that say how long they are, which a node's do, and those of balancers that hand them on.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Final, Protocol, cast

HEAD_BYTES_MAX: Final = 65_536
BODY_BYTES_MAX: Final = 4 * 1_048_576  # the outcomes of 1,000 writes with long keys are half of that
CODE_CHARS_MAX: Final = 64

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d{1,12})\r\n", re.IGNORECASE)
_CLOSES: Final = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
_ERROR: Final = b'"error":'  # stands in no key or value of an answer: a quotation mark in those is escaped


class Asker(Protocol):
    """Who has sent the request. Each is called once for it."""

    def answered(self, wire: Wire, head: bytes, body: bytes) -> None: ...
    def broken(self, wire: Wire, code: str) -> None: ...


class Wire(asyncio.Protocol):
    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._buffer = b""
        self._waits = False
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self._waits = True
        self._transport.write(request)

    def drop(self) -> None:
        """At once; whoever waits is not told."""
        self._waits, transport, self._transport = False, self._transport, None
        if transport is not None:
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._break("connection_lost")

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
        if end < 0 and len(buffer) < HEAD_BYTES_MAX:
            self._buffer = buffer
            return
        head = buffer[: end + 2]
        length = _LENGTH.search(head)
        if end < 0 or length is None or int(length[1]) > BODY_BYTES_MAX or not head.startswith(b"HTTP/1.1 "):
            self._break("unreadable_answer")
            return
        whole = end + 4 + int(length[1])
        if len(buffer) < whole:
            self._buffer = buffer
            return
        self._buffer = b""
        waits, self._waits = self._waits, False
        if _CLOSES.search(head) or len(buffer) > whole or not waits:
            self.drop()
        if waits:
            self._asker.answered(self, head, buffer[end + 4 : whole])

    def _break(self, code: str) -> None:
        waits = self._waits
        self.drop()
        if waits:
            self._asker.broken(self, code)


def is_success(head: bytes, body: bytes, is_batch: bool) -> bool:
    return head[9:12] == b"200" and not (is_batch and _ERROR in body)


def refusal(head: bytes, body: bytes) -> tuple[str, bool]:
    """The code of an answer that is no success, and whether nobody knows what became of the request."""
    status = head[9:12].decode("ascii", "replace")
    try:
        document = json.loads(body)
        # Of a batch, the first write that was not done names what is wrong; any of them may be in doubt.
        failed = [each for each in document["results"] if "error" in each] if status == "200" else [document]
        return str(failed[0]["error"])[:CODE_CHARS_MAX], any(each.get("outcome") == "unknown" for each in failed)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        # A probe says no in plain words. A balancer has pages of its own, and 502 and 504 are about a lost node.
        if status == "503" and body == b"not leader\n":
            return "not_leader", False
        return f"status_{status}", status in ("502", "504")
