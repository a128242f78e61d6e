"""Backups of a running cluster under load, and the cluster that is made of one."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvnode.state.store import KeyValueStore
from kvnode.storage import backup
from tests.cli.command import kvnode
from tests.cluster import Cluster, free_ports, wait_until

PATH = "/admin/api/v1/backup"
RESTORE = "/admin/api/v1/restore"


def put_both(cluster: Cluster, via: str, number: int) -> None:
    """Two keys in one transaction: a state in which they differ never was."""
    value = b64encode(b"%d" % number).decode()
    puts = [{"put": {"key": key, "value": value}} for key in ("a", "z")]
    body = json.dumps({"compare": [], "success": puts, "failure": []}).encode()
    assert cluster.request(via, "POST", "/v1/txn", body).status == 200


def test_a_backup_of_any_node_is_of_one_revision_under_writes_and_has_all_that_was_acknowledged(
    cluster: Cluster, tmp_path: Path
) -> None:
    for number in range(300):
        cluster.put(f"m/{number:03}", bytes(20_000), via="n1")
    done: list[int] = []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            put_both(cluster, "n1", len(done))
            done.append(len(done))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for name in cluster.nodes:
            wait_until(lambda: len(done) > 5, 10.0, "the writer writes")
            acknowledged, file = len(done) - 1, tmp_path / f"{name}.kvnb"
            saved = kvnode("backup", str(file), "--url", cluster.url(name), "-o", "json")
            assert saved.code == 0, saved.err
            said: dict[str, Any] = json.loads(saved.out)
            head, store = backup.load(file)
            a, z = store.get("a"), store.get("z")
            assert a is not None
            assert z is not None
            assert (a.value, a.mod_revision) == (z.value, z.mod_revision)
            assert int(a.value) >= acknowledged
            assert (head.revision, head.items, len(store)) == (said["revision"], 302, said["items"])
            assert (
                head.cluster_id == json.loads(cluster.request(name, "GET", "/admin/api/v1/members").body)["cluster_id"]
            )
    finally:
        stop.set()
        writer.join()
    verified = kvnode("verify", str(tmp_path / "n1.kvnb"))
    assert (verified.code, verified.out.decode().splitlines()[-1]) == (0, "whole")
    assert list(tmp_path.glob("*.part")) == []


def test_a_client_that_goes_away_and_a_missing_leader(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    cluster = make_cluster().start()
    for number in range(200):
        cluster.put(f"m/{number}", bytes(100_000))
    for _ in range(3):  # more than may be under way at once: each that was left makes room
        with socket.create_connection(cluster.nodes["n1"].http) as client:
            client.sendall(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
        wait_until(lambda: cluster.request("n1", "GET", PATH).status == 200, 10.0, "there is room for another backup")
    for name in ("n2", "n3"):
        cluster.kill(name)
    file = tmp_path / "file"
    file.write_bytes(b"the one before")
    refused = kvnode("backup", str(file), "--url", cluster.url("n1"))
    assert (refused.code, file.read_bytes()) == (5, b"the one before")
    assert kvnode("backup", str(file), "--stale", "--url", cluster.url("n1")).code == 0
    assert backup.check(file).items == 200


def test_no_more_backups_at_once_than_a_node_can_bear(cluster: Cluster) -> None:
    for number in range(200):
        cluster.put(f"m/{number}", bytes(100_000))
    clients = [socket.create_connection(cluster.nodes["n1"].http) for _ in range(2)]
    try:
        for client in clients:
            client.sendall(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")  # and reads no further
        answer = cluster.request("n1", "GET", PATH)
        assert (answer.status, answer.json()["error"], answer.headers["Retry-After"]) == (503, "overloaded", "1")
        assert cluster.put("other", b"1")["created"]
    finally:
        for client in clients:
            client.close()


def test_a_new_cluster_of_a_backup_has_all_of_it_far_above_its_revision(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(size=1).start()
    for number in range(50):
        cluster.put(f"k{number}", b"%d" % number)
    file = tmp_path / "file"
    assert kvnode("backup", str(file), "--url", cluster.url("n1")).code == 0
    lost = cluster.put("k1", b"after the backup")["revision"]
    cluster.kill("n1")

    new = make_cluster(size=1)
    node = new.nodes["n1"]
    raft = f"{node.raft[0]}:{node.raft[1]}"
    place = ("--data-dir", str(node.data_dir), "--raft", raft)
    whole = file.read_bytes()
    for broken in (whole[:-1], whole[:-500] + bytes([whole[-500] ^ 1]) + whole[-499:]):
        (tmp_path / "broken").write_bytes(broken)
        assert kvnode("verify", str(tmp_path / "broken")).code == 1
        refused = kvnode("restore", str(tmp_path / "broken"), *place)
        assert (refused.code, node.data_dir.exists()) == (1, False)
        assert "no whole backup" in refused.err
    done = kvnode("restore", str(file), *place, "-o", "json")
    assert done.code == 0, done.err
    revision = json.loads(done.out)["revision"]
    assert revision > lost
    assert kvnode("restore", str(file), *place).code == 1  # never over what is there
    new.start()
    assert new.get("k1") == b"1"
    written = new.put("k1", b"2")
    assert (written["revision"], written["version"]) == (revision + 1, 2)
    gone = new.request("n1", "GET", f"/v1/watch?prefix=&from_revision={lost}&wait=1s")
    assert b"compacted" in gone.body
    new.enlist("n4")
    new.spawn("n4")
    new.wait_ready()
    assert new.get("k49", via="n4") == b"49"


def test_nothing_is_left_of_a_backup_that_could_not_be_made(tmp_path: Path) -> None:
    refused = kvnode("backup", str(tmp_path / "file"), "--url", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert (refused.code, list(tmp_path.iterdir())) == (5, [])
    assert kvnode("backup", str(tmp_path / "no" / "file")).code == 1


def test_a_running_cluster_takes_a_backup_in_one_revision_above_all_and_a_broken_one_not_at_all(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster().start()
    follower = cluster.followers()[0]
    for number in range(300):
        cluster.put(f"k{number}", b"%d" % number)
    assert cluster.request("n1", "PUT", "/v1/kv/leased?ttl=2", b"1").status == 200
    file = tmp_path / "file"
    assert kvnode("backup", str(file), "--url", cluster.url("n1")).code == 0
    cluster.put("k1", b"after the backup")
    assert cluster.request("n1", "DELETE", "/v1/kv/k2").status == 200

    whole = file.read_bytes()
    cut, altered = whole[:-1], whole[:-500] + bytes([whole[-500] ^ 1]) + whole[-499:]
    for broken in (b"", cut, altered, whole + b"x"):
        answer = cluster.request(follower, "POST", RESTORE, broken)
        assert (answer.status, answer.json()["outcome"]) == (400, "not_applied"), broken[:20]
    (tmp_path / "broken").write_bytes(altered)
    refused = kvnode("restore", str(tmp_path / "broken"), "--url", cluster.url(follower))
    assert (refused.code, "no whole backup" in refused.err) == (1, True)
    assert (cluster.get("k1"), cluster.get("k2")) == (b"after the backup", None)
    wait_until(lambda: cluster.get("leased") is None, 10.0, "the lease has ended")
    last = cluster.put("new", b"1")["revision"]

    watches = {}
    for name in cluster.nodes:
        connection = http.client.HTTPConnection(*cluster.nodes[name].http, timeout=10)
        connection.request("GET", f"/v1/watch?prefix=&from_revision={last}")
        watches[name] = connection.getresponse()
    done = kvnode("restore", str(file), "--url", cluster.url(follower), "-o", "json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert (said["items"], said["revision"]) == (301, last + 1)
    for name, stream in watches.items():
        assert "event: compacted" in stream.read().decode(), name  # to its end
        assert (cluster.get("k1", via=name), cluster.get("k2", via=name)) == (b"1", b"2")
        assert cluster.get("new", via=name) is None
        gone = cluster.request(name, "GET", f"/v1/watch?prefix=&from_revision={last}&wait=1s")
        assert gone.status == 410
    assert cluster.put("k1", b"2")["revision"] == last + 2
    assert cluster.get("leased") == b"1"
    wait_until(lambda: cluster.get("leased") is None, 10.0, "the lease of the backup ends as well, in its time")
    for name in cluster.nodes:  # and from the log, on all of them
        cluster.kill(name)
    for name in cluster.nodes:
        cluster.spawn(name)
    cluster.wait_ready()
    assert [cluster.get(key, via=follower) for key in ("k1", "k299", "new")] == [b"2", b"299", None]
    big = KeyValueStore()
    for number in range(5):
        big.apply([1, f"big{number}", os.urandom(1_000_000), "", None])
    answer = cluster.request("n1", "POST", RESTORE, b"".join(backup.pieces(big.view(), "c")))
    assert (answer.status, answer.json()["items"]) == (200, 5)  # of 5 MB that cannot be compressed
    assert (cluster.get("k299"), len(cluster.get("big4") or b"")) == (None, 1_000_000)


def test_a_cluster_made_of_a_backup_gives_no_lease_again_that_only_the_old_one_knew(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    old = make_cluster(size=1).start()
    old.put("a", b"1")
    file = tmp_path / "file"
    assert kvnode("backup", str(file), "--url", old.url("n1")).code == 0
    ttl = json.dumps({"ttl": 3_600}).encode()
    theirs = old.request("n1", "POST", "/v1/leases", ttl).json()["id"]
    lost = old.put("a", b"after the backup")["revision"]
    old.kill("n1")

    offline = make_cluster(size=1)
    node = offline.nodes["n1"]
    raft = f"{node.raft[0]}:{node.raft[1]}"
    assert kvnode("restore", str(file), "--data-dir", str(node.data_dir), "--raft", raft).code == 0
    online = make_cluster(size=1).start()
    wait_until(lambda: online.status("n1").get("feature_level") == 1, 10.0, "a cluster of this version knows leaps")
    own = online.put("b", b"1")["revision"]
    assert kvnode("restore", str(file), "--url", online.url("n1")).code == 0
    for cluster in (offline.start(), online):
        mine = cluster.request("n1", "POST", "/v1/leases", ttl).json()["id"]
        assert mine > theirs + 1_000
        assert cluster.request("n1", "PUT", f"/v1/kv/mine?lease={mine}", b"1").status == 200
        assert cluster.request("n1", "POST", f"/v1/leases/{theirs}/keepalive").status == 404
        assert cluster.request("n1", "DELETE", f"/v1/leases/{theirs}").status == 404
        assert cluster.get("mine") == b"1"
        assert cluster.put("a", b"2")["revision"] > lost + own + 1_000
        stale = cluster.request("n1", "PUT", "/v1/kv/a", b"clobbered", {"If-Match": f'"{lost}"'})
        assert stale.status == 412
        gone = cluster.request("n1", "GET", f"/v1/watch?prefix=&from_revision={lost + 1}&wait=1s")
        assert (gone.status, gone.json()["error"]) == (410, "compacted")
