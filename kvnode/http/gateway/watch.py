"""etcd's watch: POST /v3/watch, a stream of messages, each a chunk, about one watch or several.

As in etcd the whole body is read before anything is answered: it holds one message or several, each of which creates a
watch, cancels one or asks for the progress. Then the stream goes on until its client goes. Clients take each message
for events, so there is nothing else in it: what keeps a silent connection known to be alive is below HTTP
(KEEPALIVE_S), and where proxies stand between, in their timeouts for this path.

A watch of one key or of a prefix reads what the hub tells of it. Any other range reads what is told of the beginning
that all its keys have, and leaves the rest out.
"""

from __future__ import annotations

import asyncio
import socket
from binascii import b2a_base64
from functools import partial
from time import monotonic
from typing import Any, Final, NamedTuple

from aiohttp import HttpVersion11, web

from kvnode.deadline import deadline
from kvnode.errors import Forbidden, KvnodeError, Starting, Unavailable
from kvnode.http.answer import JSON_TYPE, Answer, json_string
from kvnode.http.body import read_body
from kvnode.http.gateway.errors import (
    BAD_TOKEN,
    DENIED,
    PERMISSION_DENIED,
    STOPPED,
    UNAUTHENTICATED,
    UNAVAILABLE,
    Status,
    stream_error,
)
from kvnode.http.gateway.header import Headers
from kvnode.http.gateway.keys import check_span, item
from kvnode.http.gateway.message import boolean, data, enum, int64, messages, nested, repeated, table
from kvnode.http.gateway.stream import LAST, chunk
from kvnode.http.group import Group
from kvnode.http.rights import ALL, READ
from kvnode.http.route import Endpoint, Methods
from kvnode.http.stream import BATCH_BYTES, HEARTBEAT_S, Stream, Streams
from kvnode.state.changes import CHANGE_PUT, Change
from kvnode.state.items import prefix_end
from kvnode.state.spans import NO_END, Span, span
from kvnode.watch.audience import Piece, Selector
from kvnode.watch.watcher import Watcher

BODY_BYTES_MAX: Final = 262_144
REQUESTS_MAX: Final = 128  # in one body; each may be a watch
# Before a watch begins at the present its node makes sure of it, as long as a leader answers soon: a node that is cut
# off begins at what it knows, as etcd does.
PRESENT_S: Final = 1.0
PROGRESS_S: Final = 600.0  # etcd's: how long a watch with progress_notify is silent at most
# TCP's own question whether the client is still there. With three of them unanswered the connection ends.
KEEPALIVE_S: Final = 30
KEEPALIVE_INTERVAL_S: Final = 10
KEEPALIVE_PROBES: Final = 3
NO_WATCH: Final = -1  # the id of a watch that could not be created
NO_PUT: Final = 0
NO_DELETE: Final = 1
EMPTY_RANGE: Final = "mvcc: watcher range is empty"
DUPLICATE_ID: Final = "mvcc: duplicate watch ID provided on the WatchStream"

_CREATE: Final = table(
    key=data,
    range_end=data,
    start_revision=int64,
    progress_notify=boolean,
    filters=repeated(enum("NOPUT", "NODELETE")),
    prev_kv=boolean,
    watch_id=int64,
    fragment=boolean,
)
_REQUEST: Final = table(
    create_request=nested(_CREATE), cancel_request=nested(table(watch_id=int64)), progress_request=nested({})
)
_HEAD: Final = b"HTTP/1.1 200 OK\r\n%b%bX-Accel-Buffering: no\r\n%bConnection: close\r\n\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


def routes(group: Group, headers: Headers, heartbeat_s: float = HEARTBEAT_S) -> dict[str, Methods]:
    streams = Streams(group, heartbeat_s)

    async def watch(request: web.BaseRequest, rest: str, query: str) -> Answer:
        sent = messages(await read_body(request, BODY_BYTES_MAX), _REQUEST, REQUESTS_MAX)
        headers.check_ready()
        if any("create_request" in each for each in sent):
            await _come_to_the_present(group)
        return WatchStream(streams, headers, sent)

    return {"/v3/watch": {"POST": Endpoint(watch, right=READ, scoped=True)}}


async def _come_to_the_present(group: Group) -> None:
    """So that what was acknowledged before is no news to the watch, unless that takes too long."""
    if not group.status().started:
        raise Starting("This node is still loading its data; send the request again, here or elsewhere.")
    before = deadline.set(monotonic() + PRESENT_S)
    try:
        await group.read_barrier()
    except Unavailable:
        pass
    finally:
        deadline.reset(before)


class Form(NamedTuple):
    """What a watch shows of the changes that it is told of. `within`: of these keys alone."""

    prev_kv: bool
    filters: frozenset[int]
    within: Span | None

    def text(self, block: tuple[Change, ...]) -> bytes:
        """Events with commas between them; b"" for none."""
        pieces: list[bytes] = []
        for kind, key, revision, packed, before in block:
            if (NO_PUT if kind == CHANGE_PUT else NO_DELETE) in self.filters:
                continue
            if self.within is not None and not self.within.holds(key):
                continue
            if kind == CHANGE_PUT:
                pieces += (b'{"kv":', *item(key, packed))
            else:
                name = b2a_base64(key.encode(), newline=False)
                pieces.append(b'{"type":"DELETE","kv":{"key":"%b","mod_revision":"%d"},' % (name, revision))
            pieces[-1] = pieces[-1][:-1]  # the comma behind an item
            if self.prev_kv and before:
                pieces += (b',"prev_kv":', *item(key, before))
                pieces[-1] = pieces[-1][:-1]
            pieces.append(b"},")
        if pieces:
            pieces[-1] = b"}"
        return b"".join(pieces)


class Watch:
    """One watch of a stream."""

    __slots__ = ("form", "id", "progress_notify", "spoke_at", "watcher")

    def __init__(self, number: int, form: Form, progress_notify: bool, now: float) -> None:
        self.id = number
        self.form = form
        self.progress_notify = progress_notify
        self.spoke_at = now
        self.watcher: Watcher


class WatchStream(Stream):
    """All that a client asked for in one body."""

    __slots__ = ("_headers", "_is_chunked", "_requests", "_watches")

    def __init__(self, streams: Streams, headers: Headers, requests: list[dict[str, Any]]) -> None:
        super().__init__(streams)
        self._headers = headers
        self._requests = requests
        self._watches: dict[int, Watch] = {}
        self._is_chunked = True

    async def prepare(self, request: web.BaseRequest) -> None:
        self._is_chunked = request.version >= HttpVersion11
        await super().prepare(request)

    def _begin(self, transport: asyncio.Transport) -> None:
        _keep_alive(transport)
        transport.write(_HEAD % (self.stamp, JSON_TYPE, _CHUNKED if self._is_chunked else b""))
        for request in self._requests:
            if "create_request" in request:
                self._create(request["create_request"])
            elif "cancel_request" in request:
                self._cancel(request["cancel_request"].get("watch_id", 0))
            elif "progress_request" in request:
                self._progress()
        self._requests = []

    # --- what the client asks ------------------------------------------------------------------------

    def _create(self, sent: dict[str, Any]) -> None:
        try:
            watch = self._created(sent)
        except KvnodeError as error:
            self._write(self._result(NO_WATCH, b',"created":true' + _canceled(error.message)))
            return
        self._write(self._result(watch.id, b',"created":true'))
        self._streams.group.watches.call(watch.watcher)

    def _created(self, sent: dict[str, Any]) -> Watch:
        key, end = sent.get("key") or b"\0", sent.get("range_end", b"")
        if end not in (b"", NO_END) and end <= key:
            raise Status(UNAVAILABLE, EMPTY_RANGE)
        number = sent.get("watch_id", 0)
        if not number:
            while number in self._watches:
                number += 1
        elif number in self._watches:
            raise Status(UNAVAILABLE, DUPLICATE_ID)
        try:
            keys = span(key, end)
        except ValueError as fault:
            raise Status(UNAVAILABLE, str(fault)) from None
        try:
            check_span(ALL if self._admission is None else self._admission.rights, keys)
        except Forbidden:
            raise Status(PERMISSION_DENIED, f"rpc error: code = PermissionDenied desc = {DENIED}") from None
        selector, within = _selector(keys)
        form = Form(sent.get("prev_kv", False), frozenset(sent.get("filters", ())), within)
        group = self._streams.group
        watch = Watch(number, form, sent.get("progress_notify", False), asyncio.get_running_loop().time())
        start = sent.get("start_revision", 0)
        watch.watcher = watcher = group.watches.watch(
            selector, start if start > 0 else group.store.revision + 1, partial(self._flush, watch)
        )
        self._watches[number] = watch
        self.watchers.append(watcher)
        self._streams.admit(watcher, self._admission)
        watcher.blocked = self._blocked_at is not None
        return watch

    def _cancel(self, number: int) -> None:
        watch = self._watches.pop(number, None)
        if watch is not None:
            self._leave(watch.watcher)
            self._write(self._result(number, b',"canceled":true'))

    def _progress(self) -> None:
        """A header that says up to where all of the stream's watches have been told everything."""
        if all(watcher.audience is not None for watcher in self.watchers):
            self._write(self._result(NO_WATCH, b""))

    # --- what happens ----------------------------------------------------------------------------------

    def _flush(self, watch: Watch) -> None:
        """What the hub calls: writes what there is, unless the client is not ready for it."""
        connection, watcher = self._connection, watch.watcher
        if connection is None or not self._is_open():
            return
        self._check_admission()
        if watcher.ending is not None:
            self._over_with(watch, watcher.ending.reason, watcher.ending.oldest)
        elif not watcher.blocked and (pieces := watcher.take(BATCH_BYTES)):
            texts = [text for piece in pieces if (text := self._text_of(piece, watch.form))]
            if texts:
                watch.spoke_at = asyncio.get_running_loop().time()
                events = b',"events":[%b]' % b",".join(texts)
                connection.put_piece(self._framed(self._result(watch.id, events, watcher.revision)))

    def _over_with(self, watch: Watch, reason: str, oldest: int) -> None:
        del self._watches[watch.id]
        self._leave(watch.watcher)
        if reason == "compacted":
            # Without a revision: the client is to go on from the other one.
            self._write(self._result(watch.id, b',"canceled":true,"compact_revision":"%d"' % oldest, 0))
            return
        code, text = (UNAUTHENTICATED, BAD_TOKEN) if reason == "revoked" else (UNAVAILABLE, STOPPED)
        if reason == "slow":
            text = "The client did not read as fast as the keys change: watch again from the last revision."
        self._write(stream_error(code, text))
        if self._is_chunked and self._transport is not None:
            self._transport.write(LAST)
        self._end()

    def _text_of(self, piece: Piece, form: Form) -> bytes:
        text = piece.texts.get(form)
        if text is None:
            text = form.text(piece.block)
            self._streams.group.watches.texts.keep(piece, form, text)
        return text

    def beat(self, now: float) -> None:
        super().beat(now)
        if self._blocked_at is not None or not self._is_open():
            return
        for watch in self._watches.values():
            watcher = watch.watcher
            if watch.progress_notify and now - watch.spoke_at >= PROGRESS_S and watcher.audience is not None:
                watch.spoke_at = now
                # One that begins in the future has not been told of what is still to come.
                self._write(self._result(watch.id, b"", min(watcher.revision, self._streams.group.store.revision)))

    # --- messages --------------------------------------------------------------------------------------

    def _result(self, number: int, fields: bytes, revision: int | None = None) -> bytes:
        header = self._headers.of(self._streams.group.store.revision if revision is None else revision)
        named = b',"watch_id":"%d"' % number if number else b""
        return b'{"result":{"header":%b%b%b}}\n' % (header.encode(), named, fields)

    def _framed(self, message: bytes) -> bytes:
        return chunk(message) if self._is_chunked else message

    def _write(self, message: bytes) -> None:
        if self._transport is not None:
            self._transport.write(self._framed(message))


def _canceled(reason: str) -> bytes:
    return f',"canceled":true,"cancel_reason":{json_string(reason)}'.encode()


def _selector(keys: Span) -> tuple[Selector, Span | None]:
    """What to watch, and the keys that are meant of it where these are not all."""
    start, end = keys
    if end is None:
        return Selector(start, False), None
    if end and prefix_end(start) == end:
        return Selector(start, True), None
    if not end:
        return Selector("", True), None if start <= "\0" else keys
    common = next((at for at, (one, other) in enumerate(zip(start, end, strict=False)) if one != other), len(start))
    return Selector(start[:common], True), keys


def _keep_alive(transport: asyncio.Transport) -> None:
    """Has TCP notice a client that is gone without a word, and keeps the state of firewalls on the way."""
    carrier = transport.get_extra_info("socket")
    if carrier is None or not hasattr(socket, "TCP_KEEPIDLE"):
        return
    try:
        carrier.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    except OSError:
        pass  # the client has gone already
