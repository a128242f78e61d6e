"""Bytes that nobody should send, at the peer port and at the HTTP port: a node shrugs, and serves on.

Each run draws a new seed and prints it; KVNODE_FUZZ_SEED repeats one, KVNODE_FUZZ_S makes it longer (for each port).
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgpack
import pytest

from kvnode.peers import frames
from kvnode.peers.handshake import Dialer, LocalPeer
from kvnode.raft import messages
from tests.certificates import Authority
from tests.cluster import Cluster, wait_until

SECRET = "a secret that this cluster shares"
TOKEN = "the-first-token-of-this-cluster"
FUZZ_S = float(os.environ.get("KVNODE_FUZZ_S", "1.5"))
GROWTH_KIB_MAX = 24 * 1_024
WARM_ATTACKS = 100  # what a node allocates once and keeps is not growth

REQUESTS = [
    b"GET /v1/kv/a HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"PUT /v1/kv/a HTTP/1.1\r\nHost: n1\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /v1/txn HTTP/1.1\r\nHost: n1\r\nContent-Length: 40\r\n\r\n" + b'{"compare":[],"success":[{"get":{"k":1}}',
    b"POST /v1/batch HTTP/1.1\r\nHost: n1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"ope\r\n0\r\n\r\n",
    b"GET /v1/kv?prefix=%ff&limit=9999999999999999999999&cursor=%00 HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"GET /v1/watch?prefix=a&from_revision=-1 HTTP/1.1\r\nHost: n1\r\nLast-Event-ID: x\r\n\r\n",
    b"POST /admin/api/v1/tokens HTTP/1.1\r\nHost: n1\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /readyz?exclude=a&exclude=b&verbose HTTP/1.1\r\nHost: n1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PROXY TCP4 192.0.2.1 127.0.0.1 5 6\r\nGET / HTTP/1.1\r\nHost: n1\r\n\r\n",
]  # fmt: skip


# One of each kind, as a peer may send it that has lost its mind.
MESSAGES = [
    (messages.APPEND, 99, 5, 5, 5, 5, [[99, b"x"]]),
    (messages.ACK, 99, True, False, 7, 7, 7, True),
    (messages.VOTE, 99, 9, 9, False),
    (messages.VOTED, 99),
    (messages.PRE_VOTE, 99, 9, 9),
    (messages.PRE_VOTED, 99, 99, True),
    (messages.TERM_NOTICE, 99),
    (messages.TIMEOUT_NOW, 99),
    (messages.FORWARD, 1, 1, b"group"),
    (messages.REFUSED, 1, "code", "message"),
    (messages.READ_INDEX, 1),
    (messages.READ_ANSWER, 1, None),
    (messages.TRANSFER, 1, None),
    (messages.TRANSFER_ANSWER, 1, None, 1, "code", "message"),
    (messages.OFFER, 1, 9, 1, 100),
    (messages.WANT, 9, 0),
    (messages.CHUNK, 9, 0, b"data"),
    (messages.CHECKPOINT, 1, 9, 9),
    (messages.MEMBERS, b"packed"),
    (messages.CHANGE, 1, b"packed"),
    (messages.CHANGED, 1, None, "code", "message"),
]


class Attack:
    """What one seed makes of valid bytes, one connection after the other."""

    def __init__(self, address: tuple[str, int], draw: random.Random) -> None:
        self.address = address
        self.draw = draw

    def broken(self, raw: bytes) -> bytes:
        """Bytes flipped, cut out, doubled, cut off, or put in."""
        draw, held = self.draw, bytearray(raw)
        for _ in range(draw.randint(1, 6)):
            if not held:
                break
            at = draw.randrange(len(held))
            end = min(len(held), at + draw.randint(1, 32))
            kind = draw.randrange(6)
            if kind == 0:
                held[at] ^= 1 << draw.randrange(8)
            elif kind == 1:
                del held[at:end]
            elif kind == 2:
                held[at:at] = held[at:end] * draw.randint(1, 50)
            elif kind == 3:
                del held[at:]
            elif kind == 4:
                held[at:at] = draw.randbytes(draw.randint(1, 64))
            else:
                held[at:end] = draw.choice(
                    (b"\x00" * 8, b"\xff" * 8, b"\r\n", b"%", b"\x80", b"\xc1", b"\xdd\xff\xff\xff\xff")
                )
        return bytes(held)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(self.address, 5.0)
        connection.settimeout(0.005)
        return connection

    def send(self, connection: socket.socket, raw: bytes) -> None:
        """All of it, in a few pieces; what comes back is read and dropped."""
        try:
            while raw:
                size = self.draw.choice((1, 7, 100, len(raw)))
                connection.sendall(raw[:size])
                raw = raw[size:]
            while connection.recv(65_536):
                pass
        except OSError:
            pass


class PeerAttack(Attack):
    """Some of it behind a genuine handshake: as a peer that knows the secret and has lost its mind."""

    cluster_id = b""

    def once(self) -> None:
        draw = self.draw
        with self.connect() as connection:
            hello = self.dialer().hello()
            stage = draw.randrange(5)
            if stage == 0:
                self.send(connection, self.broken(hello))
            elif stage == 1:
                self.send(connection, hello + self.broken(frames.encode((messages.APPEND, 1, 0, 0, 0, 0, []))))
            elif stage == 2:
                self.send(connection, draw.randbytes(draw.randint(0, 2_000)))
            elif stage == 3:
                sealer = frames.Sealer(self.prove(connection))
                bodies = [frames.pack(draw.choice(MESSAGES)) for _ in range(draw.randint(1, 5))]
                if draw.random() < 0.5:
                    bodies = [self.broken(body) for body in bodies]
                stream = b""
                for body in bodies:
                    head, tag = sealer.seal(body)
                    stream += head + body + tag
                self.send(connection, stream if draw.random() < 0.7 else self.broken(stream))
            else:
                body = msgpack.packb(
                    [draw.choice((None, 1, -1, "x", b"", [], {}, 2**63)) for _ in range(draw.randint(0, 9))]
                )
                self.send(connection, b"KVN1" + struct.pack(">I", draw.choice((len(body), 0, 8_193, 2**32 - 1))) + body)

    def prove(self, connection: socket.socket) -> bytes:
        """A whole handshake, as one who knows of a later configuration: it is let in, and is no member.

        The key of its frames.
        """
        dialer = self.dialer(1 << 40)
        connection.settimeout(5.0)
        connection.sendall(dialer.hello())
        connection.sendall(dialer.challenged(_frame(connection)))
        peer = dialer.welcomed(_frame(connection))
        connection.settimeout(0.005)
        return peer.frame_key

    def dialer(self, index: int = 0) -> Dialer:
        me = LocalPeer("n9", self.cluster_id, "http://127.0.0.1:1", b"i" * 8, SECRET.encode())
        return Dialer(me, "n1", _Nobody(index))


class HttpAttack(Attack):
    def once(self) -> None:
        draw = self.draw
        with self.connect() as connection:
            raw = b"".join(draw.choice(REQUESTS) for _ in range(draw.randint(1, 3)))
            if draw.random() < 0.5:
                raw = raw.replace(b"Host: n1\r\n", b"Host: n1\r\nAuthorization: Bearer %b\r\n" % TOKEN.encode())
            if draw.random() < 0.1:
                raw = raw.replace(b"\r\n\r\n", b"\r\n" + b"X-A: b\r\n" * draw.choice((10, 200, 2_000)) + b"\r\n", 1)
            self.send(connection, raw if draw.random() < 0.1 else self.broken(raw))


class _Nobody:
    packed = b""

    def __init__(self, index: int) -> None:
        self.index = index

    def __contains__(self, node_id: object) -> bool:
        return False

    def told(self, packed: bytes) -> None: ...


class TlsAttack(Attack):
    """Handshakes that are broken, cut off or given up, and what is no TLS behind one that is whole."""

    def __init__(self, address: tuple[str, int], draw: random.Random, context: ssl.SSLContext, name: str) -> None:
        super().__init__(address, draw)
        self.context, self.name = context, name

    def once(self) -> None:
        draw = self.draw
        with self.connect() as connection:
            stage = draw.randrange(4)
            if stage == 0:
                self.send(connection, self.broken(self.hello()))
            elif stage == 1:
                self.send(connection, draw.randbytes(draw.randint(1, 500)))
            elif stage == 2:
                reset = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                connection.sendall(self.hello())
            else:
                connection.settimeout(5.0)
                whole = self.context.wrap_socket(connection, server_hostname=self.name)
                if draw.random() < 0.5:
                    whole.sendall(self.broken(draw.choice(REQUESTS)))
                with socket.socket(fileno=whole.detach()) as plain:
                    plain.settimeout(0.005)
                    self.send(plain, draw.randbytes(draw.randint(1, 300)))

    def hello(self) -> bytes:
        """What a handshake begins with."""
        outgoing = ssl.MemoryBIO()
        try:
            self.context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=self.name).do_handshake()
        except ssl.SSLWantReadError:
            pass
        return outgoing.read()


@pytest.fixture
def seed() -> int:
    drawn = int(os.environ.get("KVNODE_FUZZ_SEED", secrets.randbits(32)))
    print(f"KVNODE_FUZZ_SEED={drawn}")
    return drawn


def test_a_node_serves_on_after_any_bytes_at_its_ports(make_cluster: Callable[..., Cluster], seed: int) -> None:
    cluster = make_cluster(size=1, env={"KVNODE_CLUSTER_SECRET": SECRET, "KVNODE_TOKEN": TOKEN}, token=TOKEN).start()
    PeerAttack.cluster_id = bytes.fromhex(cluster.request("n1", "GET", "/admin/api/v1/members").json()["cluster_id"])
    node, draw = cluster.nodes["n1"], random.Random(seed)
    _withstands(cluster, [PeerAttack(node.raft, draw), HttpAttack(node.http, draw)])


def test_a_node_serves_on_after_any_bytes_at_its_tls_ports(
    make_cluster: Callable[..., Cluster], seed: int, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "certificates")
    authority.sign("n1", ("127.0.0.1",))
    cert, key, ca = (f"{authority.folder}/{name}.pem" for name in ("n1", "n1-key", "ca"))
    args = ["--tls-cert", cert, "--tls-key", key, "--raft-cert", cert, "--raft-key", key, "--raft-ca", ca]
    cluster = make_cluster(size=1, args=args, env={"KVNODE_CLUSTER_SECRET": SECRET}, tls=authority.client()).start()
    node, draw, context = cluster.nodes["n1"], random.Random(seed), authority.client("n1")
    _withstands(cluster, [TlsAttack(address, draw, context, "n1") for address in (node.raft, node.http)])


def _withstands(cluster: Cluster, attacks: Sequence[PeerAttack | HttpAttack | TlsAttack]) -> None:
    """The node serves during and after all of it, has not grown, and has little to say about it."""
    cluster.put("before", b"1")
    pid = cluster.pid("n1")
    for attack in attacks:
        for _ in range(WARM_ATTACKS):
            attack.once()
        before_kib, count, until = _rss_kib(pid), 0, time.monotonic() + FUZZ_S
        while time.monotonic() < until:
            attack.once()
            count += 1
        assert cluster.put("after", b"2")["revision"] > 1
        assert cluster.get("before") == b"1"
        grown_kib = _rss_kib(pid) - before_kib
        print(f"{type(attack).__name__}: {count} connections, grown by {grown_kib} KiB")
        assert grown_kib < GROWTH_KIB_MAX
        assert count > 30
    wait_until(lambda: _open_connections(pid) <= 4, 10.0, "every connection of the attack closed")
    log = cluster.log("n1")
    assert "Traceback" not in log
    assert "unexpectedly" not in log
    flood = [line for line in log.splitlines() if " audit: token" not in line]  # an administrator's own flood counts
    assert len(flood) < 500, "a flood must not fill the disk with lines"


def _frame(connection: socket.socket) -> bytes:
    length = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
    return connection.recv(length, socket.MSG_WAITALL)


def _rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def _open_connections(pid: int) -> int:
    links = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()]
    return sum(link.startswith("socket:") for link in links)
