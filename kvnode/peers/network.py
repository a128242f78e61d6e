"""The sockets between nodes: one dialled stream to each peer for what this node sends, one accepted from each.

Everything is bounded: handshakes in number, size and time, frames in size, and what waits to be written in
bytes. A stranger, a garbled frame or a slow greeting costs one connection and one line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Mapping
from typing import Any, Final, Protocol

from kvnode.errors import StartupError
from kvnode.logs.rate_limited import LINES
from kvnode.net.listener import Newcomers, SocketListener, bound
from kvnode.net.tls import HANDSHAKE_S, SHUTDOWN_S, MutualCertificate
from kvnode.peers import frames, handshake
from kvnode.peers.connections import STRANGERS_MAX, Accepted, Dialled
from kvnode.peers.handshake import Circle, LocalPeer, Peer
from kvnode.raft import messages

log = logging.getLogger("kvnode.raft")

BACKLOG_BYTES_MAX: Final = 24 * 1_048_576  # what may wait for one peer; above the replication window
IDLE_BACKLOG_BYTES_MAX: Final = 64 * 1_024  # a peer that leaves this much unread needs no more heartbeats
REDIAL_S: Final = (0.05, 1.0)  # first and longest pause between two attempts
DIAL_DEADLINE_S: Final = 2.0


class Listener(Protocol):
    """Receives the events of the network. Called in the event loop; must not raise."""

    def link_up(self, node_id: str) -> None:
        """The stream to this peer has (again) begun: earlier frames may be lost."""

    def link_down(self, node_id: str) -> None: ...
    def heard_from(self, node_id: str) -> None:
        """The stream from this peer has (again) begun: frames of an earlier one may be lost."""

    def peer_closed(self, node_id: str) -> None:
        """A connection with this peer, dialled or accepted, was closed by the other side or broke."""

    def told(self, packed: bytes) -> None:
        """A proved peer that refuses this node says who the members are."""

    def refused(self, refused: handshake.PeerRefused) -> None:
        """A peer does not talk to this node, or this node not to it; a `code` is proved."""

    def received(self, node_id: str, bodies: list[bytes]) -> None:
        """Frames of a proved peer, in order. May raise `frames.BadFrame`, which ends the connection."""


class Network:
    """All connections of one node. `addresses` maps each peer to (host, port); `circle` says who may connect."""

    def __init__(
        self,
        me: LocalPeer,
        circle: Circle,
        listener: Listener,
        certificate: MutualCertificate | None = None,
        draw: random.Random | None = None,
    ) -> None:
        self._draw = draw or random.Random()
        self.certificate = certificate
        self.me = me
        self.circle = circle
        self.addresses: dict[str, tuple[str, int]] = {}
        self.listener = listener
        self.http_urls: dict[str, str] = {}
        self.refusals: dict[
            str, handshake.PeerRefused
        ] = {}  # by peer: why it did not talk to this node at the last try
        self.strangers: Newcomers[Accepted] = Newcomers()
        self._server: asyncio.Server | SocketListener | None = None
        self._dialled: dict[str, Dialled] = {}
        self._accepted: dict[str, Accepted] = {}
        self._at_address: dict[str, bytes] = {}  # which process answers where the peer is dialled, while it does
        self._claims: dict[str, bytes] = {}  # which one the accepted stream of that name comes from
        self._open: set[asyncio.Transport] = set()
        self._dialers: dict[str, asyncio.Task[None]] = {}
        self._heard_from: dict[str, asyncio.Event] = {}
        self._encoded: tuple[messages.Message | None, bytes] = (None, b"")
        self._stopped = False

    async def start(self, host: str, port: int) -> None:
        """Listens and begins to dial. Raises StartupError where the port cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            if self.certificate is None:
                self._server = await loop.create_server(lambda: Accepted(self), host, port, backlog=128)
            else:
                sockets = await bound(host, port)
                self._server = SocketListener(
                    sockets, lambda _: Accepted(self), self.certificate, None, self._stranger, STRANGERS_MAX
                )
        except OSError as error:
            raise StartupError(
                f"Raft cannot listen on {host}:{port} ({error.strerror or error}): "
                "stop what uses that port, or choose another with --raft (and in every node's --peers)."
            ) from error
        for node_id in self.addresses:
            self._dial(node_id)

    async def stop(self) -> None:
        self._stopped = True
        for task in self._dialers.values():
            task.cancel()
        await asyncio.gather(*self._dialers.values(), return_exceptions=True)
        if isinstance(self._server, SocketListener):
            await self._server.stop()
        elif self._server is not None:
            self._server.close()
        for transport in list(self._open):
            transport.abort()

    def meet(self, addresses: Mapping[str, tuple[str, int]]) -> None:
        """These are the peers from now on: dials those that are new or have moved, and lets go of all others."""
        if self._stopped:
            return
        for node_id, address in list(self.addresses.items()):
            if addresses.get(node_id) != address:
                self._drop(node_id)
        for node_id, address in addresses.items():
            if node_id not in self.addresses:
                self.addresses[node_id] = address
                if self._server is not None:
                    self._dial(node_id)

    def _drop(self, node_id: str) -> None:
        del self.addresses[node_id]
        self.refusals.pop(node_id, None)
        task = self._dialers.pop(node_id, None)
        if task is not None:
            task.cancel()
        for link in (self._dialled.get(node_id), self._accepted.get(node_id)):
            if link is not None:
                link.transport.abort()

    def send(self, node_id: str, message: messages.Message) -> bool:
        """Queues a message. False: not connected, or the peer has too much to read already; nothing was sent."""
        link = self._dialled.get(node_id)
        if link is None:
            return False
        idle = message[0] == messages.APPEND and not message[6]
        if link.transport.get_write_buffer_size() > (IDLE_BACKLOG_BYTES_MAX if idle else BACKLOG_BYTES_MAX):
            return False
        if self._encoded[0] is not message:
            self._encoded = (message, frames.pack(message))
        link.send(self._encoded[1])
        return True

    def process_at(self, node_id: str) -> bytes | None:
        """Which process answers where that node is dialled, while there is a connection."""
        return self._at_address.get(node_id)

    def process_of(self, node_id: str) -> bytes | None:
        """Which process the messages of that node come from, while there is a connection."""
        return self._claims.get(node_id)

    def is_up(self, node_id: str) -> bool:
        return node_id in self._dialled

    @property
    def up(self) -> int:
        """How many peers this node can send to."""
        return len(self._dialled)

    def level_of(self, node_id: str) -> int:
        """The highest feature level that this peer knows, by the connection that there is now; 0 without one.

        From 1 on it does the work of a question once, however often it is asked (`questions.Answers`).
        """
        link = self._dialled.get(node_id)
        return link.peer.level if link is not None and link.peer is not None else 0

    def announced_level(self, node_id: str) -> int:
        """As `level_of`, of a peer as well that this node refuses because it has forgotten its promises."""
        refused = self.refusals.get(node_id)
        return max(self.level_of(node_id), refused.level if refused is not None else 0)

    def part_below(self, level: int) -> None:
        """The cluster has reached this feature level: ends the connections with nodes that know less."""
        for link in (*self._dialled.values(), *self._accepted.values()):
            if link.peer is not None and link.peer.level < level:
                link.transport.abort()

    # --- dialled connections -------------------------------------------------------------------------

    def _dial(self, node_id: str) -> None:
        self._dialers[node_id] = asyncio.create_task(self._keep_dialling(node_id), name=f"dial {node_id}")

    async def _keep_dialling(self, node_id: str) -> None:
        """Holds one connection to a peer for as long as this node runs; the loop ends by cancellation."""
        loop = asyncio.get_running_loop()
        pause_s, as_0_1 = REDIAL_S[0], False
        while True:
            link = Dialled(self, node_id, as_0_1)
            tried_0_1, as_0_1 = as_0_1, False  # a peer that comes back may be a newer one
            try:
                async with asyncio.timeout(DIAL_DEADLINE_S):
                    host, port = self.addresses[node_id]
                    await loop.create_connection(link.itself, host, port, **self._dialling(node_id))
                try:
                    async with asyncio.timeout(handshake.DEADLINE_S):
                        await link.established
                except TimeoutError:
                    sentence = f"Peer {node_id} at {host}:{port} did not finish the handshake in time."
                    self.log_once(node_id, "its handshake was late", sentence)
                    raise
                pause_s = REDIAL_S[0]
                await link.closed.wait()
            except handshake.PeerRefused as refused:
                if self.me.peers_0_1 and not tried_0_1 and not link.challenged:
                    as_0_1 = True  # the flag lets it be tried; without it, what comes from the wire changes nothing
                    continue
                self.refusals[node_id] = refused
                self.listener.refused(refused)
                sentence = f"Peer {node_id} at {host}:{port} cannot be talked to: {refused}."
                self.log_once(node_id, refused.kind, sentence)
                if refused.told:
                    self.listener.told(refused.told)
            except ssl.SSLError as error:
                why = (error.reason or str(error)).replace("_", " ").lower()
                self.log_once(node_id, why, f"Peer {node_id} at {host}:{port} cannot be talked to by TLS ({why}).")
            except (OSError, TimeoutError):
                self.refusals.pop(
                    node_id, None
                )  # not there yet, or gone: the status page and the readiness probe say so
            finally:
                link.abort()
            heard_from = self._heard_from[node_id] = asyncio.Event()
            try:
                async with asyncio.timeout(pause_s * self._draw.uniform(0.5, 1.0)):
                    await heard_from.wait()  # it has just dialled us: no reason to wait longer
            except TimeoutError:
                pause_s = min(pause_s * 2, REDIAL_S[1])

    def _dialling(self, node_id: str) -> dict[str, Any]:
        """What a connection is dialled with: the certificate that comes must name the node, wherever it is."""
        if self.certificate is None:
            return {}
        deadlines = {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": SHUTDOWN_S}
        return {"ssl": self.certificate.dialling, "server_hostname": node_id, **deadlines}

    def _stranger(self, address: str, why: str) -> None:
        LINES.write(log, logging.WARNING, address, why, "Refused a peer connection from %s: %s.", address, why)

    def log_once(self, node_id: str, kind: str, sentence: str) -> None:
        """Says the same about the same member once a minute at most: it is dialled all day."""
        LINES.write(log, logging.WARNING, node_id, kind, "%s", sentence, capped=False)

    def dialled_up(self, peer: Peer, link: Dialled) -> None:
        node_id = peer.node_id
        self._dialled[node_id], self._at_address[node_id] = link, peer.instance
        self.refusals.pop(node_id, None)
        if self._claims.get(node_id, peer.instance) != peer.instance:
            self._accepted[node_id].transport.abort()  # it will dial again, and get the refusal
        self.http_urls[peer.node_id] = peer.http_url
        if not peer.frame_key:
            sentence = f"Peer {node_id} is of kvnode 0.1: nothing protects what is sent between it and us."
            self.log_once(node_id, "it is of kvnode 0.1", sentence)
        self.listener.link_up(peer.node_id)

    def dialled_down(self, node_id: str, link: Dialled) -> None:
        if self._dialled.get(node_id) is link:
            del self._dialled[node_id], self._at_address[node_id]
            self.listener.link_down(node_id)
            self.listener.peer_closed(node_id)

    # --- accepted connections ------------------------------------------------------------------------

    def check_single(self, peer: Peer) -> None:
        """Raises PeerRefused if another process answers at the address of this name: two nodes must not share it."""
        if self._at_address.get(peer.node_id, peer.instance) != peer.instance:
            host, port = self.addresses[peer.node_id]
            raise handshake.PeerRefused(
                f"another running process is node {peer.node_id!r} already, at {host}:{port}: give each node its own "
                "--node-id and --data-dir, and stop the one that is wrong",
                code=handshake.DUPLICATE,
            )

    def accepted_up(self, peer: Peer, link: Accepted) -> None:
        superseded = self._accepted.get(peer.node_id)
        self._accepted[peer.node_id], self._claims[peer.node_id] = link, peer.instance
        self.http_urls[peer.node_id] = peer.http_url
        if superseded is not None:
            # Frames of an older connection must not be read behind those of a newer one (R3).
            superseded.transport.abort()
        if peer.node_id in self._heard_from:
            self._heard_from[peer.node_id].set()
        self.listener.heard_from(peer.node_id)

    def accepted_down(self, node_id: str, link: Accepted) -> None:
        if self._accepted.get(node_id) is link:
            del self._accepted[node_id], self._claims[node_id]
            self.listener.peer_closed(node_id)

    def frames(self, node_id: str, link: Accepted, bodies: list[bytes]) -> None:
        """Frames of a proved peer; those of a superseded connection come too late. May raise `frames.BadFrame`."""
        if self._accepted.get(node_id) is link:
            self.listener.received(node_id, bodies)

    # --- all connections -----------------------------------------------------------------------------

    def opened(self, transport: asyncio.Transport) -> None:
        self._open.add(transport)

    def closed(self, transport: asyncio.Transport) -> None:
        self._open.discard(transport)
