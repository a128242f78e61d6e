"""What HAProxy sends a second time, and what it must not: with nodes that refuse or vanish on demand.

Stand-ins, because a real leader cannot be made to refuse one request and lead on.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.balancer import Balancer, needs_haproxy
from tests.cluster import free_ports, request, wait_until

pytestmark = needs_haproxy


class StandIn(ThreadingHTTPServer):
    """Answers probes as a ready node would, n1 as the leader; takes, refuses, drops or holds other requests."""

    daemon_threads = True

    def __init__(self, name: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.name = name
        self.manner = "take"
        self.ready = True
        self.released = threading.Event()
        self.seen: list[tuple[str, bytes]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_GET(self) -> None:
        if self.path.startswith("/readyz"):
            self._answer(200 if self.server.ready else 503)
        elif self.path == "/admin/healthz/leader":
            self._answer(200 if self.server.name == "n1" and self.server.ready else 503)
        else:
            self._serve(b"")

    def do_PUT(self) -> None:
        self._serve(self.rfile.read(int(self.headers["Content-Length"])))

    def _serve(self, body: bytes) -> None:
        self.server.seen.append((self.command, body))
        if self.server.manner == "hold":
            self.server.released.wait(10)
        if self.server.manner == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._answer(503 if self.server.manner == "refuse" else 200)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def nodes() -> Iterator[dict[str, StandIn]]:
    nodes = {name: StandIn(name, port) for name, port in zip(("n1", "n2", "n3"), free_ports(3), strict=True)}
    yield nodes
    for node in nodes.values():
        node.shutdown()
        node.server_close()


@pytest.fixture
def balancer(nodes: dict[str, StandIn], tmp_path: Path) -> Iterator[Balancer]:
    balancer = Balancer(tmp_path, {name: ("127.0.0.1", node.server_port) for name, node in nodes.items()})
    try:
        balancer.start()
        balancer.settles_on("n1")
        balancer.has_up("writes", nodes)
        yield balancer
    finally:
        balancer.close()


def unsent_bytes(client: socket.socket) -> int:
    """What the other side's kernel has not acknowledged yet (Linux: SIOCOUTQ, the same number as TIOCOUTQ)."""
    unsent: tuple[int] = struct.unpack("i", fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)))
    return unsent[0]


def put_in_two_packets(address: tuple[str, int], body: bytes) -> int:
    """The status of a PUT whose body leaves only once the headers have arrived alone."""
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
        wait_until(lambda: unsent_bytes(client) == 0, 5, "the headers with HAProxy")
        client.sendall(body)
        return int(client.recv(1000).split()[1])


@pytest.mark.parametrize("size", [0, 10, 60_000])
def test_a_refused_write_goes_to_another_node_whole(nodes: dict[str, StandIn], balancer: Balancer, size: int) -> None:
    nodes["n1"].manner = "refuse"
    body = bytes(number % 251 for number in range(size))
    assert put_in_two_packets(balancer.address, body) == 200
    assert nodes["n1"].seen == [("PUT", body)]
    assert nodes["n2"].seen + nodes["n3"].seen == [("PUT", body)]


def test_a_refused_write_over_the_buffer_is_refused_to_the_client(
    nodes: dict[str, StandIn], balancer: Balancer
) -> None:
    nodes["n1"].manner = "refuse"
    assert request(balancer.address, "PUT", "/v1/kv/a", bytes(200_000)).status == 503
    assert nodes["n2"].seen + nodes["n3"].seen == []


def test_a_write_without_an_answer_is_never_sent_again(nodes: dict[str, StandIn], balancer: Balancer) -> None:
    nodes["n1"].manner = "drop"
    answer = request(balancer.address, "PUT", "/v1/kv/a", b"1")
    assert (answer.status, answer.json()["outcome"]) == (502, "unknown")
    assert nodes["n2"].seen + nodes["n3"].seen == []


def test_a_read_without_an_answer_goes_to_another_node(nodes: dict[str, StandIn], balancer: Balancer) -> None:
    nodes["n1"].manner = "drop"
    assert request(balancer.address, "GET", "/v1/kv/a").status == 200
    assert nodes["n2"].seen + nodes["n3"].seen == [("GET", b"")]


def test_a_draining_node_gets_nothing_new_and_finishes_what_it_has(
    nodes: dict[str, StandIn], balancer: Balancer
) -> None:
    nodes["n1"].manner = "hold"
    answers: list[int] = []
    held = threading.Thread(target=lambda: answers.append(request(balancer.address, "PUT", "/v1/kv/a", b"1").status))
    held.start()
    wait_until(lambda: nodes["n1"].seen, 5, "n1 holds a request")
    nodes["n1"].ready = False
    wait_until(lambda: balancer.leads() == [] and balancer.states("writes")["n1"] != "UP", 5, "n1 is seen to drain")
    assert [request(balancer.address, "PUT", "/v1/kv/b", b"2").status for _ in range(4)] == [200] * 4
    nodes["n1"].released.set()
    held.join(10)
    assert answers == [200]
    assert nodes["n1"].seen == [("PUT", b"1")]


def test_with_no_node_left_the_answer_says_that_nothing_was_applied(
    nodes: dict[str, StandIn], balancer: Balancer
) -> None:
    for node in nodes.values():
        node.shutdown()
        node.server_close()
    answer = request(balancer.address, "PUT", "/v1/kv/a", b"1")
    assert (answer.status, answer.json()["outcome"]) == (503, "not_applied")
    assert answer.headers["Retry-After"] == "1"
