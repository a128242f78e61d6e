"""What every node says of itself, asked of real nodes: through any of them, without a leader, without those away."""

from __future__ import annotations

import time
from typing import Any

from tests.cluster import Cluster, wait_until


def asked(cluster: Cluster, via: str, what: str) -> dict[str, Any]:
    answer = cluster.request(via, "GET", f"/admin/api/v1/{what}")
    assert answer.status == 200
    document: dict[str, Any] = answer.json()
    return document


def roles(cluster: Cluster, via: str) -> dict[str, str]:
    return {node["id"]: node["role"] for node in asked(cluster, via, "nodes")["nodes"]}


def test_every_node_gives_the_words_of_all(cluster: Cluster) -> None:
    leader = cluster.leader()
    for number in range(5):
        cluster.put(f"k{number}", b"x")
    for via in cluster.nodes:
        wait_until(
            lambda via=via: len({each["applied_index"] for each in asked(cluster, via, "nodes")["nodes"]}) == 1,
            5,
            "all have applied the same",
        )
        seen = asked(cluster, via, "nodes")
        assert seen["leader_id"] == leader
        for node in seen["nodes"]:
            assert node["role"] == ("leader" if node["id"] == leader else "follower")
            assert (node["ready"], node["health"], node["lag"]) == (True, "Ready", 0)
            assert node["http"] == cluster.url(node["id"])


def test_a_frozen_node_and_a_killed_one_are_unreachable_and_a_lost_leader_is_told_of(cluster: Cluster) -> None:
    leader = cluster.leader()
    other, third = cluster.followers()
    cluster.kill(leader)
    wait_until(lambda: roles(cluster, other)[leader] == "unreachable", 2, "the killed one is missed")
    new = cluster.leader()
    wait_until(lambda: roles(cluster, other)[new] == "leader", 2, "the new one is named")
    seen: list[dict[str, Any]] = asked(cluster, other, "timeline")["changes"]
    assert asked(cluster, other, "timeline")["unanswered"] == [leader]
    newest = seen[-1]
    assert (newest["leader_id"], newest["previous_id"]) == (new, leader)
    assert leader in newest["reason"]
    assert 0 < newest["leaderless_s"] < 5
    assert abs(newest["at_ms"] / 1000 - time.time()) < 30
    frozen = next(name for name in (other, third) if name != new)
    cluster.freeze(frozen)
    wait_until(lambda: roles(cluster, new)[frozen] == "unreachable", 3, "the frozen one is missed")
    began = time.monotonic()
    nodes = asked(cluster, new, "nodes")
    assert time.monotonic() - began < 1.5, "a node that does not answer is not waited for longer"
    assert [each["health"] for each in nodes["nodes"] if each["id"] == frozen] == ["Does not answer"]
    wait_until(lambda: asked(cluster, new, "nodes")["leader_id"] is None, 5, "no leader without a majority")
    lost = asked(cluster, new, "timeline")["changes"][-1]
    assert (lost["leader_id"], lost["previous_id"]) == (None, new)


def test_a_drained_node_says_so_itself(cluster: Cluster) -> None:
    gone = cluster.followers()[0]
    assert cluster.request(gone, "POST", "/admin/api/v1/drain").status == 200
    for via in cluster.nodes:
        wait_until(lambda via=via: roles(cluster, via)[gone] == "draining", 2, f"{via} says that {gone} drains")
    shown = next(each for each in asked(cluster, cluster.leader(), "nodes")["nodes"] if each["id"] == gone)
    assert (shown["ready"], shown["health"]) == (False, "This node is draining")
