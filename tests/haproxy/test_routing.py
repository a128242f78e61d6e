"""Through HAProxy, every request reaches a node that can do it: before, during and after a change of leader."""

from __future__ import annotations

import time

from tests.balancer import Balancer, needs_haproxy
from tests.cluster import Cluster, key_path, request, wait_until
from tests.haproxy.load import Load, steady_load

pytestmark = needs_haproxy


def node_of(balancer: Balancer, method: str, path: str, body: bytes | None = None) -> str | None:
    """The node that HAProxy sent the request to."""
    return request(balancer.address, method, path, body).headers["Kvnode-Node"]


def assert_nothing_lost(load: Load, balancer: Balancer) -> None:
    read = {key: request(balancer.address, "GET", key_path(key)).body for key in load.acknowledged}
    assert read == load.acknowledged


def test_writes_and_linearizable_reads_go_to_the_leader_and_stale_reads_to_all(
    cluster: Cluster, balancer: Balancer
) -> None:
    leader = cluster.leader()
    assert {node_of(balancer, "PUT", "/v1/kv/a", b"1") for _ in range(6)} == {leader}
    assert {node_of(balancer, "GET", "/v1/kv/a") for _ in range(6)} == {leader}
    assert {node_of(balancer, "GET", "/v1/kv/a?consistency=stale") for _ in range(6)} == set(cluster.nodes)


def test_routing_follows_every_transfer_with_no_failed_request(cluster: Cluster, balancer: Balancer) -> None:
    with steady_load(balancer.address) as load:
        for target in (*cluster.followers(), cluster.leader()):
            cluster.transfer(to=target)
            balancer.settles_on(target)
            load.acknowledge_more(15)
            assert node_of(balancer, "PUT", "/v1/kv/a", b"1") == target
    assert load.failures == []
    assert_nothing_lost(load, balancer)


def test_a_killed_leader_costs_no_read_and_no_acknowledged_write(cluster: Cluster, balancer: Balancer) -> None:
    leader = cluster.leader()
    with steady_load(balancer.address) as load:
        cluster.kill(leader)
        killed = time.monotonic()
        wait_until(
            lambda: request(balancer.address, "PUT", "/v1/kv/a", b"1").status == 200, 3, "a write after the kill"
        )
        assert time.monotonic() - killed < 3
        load.acknowledge_more(30)
    # Writes that the dead node held: nobody can know, and HAProxy must say so. Everything else succeeds.
    assert [failure for failure in load.failures if (failure.method, failure.outcome) != ("PUT", "unknown")] == []
    assert len(load.failures) <= 3
    assert_nothing_lost(load, balancer)
    cluster.restart(leader)
    assert cluster.leader() != leader
    balancer.has_up("writes", [leader])


def test_a_frozen_leader_is_left_and_requests_that_wait_for_it_are_ended(cluster: Cluster, balancer: Balancer) -> None:
    leader = cluster.leader()
    with steady_load(balancer.address) as load:
        cluster.freeze(leader)
        load.acknowledge_more(30)
    assert [failure for failure in load.failures if (failure.method, failure.outcome) != ("PUT", "unknown")] == []
    assert len(load.failures) <= 6
    assert load.slowest_s < 5
    assert_nothing_lost(load, balancer)


def test_without_a_majority_a_write_is_answered_in_time_with_its_outcome(cluster: Cluster, balancer: Balancer) -> None:
    for name in cluster.followers():
        cluster.kill(name)
    began = time.monotonic()
    answer = request(balancer.address, "PUT", "/v1/kv/a", b"1", timeout_s=20)
    assert time.monotonic() - began < 15
    assert answer.status in (503, 504)
    assert answer.json()["outcome"] == ("not_applied" if answer.status == 503 else "unknown")
