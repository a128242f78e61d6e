"""A follower that was away while the log was compacted: it fetches a snapshot, and nothing is missing or stuck."""

from __future__ import annotations

import os

from tests.cluster import Cluster, wait_until
from tests.observability.page import page

VALUE_BYTES = 1_000_000
WRITES = 90  # more than the log keeps in memory (64 MiB), so that it must be compacted


def test_a_follower_that_missed_a_compaction_catches_up_by_snapshot(cluster: Cluster) -> None:
    away, writer = cluster.followers()
    cluster.put("first", b"1")
    cluster.kill(away)
    for number in range(WRITES):
        cluster.put(f"big/{number % 30}", os.urandom(16) + b"x" * VALUE_BYTES, via=writer)
    for name in (writer, cluster.leader()):
        wait_until(lambda name=name: _snapshots(cluster, name), 20.0, f"{name} writes a snapshot")
    cluster.restart(away, timeout_s=30.0)
    wait_until(lambda: "Installed the snapshot" in cluster.log(away), 20.0, "the follower installs the snapshot")
    for key in ("first", *(f"big/{number}" for number in range(30))):
        assert cluster.get(key, via=away) == cluster.get(key, via=writer)
    assert page(cluster, away).of("kvnode_snapshots_total", what="installed") == 1
    assert page(cluster, writer).of("kvnode_snapshots_total", what="written") >= 1
    assert page(cluster, writer)["kvnode_snapshot_bytes"] > VALUE_BYTES
    assert page(cluster, writer)["kvnode_snapshot_index"] > 1
    cluster.put("after", b"1", via=away)
    # What was installed survives a crash of its own, and of everybody's.
    for name in cluster.nodes:
        cluster.kill(name)
    cluster.start()
    assert cluster.get("after", via=away) == b"1"
    assert cluster.get("big/7", via=away) == cluster.get("big/7", via=writer) is not None


def _snapshots(cluster: Cluster, name: str) -> list[str]:
    files = os.listdir(cluster.nodes[name].data_dir)
    return [file for file in files if file.startswith("snapshot-") and not file.endswith(".part")]
