"""Whoever sits between two nodes and alters what they send ends a connection, and nothing else comes of it.

The real ends of a connection, `Dialled` and `Accepted`, with a relay between them that knows where each frame begins
and does one thing to the stream. KVNODE_RELAY_TRIES makes it longer, KVNODE_RELAY_SEED repeats a run:

    KVNODE_RELAY_TRIES=100000 python -m pytest tests/peers/test_relay.py
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvnode.peers import connections, handshake
from kvnode.peers import frames as wire
from kvnode.peers.connections import Accepted, Dialled, Link
from kvnode.peers.handshake import LocalPeer
from kvnode.peers.network import Network
from kvnode.raft.messages import ACK, APPEND, CHUNK, FORWARD, VOTED

TRIES = int(os.environ.get("KVNODE_RELAY_TRIES", "3000"))
SECRET = b"a secret that this cluster shares"
BEHIND = 6  # frames that follow what was done: a reader may have to wait for some before it can tell


class Members(tuple[str, ...]):
    index = 0
    packed = b""

    def told(self, packed: bytes) -> None: ...


class Received:
    """What comes to a node: the listener of its network."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def link_up(self, node_id: str) -> None: ...
    def heard_from(self, node_id: str) -> None: ...
    def link_down(self, node_id: str) -> None: ...
    def peer_closed(self, node_id: str) -> None: ...
    def told(self, packed: bytes) -> None: ...
    def received(self, node_id: str, bodies: list[bytes]) -> None:
        self.bodies += bodies


class Side(Network):
    """One node's network without its sockets; what it would log of those that it dials is kept."""

    def __init__(self, node_id: str, secret: bytes = SECRET, peers_0_1: bool = False) -> None:
        self.received = Received()
        me = LocalPeer(node_id, b"c" * 16, f"http://{node_id}", os.urandom(8), secret, peers_0_1=peers_0_1)
        super().__init__(me, Members(("n1", "n2", "n3")), self.received)
        self.lines: list[str] = []

    def log_once(self, node_id: str, kind: str, sentence: str) -> None:
        self.lines.append(sentence)


class Refusals(list[str]):
    """In the place of the log of what is refused, which would write the same line once a minute."""

    def write(self, logger: Any, level: int, address: str, kind: str, sentence: str, *args: Any, **_: Any) -> None:
        self.append(sentence % args)


REFUSALS = Refusals()


@pytest.fixture(autouse=True)
def _refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    REFUSALS.clear()
    monkeypatch.setattr(connections, "LINES", REFUSALS)


class Wire:
    """One end's transport: each write is a piece that waits for the relay to pass it on."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.pieces.append(bytes(data))

    def writelines(self, data: Any) -> None:
        self.pieces.append(b"".join(data))

    def abort(self) -> None:
        self.closed = True

    close = abort

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 7) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def take(self) -> list[bytes]:
        pieces, self.pieces = self.pieces, []
        return pieces


class Connection:
    """n1 dials n2."""

    def __init__(self, dialling: Side | None = None, accepting: Side | None = None) -> None:
        self.dialling = dialling or Side("n1")
        self.accepting = accepting or Side("n2")
        self.out, self.back = Wire(), Wire()
        self.dialled, self.accepted = Dialled(self.dialling, "n2"), Accepted(self.accepting)
        self.accepted.connection_made(self.back)  # type: ignore[arg-type]
        self.dialled.connection_made(self.out)  # type: ignore[arg-type]
        self.said: list[bytes] = []  # of the dialler, each piece as it was written
        self.answered: list[bytes] = []

    def greet(self, alter: Callable[[int, bytes], bytes] = lambda step, piece: piece) -> bool:
        """The handshake, of which `alter` is given each of the four pieces; whether both sides are content."""
        for step in range(4):
            wire_, link, kept = (
                (self.out, self.accepted, self.said) if step % 2 == 0 else (self.back, self.dialled, self.answered)
            )
            for piece in wire_.take():
                kept.append(piece)
                deliver(link, alter(step, piece))
        return self.up

    @property
    def up(self) -> bool:
        return not (self.out.closed or self.back.closed) and None not in (self.dialled.peer, self.accepted.peer)

    def send(self, messages: list[Any]) -> list[bytes]:
        """The frames as they leave n1."""
        for message in messages:
            assert self.dialling.send("n2", message)
        return self.out.take()

    def end(self) -> None:
        for link in (self.dialled, self.accepted):
            link.connection_lost(None)
        self.dialled.abort()


def deliver(link: Link, data: bytes) -> None:
    if data and not getattr(link.transport, "closed", False):
        link.data_received(data)


def messages(draw: random.Random, count: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(count):
        size = draw.choice((0, 1, 40, 40, 40, 300, 20_000))
        number = draw.randrange(1 << 40)
        made.append(
            draw.choice(
                (
                    (ACK, number, True, False, 7, 7, 7, True),
                    (APPEND, number, 5, 5, 5, 5, [[9, b"x" + draw.randbytes(size)]]),
                    (FORWARD, 9, number, draw.randbytes(size)),
                    (CHUNK, 9, number, draw.randbytes(size)),
                )
            )
        )
    return made


def flip(draw: random.Random, frames: list[bytes], at: int, other: list[bytes]) -> None:
    held = bytearray(frames[at])
    held[draw.randrange(len(held)) if draw.random() < 0.7 else draw.randrange(8)] ^= 1 << draw.randrange(8)
    frames[at] = bytes(held)


def drop(draw: random.Random, frames: list[bytes], at: int, other: list[bytes]) -> None:
    del frames[at]


def repeat(draw: random.Random, frames: list[bytes], at: int, other: list[bytes]) -> None:
    frames.insert(at + 1, frames[draw.randint(0, at)])


def reorder(draw: random.Random, frames: list[bytes], at: int, other: list[bytes]) -> None:
    frames[at], frames[at + 1] = frames[at + 1], frames[at]


def inject(draw: random.Random, frames: list[bytes], at: int, other: list[bytes]) -> None:
    made_up = (
        wire.encode((FORWARD, 9, 1, b"group")),  # as kvnode 0.1 would take it
        b"".join(((5).to_bytes(4, "big"), draw.randbytes(4), draw.randbytes(5 + wire.TAG_BYTES))),
        draw.randbytes(draw.randint(1, 200)),
        handshake.MAGIC,
        bytes(32),
    )
    frames.insert(at, draw.choice(made_up))


def shorten(draw: random.Random, frames: list[bytes], at: int, other: list[bytes]) -> None:
    held, size = frames[at], draw.randint(1, min(64, len(frames[at])))
    first = draw.randint(0, len(held) - size)
    frames[at] = held[:first] + held[first + size :]


def insert(draw: random.Random, frames: list[bytes], at: int, other: list[bytes]) -> None:
    held = frames[at]
    middle = draw.randint(0, len(held))
    frames[at] = held[:middle] + draw.randbytes(draw.randint(1, 64)) + held[middle:]


def swap(draw: random.Random, frames: list[bytes], at: int, other: list[bytes]) -> None:
    """With the frame of the same number, and the same message, of another connection between the same nodes."""
    frames[at] = other[at]


def go_over(draw: random.Random, frames: list[bytes], at: int, other: list[bytes]) -> None:
    """From here on what the other connection carries."""
    frames[at:] = other[at:]


FAULTS = (flip, drop, repeat, reorder, inject, shorten, insert, swap, go_over)


@pytest.fixture
def draw() -> random.Random:
    seed = int(os.environ.get("KVNODE_RELAY_SEED", secrets.randbits(32)))
    print(f"KVNODE_RELAY_SEED={seed}")
    return random.Random(seed)


def pieces_of(draw: random.Random, stream: bytes) -> Iterator[bytes]:
    """The stream as a network may cut it: by byte, in pieces, or whole."""
    while stream:
        size = draw.choice((1, 7, 100, 5_000, len(stream)))
        yield stream[:size]
        stream = stream[size:]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
async def test_one_fault_ends_the_connection_with_a_line_and_nothing_of_it_is_taken(
    fault: Callable[..., None], draw: random.Random
) -> None:
    for _ in range(TRIES // len(FAULTS)):
        dialling, accepting = Side("n1"), Side("n2")
        other = Connection(dialling, accepting)
        assert other.greet()
        count = draw.randint(1, 4)
        sent = messages(draw, count + BEHIND)
        theirs = other.send(sent)
        connection = Connection(dialling, accepting)
        assert connection.greet()
        frames, at = connection.send(sent), draw.randrange(count)
        bodies = [wire.pack(message) for message in sent]
        REFUSALS.clear()
        fault(draw, frames, at, theirs)
        for piece in pieces_of(draw, b"".join(frames)):
            deliver(connection.accepted, piece)
        taken = accepting.received.bodies
        assert connection.back.closed, "the connection goes on"
        assert taken == bodies[: len(taken)], "what was not sent was taken"
        # The first of two that are the same is the genuine one; so may a frame be to whose end a byte was put, or whose
        # last byte was taken away and came back as the first of the next frame.
        assert len(taken) <= at + (fault in (repeat, insert, shorten)), "what was altered was taken"
        assert len(REFUSALS) == 1, REFUSALS
        assert REFUSALS[0].startswith("Refused a peer connection from n1 at 192.0.2.1: ")
        assert "on the way" in REFUSALS[0]
        other.end()
        connection.end()


async def test_a_frame_that_lost_a_part_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "FRAME_S", 0.05)
    connection = Connection()
    assert connection.greet()
    (big,) = connection.send([(CHUNK, 9, 1, bytes(20_000))])
    heartbeats = connection.send([(VOTED, 9)] * 3)
    for piece in (big[:5_000], big[15_000:], *heartbeats):
        deliver(connection.accepted, piece)
    assert connection.up
    async with asyncio.timeout(10):
        while not connection.back.closed:  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)
    assert ["a frame that it began was not whole" in line for line in REFUSALS] == [True]
    assert connection.accepting.received.bodies == []
    connection.end()


async def test_a_stream_may_be_cut_and_joined_as_a_network_does_it(draw: random.Random) -> None:
    for _ in range(TRIES // 30):
        connection = Connection()
        assert connection.greet()
        sent = messages(draw, 8)
        for piece in pieces_of(draw, b"".join(connection.send(sent))):
            deliver(connection.accepted, piece)
        assert connection.accepting.received.bodies == [wire.pack(message) for message in sent]
        assert connection.up
        assert connection.dialling.lines == REFUSALS == []
        connection.end()


async def test_a_greeting_that_is_altered_lets_nobody_in(draw: random.Random) -> None:
    for _ in range(TRIES // 3):
        connection, at = Connection(), draw.randrange(4)

        def alter(step: int, piece: bytes, at: int = at) -> bytes:
            if step != at:
                return piece
            frames = [piece]
            fault = draw.choice((flip, shorten, insert, inject))
            fault(draw, frames, 0, [])
            return b"".join(frames)

        assert not connection.greet(alter)
        # Some wait for the rest of a frame, until their deadline; nobody sends or takes anything meanwhile.
        assert connection.accepted.peer is None or at == 3
        assert connection.accepting.received.bodies == []
        assert not connection.dialling.is_up("n2")
        connection.end()


async def test_a_connection_that_was_recorded_is_worth_nothing_later(draw: random.Random) -> None:
    accepting = Side("n2")
    recorded = Connection(accepting=accepting)
    assert recorded.greet()
    frames = recorded.send(messages(draw, 5))
    recorded.end()
    again = Accepted(accepting)
    back = Wire()
    again.connection_made(back)  # type: ignore[arg-type]
    for piece in [*recorded.said, *frames]:
        deliver(again, piece)
    assert (back.closed, again.peer, accepting.received.bodies) == (True, None, [])
    assert "does not know this cluster's secret" in REFUSALS[-1]
    # And its answers are worth nothing to the node that dials again.
    dialled, out = Dialled(Side("n1"), "n2"), Wire()
    dialled.connection_made(out)  # type: ignore[arg-type]
    for piece in recorded.answered:
        deliver(dialled, piece)
    assert (out.closed, dialled.peer) == (True, None)
    dialled.abort()


@pytest.mark.parametrize("raw", [b"\0", b"\0\0\0\1\xc0", wire.encode((VOTED, 9)), bytes(200)])
async def test_nothing_comes_back_on_a_connection_that_a_node_dialled(raw: bytes) -> None:
    connection = Connection()
    assert connection.greet()
    deliver(connection.dialled, raw)
    assert connection.out.closed
    assert len(connection.dialling.lines) == 1
    assert connection.dialling.lines[0].startswith("Closed the connection to peer n2: ")
    assert connection.dialling.received.bodies == []
    connection.end()


@pytest.mark.parametrize("step", [1, 2, 3])
async def test_frames_behind_a_greeting_are_not_taken(step: int) -> None:
    """The dialer sends nothing before it is welcome, so what is there in the same read is somebody else's."""
    connection = Connection()
    made_up = wire.encode((FORWARD, 9, 1, b"group"))
    assert not connection.greet(lambda at, piece: piece + made_up if at == step else piece)
    assert connection.accepting.received.bodies == []
    connection.end()


async def test_a_node_talks_to_one_of_kvnode_0_1_only_where_it_is_told_to() -> None:
    plain = wire.encode((VOTED, 9))
    for flag in (False, True):
        REFUSALS.clear()
        accepting = Side("n2", peers_0_1=flag)
        connection = Connection(Side("n1", peers_0_1=True), accepting)
        connection.out.take()
        connection.dialled = Dialled(connection.dialling, "n2", as_0_1=True)
        connection.dialled.connection_made(connection.out)  # type: ignore[arg-type]
        assert connection.greet() is flag
        if flag:
            assert connection.send([(VOTED, 9)]) == [plain]
            deliver(connection.accepted, plain)
            assert accepting.received.bodies == [wire.pack((VOTED, 9))]
            assert (connection.accepted.peer or Nothing).level == 0
        else:
            assert "start this node with --allow-old-peers" in REFUSALS[0]
        connection.end()


async def test_a_relay_cannot_make_two_nodes_speak_as_0_1() -> None:
    """It rewrites the version in the hello; the flag decides, and where it is off the connection is refused."""
    connection = Connection()

    def older(step: int, piece: bytes) -> bytes:
        return piece.replace(b"\x95\x04", b"\x95\x02", 1) if step == 0 else piece

    assert not connection.greet(older)
    assert connection.accepting.received.bodies == []
    connection.end()


class Nothing:
    level = -1


async def test_what_is_sent_without_the_secret_is_not_taken() -> None:
    connection = Connection(Side("n1", secret=b"another secret of some length"))
    assert not connection.greet()
    assert connection.accepting.received.bodies == []
    assert not connection.dialling.is_up("n2")
    connection.end()
    await asyncio.sleep(0)
