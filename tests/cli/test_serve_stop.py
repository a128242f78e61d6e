"""How a node leaves: probes first, leadership next, the listener last; and never later than its bound."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Callable

from tests.cli.command import kvnode
from tests.cluster import LEADER_PROBE, Cluster, wait_until


def test_a_stopping_leader_answers_its_balancers_until_they_know(cluster: Cluster) -> None:
    leader = cluster.leader()
    cluster.put("k", b"v")
    cluster.nodes[leader].process.send_signal(signal.SIGTERM)
    wait_until(lambda: cluster.probe(leader, LEADER_PROBE) == 503, 1, "the leader probe fails")
    answer = cluster.request(leader, "GET", "/readyz")
    assert answer.status == 503
    assert b"drain" in answer.body
    # It still takes what balancers send until they have asked again, and hands it on.
    assert cluster.put("k", b"while it drains", via=leader)["version"] == 2
    assert cluster.wait_exit(leader, 10) == 0
    assert "Leadership handed over to" in cluster.log(leader)
    survivor = next(name for name in cluster.nodes if name != leader)
    assert cluster.get("k", via=survivor) == b"while it drains"


def test_a_drained_leader_hands_over_ends_its_watches_with_a_place_to_go_on_from_and_serves_on(
    cluster: Cluster,
) -> None:
    leader = cluster.leader()
    revision = cluster.put("k", b"v", via=leader)["revision"]
    stream = http.client.HTTPConnection(*cluster.nodes[leader].http, timeout=10)
    stream.request("GET", f"/v1/watch?key=k&from_revision={revision}")
    events = stream.getresponse()
    drained = kvnode("drain", "--url", cluster.url(leader))
    assert (drained.code, drained.err) == (0, "")
    told = events.read().decode()  # to its end
    assert "event: end" in told
    assert f'"from_revision":{revision + 1}' in told
    assert cluster.leader() != leader
    assert drained.out.decode() == f"{leader} is draining; {cluster.leader()} leads\n"
    probe = cluster.request(leader, "GET", LEADER_PROBE)
    assert (probe.status, cluster.probe(leader, "/readyz"), cluster.probe(leader, "/livez")) == (503, 503, 200)
    assert cluster.put("k", b"through the drained one", via=leader)["version"] == 2
    assert kvnode("drain", "--url", cluster.url(leader)).code == 0  # again: nothing else to do
    assert cluster.terminate(leader) == 0
    cluster.restart(leader)  # which ends the drain


def test_a_second_signal_skips_the_waits(cluster: Cluster) -> None:
    follower = cluster.followers()[0]
    process = cluster.nodes[follower].process
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping" in cluster.log(follower), 2, "the first signal is taken")
    hurried = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert cluster.wait_exit(follower, 10) == 0
    assert time.monotonic() - hurried < 0.8, "it lingered for its balancers all the same"


def test_a_leader_without_peers_to_hand_over_to_stops_all_the_same(cluster: Cluster) -> None:
    leader = cluster.leader()
    for name in cluster.followers():
        cluster.freeze(name)
    assert cluster.terminate(leader, 12) == 0
    assert "Leadership was not handed over" in cluster.log(leader)


def test_a_leader_whose_heir_has_just_frozen_hands_over_to_the_next(cluster: Cluster) -> None:
    leader, (other, heir) = cluster.leader(), sorted(cluster.followers())  # of equals, the last one
    cluster.freeze(heir)
    assert cluster.terminate(leader, 12) == 0
    assert f"Leadership handed over to {other}" in cluster.log(leader)
    cluster.thaw(heir)


def test_a_single_node_stops_at_once(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(size=1).start()
    asked = time.monotonic()
    assert cluster.terminate("n1") == 0
    assert time.monotonic() - asked < 0.9


def test_log_lines_are_json_when_asked(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(size=1, args=["--log-format", "json"]).start()
    assert cluster.terminate("n1") == 0
    lines = [json.loads(line) for line in cluster.log("n1").splitlines()]
    assert all(line["node"] == "n1" and line["time"].endswith("Z") for line in lines)
    assert any("ready: http=" in line["message"] for line in lines)
