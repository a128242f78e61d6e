"""A backup of 300,000 keys and 50 MB goes into a running cluster: whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import json
import socket
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvnode.state.store import KeyValueStore
from kvnode.storage import backup
from tests.cli.command import kvnode
from tests.cluster import Answer, Cluster, wait_until

RESTORE = "/admin/api/v1/restore"
KEYS = 300_000
BOTH = json.dumps({"success": [{"get": {"key": "a"}}, {"get": {"key": "z"}}]}).encode()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = KeyValueStore()
    store.apply([1, "a", b"new", "", None])
    for number in range(KEYS - 2):
        store.apply([1, f"k/{number:06}", b"%06d" % number * 25, "", None])
    store.apply([1, "z", b"new", "", None, None, 0, 3_600])
    path = tmp_path_factory.mktemp("backup") / "file"
    with path.open("wb") as out:
        out.writelines(backup.pieces(store.view(), "c"))
    assert path.stat().st_size > 50_000_000
    return path


def both(cluster: Cluster, via: str) -> str | None:
    """The values of the first and the last key in one revision, which are the same at all times."""
    answer = cluster.request(via, "POST", "/v1/txn", BOTH, timeout_s=20.0)
    if answer.status != 200:
        return None
    first, last = (b64decode(result["get"]["value"]).decode() for result in answer.json()["results"])
    assert first == last
    return first


@contextmanager
def looked_at(cluster: Cluster, via: str) -> Iterator[list[str]]:
    """Reads all the while; what was seen, in order, each once in a row."""
    seen: list[str] = []
    wrong: list[BaseException] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                value = both(cluster, via)
            except OSError:
                continue
            except BaseException as error:
                wrong.append(error)
                return
            if value is not None and seen[-1:] != [value]:
                seen.append(value)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        yield seen
    finally:
        stop.set()
        reader.join()
    assert not wrong, wrong


def put_both(cluster: Cluster, via: str) -> None:
    puts = [{"put": {"key": key, "value": "b2xk"}} for key in ("a", "z")]
    answer = cluster.request(via, "POST", "/v1/txn", json.dumps({"success": puts}).encode())
    assert answer.status == 200, answer.body


def in_background(cluster: Cluster, via: str, data: bytes) -> tuple[threading.Thread, list[Answer]]:
    answers: list[Answer] = []
    thread = threading.Thread(
        target=lambda: answers.append(cluster.request(via, "POST", RESTORE, data, timeout_s=200.0))
    )
    thread.start()
    return thread, answers


def last_index(cluster: Cluster, name: str) -> int:
    """How far the leader `name` is: its log's end."""
    members = cluster.status(name)["members"]
    return int(next(member["match_index"] for member in members if member["id"] == name))


def test_it_is_seen_whole_or_not_at_all_while_nodes_restart_and_a_leader_is_killed(
    make_cluster: Callable[..., Cluster], file: Path
) -> None:
    cluster = make_cluster().start()
    leader = cluster.leader()
    asked, other = cluster.followers()
    put_both(cluster, leader)
    cluster.put("only before", b"1")
    term, before = cluster.status(leader)["term"], last_index(cluster, leader)

    with looked_at(cluster, leader) as seen:
        restoring = threading.Thread(target=lambda: done.append(restore()))

        def restore() -> Any:
            return kvnode("restore", str(file), "--url", cluster.url(asked), "--timeout", "200", "-o", "json")

        done: list[Any] = []
        restoring.start()
        wait_until(lambda: last_index(cluster, leader) > before + 60, 60.0, "some of it has come in")
        cluster.kill(other)
        cluster.spawn(other)
        cluster.wait_ready(60.0)
        assert restoring.is_alive(), "it goes on meanwhile"
        restoring.join(200.0)
    assert done[0].code == 0, done[0].err
    assert json.loads(done[0].out)["items"] == KEYS
    assert seen == ["old", "new"]
    assert cluster.status(leader)["term"] == term, "no node stood still for an election timeout"
    for name in cluster.nodes:
        assert cluster.get("only before", via=name) is None
        assert cluster.get("k/299997", via=name) == b"299997" * 25

    put_both(cluster, leader)
    cluster.put("only before", b"2")
    before = last_index(cluster, leader)
    with looked_at(cluster, other) as seen:
        thread, answers = in_background(cluster, asked, file.read_bytes())
        wait_until(lambda: last_index(cluster, leader) > before + 60, 60.0, "some of it has come in")
        cluster.kill(leader)
        thread.join(200.0)
    (answer,) = answers
    cluster.spawn(leader)
    cluster.wait_ready(60.0)
    if answer.status == 200:
        assert seen == ["old", "new"]
    else:
        assert (answer.status, answer.json()["outcome"]) == (503, "not_applied"), answer.body
        assert seen == ["old"]
    for name in cluster.nodes:
        assert both(cluster, name) == seen[-1]
        assert (cluster.get("only before", via=name) is None) is (seen[-1] == "new")


def test_a_client_that_goes_away_or_sends_something_crafted_leaves_nothing_behind(
    make_cluster: Callable[..., Cluster], file: Path
) -> None:
    cluster = make_cluster(size=1).start()
    put_both(cluster, "n1")
    whole = file.read_bytes()
    before = last_index(cluster, "n1")
    with socket.create_connection(cluster.nodes["n1"].http) as client:
        head = f"POST {RESTORE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        client.sendall(f"{head}Content-Length: {len(whole)}\r\n\r\n".encode() + whole[:5_000_000])
        wait_until(lambda: last_index(cluster, "n1") > before + 20, 30.0, "it has begun")
        busy = cluster.request("n1", "POST", RESTORE, whole[:1_000])
        assert (busy.status, busy.json()["error"]) == (503, "overloaded")
    altered = bytearray(whole[:8_000_000])
    altered[-100_000] ^= 1

    def refused() -> Answer | None:
        answer = cluster.request("n1", "POST", RESTORE, bytes(altered), timeout_s=60.0)
        return answer if answer.status != 503 else None

    answer = wait_until(refused, 30.0, "the one whose client went away has ended")
    assert (answer.status, answer.json()["outcome"]) == (400, "not_applied")
    assert both(cluster, "n1") == "old"
    cluster.kill("n1")
    cluster.restart("n1")
    assert both(cluster, "n1") == "old"
