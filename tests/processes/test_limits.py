"""How often, how many, and on whose behalf: one node behind balancers, with limits, and a port for its probes."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster import Answer, Cluster, free_ports, request, wait_until

TOKEN = "the-first-token-of-this-cluster"
PROXY = "127.0.0.3"  # believed
RATE = 25
EACH = 4
V2 = b"\r\n\r\n\x00\r\nQUIT\n"


@pytest.fixture(scope="module")
def probes() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def cluster(probes: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    args = [
        *("--rate-limit", str(RATE), "--max-connections-per-client", str(EACH), "--max-connections", "12"),
        *("--trusted-proxies", PROXY, "--proxy-protocol", "--probes", f"127.0.0.1:{probes}"),
        *("--log-format", "json", "--log-level", "error"),
    ]
    folder = tmp_path_factory.mktemp("limited")
    with Cluster(folder, size=1, args=args, env={"KVNODE_TOKEN": TOKEN}, token=TOKEN) as cluster:
        yield cluster.start()


def connect(cluster: Cluster, source: str) -> socket.socket:
    connection = socket.create_connection(cluster.nodes["n1"].http, 5.0, source_address=(source, 0))
    connection.settimeout(5.0)
    return connection


def ask(
    connection: socket.socket, path: str = "/v1/kv/a?consistency=stale", headers: str = "", token: str = TOKEN
) -> Answer:
    credential = f"Authorization: Bearer {token}\r\n" if token else ""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: n1\r\n{credential}{headers}\r\n".encode())
    response = http.client.HTTPResponse(connection, method="GET")
    response.begin()
    return Answer(response.status, response.headers, response.read())


def test_a_client_over_its_rate_waits_and_nobody_else_does(cluster: Cluster) -> None:
    with connect(cluster, "127.0.0.4") as eager, connect(cluster, "127.0.0.5") as calm:
        began = time.monotonic()
        answers = [ask(eager) for _ in range(4 * RATE)]
        filled = RATE * (time.monotonic() - began)  # what its rate allows anew while it asks
        refused = [answer for answer in answers if answer.status == 429]
        assert all(answer.status == 404 for answer in answers[: 2 * RATE]), "two seconds' worth at once"
        assert len(refused) >= 2 * RATE - filled - 1, "and not more than its rate besides"
        assert refused[0].headers["Retry-After"] == "1"
        assert refused[0].json()["error"] == "too_many_requests"
        assert ask(eager, "/readyz").status == 200
        assert ask(calm).status == 404
        wait_until(lambda: ask(eager).status == 404, 3.0, "the rate to allow it again")
    big = request(cluster.nodes["n1"].http, "PUT", "/v1/kv/a", b"x" * 1_048_577, {"Authorization": f"Bearer {TOKEN}"})
    assert big.status == 413


def test_connections_are_counted_for_each_client_and_in_all(cluster: Cluster) -> None:
    with ExitStack() as stack:
        mine = [stack.enter_context(connect(cluster, "127.0.0.6")) for _ in range(EACH)]
        assert all(ask(connection).status == 404 for connection in mine)
        one_more = stack.enter_context(connect(cluster, "127.0.0.6"))
        refused = ask(one_more)
        assert (refused.status, refused.json()["error"]) == (429, "too_many_requests")
        assert (refused.headers["Retry-After"], refused.headers["Connection"]) == ("1", "close")
        assert one_more.recv(1) == b""
        assert ask(stack.enter_context(connect(cluster, "127.0.0.6")), "/livez").status == 200, "a balancer looks"
        for other in ("127.0.0.7", "127.0.0.8"):
            for _ in range(EACH):
                assert ask(stack.enter_context(connect(cluster, other))).status == 404
        assert ask(stack.enter_context(connect(cluster, "127.0.0.9"))).status == 404, "the longest idle makes room"
        mine[0].settimeout(15.0)
        assert mine[0].recv(1) == b""


def _v2(source: str, command: int = 1) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 1, 2)
    return V2 + struct.pack("!BBH", 0x20 | command, 0x11, len(addresses) + 5) + addresses + b"\x04\x00\x02xx"


@pytest.mark.parametrize(
    ("preface", "headers", "client"),
    [
        (b"PROXY TCP4 192.0.2.1 127.0.0.1 5 6\r\n", "", "192.0.2.1"),
        (b"PROXY TCP6 2001:db8::1 ::1 5 6\r\n", "", "2001:db8::1"),
        (b"PROXY UNKNOWN\r\n", "", PROXY),
        (_v2("192.0.2.2"), "", "192.0.2.2"),
        (_v2("192.0.2.3", command=0), "", PROXY),
        (b"PROXY UNKNOWN\r\n", "X-Forwarded-For: 192.0.2.66, 192.0.2.4\r\n", "192.0.2.4"),
        (b"PROXY UNKNOWN\r\n", f"X-Forwarded-For: 192.0.2.66\r\nX-Forwarded-For: 192.0.2.5, {PROXY}\r\n", "192.0.2.5"),
        (b"PROXY TCP4 192.0.2.6 127.0.0.1 5 6\r\n", "X-Forwarded-For: 192.0.2.66\r\n", "192.0.2.6"),
    ],
)
def test_a_believed_balancer_says_who_the_client_is(
    cluster: Cluster, preface: bytes, headers: str, client: str
) -> None:
    seen = len(cluster.log("n1"))
    with connect(cluster, PROXY) as connection:
        for byte in preface:  # as slowly as a network may bring it
            connection.sendall(bytes((byte,)))
        path = f"/v1/kv/{time.monotonic_ns()}"
        refused = ask(connection, path, headers, token="wrong-token-of-" + client)
        assert refused.status == 401
    first = f" from {client}: no valid token"
    # The node writes its log from a thread of its own, a moment after the answer.
    wait_until(
        lambda: first in cluster.log("n1")[seen:] or (client == PROXY and first in cluster.log("n1")), 5.0, "the line"
    )
    assert "192.0.2.66" not in cluster.log("n1")


@pytest.mark.parametrize(
    ("source", "raw"),
    [
        (PROXY, b"GET /admin/healthz HTTP/1.1\r\nHost: n1\r\n\r\n"),
        (PROXY, b"PROXY TCP4 nonsense\r\n"),
        (PROXY, b"PROXY TCP4 " + b"1" * 200),
        (PROXY, V2 + b"\x31\x11\x00\x0c" + b"x" * 12),
        (PROXY, V2 + b"\x21\x11\xff\xff"),
        (PROXY, V2 + b"\x21\x11\x00\x01x"),
        ("127.0.0.10", b"PROXY TCP4 192.0.2.1 127.0.0.1 5 6\r\nGET /admin/healthz HTTP/1.1\r\nHost: n1\r\n\r\n"),
    ],
)
def test_nothing_is_guessed_about_a_preface(cluster: Cluster, source: str, raw: bytes) -> None:
    with connect(cluster, source) as connection:
        connection.sendall(raw)
        try:
            answer = connection.recv(65_536)
        except ConnectionResetError:  # closed with some of it unread
            answer = b""
        assert answer == b"" if source == PROXY else answer.startswith(b"HTTP/1.1 400")


def test_probes_and_metrics_have_a_port_of_their_own(cluster: Cluster, probes: int) -> None:
    def on(path: str) -> int:
        return request(("127.0.0.1", probes), "GET", path).status

    assert [on(path) for path in ("/readyz", "/admin/healthz/leader", "/metrics")] == [200, 200, 200]
    assert [on(path) for path in ("/v1/kv/a", "/v1/kv", "/admin/api/v1/cluster", "/admin/api/v1/tokens")] == [404] * 4
    with connect(cluster, "127.0.0.11") as connection:
        assert ask(connection, "/readyz", token="").status == 200, "a balancer may look at the port that it sends to"
        assert ask(connection, "/metrics").status == 404


@pytest.mark.skipif(shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin") is None, reason="no HAProxy")
def test_haproxy_hands_the_clients_address_on(cluster: Cluster, probes: int, tmp_path: Path) -> None:
    port = free_ports(1)[0]
    config = tmp_path / "haproxy.cfg"
    config.write_text(f"""
defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 5s
frontend clients
  bind 127.0.0.1:{port}
  default_backend nodes
backend nodes
  option httpchk GET /admin/healthz/leader
  server n1 127.0.0.1:{cluster.nodes["n1"].http[1]} source {PROXY} send-proxy-v2 check port {probes} inter 100ms
""")
    haproxy = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    process = subprocess.Popen([str(haproxy), "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:

        def answered() -> bool:
            try:
                return request(("127.0.0.1", port), "GET", "/readyz").status == 200
            except OSError:
                return False

        wait_until(answered, 10.0, "HAProxy in front")
        body = json.dumps({"name": "behind", "role": "read_only"}).encode()
        with socket.create_connection(("127.0.0.1", port), 5.0, source_address=("127.0.0.12", 0)) as connection:
            connection.settimeout(5.0)
            head = f"POST /admin/api/v1/tokens HTTP/1.1\r\nHost: n1\r\nAuthorization: Bearer {TOKEN}\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        lines = [json.loads(line) for line in cluster.log("n1").splitlines()]
        [line] = [line for line in lines if line["room"] == "audit" and line.get("status")]
        assert "at 127.0.0.12: POST /admin/api/v1/tokens: 200: made token" in line["message"]
        said = {"event": "audit", "token": "first", "client": "127.0.0.12", "method": "POST", "status": 200}
        assert line | said == line
    finally:
        process.terminate()
        process.wait(10)
