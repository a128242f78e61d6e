"""Real nodes that are killed, frozen and restarted: what was acknowledged stays, and writes find the leader."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.cluster import Cluster, Refused, wait_until

pytestmark = pytest.mark.alone


def test_a_killed_leader_is_replaced_and_comes_back_as_a_follower(cluster: Cluster) -> None:
    leader = cluster.leader()
    survivor = cluster.followers()[0]
    for number in range(50):
        cluster.put(f"before/{number}", b"%d" % number, via=leader)
    cluster.kill(leader)
    began = time.monotonic()
    cluster.put("after", b"kept", via=survivor)
    assert time.monotonic() - began < 3.0
    cluster.restart(leader)
    assert cluster.leader() != leader
    assert cluster.get("after", via=leader) == b"kept"
    assert [cluster.get(f"before/{number}", via=leader) for number in range(50)] == [b"%d" % n for n in range(50)]


def test_all_nodes_killed_under_load_come_back_with_every_acknowledged_write(cluster: Cluster) -> None:
    acknowledged: dict[str, bytes] = {}
    stopping = threading.Event()

    def write(name: str) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            key, value = f"{name}/{number}", b"%d" % number
            try:
                cluster.put(key, value, via=name)
            except (OSError, Refused, ValueError):
                return
            except Exception as error:
                if type(error).__module__ == "http.client":
                    return
                raise
            acknowledged[key] = value

    writers = [threading.Thread(target=write, args=(name,)) for name in cluster.nodes]
    for writer in writers:
        writer.start()
    wait_until(lambda: len(acknowledged) >= 300, 20.0, "300 acknowledged writes")
    for name in cluster.nodes:
        cluster.nodes[name].process.kill()  # type: ignore[union-attr]
    for name in cluster.nodes:
        cluster.wait_exit(name, 10.0)
    stopping.set()
    for writer in writers:
        writer.join(10.0)
    began = time.monotonic()
    cluster.start()
    assert time.monotonic() - began < 5.0
    missing = [key for key, value in acknowledged.items() if cluster.get(key) != value]
    assert not missing


def test_a_frozen_leader_is_replaced_and_gives_way_when_it_wakes(cluster: Cluster) -> None:
    leader = cluster.leader()
    survivor = cluster.followers()[0]
    cluster.freeze(leader)
    began = time.monotonic()
    cluster.put("while-frozen", b"1", via=survivor)
    assert time.monotonic() - began < 4.0
    cluster.thaw(leader)
    assert cluster.get("while-frozen", via=leader) == b"1", "a linearizable read on the woken leader was stale"
    cluster.wait_ready()
    assert cluster.leader() != leader


def test_a_write_without_a_majority_is_refused_definitely_and_never_applied(cluster: Cluster) -> None:
    leader = cluster.leader()
    for name in cluster.followers():
        cluster.kill(name)
    wait_until(lambda: cluster.probe(leader, "/readyz") == 503, 5.0, "the lone node steps down")
    with pytest.raises(Refused) as refused:
        cluster.put("lonely", b"1", via=leader)
    assert refused.value.answer.status == 503
    assert refused.value.answer.headers["Retry-After"] == "1"
    assert refused.value.answer.json()["outcome"] == "not_applied"
    for name in cluster.nodes:
        if name != leader:
            cluster.restart(name)
    assert cluster.get("lonely") is None


def test_a_follower_gives_the_leaders_answer_to_the_letter(cluster: Cluster) -> None:
    leader, follower = cluster.leader(), cluster.followers()[0]
    answers = []
    for name in (leader, follower):
        cluster.put(f"same/{name}", b"x", via=name)
        answer = cluster.request(name, "PUT", f"/v1/kv/same/{name}", b"y", {"If-Match": '"999"'})
        answers.append((answer.status, answer.json()["error"], answer.headers["ETag"] is not None))
        assert answer.headers["Kvnode-Node"] == name
        assert answer.headers["Kvnode-Leader"] == leader
    assert answers[0] == answers[1] == (412, "precondition_failed", True)


def test_sigterm_ends_every_node_with_exit_code_0(cluster: Cluster) -> None:
    cluster.put("kept", b"1")
    assert set(cluster.stop().values()) == {0}
    cluster.start()
    assert cluster.get("kept") == b"1"


def test_one_node_is_a_cluster(make_cluster: Callable[..., Cluster]) -> None:
    with make_cluster(size=1).start() as cluster:
        assert cluster.put("a", b"1")["created"]
        cluster.kill("n1")
        cluster.restart("n1")
        assert cluster.get("a") == b"1"
        assert cluster.leader() == "n1"
