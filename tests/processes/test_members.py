"""Adding, promoting and removing members of real clusters: nothing is lost, and everybody knows where it stands."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

import pytest

from kvnode.storage.bootstrap import LEAP
from tests.cli.command import kvnode
from tests.cluster import LEADER_PROBE, Answer, Cluster, Refused, wait_until

MEMBERS = "/admin/api/v1/members"


def change(
    cluster: Cluster, via: str, method: str, path: str = "", document: dict[str, Any] | None = None, **options: float
) -> Answer:
    body = None if document is None else json.dumps(document).encode()
    return cluster.request(via, method, MEMBERS + path, body, {"Content-Type": "application/json"}, **options)


def raft(cluster: Cluster, name: str) -> str:
    host, port = cluster.nodes[name].raft
    return f"{host}:{port}"


def roles(cluster: Cluster, via: str) -> dict[str, str]:
    return {each["id"]: each["role"] for each in change(cluster, via, "GET").json()["members"]}


def join(cluster: Cluster, *names: str) -> None:
    """Enlists and starts nodes that join, and waits until each is a voter."""
    for name in names:
        cluster.enlist(name)
        cluster.spawn(name)
        wait_until(
            lambda name=name: cluster.is_ready(name) and roles(cluster, name).get(name) == "voter",  # type: ignore[misc]
            20.0,
            f"{name} has caught up and votes",
        )


class Load:
    """Writers of ever new keys by way of the first cluster's nodes, until told to stop; what was acknowledged."""

    def __init__(self, cluster: Cluster, vias: list[str]) -> None:
        self.acknowledged: list[str] = []
        self.refused = 0
        self._cluster = cluster
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(n, vias)) for n in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, writer: int, vias: list[str]) -> None:
        count = 0
        while not self._stop.is_set():
            key, count = f"load/{writer}/{count}", count + 1
            try:
                self._cluster.put(key, b"x" * 100, via=vias[count % len(vias)])
                self.acknowledged.append(key)
            except (Refused, OSError, HTTPException):
                self.refused += 1


def test_three_become_five_and_three_again_under_load_and_nothing_is_lost(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster().start()
    with Load(cluster, ["n1", "n2", "n3"]) as load:
        wait_until(lambda: len(load.acknowledged) > 100, 10.0, "the load is on")
        join(cluster, "n4", "n5")
        assert roles(cluster, "n1") == dict.fromkeys(("n1", "n2", "n3", "n4", "n5"), "voter")
        cluster.transfer("n5")
        before = len(load.acknowledged)
        for name in ("n1", "n2"):
            answer = change(cluster, "n4", "DELETE", f"/{name}")
            assert answer.status == 200, answer.body
            assert name not in {each["id"] for each in answer.json()["members"]}
            assert cluster.wait_exit(name, 10.0) == 1
            assert f"Node {name} was removed from the cluster" in cluster.log(name)
        wait_until(lambda: len(load.acknowledged) > before + 100, 10.0, "the load goes on")
    assert roles(cluster, "n3") == dict.fromkeys(("n3", "n4", "n5"), "voter")
    for name in ("n3", "n4", "n5"):
        found: set[str] = set()
        cursor = ""
        while True:
            page = cluster.request(name, "GET", f"/v1/kv?prefix=load/&limit=1000&keys_only=true{cursor}").json()
            found |= {item["key"] for item in page["items"]}
            if not page.get("cursor"):
                break
            cursor = f"&cursor={page['cursor']}"
        assert set(load.acknowledged) <= found
    for name in ("n3", "n4", "n5"):  # who the members are is in the log and the snapshots, not in --peers
        cluster.kill(name)
    for name in ("n3", "n4", "n5"):
        cluster.spawn(name)
    cluster.wait_ready()
    assert cluster.put("after", b"1")["revision"] > len(load.acknowledged)


def test_a_leader_that_is_removed_hands_over_first_and_its_directory_knows(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster().start()
    leader = cluster.leader()
    others = [name for name in cluster.nodes if name != leader]
    assert change(cluster, leader, "DELETE", document={"id": leader}).status == 200
    assert cluster.wait_exit(leader, 10.0) == 1
    assert cluster.leader() in others
    assert cluster.put("after", b"1", via=others[0])["created"]
    cluster.spawn(leader)
    assert cluster.wait_exit(leader, 10.0) == 2
    assert "was removed from the cluster" in cluster.log(leader).splitlines()[-1]
    # Its name may come back with an empty directory, by joining.
    shutil.rmtree(cluster.nodes[leader].data_dir)
    cluster.first = others
    cluster.spawn(leader)
    wait_until(lambda: roles(cluster, others[0]).get(leader) == "voter", 15.0, f"{leader} is back as a new member")
    wait_until(lambda: cluster.is_ready(leader), 10.0, f"{leader} is ready")
    assert cluster.get("after", via=leader) == b"1"


def test_a_node_that_was_removed_while_it_was_away_learns_it_from_its_peers(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(env={"KVNODE_CLUSTER_SECRET": "a secret that this cluster shares"}).start()
    away, *others = cluster.followers()
    cluster.kill(away)
    leader = cluster.leader()
    # The one that is down is the one to remove: without either other one, no majority would be left.
    refused = change(cluster, leader, "DELETE", f"/{leader}")
    assert (refused.status, refused.json()["error"], refused.json()["outcome"]) == (409, "conflict", "not_applied")
    refused = change(cluster, others[0], "DELETE", f"/{others[0]}")
    assert refused.status == 409
    assert "--force" in refused.json()["message"]
    assert change(cluster, others[0], "DELETE", "/n9").status == 404
    assert change(cluster, others[0], "DELETE", f"/{away}").status == 200
    cluster.spawn(away)
    assert cluster.wait_exit(away, 10.0) == 1
    assert f"Node {away} was removed from the cluster" in cluster.log(away)
    assert cluster.put("goes on", b"1", via=leader)["created"]


def test_a_learner_stays_one_until_it_is_promoted_and_counts_for_nothing(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster().start()
    cluster.enlist("n4")
    added = change(cluster, "n2", "POST", document={"id": "n4", "raft": raft(cluster, "n4"), "learner": True})
    assert added.status == 200
    assert roles(cluster, "n1")["n4"] == "learner"
    refused = change(cluster, "n1", "POST", "/n4/promote")
    assert refused.status == 409
    assert "does not answer" in refused.json()["message"]
    cluster.spawn("n4")
    wait_until(lambda: cluster.is_ready("n4"), 15.0, "n4 is ready")
    leader = cluster.leader()
    group = cluster.status(leader)
    assert {each["id"]: each["role"] for each in group["members"]}["n4"] == "learner"
    assert cluster.put("by way of a learner", b"1", via="n4")["created"]
    assert cluster.get("by way of a learner", via="n4") == b"1"
    with pytest.raises(Refused):
        cluster.transfer("n4")
    # Two voters of three are gone: the learner makes no majority of the two that are left.
    down = [name for name in ("n1", "n2", "n3") if name != leader]
    for name in down:
        cluster.kill(name)
    wait_until(lambda: cluster.probe(leader, LEADER_PROBE) == 503, 5.0, f"{leader} leads no more")
    watched_until = time.monotonic() + 1.5  # longer than an election timeout
    while time.monotonic() < watched_until:
        assert cluster.probe("n4", LEADER_PROBE) == cluster.probe(leader, LEADER_PROBE) == 503
    for name in down:
        cluster.spawn(name)
    cluster.wait_ready()
    wait_until(lambda: change(cluster, "n4", "POST", "/n4/promote").status == 200, 5.0, "n4 votes")
    assert roles(cluster, "n1")["n4"] == "voter"
    cluster.kill(cluster.leader())
    assert cluster.leader()


def test_a_second_change_while_one_is_under_way_is_refused(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster().start()
    leader = cluster.leader()
    for name in cluster.followers():
        cluster.freeze(name)
    with ThreadPoolExecutor(1) as pool:
        document = {"id": "n4", "raft": "127.0.0.1:7999"}
        first = pool.submit(change, cluster, leader, "POST", "", document)

        def second() -> Answer | None:
            answer = change(cluster, leader, "DELETE", "/n4")
            return answer if answer.status != 404 else None

        refused = wait_until(second, 1.0, "the first change is under way")
        assert (refused.status, refused.json()["error"]) == (409, "conflict")
        assert "under way" in refused.json()["message"]
        answer = first.result()
        assert (answer.status, answer.json()["outcome"]) == (504, "unknown")
    for name in cluster.nodes:
        cluster.thaw(name)
    cluster.wait_ready()
    assert cluster.put("all is well again", b"1")["created"]


def test_a_cluster_that_lost_its_majority_is_recovered_from_one_node_and_the_others_stay_out(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster().start()
    last = [cluster.put(f"key{n}", b"x" * n) for n in range(20)][-1]["revision"]
    survivor, *lost = cluster.nodes
    wait_until(lambda: cluster.get("key19", survivor, "stale") == b"x" * 19, 5.0, "the survivor has it all")
    cluster.stop()
    directory = str(cluster.nodes[survivor].data_dir)
    without_a_word = kvnode("recover", "--data-dir", directory)
    assert (without_a_word.code, "--force-new-cluster" in without_a_word.err) == (2, True)
    cluster.spawn(survivor)
    wait_until(lambda: cluster.probe(survivor, "/healthz") == 200, 10.0, "the survivor runs")
    running = kvnode("recover", "--data-dir", directory, "--force-new-cluster")
    assert running.code == 1
    cluster.terminate(survivor)
    recovered = kvnode("recover", "--data-dir", directory, "--force-new-cluster")
    assert recovered.code == 0, recovered.err
    assert "n2 n3" in recovered.out.decode()
    assert kvnode("verify", "--data-dir", directory).out.decode().splitlines()[-1] == "whole"

    cluster.spawn(survivor)  # with the --peers that it always had
    wait_until(lambda: cluster.leader() == survivor and cluster.is_ready(survivor), 10.0, "it leads, alone")
    assert [cluster.get(f"key{n}", via=survivor) for n in range(20)] == [b"x" * n for n in range(20)]
    revision = cluster.put("new", b"1", via=survivor)["revision"]
    assert revision == last + 1 + LEAP, "no revision is given twice, also not one that only the lost nodes gave"
    watched = cluster.request(survivor, "GET", f"/v1/watch?from_revision={last + 1}&wait=1s")
    assert watched.status == 410, "what the lost nodes wrote from there on is not known here"
    # The others come back as they were: a cluster of their own, which neither hears the recovered one nor is heard.
    for name in lost:
        cluster.spawn(name)
    wait_until(lambda: "belongs to cluster" in cluster.log(survivor), 10.0, f"{survivor} refuses those of the old one")
    for name in lost:
        wait_until(lambda name=name: cluster.is_ready(name), 10.0, f"{name} is ready, among its likes")  # type: ignore[misc]
    assert roles(cluster, survivor) == {survivor: "voter"}
    assert [cluster.get("new", via=name) for name in cluster.nodes] == [b"1", None, None]
    # As the instructions say: empty directories, and joining.
    cluster.first = [survivor]
    for name in lost:
        cluster.kill(name)
        shutil.rmtree(cluster.nodes[name].data_dir)
        cluster.spawn(name)
        wait_until(lambda name=name: roles(cluster, survivor).get(name) == "voter", 15.0, f"{name} votes")  # type: ignore[misc]
    cluster.wait_ready()
    assert [cluster.get("new", via=name) for name in cluster.nodes] == [b"1"] * 3
    cluster.kill(cluster.leader())
    assert cluster.leader()


def test_an_old_directory_does_not_speak_for_a_member_that_was_added_again(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster().start()
    again, *others = cluster.followers()
    cluster.kill(again)
    assert change(cluster, others[0], "DELETE", f"/{again}").status == 200
    added = change(cluster, others[0], "POST", document={"id": again, "raft": raft(cluster, again), "learner": True})
    assert added.status == 200
    cluster.spawn(again)  # on what it held before it was removed
    assert cluster.wait_exit(again, 10.0) == 1
    assert "its name was given to another one" in cluster.log(again)


def test_the_command_line_adds_lists_promotes_and_removes(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(size=1).start()
    url = cluster.url("n1")
    cluster.enlist("n2")
    added = kvnode("member", "add", "n2", raft(cluster, "n2"), "--learner", "--url", url)
    assert added.code == 0, added.err
    assert [line.split("\t")[:2] for line in added.out.decode().splitlines()] == [["n1", "voter"], ["n2", "learner"]]
    assert kvnode("member", "promote", "n2", "--url", url).code == 1
    elsewhere = kvnode("member", "add", "n2", "127.0.0.1:7999", "--url", url)
    assert (elsewhere.code, "--moved" in elsewhere.err) == (1, True)
    cluster.spawn("n2")
    wait_until(lambda: kvnode("member", "promote", "n2", "--url", url).code == 0, 15.0, "n2 has caught up")
    listed = json.loads(kvnode("member", "list", "-o", "json", "--url", cluster.url("n2")).out)
    assert [(each["id"], each["role"], each["http"]) for each in listed["members"]] == [
        ("n1", "voter", url),
        ("n2", "voter", cluster.url("n2")),
    ]
    cluster.put("with both", b"1")
    assert kvnode("member", "remove", "n1", "--url", url).code == 0
    assert cluster.wait_exit("n1", 10.0) == 1
    wait_until(lambda: cluster.probe("n2", LEADER_PROBE) == 200, 5.0, "n2 leads alone")
    assert cluster.get("with both", via="n2") == b"1"
    last = kvnode("member", "remove", "n2", "--url", cluster.url("n2"))
    assert (last.code, "last voter" in last.err) == (1, True)


def test_a_recovered_cluster_gives_no_number_again_that_only_the_lost_ones_knew(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster().start()
    cluster.put("cfg", b"first")
    leader = cluster.leader()
    survivor = cluster.followers()[0]
    wait_until(lambda: cluster.get("cfg", survivor, "stale") == b"first", 5.0, "the survivor has the first write")
    cluster.kill(survivor)  # it misses what follows, all of it acknowledged
    ttl = json.dumps({"ttl": 3_600}).encode()
    lost_lease = cluster.request(leader, "POST", "/v1/leases", ttl).json()["id"]
    lost = [cluster.put("cfg", b"%d" % number, via=leader)["revision"] for number in range(5)]
    token = cluster.put("locks/x", b"holder", via=leader)["revision"]
    for name in cluster.nodes.keys() - {survivor}:
        cluster.kill(name)
    directory = str(cluster.nodes[survivor].data_dir)
    assert kvnode("recover", "--data-dir", directory, "--force-new-cluster").code == 0
    cluster.spawn(survivor)
    wait_until(lambda: cluster.leader() == survivor and cluster.is_ready(survivor), 10.0, "it leads, alone")

    def asked(method: str, path: str, body: bytes | None = None, etag: int | None = None) -> Answer:
        headers = {} if etag is None else {"If-Match": f'"{etag}"'}
        return cluster.request(survivor, method, path, body, headers)

    for number in range(5):  # as many as the old cluster wrote after the survivor had gone
        assert cluster.put("cfg", b"new%d" % number, via=survivor)["revision"] > token
    for revision in lost:
        assert asked("PUT", "/v1/kv/cfg", b"clobbered", revision).status == 412
        watched = asked("GET", f"/v1/watch?key=cfg&from_revision={revision + 1}&wait=1s")
        assert (watched.status, watched.json()["error"]) == (410, "compacted")
    assert cluster.put("locks/x", b"next holder", via=survivor)["revision"] > token
    lease = asked("POST", "/v1/leases", ttl).json()["id"]
    assert lease > lost_lease
    assert asked("PUT", f"/v1/kv/mine?lease={lease}", b"1").status == 200
    assert asked("POST", f"/v1/leases/{lost_lease}/keepalive").status == 404
    assert asked("DELETE", f"/v1/leases/{lost_lease}").status == 404
    assert cluster.get("mine", via=survivor) == b"1"
