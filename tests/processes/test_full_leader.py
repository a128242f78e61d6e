"""A leader whose own disk is full, while the others have room: it must not hold up the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.disk import SmallDisk
from tests.cluster import Cluster, wait_until


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[dict[str, SmallDisk]]:
    """A small file system for each node."""
    with ExitStack() as stack:
        made = {}
        for name in ("n1", "n2", "n3"):
            try:
                made[name] = SmallDisk(tmp_path / f"disk-{name}")
            except OSError as why:
                pytest.skip(f"a small file system cannot be mounted here: {why}")
            stack.callback(made[name].close)
        yield made


def test_a_leader_that_cannot_write_its_journal_gives_way(
    make_cluster: Callable[..., Cluster], disks: dict[str, SmallDisk]
) -> None:
    cluster = make_cluster()
    for name, disk in disks.items():
        cluster.nodes[name].data_dir = disk.folder / "data"
    cluster.start()
    leader, follower = cluster.leader(), cluster.followers()[0]
    cluster.put("before", b"1")
    disks[leader].fill(leave_bytes=0)  # the next write is in its log and never on its disk
    began = time.monotonic()
    answer = cluster.request(follower, "PUT", "/v1/kv/waiting", b"x" * 200_000, timeout_s=15.0)
    assert answer.status == 200, answer.body
    assert time.monotonic() - began < 4.0
    assert cluster.leader() != leader
    assert cluster.put("meanwhile", b"2", via=follower)
    disks[leader].free()
    wait_until(lambda: cluster.probe(leader, "/readyz") == 200, 10.0, "the old leader is well again")
    assert cluster.get("meanwhile", via=leader) == b"2"
    for name in cluster.nodes:
        cluster.kill(name)
    cluster.start()
    assert cluster.get("waiting", via=leader) == b"x" * 200_000
