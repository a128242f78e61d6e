"""Event streams: an answer that goes on for as long as its client listens, and the one clock of all of them.

A stream has no task that waits for changes: the hub calls it in its turn, and it writes to the connection at once. What
it costs while nothing happens is one suspended handler, and a comment line every ten seconds.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from kvnode.http.answer import PRIVATE, Answer
from kvnode.http.connection import Connection
from kvnode.http.credentials import REVIEW_S, Admission, admission_of
from kvnode.http.events import end_of, text_of
from kvnode.http.group import Group
from kvnode.watch.watcher import Watcher

# Proxies close what is silent: HAProxy here after 15 s, others often after 60 s. A client that hears nothing for much
# longer than this knows that its node is gone.
HEARTBEAT_S: Final = 10.0
BEATS: Final = 40  # heartbeats of ten thousand streams go out in so many parts
BATCH_BYTES: Final = 65_536
STALLED_S: Final = 30.0  # one that has taken nothing for so long is not coming back
LAST_WORD_S: Final = 2.0  # for a client that does not read to begin again, so that it gets to see why its stream ends
# A node that has lost its leader for so long may be the one that is cut off: its clients are better off elsewhere.
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
        self._wheel: list[dict[EventStream, None]] = [{} for _ in range(BEATS)]
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

    def add(self, stream: EventStream) -> None:
        self._wheel[stream.slot(self._slot)][stream] = None
        self._open += 1
        self._tick()

    def remove(self, stream: EventStream) -> None:
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
                hub.end(stream.watcher, "no_leader")
            else:
                stream.beat(now)


class EventStream(Answer):
    """The changes that a watcher is told of, as they happen."""

    __slots__ = (
        "_admission",
        "_blocked_at",
        "_connection",
        "_over",
        "_sent",
        "_slot",
        "_streams",
        "_transport",
        "watcher",
    )

    def __init__(self, streams: Streams, watcher: Watcher | None = None) -> None:
        super().__init__(200, b"", close=True)
        self._streams = streams
        self._slot: int | None = None
        self._transport: asyncio.Transport | None = None
        self._connection: Connection | None = None
        self._admission: Admission | None = None
        self._over: asyncio.Future[None] | None = None
        self._sent = 0  # the last id that the client was given
        self._blocked_at = 0.0
        self.watcher = cast(Watcher, watcher)  # it needs `wake` before it can be made: set right after

    def slot(self, present: int) -> int:
        """Its place in the wheel: the heartbeat comes a whole round after it began."""
        if self._slot is None:
            self._slot = present
        return self._slot

    async def write_eof(self, chunk: bytes = b"") -> None:
        """Writes until the watch ends or the client has gone."""
        request, watcher = self._request, self.watcher
        self._request = None
        transport = None if request is None else request.transport
        if request is None or transport is None or transport.is_closing():
            watcher.close()
            raise ConnectionResetError("the client has gone")
        connection = cast(Connection, request.protocol)
        self._transport, self._connection = transport, connection
        self._admission = admission_of(request)
        self._over = asyncio.get_running_loop().create_future()
        self._sent = watcher.next_revision - 1
        connection.listener = self
        self._streams.add(self)
        self._streams.admit(watcher, self._admission)
        try:
            connection.drop_body(request)
            transport.write(_HEAD % (self.stamp, PRIVATE, self._sent, self._sent + 1, self._sent))
            self._streams.group.watches.call(watcher)
            await self._over
            await self._last_word(transport)
        finally:
            self._transport = self._connection = connection.listener = None
            self._streams.remove(self)
            self._streams.dismiss(watcher)
            self.watcher.blocked = False
            watcher.close()

    def flush(self) -> None:
        """What the hub calls: writes what there is, unless the client is not ready for it."""
        transport, connection, watcher = self._transport, self._connection, self.watcher
        if transport is None or connection is None or self._over is None or self._over.done():
            return
        if self._admission is not None and not self._admission.holds():
            self._streams.group.watches.end(watcher, "revoked")
        if watcher.ending is not None:
            transport.write(end_of(watcher.ending, watcher.revision))
            self._over.set_result(None)
        elif not watcher.blocked and (pieces := watcher.take(BATCH_BYTES)):
            self._sent = pieces[-1].revision
            texts = self._streams.group.watches.texts
            connection.put_piece(b"".join([piece.text or text_of(piece, texts) for piece in pieces]))

    def beat(self, now: float) -> None:
        """The heartbeat: a comment, with the id up to which there was nothing else to tell, if that is news.

        Else a watch of keys that seldom change would go on, after a break, from a revision that is long forgotten.
        """
        transport = self._transport
        if transport is None or self.watcher.ending is not None:
            return
        if self.watcher.blocked:
            if now - self._blocked_at > STALLED_S:
                transport.abort()
            return
        revision = self.watcher.revision
        transport.write(b": heartbeat\nid: %d\n\n" % revision if revision > self._sent else b": heartbeat\n\n")
        self._sent = max(self._sent, revision)

    async def _last_word(self, transport: asyncio.Transport) -> None:
        """Gives a client that does not read a moment to see how the stream ended."""
        deadline = asyncio.get_running_loop().time() + LAST_WORD_S
        while self.watcher.blocked and not transport.is_closing():
            if asyncio.get_running_loop().time() > deadline:
                transport.abort()
                return
            await asyncio.sleep(0.05)

    # --- what the connection tells (connection.Listener) ----------------------------------------------

    def paused(self) -> None:
        transport = self._transport
        if transport is None:
            return
        self.watcher.blocked = True
        self._blocked_at = asyncio.get_running_loop().time()

    def resumed(self) -> None:
        self.watcher.blocked = False
        # In its turn: hundreds of clients may read at once, and each is sent up to a revision of 2 MiB for it.
        self._streams.group.watches.call(self.watcher)

    def lost(self) -> None:
        self.watcher.blocked = False
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
