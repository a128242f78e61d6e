"""Leases and transactions where only real processes prove them: never early, never half."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster import Answer, Cluster, Refused, wait_until

TTL_S = 2


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(Path(tmp_path_factory.mktemp("leases"))) as running:
        yield running.start()


def put_for_a_while(cluster: Cluster, key: str, via: str, ttl_s: int = TTL_S) -> float:
    """Puts a key that leaves by itself; when the request was sent, as no lease begins before that."""
    sent_at = time.monotonic()
    answer = cluster.request(via, "PUT", f"/v1/kv/{key}?ttl={ttl_s}", b"1")
    assert answer.status == 200, answer.body
    return sent_at


def gone_at(cluster: Cluster, key: str, via: str, timeout_s: float) -> float:
    """When a linearizable read first found the key gone: before the read was sent, so never too late a time."""
    last_seen = time.monotonic()

    def gone() -> float | None:
        nonlocal last_seen
        asked_at = time.monotonic()
        with suppress(Refused, OSError, http.client.HTTPException):
            if cluster.get(key, via) is None:
                return asked_at + 1e-9
        last_seen = asked_at
        return None

    return wait_until(gone, timeout_s, f"{key} gone")


def told(cluster: Cluster, key: str, via: str, count: int) -> list[tuple[str, int]]:
    """(kind, revision) of all that happened to the key, as one node tells it; at least `count`, within 5 s."""

    def poll() -> list[tuple[str, int]]:
        page = cluster.request(via, "GET", f"/v1/watch?key={key}&from_revision=1&wait=100ms").json()
        return [(event["event"], event["mod_revision"]) for event in page["events"]]

    return wait_until(lambda: found if len(found := poll()) >= count else None, 5, f"{count} events of {key}")


def test_a_key_leaves_when_its_time_is_over_and_not_before(cluster: Cluster) -> None:
    leader, follower = cluster.leader(), cluster.followers()[0]
    sent_at = put_for_a_while(cluster, "plain", follower)
    assert 0 < int(cluster.request(leader, "GET", "/v1/kv/plain").headers["Kvnode-TTL"]) <= TTL_S
    assert TTL_S <= gone_at(cluster, "plain", follower, TTL_S + 5) - sent_at < TTL_S + 2
    for name in cluster.nodes:
        assert [event for event, _ in told(cluster, "plain", name, 2)] == ["put", "expire"]
    assert len({tuple(told(cluster, "plain", name, 2)) for name in cluster.nodes}) == 1, "one history on every node"


def test_a_change_of_leader_begins_the_time_anew(cluster: Cluster) -> None:
    leader = cluster.leader()
    sent_at = put_for_a_while(cluster, "moved", leader)
    wait_until(lambda: time.monotonic() - sent_at > 1.2, 5, "the lease is more than half over")
    handed_over_at = time.monotonic()
    new_leader = cluster.transfer(via=leader)
    assert gone_at(cluster, "moved", new_leader, TTL_S + 8) - handed_over_at >= TTL_S


def test_a_frozen_leader_ends_no_lease_that_the_next_one_renewed(cluster: Cluster) -> None:
    leader, (follower, _) = cluster.leader(), cluster.followers()
    lease = json.loads(cluster.request(follower, "POST", "/v1/leases", b'{"ttl":2}').body)["id"]
    assert cluster.request(follower, "PUT", f"/v1/kv/held?lease={lease}", b"").status == 200
    cluster.freeze(leader)
    renewals: list[float] = []

    def renew() -> Answer | None:
        asked_at = time.monotonic()
        answer = cluster.request(follower, "POST", f"/v1/leases/{lease}/keepalive", b"")
        if answer.status == 200:
            renewals.append(asked_at)
        assert answer.status in (200, 503, 504), answer.body
        return answer if time.monotonic() - began > 2 * TTL_S and answer.status == 200 else None

    began = time.monotonic()
    wait_until(renew, 20, "the lease was kept alive for two of its times under another leader")
    cluster.thaw(leader)
    for _ in range(25):  # the old one wakes, and still takes itself for the leader
        assert cluster.get("held", follower) == b""
        renewals.append(time.monotonic())
        assert cluster.request(follower, "POST", f"/v1/leases/{lease}/keepalive", b"").status == 200
    assert gone_at(cluster, "held", follower, TTL_S + 8) - renewals[-1] >= TTL_S


def test_after_kill_9_a_transaction_is_whole_or_absent_and_no_key_leaves_early(cluster: Cluster) -> None:
    cluster.wait_ready()
    leader, (follower, _) = cluster.leader(), cluster.followers()
    keys = [f"whole/{i}" for i in range(20)]
    acknowledged: list[int] = []
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            branch = [{"put": {"key": key, "text": str(number)}} for key in keys]
            with suppress(OSError, http.client.HTTPException):
                answer = cluster.request(follower, "POST", "/v1/txn", json.dumps({"success": branch}).encode())
                if answer.status == 200:
                    acknowledged.append(number)

    writer = threading.Thread(target=write)
    put_for_a_while(cluster, "brief", follower)
    watching = ThreadPoolExecutor(1)
    gone = watching.submit(gone_at, cluster, "brief", follower, TTL_S + 15)
    writer.start()
    try:
        wait_until(lambda: len(acknowledged) > 20, 10, "transactions went through")
        killed_at = time.monotonic()
        cluster.kill(leader)
        before = len(acknowledged)
        wait_until(lambda: len(acknowledged) > before + 5, 20, "transactions went through under the next leader")
    finally:
        over.set()
        writer.join(30)
    assert gone.result(TTL_S + 15) - killed_at >= TTL_S, "its time began anew under the next leader"
    watching.shutdown()
    cluster.restart(leader)
    for name in cluster.nodes:
        items = cluster.request(name, "GET", "/v1/kv?prefix=whole/").json()["items"]
        assert len(items) == len(keys)
        assert len({(item["value"], item["mod_revision"], item["version"]) for item in items}) == 1, items
    assert int(cluster.get(keys[0]) or b"") >= acknowledged[-1]
