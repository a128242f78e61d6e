"""What a client asks for, or leaves unread, costs a node no more than its budgets: real nodes, and their real memory.

Each attack runs under `watched`: no process ends, nobody is elected, no node takes more than 400 MB, and the leader
probe answers within a second throughout.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kvnode.limits import TRANSACTION_READ_BYTES_MAX
from tests.cluster import LEADER_PROBE, Answer, Cluster, request, wait_until

MEMORY_MB_MAX = 400
PROBE_S_MAX = 1.0
MIB = 1_048_576

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux how much memory a node took")


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes; "big/0" to "big/3" are of 1 MiB."""
    with Cluster(tmp_path_factory.mktemp("budgets")) as cluster:
        cluster.start()
        for number in range(4):
            cluster.put(f"big/{number}", b"%d" % number * MIB)
        yield cluster


def memory_mb(cluster: Cluster, name: str) -> int:
    """The most that the node's process has had in memory."""
    status = Path(f"/proc/{cluster.pid(name)}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1_024


def term(cluster: Cluster) -> int:
    return max(int(cluster.status(name)["term"]) for name in cluster.nodes)


@contextmanager
def watched(cluster: Cluster) -> Iterator[str]:
    """Gives the leader; afterwards says what the module promises."""
    leader, before = cluster.leader(), term(cluster)
    slowest, over = [0.0], threading.Event()

    def probe() -> None:
        while not over.is_set():
            began = time.monotonic()
            with suppress(OSError, http.client.HTTPException):
                request(cluster.nodes[leader].http, "GET", LEADER_PROBE, timeout_s=10.0)
            slowest[0] = max(slowest[0], time.monotonic() - began)
            over.wait(0.1)

    prober = threading.Thread(target=probe)
    prober.start()
    try:
        yield leader
    finally:
        over.set()
        prober.join()
    assert all(node.running for node in cluster.nodes.values())
    assert slowest[0] < PROBE_S_MAX
    assert (cluster.leader(), term(cluster)) == (leader, before)
    took = {name: memory_mb(cluster, name) for name in cluster.nodes}
    assert max(took.values()) < MEMORY_MB_MAX, took


def in_parallel(count: int, work: Callable[[int], Answer]) -> list[Answer]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_a_transaction_reads_no_more_than_it_may(trio: Cluster) -> None:
    """3 KB of request that asks for 128 MiB, twenty times at once, on the leader and by way of a follower."""
    wait_until(lambda: feature_level(trio) >= 1, 10.0, "the cluster to know that all its members are new")
    bomb = json.dumps(
        {"success": [{"get": {"key": "big/0"}}] * 127 + [{"put": {"key": "never", "text": "x"}}]}
    ).encode()
    with watched(trio) as leader:
        found = in_parallel(
            20, lambda number: trio.request(list(trio.nodes)[number % 3], "POST", "/v1/txn", bomb, timeout_s=20)
        )
        assert {answer.status for answer in found} == {413}
        assert {(answer.json()["error"], answer.json()["outcome"]) for answer in found} == {
            ("too_large", "not_applied")
        }
        assert trio.get("never", leader) is None
        fits = json.dumps({"success": [{"get": {"key": f"big/{n}"}} for n in range(4)]}).encode()
        assert 4 * MIB == TRANSACTION_READ_BYTES_MAX
        answer = trio.request(leader, "POST", "/v1/txn", fits, timeout_s=20)
        assert [len(each["get"]["value"]) for each in answer.json()["results"]] == [-(-MIB // 3) * 4] * 4
        own = {"success": [{"put": {"key": "own", "text": "y" * MIB}}, *[{"get": {"key": "own"}}] * 5]}
        assert trio.request(leader, "POST", "/v1/txn", json.dumps(own).encode(), timeout_s=20).status == 413
        assert trio.get("own", leader) is None


def feature_level(cluster: Cluster) -> int:
    """The lowest that any node has reached."""
    return min(
        int(float(line.split()[-1]))
        for name in cluster.nodes
        for line in cluster.request(name, "GET", "/metrics").body.decode().splitlines()
        if line.startswith("kvnode_raft_feature_level")
    )
