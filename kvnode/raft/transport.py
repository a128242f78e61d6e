"""The sockets between nodes: one dialled stream to each peer for what this node sends, one accepted from each.

Everything is bounded: handshakes in number, size and time, frames in size, and what waits to be written in
bytes. A stranger, a garbled frame or a slow greeting costs one connection and one line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

from kvnode.errors import StartupError
from kvnode.raft import handshake, wire
from kvnode.raft.handshake import Identity, Peer

log = logging.getLogger("kvnode.raft")

STRANGERS_MAX: Final = 64  # connections that have not proved themselves yet
BACKLOG_BYTES_MAX: Final = 24 * 1_048_576  # what may wait for one peer; above the replication window
IDLE_BACKLOG_BYTES_MAX: Final = 64 * 1_024  # a peer that leaves this much unread needs no more heartbeats
REDIAL_S: Final = (0.05, 1.0)  # first and longest pause between two attempts
DIAL_DEADLINE_S: Final = 2.0
SILENCE_S: Final = 5  # unacknowledged bytes for this long: the connection is dead (TCP_USER_TIMEOUT)
_LOG_AGAIN_S: Final = 60.0
_LOGGED_MAX: Final = 256


class Listener(Protocol):
    """Who is told what happens on the network. Called in the event loop; must not raise."""

    def link_up(self, node_id: str) -> None:
        """The stream to this peer has (again) begun: earlier frames may be lost."""

    def link_down(self, node_id: str) -> None: ...
    def peer_closed(self, node_id: str) -> None:
        """A connection with this peer, dialled or accepted, was closed by the other side or broke."""

    def received(self, node_id: str, bodies: list[bytes]) -> None:
        """Frames of a proved peer, in order. May raise `wire.BadFrame`, which ends the connection."""


class Network:
    """All connections of one node. `addresses` maps each peer to (host, port)."""

    def __init__(self, me: Identity, addresses: Mapping[str, tuple[str, int]], listener: Listener) -> None:
        self.me = me
        self.addresses = dict(addresses)
        self.listener = listener
        self.http_urls: dict[str, str] = {}
        self.strangers = 0
        self._server: asyncio.Server | None = None
        self._dialled: dict[str, asyncio.Transport] = {}
        self._accepted: dict[str, asyncio.Transport] = {}
        self._open: set[asyncio.Transport] = set()
        self._dialers: dict[str, asyncio.Task[None]] = {}
        self._heard_from: dict[str, asyncio.Event] = {}
        self._encoded: tuple[wire.Message | None, bytes] = (None, b"")
        self._logged: dict[tuple[str, str], float] = {}

    async def start(self, host: str, port: int) -> None:
        """Listens and begins to dial. Raises StartupError where the port cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Accepted(self), host, port, backlog=128)
        except OSError as error:
            raise StartupError(
                f"Raft cannot listen on {host}:{port} ({error.strerror or error}): "
                "stop what uses that port, or choose another with --raft (and in every node's --peers)."
            ) from error
        for node_id in self.addresses:
            self._dial(node_id)

    async def stop(self) -> None:
        for task in self._dialers.values():
            task.cancel()
        await asyncio.gather(*self._dialers.values(), return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for transport in list(self._open):
            transport.abort()

    def add(self, node_id: str, address: tuple[str, int]) -> None:
        self.addresses[node_id] = address
        self._dial(node_id)

    def drop(self, node_id: str) -> None:
        self.addresses.pop(node_id, None)
        task = self._dialers.pop(node_id, None)
        if task is not None:
            task.cancel()
        for links in (self._dialled, self._accepted):
            if node_id in links:
                links[node_id].abort()

    def send(self, node_id: str, message: wire.Message) -> bool:
        """Queues a message. False: not connected, or the peer has too much to read already; nothing was sent."""
        transport = self._dialled.get(node_id)
        if transport is None:
            return False
        idle = message[0] == wire.APPEND and not message[6]
        if transport.get_write_buffer_size() > (IDLE_BACKLOG_BYTES_MAX if idle else BACKLOG_BYTES_MAX):
            return False
        if self._encoded[0] is not message:
            self._encoded = (message, wire.encode(message))
        transport.write(self._encoded[1])
        return True

    def is_up(self, node_id: str) -> bool:
        return node_id in self._dialled

    @property
    def up(self) -> int:
        """How many peers this node can send to."""
        return len(self._dialled)

    # --- dialled connections -------------------------------------------------------------------------

    def _dial(self, node_id: str) -> None:
        self._dialers[node_id] = asyncio.create_task(self._keep_dialling(node_id), name=f"dial {node_id}")

    async def _keep_dialling(self, node_id: str) -> None:
        """Holds one connection to a peer for as long as this node runs; the loop ends by cancellation."""
        loop = asyncio.get_running_loop()
        pause_s = REDIAL_S[0]
        while True:
            link = _Dialled(self, node_id)
            try:
                async with asyncio.timeout(DIAL_DEADLINE_S):
                    host, port = self.addresses[node_id]
                    await loop.create_connection(link.itself, host, port)
                async with asyncio.timeout(handshake.DEADLINE_S):
                    await link.established
                pause_s = REDIAL_S[0]
                await link.closed.wait()
            except handshake.Refused as refused:
                self.log_once(node_id, f"Peer {node_id} at {host}:{port} cannot be talked to: {refused}.")
            except (OSError, TimeoutError):
                pass  # not there yet, or gone: the status page and the readiness probe say so
            finally:
                link.abort()
            heard_from = self._heard_from[node_id] = asyncio.Event()
            try:
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):
                    await heard_from.wait()  # it has just dialled us: no reason to wait longer
            except TimeoutError:
                pause_s = min(pause_s * 2, REDIAL_S[1])

    def _dialled_up(self, peer: Peer, transport: asyncio.Transport) -> None:
        self._dialled[peer.node_id] = transport
        self.http_urls[peer.node_id] = peer.http_url
        self.listener.link_up(peer.node_id)

    def _dialled_down(self, node_id: str, transport: asyncio.Transport) -> None:
        if self._dialled.get(node_id) is transport:
            del self._dialled[node_id]
            self.listener.link_down(node_id)
            self.listener.peer_closed(node_id)

    # --- accepted connections ------------------------------------------------------------------------

    def _accepted_up(self, peer: Peer, transport: asyncio.Transport) -> None:
        superseded = self._accepted.get(peer.node_id)
        self._accepted[peer.node_id] = transport
        self.http_urls[peer.node_id] = peer.http_url
        if superseded is not None:
            # Frames of an older connection must not be read behind those of a newer one (R3).
            superseded.abort()
        if peer.node_id in self._heard_from:
            self._heard_from[peer.node_id].set()

    def _accepted_down(self, node_id: str, transport: asyncio.Transport) -> None:
        if self._accepted.get(node_id) is transport:
            del self._accepted[node_id]
            self.listener.peer_closed(node_id)

    def is_current(self, node_id: str, transport: asyncio.Transport) -> bool:
        return self._accepted.get(node_id) is transport

    def log_once(self, who: str, sentence: str) -> None:
        """Says the same about the same peer once a minute at most: a misconfigured peer knocks all day."""
        now = asyncio.get_running_loop().time()
        key = (who, sentence)
        if now - self._logged.get(key, -_LOG_AGAIN_S) < _LOG_AGAIN_S:
            return
        if len(self._logged) >= _LOGGED_MAX:
            self._logged.clear()
        self._logged[key] = now
        log.warning("%s", sentence)


class _Link(asyncio.Protocol):
    """What both kinds of connection share: frames in, one deadline for the handshake, one clean end."""

    transport: asyncio.Transport

    def __init__(self, network: Network) -> None:
        self.network = network
        self.reader = wire.FrameReader(handshake.FRAME_BYTES_MAX)
        self.peer: Peer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.network._open.add(self.transport)
        _tune(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.network._open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        try:
            bodies = self.reader.feed(data)
            if bodies:
                self.frames(bodies)
        except handshake.Refused as refused:
            self.refuse(refused)
        except wire.BadFrame as error:
            self.refuse(handshake.Refused(f"it sent what no node of this cluster sends ({error.message[:-1]})"))

    def frames(self, bodies: list[bytes]) -> None:
        raise NotImplementedError

    def refuse(self, refused: handshake.Refused) -> None:
        raise NotImplementedError


class _Dialled(_Link):
    """A connection that this node opened, to send on."""

    def __init__(self, network: Network, node_id: str) -> None:
        super().__init__(network)
        self.node_id = node_id
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self._dialer = handshake.Dialer(network.me, node_id)
        self._proved = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(self._dialer.hello())

    def frames(self, bodies: list[bytes]) -> None:
        for body in bodies:
            if self.peer is not None:
                raise handshake.Refused("it sends on a connection that is not its own")
            if not self._proved:
                self.transport.write(self._dialer.challenged(body))
                self._proved = True
            else:
                self.peer = self._dialer.welcomed(body)
                self.network._dialled_up(self.peer, self.transport)
                if not self.established.done():
                    self.established.set_result(None)

    def refuse(self, refused: handshake.Refused) -> None:
        if not self.established.done():
            self.established.set_exception(refused)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.network._dialled_down(self.node_id, self.transport)
        if not self.established.done():
            self.established.set_exception(ConnectionError("closed during the handshake"))
        self.closed.set()

    def itself(self) -> _Dialled:
        return self

    def abort(self) -> None:
        if hasattr(self, "transport"):
            self.transport.abort()
        if self.established.done() and not self.established.cancelled():
            self.established.exception()  # seen: asyncio must not call it forgotten
        self.established.cancel()


class _Accepted(_Link):
    """A connection that somebody opened to this node: a stranger until it has proved itself."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._acceptor = handshake.Acceptor(network.me, network.addresses)
        self._magic = b""
        self._greeted = False
        self._stranger = True
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.network.strangers += 1
        if self.network.strangers > STRANGERS_MAX:
            self.network.log_once("strangers", f"More than {STRANGERS_MAX} unproved peer connections: refusing more.")
            self.transport.abort()
            return
        loop = asyncio.get_running_loop()
        late = handshake.Refused("it did not finish its greeting in time")
        self._deadline = loop.call_later(handshake.DEADLINE_S, self.refuse, late)

    def data_received(self, data: bytes) -> None:
        if len(self._magic) < len(handshake.MAGIC):
            missing = len(handshake.MAGIC) - len(self._magic)
            self._magic += data[:missing]
            data = data[missing:]
            if not handshake.MAGIC.startswith(self._magic):
                self.refuse(handshake.Refused("it does not speak this protocol"))
                return
        super().data_received(data)

    def frames(self, bodies: list[bytes]) -> None:
        for position, body in enumerate(bodies):
            if self.peer is not None:
                if self.network.is_current(self.peer.node_id, self.transport):
                    self.network.listener.received(self.peer.node_id, bodies[position:])
                return
            if not self._greeted:
                self.transport.write(self._acceptor.greeted(body))
                self._greeted = True
            else:
                self.peer = self._acceptor.proved(body)
                self._known()
                self.reader.frame_bytes_max = wire.FRAME_BYTES_MAX
                self.transport.write(handshake.WELCOME)
                self.network._accepted_up(self.peer, self.transport)

    def refuse(self, refused: handshake.Refused) -> None:
        host = (self.transport.get_extra_info("peername") or ("?",))[0]
        who = host if self.peer is None else f"{self.peer.node_id} at {host}"
        self.network.log_once(who, f"Refused a peer connection from {who}: {refused}.")
        if self.peer is None and len(self._magic) == len(handshake.MAGIC):
            self.transport.write(handshake.refusal(str(refused)))
            self.transport.close()
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._known()
        if self.peer is not None:
            self.network._accepted_down(self.peer.node_id, self.transport)

    def _known(self) -> None:
        """No stranger any more, by proof or by departure."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._stranger:
            self._stranger = False
            self.network.strangers -= 1


def _tune(sock: Any) -> None:
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_USER_TIMEOUT", SILENCE_S * 1000), ("TCP_KEEPIDLE", SILENCE_S), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3),
    ):  # fmt: skip
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
