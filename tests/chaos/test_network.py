"""Links are really cut: what the faults of a chaos run rest on, seen by real nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.network import Impossible, Network, NetworkedCluster, ip
from tests.cluster import wait_until

NODES = ("n1", "n2", "n3")


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        made = Network(NODES)
    except Impossible as why:
        pytest.skip(f"partitions cannot be tested here: {why}")
    with made:
        yield made


@pytest.fixture
def cluster(network: Network, tmp_path: Path) -> Iterator[NetworkedCluster]:
    with NetworkedCluster(tmp_path, network=network) as made:
        yield made.start()


def test_an_isolated_leader_is_replaced_and_still_heard_by_clients(cluster: NetworkedCluster) -> None:
    old = cluster.leader()
    cluster.put("before", b"1")
    cluster.network.isolate(old)
    others = [name for name in NODES if name != old]
    wait_until(lambda: any(cluster.probe(name, "/admin/healthz/leader") == 200 for name in others), 5.0, "a new leader")
    assert cluster.probe(old, "/admin/healthz/leader") == 503
    cluster.put("meanwhile", b"2", via=others[0])
    assert cluster.get("meanwhile", via=old, consistency="stale") is None
    assert cluster.get("before", via=old, consistency="stale") == b"1"
    cluster.network.heal()
    cluster.wait_ready()
    assert cluster.get("meanwhile", via=old) == b"2"


@pytest.mark.parametrize("verb", ["deafen", "mute"])
def test_a_leader_that_is_cut_off_in_one_direction_is_replaced(cluster: NetworkedCluster, verb: str) -> None:
    old = cluster.leader()
    getattr(cluster.network, verb)(old)
    others = [name for name in NODES if name != old]
    wait_until(lambda: any(cluster.probe(name, "/admin/healthz/leader") == 200 for name in others), 8.0, "a new leader")
    assert not cluster.network.connected(old, others[0])
    cluster.put("meanwhile", b"2", via=others[0])
    cluster.network.heal()
    cluster.wait_ready()
    assert cluster.get("meanwhile", via=old) == b"2"


def test_an_unplugged_node_is_out_of_everybodys_reach(cluster: NetworkedCluster) -> None:
    gone, other = cluster.followers()
    cluster.network.unplug(gone)
    assert cluster.probe(gone, "/admin/healthz", timeout_s=0.5) is None
    cluster.put("meanwhile", b"2", via=other)
    cluster.network.heal()
    wait_until(lambda: cluster.probe(gone, "/readyz") == 200, 10.0, "the node is back")
    assert cluster.get("meanwhile", via=gone) == b"2"


def test_nothing_is_left_behind(network: Network) -> None:
    names = [network.command(name, [])[3] for name in NODES]
    assert all(name in ip("netns", "list") for name in names)
    bridge = names[0].removesuffix("-n1")
    assert bridge in ip("link")
    network.close()
    assert bridge not in ip("link") + ip("netns", "list")
