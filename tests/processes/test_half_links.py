"""Connections between nodes that break by halves, or fall silent for a while: who waits for another node is woken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import wait_until
from tests.relays import RelayedCluster

HEARTBEAT_S, ELECTION_TIMEOUT_S = 0.1, 1.2
PATIENCE_S = 1.5  # far less than the 3 s after which a read fails, far more than a question takes that is asked again


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RelayedCluster]:
    with RelayedCluster(tmp_path / "relayed") as cluster:
        cluster.start()
        cluster.put("a", b"1")
        yield cluster


class Readers:
    """Clients that read one key through one node, again and again."""

    def __init__(self, cluster: RelayedCluster, node: str, count: int = 3) -> None:
        self.took: list[tuple[float, float, int]] = []  # when, for how long, status
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(cluster, node)) for _ in range(count)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(15)

    def _read(self, cluster: RelayedCluster, node: str) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            status = cluster.request(node, "GET", "/v1/kv/a").status
            self.took.append((began, time.monotonic() - began, status))

    def since(self, began: float) -> list[tuple[float, int]]:
        return [(took_s, status) for at, took_s, status in list(self.took) if at + took_s >= began]


@pytest.mark.parametrize("way", ["lose_the_dialler", "reset"])
def test_reads_go_on_where_the_leaders_connection_to_a_follower_breaks(cluster: RelayedCluster, way: str) -> None:
    leader, follower = cluster.leader(), cluster.followers()[0]
    with Readers(cluster, follower) as readers:
        wait_until(lambda: len(readers.took) > 20, 5.0, "reads are answered")
        for _ in range(5):  # an answer is on its way when it breaks, now and then
            began = time.monotonic()
            getattr(cluster.links[leader, follower], way)()
            wait_until(lambda began=began: len(readers.since(began)) > 20, 5.0, "reads go on")
            assert {status for _, status in readers.since(began)} == {200}
            assert max(took_s for took_s, _ in readers.since(began)) < PATIENCE_S
    assert cluster.leader() == leader


@pytest.mark.parametrize("way", ["lose_the_dialler", "reset"])
@pytest.mark.parametrize("end", ["to the leader", "from the leader"])
def test_writes_go_on_where_a_connection_with_the_leader_breaks_and_none_is_applied_twice(
    cluster: RelayedCluster, way: str, end: str
) -> None:
    """A group that was on its way is sent again; before, its writes waited five seconds and were in doubt."""
    leader, follower = cluster.leader(), cluster.followers()[0]
    link = cluster.links[(follower, leader) if end == "to the leader" else (leader, follower)]
    over = threading.Event()
    took: list[tuple[float, float, int]] = []
    versions: list[tuple[int, int]] = []

    def write(thread: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            began = time.monotonic()
            answer = cluster.request(follower, "PUT", f"/v1/kv/writer-{thread}", b"x" * 2_000)
            took.append((began, time.monotonic() - began, answer.status))
            if answer.status == 200:
                versions.append((number, answer.json()["version"]))

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(12):  # a group is on its way when it breaks, now and then
            known = len(took)
            getattr(link, way)()
            wait_until(lambda known=known: len(took) > known + 20, 8.0, "writes go on")
    finally:
        over.set()
        for thread in threads:
            thread.join(15)
    assert {status for *_, status in took} == {200}
    assert max(took_s for _, took_s, _ in took) < PATIENCE_S
    assert all(number == version for number, version in versions), "a write was applied twice"
    assert cluster.leader() == leader


def test_a_silence_without_an_election_costs_reads_no_more_than_the_silence(cluster: RelayedCluster) -> None:
    """The way from the leader is silent for longer than an election timeout, and nothing is closed."""
    leader, follower = cluster.leader(), cluster.followers()[0]
    term = cluster.status(leader)["term"]
    link = cluster.links[leader, follower]
    with Readers(cluster, follower) as readers:
        wait_until(lambda: len(readers.took) > 20, 5.0, "reads are answered")
        link.hold()
        time.sleep(1.6)  # what the silence is: no event marks its end
        ended = time.monotonic()
        link.release()
        wait_until(lambda: len(readers.since(ended)) > 60, 6.0, "reads go on")
        late = [(at + took_s - ended, status) for at, took_s, status in readers.took if at < ended < at + took_s]
        assert late, "no read was waiting: not a test"
        assert {status for _, status in late} == {200}
        assert max(after_s for after_s, _ in late) < 0.7, sorted(late)
    assert (cluster.leader(), cluster.status(leader)["term"]) == (leader, term)


def test_a_follower_that_the_leader_does_not_hear_is_not_ready(cluster: RelayedCluster) -> None:
    """It hears the leader, and no read through it would be answered."""
    leader, follower = cluster.leader(), cluster.followers()[0]
    cluster.links[follower, leader].hold()
    began = time.monotonic()
    answer = wait_until(
        lambda: (a := cluster.request(follower, "GET", "/readyz/leader")).status == 503 and a, 4.0, "it is not ready"
    )
    assert "has not answered this node's reads" in answer.json()["message"]
    assert time.monotonic() - began < 3 * ELECTION_TIMEOUT_S
    cluster.links[follower, leader].release()
    wait_until(lambda: cluster.probe(follower, "/readyz") == 200, 5.0, "it is ready again")
    assert cluster.leader() == leader


def test_a_transfer_asked_of_a_follower_is_answered_though_the_answer_is_lost_once(cluster: RelayedCluster) -> None:
    leader, follower = cluster.leader(), cluster.followers()[0]
    other = next(name for name in cluster.nodes if name not in (leader, follower))
    answers: list[str] = []
    back = cluster.links[leader, follower]
    back.hold()
    asking = threading.Thread(target=lambda: answers.append(cluster.transfer(other, via=follower)))
    asking.start()
    wait_until(lambda: cluster.probe(other, "/admin/healthz/leader") == 200, 5.0, "leadership has moved")
    back.reset()  # with the answer on it
    back.release()
    asking.join(10)
    assert answers == [other]
    assert cluster.leader() == other, "the transfer was made once"
