"""The page of metrics of three real nodes, after traffic of every kind."""

from __future__ import annotations

import http.client

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.cluster import LEADER_PROBE, Cluster, wait_until
from tests.observability.page import page


def test_each_family_says_what_has_happened(trio: Cluster) -> None:
    leader = trio.leader()
    follower, other = trio.followers()
    before = {name: page(trio, name) for name in trio.nodes}
    for number in range(20):
        trio.put(f"via-leader/{number}", b"x", via=leader)
        trio.put(f"via-follower/{number}", b"x", via=follower)
    assert trio.probe(leader, LEADER_PROBE) == 200
    assert trio.probe(follower, LEADER_PROBE) == 503
    assert trio.get("missing", via=other) is None

    def rise(node: str, name: str, **labels: str) -> float:
        return page(trio, node).of(name, **labels) - before[node].of(name, **labels)

    # who leads, and how far everybody is
    assert page(trio, leader).of("kvnode_raft_state", state="leader") == 1
    assert page(trio, follower).of("kvnode_raft_state", state="leader") == 0
    assert page(trio, follower).of("kvnode_raft_state", state="follower") == 1
    assert page(trio, leader)["kvnode_raft_term"] == page(trio, follower)["kvnode_raft_term"] > 0
    wait_until(
        lambda: len({page(trio, n)["kvnode_raft_applied_index"] for n in trio.nodes}) == 1, 5.0, "all have applied all"
    )
    for name in trio.nodes:
        now = page(trio, name)
        assert now["kvnode_raft_commit_index"] >= now["kvnode_raft_applied_index"] > 20
        assert now["kvnode_raft_has_leader"] == 1
        assert now["kvnode_raft_applied_lag"] == 0
        assert now["kvnode_raft_members"] == 3
        assert now["kvnode_raft_leader_changes_total"] >= 1
        assert now["kvnode_store_keys"] == before[name]["kvnode_store_keys"] + 40
        assert now.of("kvnode_raft_digest_mismatch", member=other) == 0
        assert now.of("kvnode_ready", check="applied_lag") == 1
        assert now["kvnode_disk_size_bytes"] > now["kvnode_disk_free_bytes"] > 0
        assert now["kvnode_journal_bytes"] > 0
        assert now["kvnode_journal_fsync_seconds_count"] > 0
        assert now["kvnode_journal_fsync_seconds_sum"] > 0
        assert now["kvnode_event_loop_lag_seconds_count"] > 0
        assert now["process_resident_memory_bytes"] > 1_000_000
    assert {key[1] for key in page(trio, leader).samples if key[0] == "kvnode_raft_peer_lag"} == {
        (("peer", follower),),
        (("peer", other),),
    }
    assert page(trio, leader).of("kvnode_raft_peer_reachable", peer=other) == 1

    # writes: told to this node's clients, in groups, forwarded one hop
    for node in (leader, follower):
        assert rise(node, "kvnode_raft_proposals_total", outcome="applied") == 20
        assert 1 <= rise(node, "kvnode_raft_batch_commands_count") <= 20
        assert rise(node, "kvnode_raft_batch_commands_sum") == 20
        assert rise(node, "kvnode_raft_commit_seconds_count") == rise(node, "kvnode_raft_batch_commands_count")
        assert rise(node, "kvnode_raft_commit_seconds_sum") > 0
    assert rise(other, "kvnode_raft_proposals_total", outcome="applied") == 0
    assert rise(follower, "kvnode_raft_forwarded_groups_total", way="sent") == 20
    assert rise(leader, "kvnode_raft_forwarded_groups_total", way="received") == 20

    # probes and answers
    assert rise(leader, "kvnode_probe_results_total", probe="leader", result="ok") == 1
    assert rise(follower, "kvnode_probe_results_total", probe="leader", result="follower") == 1
    assert rise(leader, "kvnode_probe_seconds_count") == 1
    assert rise(leader, "kvnode_http_answers_total", code="200") >= 21
    assert page(trio, other).of("kvnode_http_answers_total", code="404") >= 1


def test_watches_come_and_go_on_the_page(trio: Cluster) -> None:
    host, port = trio.nodes["n1"].http
    watching = http.client.HTTPConnection(host, port, timeout=10)
    watching.request("GET", "/v1/watch?prefix=w/")
    answer = watching.getresponse()  # held: the connection goes with it
    assert answer.status == 200
    wait_until(lambda: page(trio, "n1")["kvnode_watch_watchers"] == 1, 5.0, "the watch is there")
    answer.close()
    wait_until(lambda: page(trio, "n1")["kvnode_watch_watchers"] == 0, 5.0, "the watch is gone")


def test_a_change_of_leader_is_counted_and_a_lost_peer_seen(trio: Cluster) -> None:
    before = {name: page(trio, name)["kvnode_raft_leader_changes_total"] for name in trio.nodes}
    leader = trio.transfer()
    for name in trio.nodes:
        wait_until(
            lambda name=name: page(trio, name)["kvnode_raft_leader_changes_total"] == before[name] + 1,
            5.0,
            f"{name} counts the change",
        )
    gone = next(name for name in trio.nodes if name != leader)
    trio.kill(gone)
    wait_until(
        lambda: page(trio, leader).of("kvnode_raft_peer_reachable", peer=gone) == 0, 5.0, "the leader misses a peer"
    )
    trio.restart(gone)


def test_openmetrics_where_accept_asks_for_it(trio: Cluster) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = trio.request("n1", "GET", "/metrics", headers=accept)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in text_string_to_metric_families(answer.body.decode())} >= {"kvnode_raft_term"}
    plain = trio.request("n1", "GET", "/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert plain.headers["Cache-Control"] == "no-store"
