"""Whoever knocks on the Raft port without belonging there costs one connection and one line in the log."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgpack
import pytest

from tests.cluster import Cluster, wait_until

SECRET = "a secret that this cluster shares"


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(env={"KVNODE_CLUSTER_SECRET": SECRET}).start()


def _closed(connection: socket.socket, timeout_s: float) -> bool:
    """The other side ends the connection, whatever it says before that."""
    connection.settimeout(timeout_s)
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def _hello(cluster_id: bytes = b"c" * 16, node_id: str = "n2", to: str = "n1", version: int = 4) -> bytes:
    return b"KVN1" + _frame([version, cluster_id, node_id, to, b"n" * 16])


def _frame(fields: list[object]) -> bytes:
    body = msgpack.packb(fields)
    return struct.pack(">I", len(body)) + body


GREETINGS = {
    "garbage": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "binary garbage": bytes(range(256)) * 64,
    "the magic and garbage": b"KVN1" + b"\x00\x00\x00\x05hello",
    "an oversized frame": b"KVN1" + b"\xff\xff\xff\xff" + b"x" * 1000,
    "a pickle": b"KVN1\x00\x00\x00\x10" + b"\x80\x04\x95cbuiltins\neval"[:16],
    "another cluster": _hello() + _frame(["http://127.0.0.1:1", b"i" * 8, 0, 1, b"p" * 32]),
    "kvnode 0.1": b"KVN1" + _frame([2, b"c" * 16, "n2", "n1", "http://127.0.0.1:1", b"i" * 8, b"n" * 16, 0]),
    "another version": _hello(version=99),
}


def test_strangers_are_refused_logged_once_and_cost_nothing(cluster: Cluster) -> None:
    address = cluster.nodes["n1"].raft
    cluster.put("before", b"1")
    for what, greeting in GREETINGS.items():
        for _ in range(3):
            with socket.create_connection(address, 5.0) as connection:
                connection.sendall(greeting)
                assert _closed(connection, 2.0), what
    rss_kib = _rss_kib(cluster.pid("n1"))
    for _ in range(300):
        with socket.create_connection(address, 5.0) as connection:
            connection.sendall(GREETINGS["an oversized frame"])
    assert _rss_kib(cluster.pid("n1")) - rss_kib < 8_192
    lines = [line for line in cluster.log("n1").splitlines() if "Refused a peer connection" in line]
    assert len(lines) == len({line.split("connection from ")[1] for line in lines}), "the same thing was logged twice"
    assert 1 <= len(lines) <= len(GREETINGS)
    assert not any("Traceback" in line for line in cluster.log("n1").splitlines())
    cluster.put("after", b"1")


def test_slow_and_silent_strangers_are_put_out_and_keep_nobody_waiting(cluster: Cluster) -> None:
    address = cluster.nodes["n1"].raft
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(address, 5.0)) for _ in range(100)]
        slow = stack.enter_context(socket.create_connection(address, 5.0))
        slow.sendall(b"KV")
        cluster.put("meanwhile", b"1")
        began = time.monotonic()
        assert _closed(silent[0], 1.0), "the oldest goes when there are more than may be"
        assert not _closed(slow, 0.1), "the newest has its time"
        assert all(_closed(connection, 6.0) for connection in [*silent, slow])
        assert time.monotonic() - began < 5.0
    cluster.kill("n2")
    cluster.restart("n2")
    cluster.put("after", b"1", via="n2")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"env": {"KVNODE_CLUSTER_SECRET": "another secret of some length"}}, "secret"),
        ({"env": {"KVNODE_CLUSTER_SECRET": SECRET}, "args": ["--cluster-id", "another"]}, "belongs to cluster"),
    ],
)
def test_a_node_that_does_not_belong_joins_nothing(
    make_cluster: Callable[..., Cluster], wrong: dict[str, object], sentence: str
) -> None:
    cluster = make_cluster(env={"KVNODE_CLUSTER_SECRET": SECRET})
    for name in ("n1", "n2"):
        cluster.spawn(name)
    cluster.wait_ready()
    with _otherwise(cluster, wrong):
        cluster.spawn("n3")
    wait_until(lambda: sentence in cluster.log("n1"), 10.0, "n1 says why it refuses n3")
    wait_until(lambda: sentence in cluster.log("n3"), 10.0, "n3 says why it is alone")
    assert cluster.probe("n3", "/readyz") == 503
    assert cluster.put("without-n3", b"1", via="n1")["revision"] == 1
    assert cluster.log("n1").count(sentence) <= 2


class _otherwise:  # noqa: N801  reads as a verb where it is used
    """The next nodes to be spawned get other options."""

    def __init__(self, cluster: Cluster, options: dict[str, object]) -> None:
        self._cluster = cluster
        self._options = options
        self._before = {name: getattr(cluster, name) for name in options}

    def __enter__(self) -> None:
        for name, value in self._options.items():
            setattr(self._cluster, name, value)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            setattr(self._cluster, name, value)


def _rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
