"""The leader probe on real nodes: what each node says, and what it says when its peers cannot answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.cluster import LEADER_PROBE, Cluster, wait_until

pytestmark = pytest.mark.alone

PROBES = 200
DEADLINE_S = 0.5
SLACK_S = 0.2


def test_every_node_answers_the_matrix(cluster: Cluster) -> None:
    leader = cluster.leader()
    for name in cluster.nodes:
        get = cluster.request(name, "GET", LEADER_PROBE)
        head = cluster.request(name, "HEAD", LEADER_PROBE)
        expected = (200, b"ok\n", None) if name == leader else (503, b"not leader\n", "follower")
        assert (get.status, get.body, get.headers["Kvnode-Reason"]) == expected
        assert (head.status, head.body) == (expected[0], b"")
        assert get.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert get.headers["Cache-Control"] == "no-store"
        assert (get.headers["Kvnode-Node"], get.headers["Kvnode-Leader"]) == (name, leader)
        refused = cluster.request(name, "POST", LEADER_PROBE)
        assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


def test_the_probe_follows_a_transfer(cluster: Cluster) -> None:
    old = cluster.leader()
    new = cluster.transfer(to=cluster.followers()[0], via=cluster.followers()[1])
    assert cluster.probe(old, LEADER_PROBE) == 503
    assert cluster.leader() == new != old


async def test_frozen_peers_make_every_probe_503_in_time_without_entries_or_memory(cluster: Cluster) -> None:
    leader = cluster.leader()
    last_index = _last_index(cluster, leader)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=PROBES)) as session:
        await _volley(session, cluster.url(leader, LEADER_PROBE))  # connections and buffers exist from here on
        for name in cluster.nodes:
            if name != leader:
                cluster.freeze(name)
        first = await _volley(session, cluster.url(leader, LEADER_PROBE))
        rss_bytes = _rss_bytes(cluster.pid(leader))
        for _ in range(4):
            answers = await _volley(session, cluster.url(leader, LEADER_PROBE))
            assert {status for status, _, _ in answers} == {503}
        grown_bytes = _rss_bytes(cluster.pid(leader)) - rss_bytes
    assert {status for status, _, _ in first} == {503}
    assert max(took_s for _, _, took_s in first) <= DEADLINE_S + SLACK_S
    reasons = Counter(reason for _, reason, _ in first)
    assert set(reasons) <= {"unverified", "no-leader"}, reasons
    assert grown_bytes < 8 * 1_048_576
    assert _last_index(cluster, leader) == last_index, "a probe wrote a log entry"
    for name in cluster.nodes:
        cluster.thaw(name)
    cluster.wait_ready()


def test_a_leader_that_is_cut_off_stops_claiming_and_liveness_does_not_care(cluster: Cluster) -> None:
    leader = cluster.leader()
    for name in cluster.followers():
        cluster.freeze(name)
    wait_until(lambda: _reason(cluster, leader) == "no-leader", 3.0, "the old leader steps down")
    assert cluster.probe(leader, "/livez") == 200
    ready = cluster.request(leader, "GET", "/readyz")
    assert ready.status == 503
    failed = [check["name"] for check in ready.json()["checks"] if check["status"] == "error"]
    assert failed == ["leader"]
    for name in cluster.nodes:
        cluster.thaw(name)
    cluster.wait_ready()


def test_shutdown_answers_a_waiting_probe_at_once(make_cluster: Callable[..., Cluster]) -> None:
    args = ["--probe-timeout", "3s", "--election-timeout", "4000-5000ms"]  # the round outlives the wait below
    with make_cluster(args=args).start() as cluster:
        leader = cluster.leader()
        for name in cluster.followers():
            cluster.freeze(name)
        answers: list[tuple[int, str | None, float]] = []

        async def probe_while_stopping() -> None:
            async with aiohttp.ClientSession() as session:
                waiting = asyncio.ensure_future(_timed(session, cluster.url(leader, LEADER_PROBE)))
                await asyncio.sleep(0.3)  # the probe is to be inside its round; if it is not, it is 503 all the same
                cluster.nodes[leader].process.terminate()  # type: ignore[union-attr]
                answers.append(await waiting)

        asyncio.run(probe_while_stopping())
        status, reason, took_s = answers[0]
        assert (status, reason) == (503, "draining")
        assert took_s < 2.0


def test_without_a_probe_the_path_does_not_exist(make_cluster: Callable[..., Cluster]) -> None:
    with make_cluster(size=1, args=["--leader-probe", "off"]) as cluster:
        cluster.spawn("n1")
        wait_until(lambda: cluster.is_ready("n1"), 10.0, "the node is ready")
        for method in ("GET", "HEAD", "POST", "OPTIONS", "DELETE"):
            answer = cluster.request("n1", method, LEADER_PROBE)
            assert answer.status == 404
            assert method == "HEAD" or answer.json()["error"] == "not_found"


def test_probes_answer_fast_while_the_cluster_is_healthy(cluster: Cluster) -> None:
    for name in cluster.nodes:
        for path in (LEADER_PROBE, "/admin/healthz", "/healthz", "/livez", "/readyz"):
            fastest_s = min(_took_s(cluster, name, path) for _ in range(5))
            assert fastest_s < 0.1, (name, path)


def _took_s(cluster: Cluster, name: str, path: str) -> float:
    began = time.monotonic()
    cluster.request(name, "GET", path)
    return time.monotonic() - began


def _reason(cluster: Cluster, name: str) -> str | None:
    return cluster.request(name, "GET", LEADER_PROBE).headers["Kvnode-Reason"]


def _last_index(cluster: Cluster, name: str) -> int:
    members = cluster.status(name)["members"]
    index: int = next(member["match_index"] for member in members if member["id"] == name)
    return index


def _rss_bytes(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


async def _timed(session: aiohttp.ClientSession, url: str) -> tuple[int, str | None, float]:
    began = time.monotonic()
    async with session.get(url) as response:
        await response.read()
        return response.status, response.headers.get("Kvnode-Reason"), time.monotonic() - began


async def _volley(session: aiohttp.ClientSession, url: str) -> list[tuple[int, str | None, float]]:
    return await asyncio.gather(*(_timed(session, url) for _ in range(PROBES)))
