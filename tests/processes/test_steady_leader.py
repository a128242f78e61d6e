"""A silent leader is replaced soon; one that is well stays, however little time the machine has for the nodes."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from tests.cluster import Cluster
from tests.relays import RelayedCluster


def test_a_leader_that_hangs_is_replaced_before_the_shortest_election_timeout(cluster: Cluster) -> None:
    """The least of a few tries, since this machine may have no time for the nodes in any one of them."""
    took_s = []
    for _ in range(4):
        leader = cluster.leader()
        survivor = next(node for node in cluster.nodes if node != leader)
        cluster.freeze(leader)
        began = time.monotonic()
        cluster.put("while-frozen", b"1", via=survivor)
        took_s.append(time.monotonic() - began)
        cluster.thaw(leader)
        cluster.wait_ready()
    assert min(took_s) < 0.6, took_s


def led(cluster: Cluster) -> tuple[str, int]:
    """Who leads, and in which term."""
    leader = cluster.leader()
    return leader, cluster.status(leader)["term"]


def test_nodes_that_stand_still_together_keep_their_leader(cluster: Cluster) -> None:
    before = led(cluster)
    leader = before[0]
    followers = [node for node in cluster.nodes if node != leader]
    for names in [followers, [*followers, leader]] * 3:
        for name in names:
            cluster.freeze(name)
        time.sleep(0.5)  # longer than a silence that is asked about
        for name in names:
            cluster.thaw(name)
        cluster.put("a", b"1", via=followers[0])
    assert led(cluster) == before


def test_latency_of_200_ms_changes_no_leader(tmp_path: Path) -> None:
    with RelayedCluster(tmp_path / "relayed") as cluster:
        cluster.start()
        before = led(cluster)
        for delay_s in (0.2, 0.0) * 2:
            for pair in itertools.permutations(cluster.nodes, 2):
                cluster.links[pair].delay_s = delay_s
            for number in range(6):
                cluster.put(f"a{number}", b"1", via=cluster.first[0])
        assert led(cluster) == before
