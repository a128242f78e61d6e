"""Heads that came before: header lines that the parser has taken once are not parsed again.

A client sends the same header lines with every request, and so do all clients of a kind; only the request line differs,
and Content-Length. So a parsed head is kept under its very bytes, from the first header line to the empty one, for all
connections. A request that came whole, has a plain request line and a head that is kept needs no parser, no URL and no
stream for its body, which is a fifth of what a small request costs.

An Idempotency-Key is new in each request that has one, and that is every write of a client that may repeat it. So its
line is cut out: the rest is what is kept and looked up, and `KnownRequest.key` is the key.

The same bytes mean what they meant before: for HTTP/1.1 and these methods, nothing in a request line changes how header
lines are read or where the body ends (RFC 9112, 6.3). All other heads go to aiohttp's parser.
"""

from __future__ import annotations

import re
from typing import Final

from aiohttp import HttpVersion11, hdrs
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy, istr

from kvnode.http.timeout import TIMEOUT
from kvnode.state.limits import CONTENT_TYPE_BYTES_MAX, IDEMPOTENCY_KEY_CHARS_MAX

IDEMPOTENCY_KEY: Final = istr("Idempotency-Key")
SEC_FETCH_SITE: Final = istr("Sec-Fetch-Site")
_PLAIN: Final = rb"[A-Za-z0-9/._~:@!$&'()*+,;=%-]"  # RFC 3986, 3.3
# Method, path and query.
REQUEST_LINE: Final = re.compile(
    rb"(GET|PUT|HEAD|DELETE|POST) (/" + _PLAIN + rb"*)(?:\?((?:" + _PLAIN + rb"|\?)*))? HTTP/1\.1\r\n"
)
METHODS: Final = {method.encode(): method for method in ("GET", "PUT", "HEAD", "DELETE", "POST")}
END: Final = b"\r\n\r\n"
# As most clients write it, with no space that a parser would strip. All other ways to write it go to the parser.
KEY_LINE: Final = re.compile(
    rb"\r\nIdempotency-Key: ([!-~](?:[ -~]{0,%d}[!-~])?)(?=\r\n)" % (IDEMPOTENCY_KEY_CHARS_MAX - 2)
)
KEPT_MAX: Final = 1_024  # for all connections: the kinds of clients that a node has, and the lengths of their bodies
BYTES_MAX: Final = 1_024  # of each, as most clients send less; all together they are 5 MB as they are kept
# They differ from request to request, or change what a request is. A cookie is somebody's secret.
_NOT_KEPT: Final = (
    hdrs.CONTENT_ENCODING, hdrs.CONTENT_RANGE, hdrs.COOKIE, hdrs.EXPECT, hdrs.IF_MATCH, hdrs.IF_NONE_MATCH, hdrs.RANGE,
    hdrs.TRANSFER_ENCODING, hdrs.UPGRADE, IDEMPOTENCY_KEY, istr("Last-Event-ID"), istr("Traceparent"),
    istr("X-Request-Id"),
)  # fmt: skip


class Head:
    """Header lines as they were parsed, of many requests: nothing of it may be changed.

    `of_page`: a browser says which page asks. `timed`: the sender says how long it waits.
    """

    __slots__ = ("body_bytes", "content_type", "headers", "message", "of_page", "timed")

    def __init__(self, message: RawRequestMessage, body_bytes: int) -> None:
        self.message = message
        self.headers = headers = message.headers
        self.body_bytes = body_bytes
        self.content_type = headers.get(hdrs.CONTENT_TYPE, "")
        self.of_page = hdrs.ORIGIN in headers or SEC_FETCH_SITE in headers
        self.timed = TIMEOUT in headers


class Heads:
    """Those of one listener. `find` gives the head that is kept under these bytes, or None."""

    __slots__ = ("_kept", "find")

    def __init__(self) -> None:
        self._kept: dict[bytes, Head] = {}
        self.find = self._kept.get

    def find_keyed(self, data: bytes, begin: int, end: int) -> tuple[Head, str] | None:
        """As `find`, for the head there with the line of its Idempotency-Key cut out; and that key."""
        line = KEY_LINE.search(data, begin - 2, end)
        if line is None:
            return None
        head = self._kept.get(_without(line, data, begin, end))
        return None if head is None else (head, line[1].decode())

    def are_of(self, data: bytes, message: RawRequestMessage, body_bytes: int) -> bool:
        """Whether `data` ends with the request that the parser has made `message` and `body_bytes` of, and begins as
        one. Its head is kept then, where it may come again.
        """
        line = REQUEST_LINE.match(data)
        if line is None or message.chunked or message.upgrade or message.version is not HttpVersion11:
            return False
        begin = line.end()
        end = data.find(END, begin - 2) + len(END)
        if end + body_bytes != len(data):
            return False
        key = KEY_LINE.search(data, begin - 2, end)
        head = data[begin:end] if key is None else _without(key, data, begin, end)
        if head not in self._kept and len(head) <= BYTES_MAX and not message.should_close:
            self._keep(head, line, message if key is None else _keyless(message), body_bytes)
        return True

    def _keep(self, head: bytes, line: re.Match[bytes], message: RawRequestMessage, body_bytes: int) -> None:
        """Only where these bytes alone say what the parser says: it may have had the beginning of another head."""
        if any(name in message.headers for name in _NOT_KEPT):
            return
        if content_type_fault(message.headers.get(hdrs.CONTENT_TYPE, "")) is not None:
            return
        lines = [each.partition(b":") for each in head[: -len(END)].split(b"\r\n")]
        said = tuple((name, value.strip(b" \t")) for name, _, value in lines)
        if said != message.raw_headers or _target(line) != message.path or line[1].decode() != message.method:
            return
        if len(self._kept) >= KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[head] = Head(message, body_bytes)


def _without(key: re.Match[bytes], data: bytes, begin: int, end: int) -> bytes:
    """The head in `data` without this line."""
    return data[begin : key.start() + 2] + data[key.end() + 2 : end]


def _keyless(message: RawRequestMessage) -> RawRequestMessage:
    """The message as it would be without its Idempotency-Key; unchanged where it has several."""
    if len(message.headers.getall(IDEMPOTENCY_KEY)) != 1:
        return message
    headers = CIMultiDict(message.headers)
    del headers[IDEMPOTENCY_KEY]
    raw = tuple(pair for pair in message.raw_headers if pair[0] != IDEMPOTENCY_KEY.encode())
    return message._replace(headers=CIMultiDictProxy(headers), raw_headers=raw)


def content_type_fault(content_type: str) -> str | None:
    """What is wrong with it, as it comes back with the value; None where nothing is."""
    if len(content_type) > CONTENT_TYPE_BYTES_MAX:
        return f"The Content-Type is longer than {CONTENT_TYPE_BYTES_MAX} bytes."
    if not (content_type.isascii() and content_type.isprintable()):
        return "The Content-Type has characters that are not printable ASCII."
    return None


def _target(line: re.Match[bytes]) -> str:
    return (line[2] if line[3] is None else line[2] + b"?" + line[3]).decode()
