"""Links are really cut: what the faults of a chaos run rest on, seen by real nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.network import Impossible, Network, NetworkedCluster, Relays, ip
from tests.cluster import LEADER_PROBE, wait_until
from tests.relays import RelayedCluster

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


def test_half_a_connection_that_breaks_is_dialled_anew_and_a_slow_link_is_waited_for(
    cluster: NetworkedCluster,
) -> None:
    leader, (one, other) = cluster.leader(), cluster.followers()
    for _ in range(3):
        cluster.network.halve(leader, one)
        assert cluster.put("halved", b"1", via=other)["revision"] > 0
        assert cluster.get("halved", via=one) == b"1"
    cluster.network.slow(one)
    began = time.monotonic()
    cluster.put("large", b"x" * 100_000, via=other)
    assert len(cluster.get("large", via=one) or b"") == 100_000
    assert time.monotonic() - began > 1.0, "100 KB at 64 KB a second"
    cluster.network.heal()
    cluster.wait_ready()
    began = time.monotonic()
    assert len(cluster.get("large", via=one) or b"") == 100_000
    assert time.monotonic() - began < 1.0


def test_relays_cut_and_slow_down_one_direction(tmp_path: Path) -> None:
    with RelayedCluster(tmp_path) as cluster:
        links = Relays(cluster.start())
        old = cluster.leader()
        others = [name for name in NODES if name != old]
        links.mute(old)
        wait_until(lambda: any(cluster.probe(name, LEADER_PROBE) == 200 for name in others), 8.0, "a new leader")
        assert not links.connected(old, others[0])
        cluster.put("meanwhile", b"2", via=others[0])
        links.heal()
        cluster.wait_ready()
        assert cluster.get("meanwhile", via=old) == b"2"
        links.halve(old, others[0])
        links.slow(others[1], delay_s=0.2)
        began = time.monotonic()
        cluster.put("slow", b"1", via=others[1])
        assert time.monotonic() - began > 0.2
        assert cluster.get("slow", via=others[0]) == b"1"


def test_nothing_is_left_behind(network: Network) -> None:
    names = [network.command(name, [])[3] for name in NODES]
    assert all(name in ip("netns", "list") for name in names)
    bridge = names[0].removesuffix("-n1")
    assert bridge in ip("link")
    network.close()
    assert bridge not in ip("link") + ip("netns", "list")
