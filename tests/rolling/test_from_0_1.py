"""From kvnode 0.1 to this version, node by node and under load: nothing that was acknowledged is lost.

Real nodes of both, of which those of 0.1 run from the tree of its last commit. Skipped where the history lacks it.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from kvnode.state.commands import FEATURE_LEVEL
from tests.cluster import PROJECT, Cluster, wait_until

LAST_OF_0_1 = "9c31842"
SECRET = "a secret that this cluster shares"


@pytest.fixture
def tree_of_0_1(tmp_path: Path) -> Path:
    archive = subprocess.run(["git", "-C", str(PROJECT), "archive", LAST_OF_0_1], capture_output=True, timeout=60)
    if archive.returncode:
        pytest.skip(f"needs the commit {LAST_OF_0_1}, kvnode 0.1, in this checkout's history: git fetch --unshallow")
    tree = tmp_path / "0.1"
    tree.mkdir()
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True, timeout=60)
    return tree


def of_0_1(cluster: Cluster, tree: Path) -> None:
    """What is spawned from now on is of 0.1. PYTHONSAFEPATH: `python -m` would find kvnode here otherwise."""
    cluster.args = ()
    cluster.env = {"KVNODE_CLUSTER_SECRET": SECRET, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}


def of_this_version(cluster: Cluster, *args: str) -> None:
    cluster.args = args
    cluster.env = {"KVNODE_CLUSTER_SECRET": SECRET}


class Writer(threading.Thread):
    """Writes one key after the other, each through the next node; what was acknowledged is in `acknowledged`."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.acknowledged: dict[str, bytes] = {}
        self.failed = 0
        self._over = threading.Event()

    def run(self) -> None:
        for number, name in zip(itertools.count(), itertools.cycle(self.cluster.nodes), strict=False):
            if self._over.wait(0.02):
                return
            key, value = f"k/{number}", b"%d" % number
            try:
                answer = self.cluster.request(name, "PUT", f"/v1/kv/{key}", value)
            except (OSError, http.client.HTTPException):
                self.failed += 1
                continue
            if answer.status == 200:
                self.acknowledged[key] = value
            else:
                self.failed += 1

    def end(self) -> None:
        self._over.set()
        self.join(20)


def level_of(cluster: Cluster, name: str) -> int:
    return int(cluster.status(name).get("feature_level", 0))


def everything(cluster: Cluster, name: str) -> dict[str, bytes]:
    """All keys that the node holds, by linearizable reads."""
    held: dict[str, bytes] = {}
    cursor = ""
    while True:
        page = cluster.request(name, "GET", f"/v1/kv?limit=1000{cursor}").json()
        held |= {item["key"]: base64.b64decode(item["value"]) for item in page["items"]}
        if "cursor" not in page:
            return held
        cursor = "&cursor=" + quote(page["cursor"])


def test_three_nodes_are_upgraded_one_by_one_under_load(
    make_cluster: Callable[..., Cluster], tree_of_0_1: Path
) -> None:
    cluster = make_cluster()
    of_0_1(cluster, tree_of_0_1)
    cluster.start()
    cluster.put("before", b"1")
    writer = Writer(cluster)
    writer.start()
    try:
        # step: without the flag, nobody talks to the new node, and it says what to do
        of_this_version(cluster)
        assert cluster.terminate("n3") == 0
        cluster.spawn("n3")
        wait_until(lambda: "--allow-old-peers" in cluster.log("n3"), 10.0, "n3 says why it refuses the others")
        assert cluster.probe("n3", "/readyz") == 503
        cluster.kill("n3")

        # step: one by one with it; the level stays, whoever leads
        of_this_version(cluster, "--allow-old-peers")
        cluster.restart("n3")
        assert "--allow-old-peers: nothing protects" in cluster.log("n3")
        for leader in ("n3", "n1", "n2"):
            cluster.transfer(leader)
            for name in cluster.nodes:
                cluster.put(f"led-by-{leader}/through-{name}", b"1", via=name)
            assert level_of(cluster, "n3") == 0
        assert cluster.terminate("n2") == 0
        cluster.restart("n2")
        assert (level_of(cluster, "n2"), level_of(cluster, "n3")) == (0, 0)

        # step: a node may go back as long as the level stays
        of_0_1(cluster, tree_of_0_1)
        assert cluster.terminate("n2") == 0
        cluster.restart("n2")
        of_this_version(cluster, "--allow-old-peers")
        assert cluster.terminate("n2") == 0
        cluster.restart("n2")

        # step: the last one is new, and the level rises
        assert cluster.terminate("n1") == 0
        cluster.restart("n1")
        for name in cluster.nodes:
            wait_until(lambda name=name: level_of(cluster, name) == FEATURE_LEVEL, 15.0, f"{name} is at the level")  # type: ignore[misc]

        # step: from now on nobody talks to a node of 0.1, flag or no flag
        of_0_1(cluster, tree_of_0_1)
        assert cluster.terminate("n1") == 0
        cluster.spawn("n1")
        wait_until(lambda: "it knows feature level 0" in cluster.log("n1"), 10.0, "n1 says why it is alone")
        assert cluster.probe("n1", "/readyz") == 503
        cluster.kill("n1")

        # step: without the flag
        of_this_version(cluster)
        cluster.restart("n1")
        for name in ("n2", "n3"):
            assert cluster.terminate(name) == 0
            cluster.restart(name)
    finally:
        writer.end()
    cluster.wait_ready()
    assert len(writer.acknowledged) > 100
    for name in cluster.nodes:
        assert level_of(cluster, name) == FEATURE_LEVEL
        held = everything(cluster, name)
        assert {key: held.get(key) for key in writer.acknowledged} == writer.acknowledged
        assert (held["before"], held["led-by-n2/through-n3"]) == (b"1", b"1")
        assert "differs" not in cluster.log(name)
        assert "Traceback" not in cluster.log(name)


def test_a_directory_of_0_1_is_started_on_as_it_is(make_cluster: Callable[..., Cluster], tree_of_0_1: Path) -> None:
    cluster = make_cluster(size=1)
    of_0_1(cluster, tree_of_0_1)
    cluster.start()
    written = cluster.put("before", b"1")
    assert cluster.terminate("n1") == 0
    of_this_version(cluster)
    cluster.restart("n1")
    assert cluster.get("before") == b"1"
    assert cluster.put("after", b"1")["revision"] == written["revision"] + 1
    wait_until(lambda: level_of(cluster, "n1") == FEATURE_LEVEL, 5.0, "it is at the level of its version")
