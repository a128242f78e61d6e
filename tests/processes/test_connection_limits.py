"""Connections that are held and not used keep nobody out, and probes are answered whatever else is connected."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.cluster import Cluster, free_ports, wait_until

pytestmark = pytest.mark.alone

MOST = 40
SHARE = MOST // 2
PROBE_S = 1.0


@pytest.fixture(scope="module")
def probes() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def cluster(probes: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    args = ["--max-connections", str(MOST), "--probes", f"127.0.0.1:{probes}"]
    with Cluster(tmp_path_factory.mktemp("held"), size=1, args=args) as cluster:
        yield cluster.start()


class Held:
    """Connections that one client holds at `address`."""

    def __init__(self, stack: ExitStack, address: tuple[str, int]) -> None:
        self._stack = stack
        self._address = address

    def open(self, source: str, raw: bytes = b"", answered: bool = False) -> socket.socket:
        connection = self._stack.enter_context(socket.create_connection(self._address, 5.0, source_address=(source, 0)))
        connection.settimeout(5.0)
        if raw:
            connection.sendall(raw)
        if answered:
            connection.recv(65_536)
        return connection


@pytest.fixture
def held(cluster: Cluster) -> Iterator[Held]:
    with ExitStack() as stack:
        yield Held(stack, cluster.nodes["n1"].http)
    wait_until(lambda: _open(cluster) <= 1, 5.0, "every connection of the test closed")


def _open(cluster: Cluster) -> float:
    port = int(next(a for a in cluster.args if a.startswith("127.0.0.1:")).rpartition(":")[2])
    page = ask(("127.0.0.1", port), "/metrics")[1]
    return float(next(line for line in page.splitlines() if line.startswith("kvnode_http_connections ")).split()[1])


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def ask(address: tuple[str, int], path: str, source: str = "127.0.0.1", timeout_s: float = PROBE_S) -> tuple[int, str]:
    """The status and body of one request on a connection of its own; 0 where there is no answer in time."""
    with socket.create_connection(address, timeout_s, source_address=(source, 0)) as connection:
        connection.settimeout(timeout_s)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        try:
            while piece := connection.recv(65_536):
                answer += piece
        except OSError:
            return 0, ""
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]) if head else 0, body.decode()


def alive(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(65_536) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    finally:
        connection.settimeout(5.0)


def test_a_connection_that_asked_once_makes_room_for_a_new_one(cluster: Cluster, held: Held) -> None:
    address = cluster.nodes["n1"].http
    idle = [held.open(f"127.0.0.{2 + n % 4}", get("/livez"), answered=True) for n in range(MOST)]
    assert ask(address, "/v1/kv/a", "127.0.0.9")[0] == 404
    assert not alive(idle[0]), "the one that was idle for longest"
    assert all(alive(connection) for connection in idle[1:])


def test_a_connection_that_was_used_since_is_not_the_longest_idle(cluster: Cluster, held: Held) -> None:
    address = cluster.nodes["n1"].http
    idle = [held.open(f"127.0.0.{2 + n % 4}", get("/livez"), answered=True) for n in range(MOST)]
    for used in (idle[0], idle[2]):
        used.sendall(get("/livez"))
        used.recv(65_536)
    for _ in range(2):
        assert ask(address, "/v1/kv/a", "127.0.0.9")[0] == 404
        held.open("127.0.0.9", get("/livez"), answered=True)
    assert alive(idle[0])
    assert alive(idle[2])
    assert not alive(idle[1])
    assert not alive(idle[3])


@pytest.mark.parametrize("raw", [b"", b"G", b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_silent_and_half_said_requests_make_room_too(cluster: Cluster, held: Held, raw: bytes) -> None:
    for n in range(2 * MOST):
        held.open(f"127.0.0.{2 + n % 4}", raw)
    assert ask(cluster.nodes["n1"].http, "/v1/kv/a", "127.0.0.9")[0] == 404


def test_later_requests_that_are_half_said_make_room_too(cluster: Cluster, held: Held) -> None:
    for n in range(MOST):
        held.open(f"127.0.0.{2 + n % 4}", get("/livez"), answered=True).sendall(b"GET /liv")
    assert ask(cluster.nodes["n1"].http, "/v1/kv/a", "127.0.0.9")[0] == 404


def test_streams_are_never_cut_for_others_and_probes_are_answered_beside_them(cluster: Cluster, held: Held) -> None:
    address = cluster.nodes["n1"].http
    watch = get("/v1/watch?prefix=a")
    streams = [held.open(f"127.0.0.{2 + n % 4}", watch, answered=True) for n in range(MOST)]
    status, body = ask(address, "/v1/kv/a", "127.0.0.9")
    assert (status, "too_many_requests" in body) == (429, True)
    with silent_flood(address, 600):
        for _ in range(20):
            for path in ("/admin/healthz", "/admin/healthz/leader", "/livez", "/readyz"):
                assert ask(address, path)[0] == 200, path
    assert all(alive(stream) for stream in streams)


def test_one_address_has_half_of_all_places(cluster: Cluster, held: Held) -> None:
    address = cluster.nodes["n1"].http
    watch = get("/v1/watch?prefix=a")
    streams = [held.open("127.0.0.2", watch, answered=True) for _ in range(SHARE)]
    assert b" 429 " in held.open("127.0.0.2", watch).recv(65_536)
    assert ask(address, "/v1/kv/a", "127.0.0.9")[0] == 404
    streams.pop().close()
    wait_until(lambda: ask(address, "/v1/kv/a", "127.0.0.2")[0] == 404, 5.0, "a place again")


def test_idle_connections_of_one_address_take_places_from_that_address_alone(cluster: Cluster, held: Held) -> None:
    address = cluster.nodes["n1"].http
    others = [held.open("127.0.0.3", get("/livez"), answered=True) for _ in range(SHARE // 2)]
    mine = [held.open("127.0.0.2", get("/livez"), answered=True) for _ in range(MOST)]
    assert sum(alive(connection) for connection in mine) == SHARE
    assert all(alive(connection) for connection in others)
    assert ask(address, "/v1/kv/a", "127.0.0.2")[0] == 404


@contextmanager
def silent_flood(address: tuple[str, int], held_max: int, asked: bytes = b"") -> Iterator[None]:
    """Somebody who opens some 800 connections a second, and holds the last `held_max` of them.

    As fast as a thread can, it would take the processor from the node, which no attacker elsewhere does.
    """
    stop = Event()

    def flood() -> None:
        mine: list[socket.socket] = []
        while not stop.wait(0.001):
            try:
                mine.append(socket.create_connection(address, 1.0))
                if asked:
                    mine[-1].sendall(asked)
            except OSError:
                pass
            if len(mine) > held_max:
                mine.pop(0).close()
        for each in mine:
            each.close()

    thread = Thread(target=flood)
    thread.start()
    try:
        time.sleep(0.5)
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "asked", [b"", get("/livez"), b"GET /li", b"POST /livez HTTP/1.1\r\nContent-Length: 9\r\n\r\n"]
)
def test_the_port_for_probes_answers_beside_a_flood(cluster: Cluster, probes: int, asked: bytes) -> None:
    address = ("127.0.0.1", probes)
    with ExitStack() as stack:
        hoard = Held(stack, address)
        for _ in range(256):
            hoard.open("127.0.0.1", get("/livez"), answered=True)
        stack.enter_context(silent_flood(address, 4_000, asked))
        for _ in range(10):
            for path in ("/admin/healthz", "/admin/healthz/leader", "/livez", "/readyz"):
                assert ask(address, path)[0] == 200, path


def test_a_flood_at_the_raft_port_keeps_no_peer_out(tmp_path: Path) -> None:
    env = {"KVNODE_CLUSTER_SECRET": "a secret that this cluster shares"}
    with Cluster(tmp_path, env=env) as cluster:
        cluster.start()
        cluster.kill("n3")
        with silent_flood(cluster.nodes["n1"].raft, 300), silent_flood(cluster.nodes["n2"].raft, 300):
            cluster.restart("n3")
            cluster.put("a", b"1", via="n3")
