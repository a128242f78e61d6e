"""Draining by name, through any node, with a way back, and never the last node that is ready."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.cli.command import kvnode
from tests.cluster import LEADER_PROBE, Answer, Cluster, wait_until

DRAIN = "/admin/api/v1/drain"


def drain(cluster: Cluster, via: str, **document: Any) -> Answer:
    return cluster.request(via, "POST", DRAIN, json.dumps(document).encode(), timeout_s=15.0)


def undrain(cluster: Cluster, via: str, node: str) -> Answer:
    return cluster.request(via, "DELETE", f"{DRAIN}?node={node}", timeout_s=15.0)


def draining(cluster: Cluster, via: str) -> set[str]:
    return {member["id"] for member in cluster.status(via)["members"] if member["draining"]}


def test_any_node_drains_any_other_and_takes_it_back(cluster: Cluster) -> None:
    leader = cluster.leader()
    one, two = cluster.followers()
    # step: a follower is drained through another node
    answer = drain(cluster, two, node=one)
    assert (answer.status, answer.json()["node"], answer.json()["draining"]) == (200, one, True), answer.body
    assert answer.json()["leader_id"] == leader
    assert cluster.probe(one, "/readyz/draining") == 503
    assert [cluster.probe(each, "/readyz") for each in (leader, two)] == [200, 200]
    for via in cluster.nodes:
        wait_until(lambda via=via: draining(cluster, via) == {one}, 5.0, f"{via} shows who drains")
    assert cluster.put("k", b"v", via=one)["version"] == 1, "it still serves"
    # step: again changes nothing
    assert drain(cluster, leader, node=one).status == 200
    # step: back, without a restart
    back = undrain(cluster, leader, one)
    assert (back.status, back.json()["node"], back.json()["draining"]) == (200, one, False)
    wait_until(lambda: cluster.probe(one, "/readyz") == 200, 5.0, "it is ready again")
    assert cluster.request(one, "GET", "/v1/watch?wait=0s").status == 200
    for via in cluster.nodes:
        wait_until(lambda via=via: not draining(cluster, via), 5.0, f"{via} shows that nobody drains")
    assert undrain(cluster, leader, one).status == 200, "again changes nothing"
    # step: the leader is drained through a follower, and hands over
    answer = drain(cluster, one, node=leader)
    assert (answer.status, answer.json()["node"], answer.json()["leads"]) == (200, leader, False), answer.body
    assert answer.json()["leader_id"] in (one, two)
    assert cluster.probe(leader, LEADER_PROBE) == 503
    assert undrain(cluster, two, leader).status == 200
    transfer = "/admin/api/v1/leader/transfer", json.dumps({"to": leader}).encode()
    wait_until(lambda: cluster.request(one, "POST", *transfer).status == 200, 10.0, "it may lead again")
    # step: no member, and one that is away
    assert drain(cluster, one, node="n9").status == 404
    cluster.kill(two)
    wait_until(lambda: drain(cluster, one, node=two).status == 503, 5.0, "a node that is away is not drained")


def test_the_last_node_that_is_ready_is_not_drained_unless_forced(cluster: Cluster) -> None:
    one, two, three = cluster.nodes
    assert drain(cluster, one).status == 200
    assert drain(cluster, one, node=two).status == 200
    for via in cluster.nodes:
        refused = drain(cluster, via, node=three)
        assert (refused.status, refused.json()["error"]) == (409, "last_ready_node")
        assert refused.json()["outcome"] == "not_applied"
    done = kvnode("drain", three, "--url", cluster.url(one))
    assert done.code == 1
    assert three in done.err
    assert cluster.probe(three, "/readyz") == 200
    # step: a node that does not answer is not ready, whatever was known of it
    assert undrain(cluster, three, one).status == 200
    wait_until(lambda: cluster.probe(one, "/readyz") == 200, 5.0, "n1 is ready again")
    cluster.freeze(one)
    assert drain(cluster, three).status == 409
    cluster.thaw(one)
    wait_until(lambda: cluster.probe(one, "/readyz") == 200, 10.0, "n1 is ready again")
    assert drain(cluster, three).status == 200
    # step: by force
    forced = drain(cluster, two, node=one, force=True)
    assert (forced.status, forced.json()["draining"]) == (200, True)
    assert [cluster.probe(each, "/readyz") for each in cluster.nodes] == [503] * 3
    assert cluster.put("k", b"v", via=two)["version"] == 1, "a cluster that drains still works"
    # step: and back, through any
    for each in cluster.nodes:
        assert undrain(cluster, two, each).status == 200
    wait_until(lambda: [cluster.probe(each, "/readyz") for each in cluster.nodes] == [200] * 3, 10.0, "all are ready")


@pytest.mark.parametrize("left", [2, 3])
def test_of_drains_that_race_one_leaves_a_node_ready(cluster: Cluster, left: int) -> None:
    names = list(cluster.nodes)
    for name in names[left:]:
        assert drain(cluster, name).status == 200
    for round_number in range(4):
        answers: dict[str, int] = {}

        def go(name: str, via: str, answers: dict[str, int] = answers) -> None:
            answers[name] = drain(cluster, via, node=name).status

        # Each through another node than the one that is to go.
        threads = [
            threading.Thread(target=go, args=(name, names[(at + round_number) % 3]))
            for at, name in enumerate(names[:left])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20.0)
        assert sorted(answers.values()) == [200] * (left - 1) + [409]
        for name, status in answers.items():
            assert cluster.probe(name, "/readyz") == (200 if status == 409 else 503)
            assert undrain(cluster, name, name).status == 200
        wait_until(lambda: all(cluster.probe(name, "/readyz") == 200 for name in names[:left]), 10.0, "all are back")


def test_a_drain_waits_for_a_node_that_is_ready_once_there_is_a_leader(cluster: Cluster) -> None:
    leader = cluster.leader()
    one, two = cluster.followers()
    cluster.kill(leader)
    answer = drain(cluster, one)  # at this moment no node is ready, since none leads
    assert answer.status == 200, answer.body
    assert cluster.probe(two, "/readyz") == 200
    assert undrain(cluster, one, one).status == 200
    cluster.restart(leader)
    wait_until(lambda: cluster.probe(leader, "/readyz") == 200, 15.0, "it is back")


def test_a_drained_node_leads_where_no_other_one_can_and_gives_it_back(cluster: Cluster) -> None:
    leader = cluster.leader()
    one, two = cluster.followers()
    for name in (one, two):
        assert drain(cluster, leader, node=name).status == 200
    to_one = json.dumps({"to": one}).encode()
    refused = cluster.request(leader, "POST", "/admin/api/v1/leader/transfer", to_one)
    assert refused.status == 409, "no transfer goes to a node that drains"
    assert cluster.leader() == leader
    cluster.kill(leader)
    answer = wait_until(
        lambda: (a := cluster.request(one, "PUT", "/v1/kv/k", b"1", timeout_s=15.0)).status == 200 and a,
        15.0,
        "a write",
    )
    assert answer.headers["Kvnode-Leader"] in (one, two)
    assert cluster.request(one, "GET", "/v1/kv/k").body == b"1"
    cluster.restart(leader)
    wait_until(lambda: cluster.probe(leader, LEADER_PROBE) == 200, 15.0, "the one that does not drain leads again")


def test_the_command_names_the_node_and_takes_it_back(cluster: Cluster) -> None:
    leader = cluster.leader()
    one, two = cluster.followers()
    done = kvnode("drain", one, "--url", cluster.url(two))
    assert (done.code, done.out.decode()) == (0, f"{one} is draining; {leader} leads\n")
    unnamed = kvnode("drain", "--undo", "--url", cluster.url(one))
    assert unnamed.out.decode() == f"{one} is not draining; {leader} leads\n"
    as_json = kvnode("drain", "-o", "json", one, "--url", cluster.url(two))
    assert json.loads(as_json.out)["node"] == one
    assert kvnode("drain", one, "--undo", "--force", "--url", cluster.url(two)).code == 2
    assert kvnode("drain", "n9", "--url", cluster.url(two)).code == 1
    assert kvnode("drain", one, "--undo", "--url", cluster.url(two)).code == 0


def test_a_node_that_stops_is_not_taken_back(cluster: Cluster) -> None:
    one = cluster.followers()[0]
    process = cluster.nodes[one].process
    assert process is not None
    process.terminate()
    wait_until(lambda: cluster.probe(one, "/readyz") == 503, 5.0, "it is on its way out")
    refused = undrain(cluster, one, one)
    assert (refused.status, refused.json()["error"]) == (503, "shutting_down")
    assert cluster.wait_exit(one, 12.0) == 0
    cluster.restart(one)
    assert not draining(cluster, one), "starting it again ends a drain"
