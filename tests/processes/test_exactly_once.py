"""The same write sent again, to other nodes and after crashes: the first answer, and nothing written twice."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import threading
import time
from collections.abc import Mapping

from kvnode.client import Client
from kvnode.state.limits import OUTCOMES_MAX, REPEAT_WINDOW_S
from tests.cluster import Answer, Cluster, wait_until

Told = tuple[int, str | None, str | None, bytes]


def told(answer: Answer) -> Told:
    """What an answer says of the write, without who said it and when."""
    return answer.status, answer.headers["ETag"], answer.headers["Kvnode-Revision"], answer.body


def write(cluster: Cluster, via: str, key: str, body: bytes | None, **headers: str) -> Told:
    """PUT, or DELETE where there is no body, under an Idempotency-Key of the key's name."""
    named: Mapping[str, str] = {"Idempotency-Key": key, **headers}
    return told(cluster.request(via, "DELETE" if body is None else "PUT", f"/v1/kv/{key}", body, named))


def write_each_kind(cluster: Cluster, via: str) -> dict[str, Told]:
    """Every outcome there is; sent again, each of them would come out otherwise if it were carried out anew."""
    return {
        "put": write(cluster, via, "put", b"1"),
        "delete": write(cluster, via, "delete", None),
        "missing": write(cluster, via, "missing", None),
        "refused": write(cluster, via, "refused", b"1", **{"If-None-Match": "*"}),
    }


def test_a_repetition_gets_the_first_answer_across_leader_changes_and_restarts(cluster: Cluster) -> None:
    leader, follower = cluster.leader(), cluster.followers()[0]
    cluster.put("delete", b"1")
    cluster.put("refused", b"there")
    first = write_each_kind(cluster, follower)
    assert [status for status, *_ in first.values()] == [200, 200, 404, 412]
    # From here on the store is another one than the first requests met.
    cluster.put("put", b"later")
    cluster.put("delete", b"again")
    cluster.put("missing", b"here now")
    cluster.request(leader, "DELETE", "/v1/kv/refused")
    revision = cluster.put("last", b"1")["revision"]
    for name in cluster.nodes:
        assert write_each_kind(cluster, name) == first, name

    cluster.kill(leader)
    for name in cluster.awake():
        assert write_each_kind(cluster, name) == first, name
    cluster.restart(leader)
    assert write_each_kind(cluster, leader) == first

    for name in cluster.nodes:
        cluster.kill(name)
    cluster.start()
    for name in cluster.nodes:
        assert write_each_kind(cluster, name) == first, name
        other = cluster.request(name, "PUT", "/v1/kv/put", b"2", {"Idempotency-Key": "put"})
        assert (other.status, other.json()["error"]) == (400, "idempotency_key_reused")
    assert [cluster.get(key) for key in ("put", "delete", "missing", "refused")] == [
        b"later", b"again", b"here now", None,
    ]  # fmt: skip
    assert cluster.put("last", b"2")["revision"] == revision + 1


def test_a_follower_that_came_by_its_state_through_a_snapshot_knows_the_first_answer(cluster: Cluster) -> None:
    away, writer = cluster.followers()
    cluster.kill(away)
    first = write_each_kind(cluster, writer)
    cluster.put("put", b"later")
    for number in range(90):  # more than the log keeps in memory, so that it must be compacted
        cluster.put(f"big/{number % 10}", os.urandom(16) + b"x" * 1_000_000, via=writer)
    cluster.restart(away, timeout_s=30.0)
    wait_until(lambda: "Installed the snapshot" in cluster.log(away), 20.0, "the follower installs the snapshot")
    cluster.transfer(to=away)
    # It leads now; what it answers is what it got by the snapshot, and so is what it decides for the others.
    for name in cluster.nodes:
        assert write_each_kind(cluster, name) == first, name
    for name in cluster.nodes:
        cluster.kill(name)
    cluster.start()
    assert write_each_kind(cluster, away) == first
    assert cluster.get("put", via=away) == b"later"


def test_writes_that_lost_their_answer_in_a_crash_are_settled_by_sending_them_again(cluster: Cluster) -> None:
    """Each key is put once, as far as its writer can tell; its version says how often it really was."""
    versions: dict[str, int] = {}
    lost: list[str] = []
    stopping = threading.Event()

    def put(via: str, key: str) -> Answer:
        return cluster.request(via, "PUT", f"/v1/kv/{key}", b"1", {"Idempotency-Key": key})

    def write_on(name: str, other: str, thread: int) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            key, via = f"{name}-{thread}-{number}", name
            while not stopping.is_set():
                try:
                    answer = put(via, key)
                    if answer.status == 200:
                        versions[key] = answer.json()["version"]
                        break
                except (OSError, http.client.HTTPException):
                    lost.append(key)
                via = other if via == name else name

    leader = cluster.leader()
    survivor = cluster.followers()[0]
    threads = [threading.Thread(target=write_on, args=(leader, survivor, number)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(versions) >= 300, 20.0, "300 writes")
    cluster.kill(leader)
    wait_until(lambda: lost, 20.0, "a write that lost its answer")
    known = len(versions)
    wait_until(lambda: len(versions) >= known + 300, 20.0, "300 writes more")
    stopping.set()
    for thread in threads:
        thread.join(20.0)
    assert set(versions.values()) == {1}
    assert set(lost) & set(versions), "no write that lost its answer was settled"
    for key in {*lost} & {*versions}:
        assert cluster.request(survivor, "GET", f"/v1/kv/{key}").headers["ETag"] == told(put(survivor, key))[1]


def test_a_flood_of_keyed_writes_pushes_no_outcome_out_that_a_client_may_still_ask_for(cluster: Cluster) -> None:
    """More keyed writes than the cluster keeps in the long run, as fast as it takes them, and then the repetition."""
    leader, follower = cluster.leader(), cluster.followers()[0]
    wait_until(lambda: "feature level 1" in cluster.log(follower), 10.0, "the feature level")
    bodies = json.dumps({"operations": [{"delete": {"key": f"b/{number}"}} for number in range(1_000)]}).encode()
    began = time.monotonic()
    first = write(cluster, leader, "retry-me", b"1")
    batches = iter(range(OUTCOMES_MAX // 1_000 + 5))
    refused: list[str] = []

    def flood(via: str) -> None:
        connection = http.client.HTTPConnection(*cluster.nodes[via].http, timeout=30.0)
        for batch in batches:
            headers = {"Content-Type": "application/json", "Idempotency-Key": f"bulk-{batch}"}
            connection.request("POST", "/v1/batch", bodies, headers)
            response = connection.getresponse()
            results = json.loads(response.read())["results"]
            assert response.status == 200
            refused.extend(each["error"] for each in results if each["error"] != "key_not_found")
        connection.close()

    threads = [threading.Thread(target=flood, args=(via,)) for via in (leader, leader, follower)]
    for thread in threads:
        thread.start()
    # On a machine with more to do not all of them come in this time: what is known has to be known all the same.
    while any(map(threading.Thread.is_alive, threads)) and time.monotonic() - began < REPEAT_WINDOW_S - 2:
        assert write(cluster, follower, "retry-me", b"1") == first
        threads[0].join(0.5)
    if time.monotonic() - began < REPEAT_WINDOW_S - 2:
        assert {name: write(cluster, name, "retry-me", b"1") for name in cluster.nodes} == dict.fromkeys(
            cluster.nodes, first
        )
    for _ in batches:  # no more of them
        pass
    for thread in threads:
        thread.join(60.0)
    assert set(refused) <= {"too_many_requests"}


async def test_the_client_settles_what_a_killed_leader_left_open(cluster: Cluster) -> None:
    leader = await asyncio.to_thread(cluster.leader)
    urls = [cluster.url(leader), *(cluster.url(name) for name in cluster.nodes if name != leader)]
    written = []
    async with Client(urls, 20.0) as client:

        async def write_on(writer: int) -> None:
            for number in range(60):
                written.append(await client.put(f"{writer}/{number}", b"1", if_absent=True))

        writers = [asyncio.create_task(write_on(writer)) for writer in range(16)]
        while len(written) < 300:
            assert not any(task.done() for task in writers)
            await asyncio.sleep(0.01)
        cluster.kill(leader)
        # A put that was carried out without its answer arriving would now be refused: the key exists.
        await asyncio.gather(*writers)
    assert len(written) == 16 * 60
    assert {done.version for done in written} == {1}
