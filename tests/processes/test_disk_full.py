"""A full disk, for real: a small file system that fills up and is freed again, under nodes that run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, wait_until

DISK_MIB = 48


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, DISK_MIB big; it takes root to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("needs root, to mount a small file system of its own")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave_bytes: int) -> Path:
    """Takes space until `leave_bytes` are left."""
    ballast = folder / "ballast"
    numbers = os.statvfs(folder)
    with ballast.open("ab") as file:
        file.write(b"\0" * max(0, numbers.f_bavail * numbers.f_frsize - leave_bytes))
    return ballast


def test_a_full_disk_refuses_writes_keeps_reads_and_deletes_and_recovers(
    make_cluster: Callable[..., Cluster], small_disk: Path
) -> None:
    cluster = make_cluster(size=3)
    for node in cluster.nodes.values():
        node.data_dir = small_disk / node.id
    cluster.start()
    follower = cluster.followers()[0]
    for number in range(10):
        cluster.put(f"kept/{number}", b"%d" % number)
    ballast = fill(small_disk, leave_bytes=3 * 1_048_576)
    for name in (cluster.leader(), follower):
        wait_until(lambda name=name: _put_status(cluster, name) == 507, 5.0, f"{name} refuses writes")
        refused = cluster.request(name, "PUT", "/v1/kv/refused", b"x")
        assert (refused.status, refused.json()["error"], refused.json()["outcome"]) == (507, "disk_full", "not_applied")
        assert cluster.get("kept/1", via=name) == b"1"
        assert cluster.request(name, "DELETE", f"/v1/kv/kept/{2 if name == follower else 3}").status == 200
        wait_until(lambda name=name: cluster.probe(name, "/readyz") == 503, 5.0, f"{name} has looked at its own disk")
        checks = cluster.request(name, "GET", "/readyz").json()["checks"]
        assert [check["name"] for check in checks if check["status"] == "error"] == ["storage"]
        assert cluster.probe(name, "/livez") == 200
    assert cluster.get("refused") is None
    ballast.unlink()
    for name in cluster.nodes:
        wait_until(lambda name=name: _put_status(cluster, name) == 200, 5.0, f"{name} takes writes again")
    cluster.wait_ready()
    assert (cluster.get("kept/2"), cluster.get("kept/1")) == (None, b"1")


def test_a_journal_that_finds_no_space_waits_and_goes_on_with_nothing_lost(
    make_cluster: Callable[..., Cluster], small_disk: Path
) -> None:
    cluster = make_cluster(size=3)
    for node in cluster.nodes.values():
        node.data_dir = small_disk / node.id
    cluster.start()
    acknowledged = {f"k/{number}" for number in range(5) if cluster.put(f"k/{number}", b"x" * 1000)}
    ballast = fill(small_disk, leave_bytes=0)  # not a byte is left, before anybody has looked
    answer = cluster.request(cluster.leader(), "PUT", "/v1/kv/in-doubt", b"y" * 200_000, timeout_s=15.0)
    assert answer.status in (504, 507), answer.body
    ballast.unlink()
    for name in cluster.nodes:
        wait_until(lambda name=name: _put_status(cluster, name) == 200, 10.0, f"{name} takes writes again")
    for name in cluster.nodes:
        cluster.kill(name)
    cluster.start()
    assert all(cluster.get(key) == b"x" * 1000 for key in acknowledged)


def _put_status(cluster: Cluster, name: str) -> int:
    return cluster.request(name, "PUT", "/v1/kv/probe", b"x").status


def test_a_leader_with_a_full_disk_hands_over_to_a_node_that_has_room(
    make_cluster: Callable[..., Cluster], small_disk: Path
) -> None:
    cluster = make_cluster(size=3)
    cluster.nodes["n1"].data_dir = small_disk / "n1"
    cluster.start()
    if cluster.leader() != "n1":
        cluster.transfer(to="n1")
    fill(small_disk, leave_bytes=2 * 1_048_576)
    wait_until(lambda: cluster.leader() != "n1", 5.0, "leadership leaves the full disk")
    wait_until(lambda: _put_status(cluster, "n1") == 200, 5.0, "a write on the full node is taken by the new leader")
    assert cluster.probe("n1", "/readyz/storage") == 503
