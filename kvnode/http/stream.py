"""Event streams: answers without an end of their own, and the one timer that serves them all.

A stream has no task that waits for changes: the hub calls it in its turn, and it writes to the connection at once. What
it costs while nothing happens is one suspended handler, and a comment line every ten seconds.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from kvnode.http.answer import PRIVATE, Answer
from kvnode.http.connection import Connection
from kvnode.http.credentials import REVIEW_S, Admission, admission_of
from kvnode.http.events import EVENTS, end_of, text_of
from kvnode.http.group import Group
from kvnode.watch.watcher import Watcher

# Proxies close what is silent: HAProxy here after 15 s, others often after 60 s. A client that hears nothing for much
# longer than this knows that its node is gone.
HEARTBEAT_S: Final = 10.0
BEATS: Final = 40  # heartbeats of ten thousand streams go out in so many parts
BATCH_BYTES: Final = 65_536
STALLED_S: Final = 30.0  # one that has taken nothing for so long is not coming back
LAST_WORD_S: Final = 2.0  # for a client that does not read to begin again, so that it gets to see why its stream ends
# A node that has lost its leader for so long may be the one that is cut off: its clients should try another node.
LEADERLESS_S: Final = 10.0

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\n%bContent-Type: text/event-stream; charset=utf-8\r\n%bX-Accel-Buffering: no\r\n"
    b"Kvnode-Revision: %d\r\nConnection: close\r\n\r\n"
    # The id at once, so that a stream which breaks before its first event can be gone on with, too.
    b": watching from revision %d on\nid: %d\n\n"
)


class Streams:
    """The open streams of one node, and their heartbeats."""

    def __init__(self, group: Group, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.group = group
        self._beat_s = heartbeat_s / BEATS
        self._wheel: list[dict[Stream, None]] = [{} for _ in range(BEATS)]
        self._slot = 0
        self._open = 0
        self._timer: asyncio.TimerHandle | None = None
        self._led_at = 0.0
        self._admitted: dict[Watcher, Admission] = {}
        self._review_at = 0.0

    def admit(self, watcher: Watcher, admission: Admission | None) -> None:
        """The watch ends when what it was let in with ends. Until `dismiss`."""
        if admission is not None:
            self._admitted[watcher] = admission
            self._tick()

    def dismiss(self, watcher: Watcher) -> None:
        if self._admitted.pop(watcher, None) is not None:
            self._rest()

    def add(self, stream: Stream) -> None:
        self._wheel[stream.slot(self._slot)][stream] = None
        self._open += 1
        self._tick()

    def remove(self, stream: Stream) -> None:
        del self._wheel[stream.slot(self._slot)][stream]
        self._open -= 1
        self._rest()

    def _tick(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._led_at = loop.time()
            self._timer = loop.call_later(self._beat_s, self._beat, loop)

    def _rest(self) -> None:
        if not self._open and not self._admitted and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._beat_s, self._beat, loop)
        self._slot = (self._slot + 1) % BEATS
        now = loop.time()
        hub = self.group.watches
        hub.sweep()
        if self.group.status().leader_id is not None:
            self._led_at = now
        if now >= self._review_at:
            self._review_at = now + REVIEW_S
            for watcher in [each for each, admission in self._admitted.items() if not admission.holds()]:
                hub.end(watcher, "revoked")
        leaderless = now - self._led_at > LEADERLESS_S
        for stream in list(self._wheel[self._slot]):
            if leaderless:
                stream.no_leader()
            stream.beat(now)


class Stream(Answer):
    """A streaming answer, until its watches end or its client goes: the common part of both watch APIs.

    What a face adds: `_begin` writes the head, each watcher's `wake` writes what there is, `beat` and `no_leader` are
    what the clock tells.
    """

    __slots__ = ("_admission", "_blocked_at", "_connection", "_over", "_slot", "_streams", "_transport", "watchers")

    def __init__(self, streams: Streams) -> None:
        super().__init__(200, b"", close=True)
        self._streams = streams
        self._slot: int | None = None
        self._transport: asyncio.Transport | None = None
        self._connection: Connection | None = None
        self._admission: Admission | None = None
        self._over: asyncio.Future[None] | None = None
        self._blocked_at: float | None = None  # since when the client does not take what it was sent
        self.watchers: list[Watcher] = []  # those that go on

    def slot(self, present: int) -> int:
        """Its place in the wheel: the heartbeat comes a whole round after it began."""
        if self._slot is None:
            self._slot = present
        return self._slot

    async def write_eof(self, chunk: bytes = b"") -> None:
        """Writes until the watch ends or the client has gone."""
        request = self._request
        self._request = None
        transport = None if request is None else request.transport
        if request is None or transport is None or transport.is_closing():
            self._close()
            raise ConnectionResetError("the client has gone")
        connection = cast(Connection, request.protocol)
        self._transport, self._connection = transport, connection
        self._admission = admission_of(request)
        self._over = asyncio.get_running_loop().create_future()
        connection.listener = self
        self._streams.add(self)
        for watcher in self.watchers:
            self._streams.admit(watcher, self._admission)
        try:
            connection.drop_body(request)
            self._begin(transport)
            await self._over
            await self._last_word(transport)
        finally:
            self._transport = self._connection = connection.listener = None
            self._streams.remove(self)
            self._close()

    def _begin(self, transport: asyncio.Transport) -> None:
        """Writes the head."""
        raise NotImplementedError

    def beat(self, now: float) -> None:
        """Every few seconds."""
        transport = self._transport
        if transport is not None and self._blocked_at is not None and now - self._blocked_at > STALLED_S:
            transport.abort()

    def no_leader(self) -> None:
        """Whether no leader has been known for so long that the client should try another node."""

    def _is_open(self) -> bool:
        return self._transport is not None and self._over is not None and not self._over.done()

    def _check_admission(self) -> None:
        """Ends the streams whose right has ended."""
        if self._admission is not None and not self._admission.holds():
            for watcher in self.watchers:
                self._streams.group.watches.end(watcher, "revoked")

    def _end(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _leave(self, watcher: Watcher) -> None:
        """One of the watches is over."""
        self.watchers.remove(watcher)
        self._streams.dismiss(watcher)
        watcher.blocked = False
        watcher.close()

    def _close(self) -> None:
        for watcher in list(self.watchers):
            self._leave(watcher)

    async def _last_word(self, transport: asyncio.Transport) -> None:
        """Gives a client that does not read a moment to see how the stream ended."""
        deadline = asyncio.get_running_loop().time() + LAST_WORD_S
        while self._blocked_at is not None and not transport.is_closing():
            if asyncio.get_running_loop().time() > deadline:
                transport.abort()
                return
            await asyncio.sleep(0.05)

    # --- what the connection tells (connection.Listener) ----------------------------------------------

    def paused(self) -> None:
        if self._transport is None:
            return
        self._blocked_at = asyncio.get_running_loop().time()
        for watcher in self.watchers:
            watcher.blocked = True

    def resumed(self) -> None:
        self._blocked_at = None
        # In its turn: hundreds of clients may read at once, and each is sent up to a revision of 2 MiB for it.
        for watcher in self.watchers:
            watcher.blocked = False
            self._streams.group.watches.call(watcher)

    def lost(self) -> None:
        self._blocked_at = None
        self._end()


class EventStream(Stream):
    """The changes that a watcher selects, as they happen."""

    __slots__ = ("_sent", "_watcher")

    def __init__(self, streams: Streams) -> None:
        super().__init__(streams)
        self._sent = 0  # the last id that the client was given

    def watch(self, watcher: Watcher) -> None:
        """What it shows: right after it was made, as the watcher needs its `flush`."""
        self._watcher = watcher
        self.watchers = [watcher]

    def _begin(self, transport: asyncio.Transport) -> None:
        self._sent = sent = self._watcher.next_revision - 1
        transport.write(_HEAD % (self.stamp, PRIVATE, sent, sent + 1, sent))
        self._streams.group.watches.call(self._watcher)

    def flush(self) -> None:
        """What the hub calls: writes what there is, unless the client is not ready for it."""
        transport, connection, watcher = self._transport, self._connection, self._watcher
        if transport is None or connection is None or not self._is_open():
            return
        self._check_admission()
        if watcher.ending is not None:
            transport.write(end_of(watcher.ending, watcher.revision))
            self._end()
        elif not watcher.blocked and (pieces := watcher.take(BATCH_BYTES)):
            self._sent = pieces[-1].revision
            texts = self._streams.group.watches.texts
            connection.put_piece(b"".join([piece.texts.get(EVENTS) or text_of(piece, texts) for piece in pieces]))

    def beat(self, now: float) -> None:
        """The heartbeat: a comment, with the id up to which there was nothing else to tell, if that is news.

        Else a watch of keys that seldom change would go on, after a break, from a revision that is long forgotten.
        """
        super().beat(now)
        transport = self._transport
        if transport is None or self._watcher.ending is not None or self._blocked_at is not None:
            return
        revision = self._watcher.revision
        transport.write(b": heartbeat\nid: %d\n\n" % revision if revision > self._sent else b": heartbeat\n\n")
        self._sent = max(self._sent, revision)

    def no_leader(self) -> None:
        self._streams.group.watches.end(self._watcher, "no_leader")
