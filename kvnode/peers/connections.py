"""One connection between two nodes, dialled or accepted: handshake first, then frames, and one clean end."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import Any, Final, Protocol, cast

from kvnode.logs.rate_limited import LINES
from kvnode.net.listener import Newcomers
from kvnode.net.tls import MutualCertificate, names
from kvnode.peers import frames, handshake, handshake_0_1
from kvnode.peers.handshake import Circle, LocalPeer, Peer

log = logging.getLogger("kvnode.raft")

STRANGERS_MAX: Final = 64  # connections that have not proved themselves yet; one more, and one has to go (Newcomers)
COPIED_BYTES_MAX: Final = 16_384  # up to this a frame is joined to one piece, which is cheaper than to write three
# For one frame of a peer, from its beginning to its end: the largest at 2 Mbit/s. A frame that lost a part on the way
# takes its end out of those behind it, and a quiet peer might not have sent enough of them for hours.
FRAME_S: Final = 30.0
SILENCE_S: Final = 5  # unacknowledged bytes for this long: the connection is dead (TCP_USER_TIMEOUT)


class Owner(Protocol):
    """The network that a connection belongs to."""

    me: LocalPeer
    strangers: Newcomers[Accepted]  # connections that have not proved themselves yet
    circle: Circle
    certificate: MutualCertificate | None

    def opened(self, transport: asyncio.Transport) -> None: ...
    def closed(self, transport: asyncio.Transport) -> None: ...
    def dialled_up(self, peer: Peer, link: Dialled) -> None: ...
    def dialled_down(self, node_id: str, link: Dialled) -> None: ...
    def check_single(self, peer: Peer) -> None: ...
    def accepted_up(self, peer: Peer, link: Accepted) -> None: ...
    def accepted_down(self, node_id: str, link: Accepted) -> None: ...
    def frames(self, node_id: str, link: Accepted, bodies: list[bytes]) -> None: ...
    def log_once(self, node_id: str, kind: str, sentence: str) -> None: ...


class Link(asyncio.Protocol):
    """What both kinds of connection share: frames in, one deadline for the handshake, one clean end."""

    transport: asyncio.Transport

    def __init__(self, network: Owner) -> None:
        self.network = network
        self.reader = frames.FrameReader(handshake.FRAME_BYTES_MAX)
        self.peer: Peer | None = None
        self.ended = False  # by this side: what still comes is not looked at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.network.opened(self.transport)
        _tune(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.network.closed(self.transport)
        if isinstance(exc, ssl.SSLError) and self.peer is not None and not self.ended:
            why = (exc.reason or str(exc)).replace("_", " ").lower()
            sentence = f"TLS with peer {self.peer.node_id} ended: what came was altered on the way ({why})."
            self.network.log_once(self.peer.node_id, "its TLS ended", sentence)

    def data_received(self, data: bytes) -> None:
        if self.ended:
            return
        try:
            bodies = self.reader.feed(data)
            if bodies:
                self.frames(bodies)
        except handshake.PeerRefused as refused:
            self.ended = True
            self.refuse(refused)
        except frames.BadFrame as error:
            self.ended = True
            # A stranger's bytes make one kind of line; what a proved peer sent is worth telling apart.
            kind = "it sent what no node sends" if self.peer is None else ""
            self.refuse(
                handshake.PeerRefused(f"it sent what no node of this cluster sends ({str(error)[:-1]})", kind=kind)
            )

    @property
    def host(self) -> str:
        """The address that the other side has."""
        return str((self.transport.get_extra_info("peername") or ("?",))[0])

    def frames(self, bodies: list[bytes]) -> None:
        raise NotImplementedError

    def _raise_if_more(self, bodies: list[bytes]) -> None:
        """In the handshake each side waits for the other's frame: what is there behind one is not the other's."""
        if len(bodies) > 1 or self.reader.unfinished:
            raise handshake.PeerRefused("more was sent than the handshake has")

    def refuse(self, refused: handshake.PeerRefused) -> None:
        raise NotImplementedError


class Dialled(Link):
    """A connection that this node opened, to send on. `as_0_1`: by the handshake of kvnode 0.1."""

    def __init__(self, network: Owner, node_id: str, as_0_1: bool = False) -> None:
        super().__init__(network)
        self.node_id = node_id
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        dialer = handshake_0_1.Dialer if as_0_1 else handshake.Dialer
        self._dialer = dialer(network.me, node_id, network.circle)
        self._sealer: frames.Sealer | None = None
        self.challenged = False  # the other side has answered as one that speaks this version of the protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(self._dialer.hello())

    def frames(self, bodies: list[bytes]) -> None:
        if not self.challenged:
            answer = self._dialer.challenged(bodies[0])
            self._raise_if_more(bodies)
            self.challenged = True
            self.transport.write(answer)
        else:
            peer = self._dialer.welcomed(bodies[0])
            self._raise_if_more(bodies)
            self.peer = peer
            self._sealer = frames.Sealer(peer.frame_key) if peer.frame_key else None
            self.network.dialled_up(peer, self)
            if not self.established.done():
                self.established.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and not self.ended:  # also of what is no frame, and would not be one for a long time
            self.ended = True
            self.refuse(handshake.PeerRefused(_NOT_ITS_OWN))
        super().data_received(data)

    def send(self, body: bytes) -> None:
        """The next frame. Only once the connection is established."""
        if self._sealer is None:
            self.transport.write(len(body).to_bytes(frames.LENGTH_BYTES, "big") + body)
            return
        head, tag = self._sealer.seal(body)
        if len(body) <= COPIED_BYTES_MAX:
            self.transport.write(b"".join((head, body, tag)))
        else:
            self.transport.writelines((head, body, tag))

    def refuse(self, refused: handshake.PeerRefused) -> None:
        if not self.established.done():
            self.established.set_exception(refused)
        else:
            sentence = f"Closed the connection to peer {self.node_id}: {refused}."
            self.network.log_once(self.node_id, refused.kind, sentence)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.network.dialled_down(self.node_id, self)
        if not self.established.done():
            self.established.set_exception(ConnectionError("closed during the handshake"))
        self.closed.set()

    def itself(self) -> Dialled:
        return self

    def abort(self) -> None:
        if hasattr(self, "transport"):
            self.transport.abort()
        if self.established.done() and not self.established.cancelled():
            self.established.exception()  # seen: asyncio must not call it forgotten
        self.established.cancel()


class Accepted(Link):
    """A connection that another process opened to this node: a stranger until it has proved itself."""

    def __init__(self, network: Owner) -> None:
        super().__init__(network)
        self._acceptor: handshake.Acceptor | handshake_0_1.Acceptor = handshake.Acceptor(network.me, network.circle)
        self._magic = b""
        self._greeted = False
        self._deadline: asyncio.TimerHandle | None = None
        self._frame_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        strangers = self.network.strangers
        strangers.add(self, self.host)
        if len(strangers) > STRANGERS_MAX:
            strangers.first_to_go().give_way()
        loop = asyncio.get_running_loop()
        late = handshake.PeerRefused("it did not finish its greeting in time")
        self._deadline = loop.call_later(handshake.DEADLINE_S, self.refuse, late)

    def data_received(self, data: bytes) -> None:
        if len(self._magic) < len(handshake.MAGIC) and not self.ended:
            missing = len(handshake.MAGIC) - len(self._magic)
            self._magic += data[:missing]
            data = data[missing:]
            if not handshake.MAGIC.startswith(self._magic):
                self.ended = True
                self.refuse(handshake.PeerRefused("it does not speak this protocol"))
                return
        super().data_received(data)
        if self._frame_deadline is None and self.reader.unfinished and self.peer is not None:
            loop = asyncio.get_running_loop()
            self._frame_deadline = loop.call_later(FRAME_S, self._look_at_frame, self.reader.number)

    def _look_at_frame(self, number: int) -> None:
        self._frame_deadline = None
        if self.reader.unfinished and self.reader.number == number and not self.ended:
            self.ended = True
            self.refuse(handshake.PeerRefused(f"a frame that it began was not whole {FRAME_S:g} s later"))

    def frames(self, bodies: list[bytes]) -> None:
        if self.peer is not None:
            self.network.frames(self.peer.node_id, self, bodies)
        elif not self._greeted:
            self._greeted = True
            if self.network.me.peers_0_1 and handshake_0_1.speaks(bodies[0]):
                self._acceptor = handshake_0_1.Acceptor(self.network.me, self.network.circle)
            challenge = self._acceptor.greeted(bodies[0])
            self._raise_if_more(bodies)
            self.transport.write(challenge)
        else:
            peer = self._vouched(self._acceptor.proved(bodies[0]))
            self.network.check_single(peer)
            self._raise_if_more(bodies)
            self.reader = frames.SealedReader(peer.frame_key) if peer.frame_key else frames.FrameReader()
            self.peer = peer
            self._known()
            self.transport.write(self._acceptor.welcome())
            self.network.accepted_up(self.peer, self)

    def _vouched(self, peer: Peer) -> Peer:
        """The peer, whose certificate must be its own."""
        certified = self.network.certificate is None or names(self.transport.get_extra_info("peercert"), peer.node_id)
        if not certified:
            raise handshake.PeerRefused(f"its certificate does not name node {peer.node_id!r}: give each node its own")
        return peer

    def refuse(self, refused: handshake.PeerRefused) -> None:
        host = self.host
        who = host if self.peer is None else f"{self.peer.node_id} at {host}"
        LINES.write(
            *(log, logging.WARNING, who, refused.kind, "Refused a peer connection from %s: %s.", who, str(refused)),
            capped=self.peer is None,
        )
        if self.peer is None and len(self._magic) == len(handshake.MAGIC):
            self.ended = True
            self.transport.write(self._acceptor.refusal(refused))
            self.transport.close()
        else:
            self.transport.abort()

    def give_way(self) -> None:
        LINES.write(
            *(log, logging.WARNING, self.host, "too many strangers"),
            "More than %d peer connections have not proved themselves: closed one from %s.",
            *(STRANGERS_MAX, self.host),
        )
        self._known()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._known()
        if self._frame_deadline is not None:
            self._frame_deadline.cancel()
        if self.peer is not None:
            self.network.accepted_down(self.peer.node_id, self)

    def _known(self) -> None:
        """No stranger any more, by proof or by departure."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.network.strangers.discard(self)


_NOT_ITS_OWN: Final = "something was sent on it that the peer never sends there"


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
