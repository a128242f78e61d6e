"""A node with another history under the same indexes and terms: it says so and steps aside, the others serve."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvnode.storage import identity
from kvnode.storage.disk import Directory
from kvnode.storage.records import entry_record, state_record
from kvnode.storage.segments import Segments
from tests.cluster import Cluster, wait_until
from tests.observability.page import page


def with_another_past(data_dir: Path) -> None:
    """Rewrites a stopped node's journal with one value changed, everything in it checksummed and in order."""
    aside = data_dir.with_suffix(".aside")
    data_dir.rename(aside)
    data_dir.mkdir()
    shutil.copy(aside / identity.FILE, data_dir)
    old, new = Directory(aside), Directory(data_dir)
    cluster_id = identity.written(old).cluster_id
    recovered = Segments(old, cluster_id).recover()
    changed = [entry for entry in recovered.entries if b"the true value" in entry[0]]
    assert len(changed) == 1
    records = [state_record(recovered.term, recovered.vote)]
    for command, index, term in recovered.entries:
        records += entry_record(command.replace(b"the true value", b"another value!"), index, term)
    segments = Segments(new, cluster_id)
    segments.recover()
    segments.append(records, recovered.entries[-1][1], records[0], sync=True)
    old.close()
    new.close()


def blocking_error(cluster: Cluster, name: str) -> str:
    """What /readyz says of it; empty while the node does not answer yet."""
    if cluster.probe(name, "/readyz") is None:
        return ""
    checks = cluster.request(name, "GET", "/readyz").json()["checks"]
    return str(next(check["message"] for check in checks if check["name"] == "blocking_errors"))


@pytest.mark.parametrize("writes", [5, 100])
def test_a_node_with_another_history_becomes_unready_and_the_others_do_not(cluster: Cluster, writes: int) -> None:
    cluster.put("first", b"the true value")
    for number in range(writes):
        cluster.put(f"k/{number}", b"x")
    cluster.stop()
    with_another_past(cluster.nodes["n2"].data_dir)
    for name in cluster.nodes:
        cluster.spawn(name)
    wait_until(lambda: "differs from the majority" in blocking_error(cluster, "n2"), 15.0, "n2 says that it differs")
    assert "move its data directory away" in blocking_error(cluster, "n2")
    assert "This node's data differs" in cluster.log("n2")
    assert cluster.probe("n2", "/readyz") == 503
    assert cluster.probe("n2", "/livez") == 200
    for name in ("n1", "n3"):
        wait_until(lambda name=name: cluster.is_ready(name), 5.0, f"{name} is ready")
        assert "The data of node n2 differs" in cluster.log(name)
    for name in cluster.nodes:
        differing = {node: page(cluster, name).of("kvnode_raft_digest_mismatch", member=node) for node in cluster.nodes}
        assert differing == {"n1": 0, "n2": 1, "n3": 0}
    assert page(cluster, "n2").of("kvnode_ready", check="blocking_errors") == 0


def reaches(cluster: Cluster, name: str, peer: str) -> bool:
    """Whether `name` has a connection to `peer`: two of three can elect before the third has started."""
    members = cluster.status(name)["members"]
    return any(member["id"] == peer and member["reachable"] for member in members)


def test_a_leader_that_differs_hands_over_and_a_new_directory_makes_the_node_whole(cluster: Cluster) -> None:
    cluster.put("first", b"the true value")
    cluster.stop()
    with_another_past(cluster.nodes["n2"].data_dir)
    for name in cluster.nodes:
        cluster.spawn(name)
    leader = cluster.leader()
    wait_until(lambda: reaches(cluster, leader, "n2"), 10.0, f"{leader} is connected to n2")
    cluster.transfer("n2", via=leader)
    wait_until(lambda: cluster.leader() != "n2", 15.0, "n2 does not lead any more")
    wait_until(lambda: cluster.probe("n2", "/readyz") == 503, 5.0, "n2 is unready")
    assert cluster.get("first") == b"the true value"
    cluster.kill("n2")
    cluster.nodes["n2"].data_dir.rename(cluster.folder / "n2.wrong")
    cluster.restart("n2")
    assert cluster.get("first", via="n2") == b"the true value"
    for name in cluster.nodes:
        assert cluster.probe(name, "/readyz") == 200
