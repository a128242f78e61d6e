"""Connections between processes, as TCP gives them: in order, with latency, in pieces, and broken in every way.

A *link* is one direction between two hosts. What is lost on a blocked link is sent again once it is open, as TCP does
it; an acknowledgement that does not come back ends the connection of a sender that set TCP_USER_TIMEOUT, and silence
ends that of one that asked for keepalives. A single connection can be reset, or muted as a relay in between does it:
what is written to it is acknowledged and never arrives. Or a bit turns over on its way, past every checksum of TCP.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.virtual.world import World

if TYPE_CHECKING:
    from tests.virtual.process import Process

WINDOW_BYTES = (
    262_144  # on the way and not read, in one direction: beyond it, the sender's transport keeps what is written
)
SEGMENT_BYTES = 65_536
READ_BYTES = 262_144
RESENT_S = (0.2, 0.6)  # after a link is open again: TCP tries again at growing intervals
BYTES_PER_S = 100e6
REFUSED_S = 1e-4


Piece = tuple[int, int, Callable[[], None]]  # its place in the stream, its bytes, what its arrival does


class Link:
    """One direction between two hosts. Latency in seconds, drawn anew for each piece."""

    def __init__(self) -> None:
        self.latency_s = (0.00005, 0.0008)
        self.blocked = False
        self.since = 0.0
        self.waiting: list[Callable[[], None]] = []


class Network:
    """Hosts are named by what stands in addresses. A host is up while its process is, unless it went silently."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._links: dict[tuple[str, str], Link] = {}
        self._listening: dict[tuple[str, int], Listener] = {}
        self._ends: dict[int, End] = {}  # all open ones
        self.down: set[str] = set()
        self._ports = 40_000

    # --- faults -------------------------------------------------------------------------------------------------

    def link(self, source: str, target: str) -> Link:
        return self._links.setdefault((source, target), Link())

    def block(self, source: str, target: str) -> None:
        """Nothing gets from the one host to the other until `open`."""
        link = self.link(source, target)
        if not link.blocked:
            link.blocked, link.since = True, self.world.now

    def open(self, source: str, target: str) -> None:
        link = self.link(source, target)
        link.blocked = False
        waiting, link.waiting = link.waiting, []
        for go_on in waiting:
            self.world.after(self.world.draw.uniform(*RESENT_S), go_on)

    def mend(self) -> None:
        """Every link is open, and as fast as at the beginning."""
        for (source, target), link in list(self._links.items()):
            self.open(source, target)
            link.latency_s = Link().latency_s

    def connections(self, source: str, target: str) -> list[End]:
        """Open ones that `source` dialled, its own ends, oldest first."""
        return [
            end
            for end in self._ends.values()
            if end.dialled and end.process.name == source and end.peer is not None and end.peer_host == target
        ]

    def reset(self, end: End) -> None:
        """Something in between ends a connection: both sides learn of it in their time; what was under way is lost."""
        peer = end.peer
        end.lost_soon(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
        if peer is not None:
            peer.lost_soon(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    # --- processes ----------------------------------------------------------------------------------------------

    def process_ended(self, process: Process, silently: bool) -> None:
        if silently:
            self.down.add(process.name)
        for address in [address for address, each in self._listening.items() if each.process is process]:
            del self._listening[address]
        for end in [end for end in self._ends.values() if end.process is process]:
            end.vanish(silently)

    def host_up(self, name: str) -> None:
        """A machine runs again: what still comes on connections of its former life is answered with a reset."""
        self.down.discard(name)
        for end in list(self._ends.values()):
            if end.peer_host == name and end.peer is not None and end.peer.process.ended and end.unacknowledged_since:
                end.lost_soon(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)), delay_s=0.2)

    # --- connections --------------------------------------------------------------------------------------------

    def listen(self, process: Process, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        if (host, port) in self._listening:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        listener = self._listening[host, port] = Listener(self, process, factory, (host, port))
        return listener

    def stop_listening(self, listener: Listener) -> None:
        if self._listening.get(listener.address) is listener:
            del self._listening[listener.address]

    async def connect(
        self, process: Process, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Raises ConnectionRefusedError where nobody listens; waits for ever where the host cannot be reached."""
        loop, _world = process.loop, self.world
        established: asyncio.Future[End | None] = loop.create_future()
        there, back = self.link(process.name, host), self.link(host, process.name)
        self._ports += 1
        source = (process.name, self._ports)

        def settle(end: End | None) -> None:
            if process.ended:
                return
            if not established.done():
                loop.call_soon(lambda: established.done() or established.set_result(end))
            elif end is not None:
                end.abort()

        def arrives() -> None:
            if there.blocked:
                there.waiting.append(arrives)
            elif host not in self.down:
                listener = self._listening.get((host, port))
                if listener is None:
                    self._carry(back, lambda: settle(None))
                    return
                mine, other = (
                    End(self, process, source, (host, port)),
                    End(self, listener.process, (host, port), source),
                )
                mine.dialled = True
                mine.peer, other.peer = other, mine
                listener.accept(other)
                self._carry(back, lambda: settle(mine))

        self._carry(there, arrives)
        end = await established
        if end is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        protocol = factory()
        end.begin(protocol)
        return end, protocol

    def _carry(self, link: Link, what: Callable[[], None]) -> None:
        """One small packet, sent again until it arrives."""
        if link.blocked:
            link.waiting.append(lambda: self._carry(link, what))
        else:
            self.world.after(self.world.draw.uniform(*link.latency_s), what)

    def opened(self, end: End) -> None:
        self._ends[end.number] = end

    def closed(self, end: End) -> None:
        self._ends.pop(end.number, None)


class Listener:
    """`asyncio.Server`, as far as nodes use it."""

    def __init__(
        self,
        network: Network,
        process: Process,
        factory: Callable[[], asyncio.BaseProtocol],
        address: tuple[str, int],
    ) -> None:
        self.network, self.process, self.factory, self.address = network, process, factory, address

    def accept(self, end: End) -> None:
        """The kernel has taken a connection; the process will, once it runs."""

        def take() -> None:
            if end.gone:
                return
            end.begin(self.factory())

        self.process.loop.call_soon(take)

    def close(self) -> None:
        self.network.stop_listening(self)

    async def wait_closed(self) -> None:
        pass


class FakeSocket:
    """What is asked of the socket under a transport: options."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM
    proto = socket.IPPROTO_TCP

    def __init__(self, source: tuple[str, int], target: tuple[str, int]) -> None:
        self._source, self._target = source, target
        self.user_timeout_s: float | None = None
        self.keepalive = False
        self._idle_s, self._every_s, self._count = 7200.0, 75.0, 9

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_KEEPALIVE):
            self.keepalive = bool(value)
        elif level == socket.IPPROTO_TCP:
            if option == getattr(socket, "TCP_USER_TIMEOUT", None):
                self.user_timeout_s = value / 1000
            elif option == getattr(socket, "TCP_KEEPIDLE", None):
                self._idle_s = value
            elif option == getattr(socket, "TCP_KEEPINTVL", None):
                self._every_s = value
            elif option == getattr(socket, "TCP_KEEPCNT", None):
                self._count = value

    @property
    def silence_s(self) -> float | None:
        """How long a peer may be silent; None where it is not asked."""
        return self._idle_s + self._every_s * self._count if self.keepalive else None

    def getsockname(self) -> tuple[str, int]:
        return self._source

    def getpeername(self) -> tuple[str, int]:
        return self._target

    def fileno(self) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class End(asyncio.Transport):
    """One end of a connection: asyncio's transport above, its process's kernel below."""

    def __init__(self, network: Network, process: Process, source: tuple[str, int], target: tuple[str, int]) -> None:
        self.sock = FakeSocket(source, target)
        super().__init__({"peername": target, "sockname": source, "socket": self.sock})
        self.network, self.process, self.world = network, process, network.world
        self.number = self.world.number()
        self.peer_host = target[0]
        self.peer: End | None = None
        self.dialled = False
        self.muted = False  # what is written here is acknowledged by something in between, and lost
        self.altered = 0  # of so many of the next pieces that are written here, a bit turns over on the way
        self.gone = False  # for this side: nothing is sent or received any more
        self.unacknowledged_since = 0.0
        self._protocol: asyncio.Protocol | None = None
        self._out = network.link(process.name, self.peer_host)
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._on_the_way = 0  # bytes sent, and not read by the other side
        self._arrives_at = 0.0  # the last piece: none overtakes another
        self._sequence = 0
        self._held: list[Piece] = []  # what is sent again once the link is open
        self._received: deque[bytes] = deque()
        self._received_bytes = 0
        self._ended_by_peer = False  # it will send no more
        self._paused = self._reading_due = False
        self._closing = self._eof_wanted = self._eof_sent = False
        self._high, self._low = 65_536, 16_384
        self._protocol_paused = False
        self._looking = False
        self._watching_silence = False
        network.opened(self)

    def __hash__(self) -> int:
        return self.number

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        """In the process's loop: from now on this is the protocol's transport."""
        self._protocol = protocol  # type: ignore[assignment]
        protocol.connection_made(self)
        self._read_soon()
        self._watch_silence()

    # --- asyncio.Transport ---------------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing or self.gone

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._read_soon()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 65_536 if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.gone or self._eof_wanted or not data:
            return
        self._unsent.append(bytes(data))
        self._unsent_bytes += len(data)
        self._send()
        if self._unsent_bytes > self._high and not self._protocol_paused and self._protocol is not None:
            self._protocol_paused = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof_wanted = True
        self._send()

    def close(self) -> None:
        if self._closing or self.gone:
            return
        self._closing = True
        self._eof_wanted = True
        self._send()

    def abort(self) -> None:
        if not self.gone:
            self._tell_peer(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            self._lose(None)

    # --- sending --------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        while self._unsent and self._on_the_way < WINDOW_BYTES and not self.gone:
            data = self._unsent.popleft()
            if len(data) > SEGMENT_BYTES:
                self._unsent.appendleft(data[SEGMENT_BYTES:])
                data = data[:SEGMENT_BYTES]
            elif len(data) > 1 and self.world.draw.random() < 0.02:  # a piece ends wherever it likes
                cut = self.world.draw.randrange(1, len(data))
                self._unsent.appendleft(data[cut:])
                data = data[:cut]
            self._unsent_bytes -= len(data)
            self._transmit(data)
        if self._protocol_paused and self._unsent_bytes <= self._low and self._protocol is not None:
            self._protocol_paused = False
            self._protocol.resume_writing()
        if self._eof_wanted and not self._eof_sent and not self._unsent and not self.gone:
            self._eof_sent = True
            self._deliver_in_order(self._peer_eof)
            if self._closing:
                self.process.loop.call_soon(self._closed)

    def _transmit(self, data: bytes) -> None:
        self.world.trace("sends", self.process.name, self.peer_host, self.number, len(data), data[-16:].hex())
        if self.muted:
            return
        if self.altered:
            self.altered -= 1
            bit = self.world.draw.randrange(8 * len(data))
            data = data[: bit // 8] + bytes((data[bit // 8] ^ 1 << bit % 8,)) + data[bit // 8 + 1 :]
        self._on_the_way += len(data)
        if not self.unacknowledged_since:
            self.unacknowledged_since = self.world.now
            self._look_for_acknowledgement()
        self._deliver_in_order(lambda: self._arrive(data), len(data))

    def _deliver_in_order(self, what: Callable[[], None], size_bytes: int = 0) -> None:
        self._sequence += 1
        self._fly((self._sequence, size_bytes, what))

    def _fly(self, piece: Piece) -> None:
        link, size_bytes = self._out, piece[1]
        if link.blocked or self._held:
            self._hold(piece)
            return
        flight_s = self.world.draw.uniform(*link.latency_s) + size_bytes / BYTES_PER_S
        self._arrives_at = max(self._arrives_at, self.world.now + flight_s)
        self.world.at(self._arrives_at, lambda: self._land(piece))

    def _land(self, piece: Piece) -> None:
        """At the other host, unless the link is blocked by now: then it is sent again."""
        if self._out.blocked:
            self._hold(piece)
        else:
            piece[2]()

    def _hold(self, piece: Piece) -> None:
        if not self._held:
            self._out.waiting.append(self._send_again)
        self._held.append(piece)

    def _send_again(self) -> None:
        """In the order in which it was written, whatever was lost first."""
        held, self._held = sorted(self._held, key=lambda piece: piece[0]), []
        for piece in held:
            self._fly(piece)

    def _arrive(self, data: bytes) -> None:
        peer = self.peer
        if peer is None or peer.gone:
            if self.peer_host not in self.network.down and not self.gone:
                self.lost_soon(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            return
        self.network._carry(peer._out, self._acknowledged)
        peer._receive(data)

    def _acknowledged(self) -> None:
        """Something of it: what is not resets the clock of the sender, as a later acknowledgement does."""
        self.unacknowledged_since = self.world.now if self._on_the_way else 0.0

    def _look_for_acknowledgement(self) -> None:
        """TCP_USER_TIMEOUT."""
        limit_s = self.sock.user_timeout_s
        if limit_s is None or self._looking:
            return
        self._looking = True

        def look() -> None:
            self._looking = False
            since = self.unacknowledged_since
            if self.gone or not since:
                return
            if self._out.blocked or self._back.blocked or self.peer_host in self.network.down:
                if self.world.now - since >= limit_s:
                    self.lost_soon(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
                    return
            else:
                self.unacknowledged_since = self.world.now
            self._looking = True
            self.world.after(1.0, look)

        self.world.after(limit_s, look)

    @property
    def _back(self) -> Link:
        return self.network.link(self.peer_host, self.process.name)

    def _watch_silence(self) -> None:
        """Keepalive: a side that sends nothing finds out that the other one is not there any more."""
        if self._watching_silence or self.gone:
            return
        self._watching_silence = True
        silent_since: float | None = None

        def look() -> None:
            nonlocal silent_since
            limit_s = self.sock.silence_s
            if self.gone or limit_s is None:
                return
            cut = self._out.blocked or self._back.blocked or self.peer_host in self.network.down
            if not cut:
                silent_since = None
                if self.peer is not None and self.peer.gone and not self._ended_by_peer:
                    self.lost_soon(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
                    return
            elif silent_since is None:
                silent_since = self.world.now
            elif self.world.now - silent_since >= limit_s:
                self.lost_soon(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
                return
            self.world.after(1.0, look)

        self.world.after(1.0, look)

    # --- receiving ------------------------------------------------------------------------------------------------

    def _receive(self, data: bytes) -> None:
        self._received.append(data)
        self._received_bytes += len(data)
        self._read_soon()

    def _peer_eof(self) -> None:
        peer = self.peer
        if peer is not None and not peer.gone:
            peer._ended_by_peer = True
            peer._read_soon()

    def _read_soon(self) -> None:
        if not self._reading_due and not self.gone and self._protocol is not None:
            self._reading_due = True
            self.process.loop.call_soon(self._read)

    def _read(self) -> None:
        """In the process's loop."""
        self._reading_due = False
        if self.gone or self._paused or self._protocol is None or self._closing:
            return
        if self._received:
            pieces, size = [], 0
            while self._received and size < READ_BYTES:
                pieces.append(self._received.popleft())
                size += len(pieces[-1])
            self._received_bytes -= size
            peer = self.peer
            if peer is not None and not peer.gone:
                self.network._carry(self._out, lambda: peer._taken(size))
            self._protocol.data_received(b"".join(pieces))
            if self._received or self._ended_by_peer:
                self._read_soon()
        elif self._ended_by_peer and not self._eof_seen:
            self._eof_seen = True
            if not self._protocol.eof_received():
                self.close()

    _eof_seen = False

    def _taken(self, size: int) -> None:
        """The other side's process has read so much."""
        self._on_the_way -= size
        if not self._on_the_way:
            self.unacknowledged_since = 0.0
        if not self.gone and not self.process.ended and (self._unsent or self._protocol_paused):
            self.process.loop.call_soon(self._send)

    # --- the end --------------------------------------------------------------------------------------------------

    def _closed(self) -> None:
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        """In the process's loop, or from a call of it: nothing comes any more, and the protocol learns it soon."""
        if self.gone:
            return
        self.gone = True
        self.network.closed(self)
        self._unsent.clear()
        self._unsent_bytes = 0
        protocol = self._protocol
        if protocol is not None:
            self.process.loop.call_soon(protocol.connection_lost, error)

    def lost_soon(self, error: Exception, delay_s: float = 0.0) -> None:
        """The kernel ends it: the process learns of it when it runs."""

        def lose() -> None:
            if not self.gone and not self.process.ended:
                self.process.loop.call_soon(self._lose, error)

        self.world.after(delay_s + self.world.draw.uniform(0.0, 0.002), lose)

    def _tell_peer(self, error: Exception) -> None:
        peer = self.peer
        if peer is not None and not peer.gone:
            self.network._carry(self._out, lambda: peer.lost_soon(error))

    def vanish(self, silently: bool) -> None:
        """Its process has ended."""
        if not silently and not self.gone:
            self._tell_peer(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
        self.gone = True
        self.network.closed(self)
