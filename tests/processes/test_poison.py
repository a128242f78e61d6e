"""Crafted backups before a cluster of real nodes, and data directories that an older version was poisoned in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgpack
import pytest

from kvnode.configuration import first_cluster
from kvnode.state.admin_commands import packed_contents
from kvnode.state.commands import PUT, REPLACE
from kvnode.state.entries import encode_entry, encode_group
from kvnode.state.items import Item
from kvnode.state.store import KeyValueStore
from kvnode.storage import identity
from kvnode.storage.disk import Directory
from kvnode.storage.journal import Journal
from kvnode.storage.segments import Segments
from kvnode.storage.snapshots import Snapshots
from tests.cli.command import is_one_sentence, kvnode
from tests.cluster import Cluster, wait_until
from tests.hostile.crafted import CRAFTED, ONLY_IN_A_SNAPSHOT, SOUND, backup_of, chunks_of

RESTORE = "/admin/api/v1/restore"
BOOM = CRAFTED["a version that cannot be counted on"]


def test_a_crafted_backup_is_refused_for_certain_and_every_node_lives(cluster: Cluster, tmp_path: Path) -> None:
    pids = {name: cluster.pid(name) for name in cluster.nodes}
    term = cluster.status("n1")["term"]
    for number, (name, crafted) in enumerate({**CRAFTED, **ONLY_IN_A_SNAPSHOT}.items()):
        via = list(cluster.nodes)[number % 3]
        revision = cluster.put("a", name.encode(), via=via)["revision"]
        answer = cluster.request(via, "POST", RESTORE, backup_of(crafted))
        assert (answer.status, answer.json()["error"], answer.json()["outcome"]) == (400, "bad_request", "not_applied")
        # The node says the first of what it reads itself, and the second where the cluster refuses a piece of it.
        said = answer.json()["message"]
        assert said.startswith(("This is no whole backup (", "The backup breaks a limit, or is not whole (")), name
        assert "): nothing was restored" in said, name
        assert cluster.get("a", via=via) == name.encode(), name
        assert cluster.put("b", b"1", via=via)["revision"] == revision + 1, name
    assert cluster.request("n1", "POST", RESTORE, backup_of(SOUND["the highest counters"])).status == 200
    assert all(cluster.put("a", b"2", via=name)["created"] is False for name in cluster.nodes)
    assert {name: cluster.pid(name) for name in cluster.nodes} == pids
    assert cluster.status("n1")["term"] == term
    assert b"kvnode_apply_errors_total 0.0" in cluster.request("n1", "GET", "/metrics").body

    file = tmp_path / "crafted"
    file.write_bytes(backup_of(BOOM))
    for arguments in (("restore", str(file), "--url", cluster.url("n1"), "--yes"),
                      ("restore", str(file), "--data-dir", str(tmp_path / "new")), ("verify", str(file))):  # fmt: skip
        refused = kvnode(*arguments)
        assert (refused.code, "an item was created and changed" in refused.out.decode() + refused.err) == (1, True)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def alone(tmp_path: Path) -> Cluster:
    """One node, stopped, with a few keys."""
    cluster = Cluster(tmp_path, size=1)
    with cluster:
        cluster.start()
        for number in range(3):
            cluster.put(f"k/{number}", b"1")
        cluster.stop()
    return cluster


def append(data_dir: Path, *commands: bytes) -> list[int]:
    """The indexes of new entries, one for each command, as a node of 0.1.0 would have agreed on them."""
    disk = Directory(data_dir)
    segments = Segments(disk, identity.written(disk).cluster_id)
    journal = Journal(segments.recover())
    _, last, term = journal[-1]
    for index, command in enumerate(commands, last + 1):
        journal.add(b"\x00" + encode_entry([encode_group(b"originor", index, [command])]), index, term)
    flight = journal.begin_flight()
    assert flight is not None
    segments.append(flight.buffers, flight.last_index, flight.state, sync=True)
    disk.close()
    return list(range(last + 1, last + 1 + len(commands)))


def poison(data_dir: Path) -> list[int]:
    """What 0.1.0 ends at: a backup with a version that cannot be counted on, and a put of that key."""
    replacing = msgpack.packb([REPLACE, packed_contents(chunks_of(BOOM))], use_bin_type=True)
    return append(data_dir, replacing, msgpack.packb([PUT, "a", b"2", "", None], use_bin_type=True))


def test_a_log_that_0_1_0_ends_at_is_found_served_and_left_behind(alone: Cluster) -> None:
    data_dir = alone.nodes["n1"].data_dir
    replaced, put = poison(data_dir)
    found = kvnode("verify", "--data-dir", str(data_dir), "-o", "json")
    document = json.loads(found.out)
    assert (found.code, document["verdict"], document["damage"]) == (1, "poisoned", [])
    assert [(each["index"], each["commands"]) for each in document["poisoned"]] == [(replaced, 1)]
    shown = kvnode("verify", "--data-dir", str(data_dir)).out.decode().splitlines()[-1]
    assert shown.startswith(f"poisoned: entry {replaced}: the backup cannot be read: ")
    assert shown.endswith("leave the entry out with 'kvnode recover --skip-entry'.")

    copy = data_dir.with_name("copy")
    shutil.copytree(data_dir, copy)
    for index in (put, replaced + 100, replaced - 1):
        refused = kvnode("recover", "--data-dir", str(copy), "--skip-entry", str(index))
        assert (refused.code, f"poisoned here: {replaced}" in refused.err) == (1, True)
        assert is_one_sentence(refused.err)
    recovered = kvnode("recover", "--data-dir", str(copy), "--skip-entry", str(replaced))
    assert (recovered.code, recovered.err) == (0, "")
    assert f"left out    entry {replaced}: " in recovered.out.decode()
    assert kvnode("verify", "--data-dir", str(copy)).out.decode().splitlines()[-1] == "whole"

    with alone:
        alone.start()
        assert (alone.get("a"), alone.get("k/2")) == (b"2", b"1")
        assert alone.put("a", b"3")["version"] == 2
        alone.stop()


def test_where_nothing_is_poisoned_no_entry_is_left_out(alone: Cluster) -> None:
    data_dir = alone.nodes["n1"].data_dir
    before = {path.name: path.read_bytes() for path in data_dir.iterdir()}
    refused = kvnode("recover", "--data-dir", str(data_dir), "--skip-entry", "4")
    assert (refused.code, "none here is poisoned" in refused.err, is_one_sentence(refused.err)) == (1, True, True)
    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == before


def test_a_snapshot_that_breaks_the_limits_stops_a_start_and_recover_keeps_its_values(alone: Cluster) -> None:
    """As a node of 0.1.0 can have written it after it had taken in a crafted backup."""
    data_dir = alone.nodes["n1"].data_dir
    disk = Directory(data_dir)
    cluster_id = identity.written(disk).cluster_id
    _, index, term = Journal(Segments(disk, cluster_id).recover())[-1]
    store = KeyValueStore()
    items = {
        "a": Item(b"kept", "text/plain", 1, 1, 2**64 - 1),
        "b": Item(b"kept", "", 9, 5, 1),
        "c" * 2_000: Item(b"lost", "", 1, 1, 1),
        "d": Item(b"whole", "", 2, 6, 3),
    }
    store.restore(2**64 - 2, items.items())
    Snapshots(disk, cluster_id).write(index, term, first_cluster({"n1": alone.nodes["n1"].raft}), store.view())
    disk.close()

    found = kvnode("verify", "--data-dir", str(data_dir))
    verdict = found.out.decode().splitlines()[-1]
    assert (found.code, "breaks a limit" in verdict, "'kvnode recover' keeps what is sound" in verdict) == (
        1,
        True,
        True,
    )
    with alone:
        alone.spawn("n1")
        assert alone.wait_exit("n1", 15.0) != 0
        assert "breaks a limit" in alone.log("n1")
        assert "Traceback" not in alone.log("n1")

        recovered = kvnode("recover", "--data-dir", str(data_dir), "--force-new-cluster")
        assert (recovered.code, recovered.err) == (0, "")
        assert "salvaged    2 items begin anew, 1 could not be kept" in recovered.out.decode()
        alone.start()
        assert (alone.get("a"), alone.get("b"), alone.get("d")) == (b"kept", b"kept", b"whole")
        answer = alone.request("n1", "GET", "/v1/kv/a")
        assert answer.headers["Content-Type"] == "text/plain"
        assert alone.put("a", b"new")["version"] == 2
        alone.stop()
    assert kvnode("verify", "--data-dir", str(data_dir)).code == 0


def test_a_failure_inside_apply_is_loud_and_ends_no_node(tmp_path: Path) -> None:
    """With a fault put into the program: the nodes answer it alike, say at which entry, count it and go on."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import kvnode.state.store\n"
        "write = kvnode.state.store.KeyValueStore._delete\n"
        "def _delete(self, request):\n"
        "    deleted = write(self, request)\n"
        "    if request[1] == 'boom':\n"
        "        raise KeyError('inside')\n"
        "    return deleted\n"
        "kvnode.state.store.KeyValueStore._delete = _delete\n"
    )
    with Cluster(tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}) as cluster:
        cluster.start()
        revision = cluster.put("boom", b"1")["revision"]
        for name in cluster.nodes:
            answer = cluster.request(name, "DELETE", "/v1/kv/boom")
            assert (answer.status, answer.json()["outcome"]) == (400, "not_applied")
            assert "KeyError" not in answer.body.decode()
        assert cluster.get("boom") == b"1"
        assert cluster.put("after", b"1")["revision"] == revision + 1

        def counted(name: str) -> bool:
            return b"kvnode_apply_errors_total 3.0" in cluster.request(name, "GET", "/metrics").body

        for name in cluster.nodes:
            wait_until(lambda name=name: counted(name), 10.0, f"{name} has met the fault three times")  # type: ignore[misc]
            log = cluster.log(name)
            assert "The state machine failed at a command in entry" in log
            assert "KeyError: 'inside'" in log
            assert cluster.is_ready(name)
        assert set(cluster.stop().values()) == {0}
