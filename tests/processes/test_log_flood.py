"""A flood of what is refused fills no disk, whichever port it comes to, and the log says how much it left out."""

from __future__ import annotations

import itertools
import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import msgpack
import pytest

from tests.certificates import Authority
from tests.cluster import Cluster, Node, wait_until

FLOOD_S = 4.0
LOG_BYTES_MAX = 100_000
MARK = "Zebra"  # in all that is sent
PROXY = "127.0.0.3"
TOKEN = "the-first-token-of-this-cluster"
SECRET = "a secret that this cluster shares"

Send = Callable[[Node, int], tuple[tuple[str, int], str, bytes]]  # to where, from where, what


def _hello(number: int, cluster_id: bytes, version: int = 4) -> bytes:
    to = f"{number:08}\n\x1b[2J" + MARK * 1_500
    body: bytes = msgpack.packb([version, cluster_id, "n2", to, b"n" * 16])
    return b"KVN1" + len(body).to_bytes(4, "big") + body


def _request(line: str, *headers: str) -> bytes:
    return "\r\n".join((line, "Host: n1", *headers, "", "")).encode("latin-1")


def sends(cluster_id: bytes) -> dict[str, Send]:
    here, long = "127.0.0.1", MARK * 1_000
    return {
        "hello": lambda node, n: (node.raft, here, _hello(n, cluster_id)),
        "hello of another cluster": lambda node, n: (node.raft, here, _hello(n, n.to_bytes(16, "big"))),
        "hello of another version": lambda node, n: (node.raft, here, _hello(n, cluster_id, n % 200)),
        "garbage for peers": lambda node, n: (node.raft, here, f"{n}{long}".encode()),
        "a frame too large": lambda node, n: (node.raft, here, b"KVN1" + (9_000 + n).to_bytes(4, "big")),
        "no token": lambda node, n: (node.http, here, _request(f"GET /v1/kv/{n}{long} HTTP/1.1")),
        "another method": lambda node, n: (node.http, here, _request(f"{MARK}{n} /admin/api/v1/x HTTP/1.1")),
        "wrong token": lambda node, n: (
            *(node.http, here),
            _request(f"POST /admin/api/v1/drain?{n}={MARK} HTTP/1.1", f"Authorization: Bearer {n}{MARK}"),
        ),
        "garbage for HTTP": lambda node, n: (node.http, here, f"{n}\x1b[2J{long}\r\n\r\n".encode()),
        "other addresses": lambda node, n: (
            *(node.http, PROXY),
            b"PROXY TCP4 10.%d.%d.%d 127.0.0.1 5 6\r\n" % (n >> 16 & 255, n >> 8 & 255, n & 255)
            + _request(f"GET /v1/kv/{n}{MARK} HTTP/1.1"),
        ),
        "a PROXY line that is none": lambda node, n: (node.http, PROXY, f"PROXY {n}{MARK}\r\n".encode()),
    }


def flood(node: Node, send: Send, until: float, counts: list[int]) -> None:
    for number in itertools.count():
        if time.monotonic() > until:
            counts.append(number)
            return
        address, source, raw = send(node, number)
        try:
            with socket.create_connection(address, 2.0, source_address=(source, 0)) as connection:
                connection.sendall(raw)
                answer = connection.recv(65_536)
                assert len(answer) < 1_000, "what is refused is not said again at length"
        except OSError:
            pass


def _all_at_once(cluster: Cluster, several: list[Send]) -> int:
    """How many connections were refused in FLOOD_S."""
    counts: list[int] = []
    until = time.monotonic() + FLOOD_S
    node = cluster.nodes["n1"]
    threads = [Thread(target=flood, args=(node, send, until, counts)) for send in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == len(several)
    return sum(counts)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_flood_of_all_kinds_leaves_a_short_log(make_cluster: Callable[..., Cluster], form: str) -> None:
    args = ["--trusted-proxies", PROXY, "--proxy-protocol", "--log-format", form]
    env = {"KVNODE_TOKEN": TOKEN, "KVNODE_CLUSTER_SECRET": SECRET}
    cluster = make_cluster(size=1, args=args, env=env, token=TOKEN).start()
    cluster_id = bytes.fromhex(cluster.request("n1", "GET", "/admin/api/v1/members").json()["cluster_id"])
    before = cluster.nodes["n1"].log.stat().st_size
    count = _all_at_once(cluster, list(sends(cluster_id).values()))
    assert count > 300
    wait_until(lambda: "left out" in cluster.log("n1"), 10.0, "how many lines were left out")
    written = cluster.nodes["n1"].log.stat().st_size - before
    print(f"{count} connections, {written} bytes of log")
    assert written < LOG_BYTES_MAX
    log = cluster.log("n1")
    assert int(re.findall(r"(\d+) lines were left out", log)[0]) > 50
    assert all(line.count(MARK) <= 2 * 64 // len(MARK) for line in log.splitlines())
    assert log.replace("\n", "").isprintable()
    assert all(len(line) < 1_000 for line in log.splitlines())
    if form == "json":
        assert all(json.loads(line) for line in log.splitlines())
    cluster.put("after", b"1")


def test_a_flood_of_broken_handshakes_leaves_a_short_log(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    authority.sign("n1", ("127.0.0.1",))
    cert, key, ca = (f"{authority.folder}/{name}.pem" for name in ("n1", "n1-key", "ca"))
    args = ["--tls-cert", cert, "--tls-key", key, "--raft-cert", cert, "--raft-key", key, "--raft-ca", ca]
    args += ["--log-level", "debug"]
    cluster = make_cluster(size=1, args=args, env={"KVNODE_CLUSTER_SECRET": SECRET}, tls=authority.client()).start()
    before = cluster.nodes["n1"].log.stat().st_size
    garbage = MARK.encode() * 100
    hello = b"\x16\x03\x01\x02\x00\x01\x00" + garbage
    kinds: list[Send] = [
        lambda node, n: (node.http, "127.0.0.1", garbage),
        lambda node, n: (node.raft, "127.0.0.1", garbage),
        lambda node, n: (node.raft, f"127.0.0.{4 + n % 200}", hello),
        lambda node, n: (node.http, f"127.0.0.{4 + n % 200}", hello),
    ]
    assert _all_at_once(cluster, kinds) > 100
    wait_until(lambda: "left out" in cluster.log("n1"), 10.0, "how many lines were left out")
    assert cluster.nodes["n1"].log.stat().st_size - before < LOG_BYTES_MAX
    assert MARK not in cluster.log("n1")
    cluster.put("after", b"1")
