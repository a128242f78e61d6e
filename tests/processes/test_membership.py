"""Members that move, that are removed by force, and learners whose data is not what it should be."""

from __future__ import annotations

from collections.abc import Callable

from tests.cli.command import kvnode
from tests.cluster import Cluster, free_ports, wait_until
from tests.processes.test_divergence import blocking_error, with_another_past
from tests.processes.test_members import change, raft, roles


def test_a_member_moves_and_is_followed_and_by_force_one_goes_whom_the_others_cannot_spare(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(args=["--cluster-id", "blue"]).start()
    moving, staying = cluster.followers()
    cluster.put("before", b"1")
    cluster.terminate(moving)
    cluster.nodes[moving].raft = ("127.0.0.1", free_ports(1)[0])
    here = cluster.url(staying)
    refused = kvnode("member", "add", moving, raft(cluster, moving), "--url", here)
    assert (refused.code, "--moved" in refused.err) == (1, True)
    moved = kvnode("member", "add", moving, raft(cluster, moving), "--moved", "--url", here)
    assert moved.code == 0, moved.err
    cluster.spawn(moving)
    cluster.wait_ready()
    assert cluster.get("before", via=moving) == b"1"
    assert cluster.transfer(moving, via=staying) == moving  # the others have found it, and it leads them
    assert cluster.put("after", b"1", via=staying)["created"]
    cluster.transfer(staying)

    # With one down, no majority would be left without this one: refused, and by force it waits for the other. Until
    # then the one that goes could still lead, with the one that is down; so it is stopped.
    cluster.kill(moving)
    third = next(name for name in cluster.nodes if name not in (moving, staying))
    refused = kvnode("member", "remove", third, "--url", here)
    assert (refused.code, "--force" in refused.err) == (1, True)
    forced = kvnode("member", "remove", third, "--force", "--url", here)
    assert forced.code == 6, forced.err  # nobody can tell yet: what it needs is down
    cluster.kill(third)
    cluster.spawn(moving)
    wait_until(lambda: cluster.probe(moving, "/readyz") == 200, 15.0, "two are enough again")
    wait_until(lambda: roles(cluster, moving) == {moving: "voter", staying: "voter"}, 15.0, f"{third} is removed")
    assert roles(cluster, staying) == roles(cluster, moving)
    cluster.spawn(third)
    assert cluster.wait_exit(third, 15.0) == 1
    assert "was removed from the cluster" in cluster.log(third)
    cluster.leader()
    assert cluster.put("with two", b"1", via=staying)["created"]


def test_a_learner_whose_data_differs_says_so_and_is_not_promoted(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster().start()
    cluster.enlist("n4")
    document = {"id": "n4", "raft": raft(cluster, "n4"), "learner": True}
    assert change(cluster, "n1", "POST", document=document).status == 200
    cluster.spawn("n4")
    wait_until(lambda: cluster.is_ready("n4"), 15.0, "n4 is ready")
    cluster.put("first", b"the true value")
    wait_until(lambda: cluster.get("first", "n4", "stale") is not None, 5.0, "n4 has it")
    cluster.terminate("n4")
    with_another_past(cluster.nodes["n4"].data_dir)
    cluster.spawn("n4")
    wait_until(lambda: "differs from the majority" in blocking_error(cluster, "n4"), 15.0, "n4 says that it differs")
    leader = cluster.leader()
    wait_until(lambda: "The data of node n4 differs" in cluster.log(leader), 5.0, "and the leader")
    refused = change(cluster, "n1", "POST", "/n4/promote")
    assert (refused.status, "differs" in refused.json()["message"]) == (409, True)
    for name in ("n1", "n2", "n3"):
        assert cluster.is_ready(name)
