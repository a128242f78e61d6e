"""A voter whose data directory is lost: it must not help to make a majority that forgets what was acknowledged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from kvnode.state.commands import RaiseLevel
from tests.cluster import LEADER_PROBE, Cluster, wait_until
from tests.processes.test_poison import append


def role(cluster: Cluster, name: str, via: str) -> str:
    """Of a member, as the configuration has it: one that was replaced is a "new" one."""
    members = cluster.request(via, "GET", "/admin/api/v1/members").json()["members"]
    found = next(each for each in members if each["id"] == name)
    return f"{'new ' if found['since'] else ''}{found['role']}"


def test_an_acknowledged_write_outlives_a_voter_that_forgot_it(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster().start()
    holder = cluster.leader()
    wiped, late = cluster.followers()
    cluster.put("before", b"1")
    wait_until(lambda: cluster.get("before", via=late, consistency="stale") == b"1", 5.0, "all have it")
    cluster.kill(late)
    cluster.put("promised", b"by the two that were up", via=holder)
    cluster.kill(holder)
    cluster.kill(wiped)
    shutil.rmtree(cluster.nodes[wiped].data_dir)
    cluster.spawn(late)
    cluster.spawn(wiped)  # just as before, with --peers

    def says_so() -> str:
        if cluster.probe(wiped, "/readyz/blocking_errors") != 503:
            return ""
        return str(cluster.request(wiped, "GET", "/readyz/blocking_errors").json()["message"])

    wait_until(says_so, 10.0, "it says what is wrong with it")
    assert f"kvnode member replace {wiped}" in says_so()
    assert cluster.status(wiped)["term"] == 0
    began = time.monotonic()
    while time.monotonic() - began < 4.0:  # some elections long; and nothing may happen in it
        assert [cluster.probe(name, LEADER_PROBE) for name in (wiped, late)] == [503, 503]
        assert cluster.status(wiped)["leader_id"] is None
        time.sleep(0.1)
    for asked in (wiped, late):  # whichever of them it is pointed at
        found = subprocess.run(
            [sys.executable, "-m", "kvnode", "doctor", "--url", cluster.url(asked), "--data-dir", str(cluster.folder)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert found.returncode == 1
        assert f"{wiped} has lost its data directory and does not vote" in found.stdout, found.stdout + found.stderr
        assert f"kvnode member replace {wiped}" in found.stdout
        assert f"do not reach {wiped}" not in found.stdout, "it runs, and to start it would not help"
    cluster.spawn(holder)
    cluster.leader()
    wait_until(lambda: role(cluster, wiped, via=holder) == "new voter", 15.0, "it has caught up and votes again")
    cluster.wait_ready()
    for name in cluster.nodes:
        assert cluster.get("promised", via=name) == b"by the two that were up"
    assert (role(cluster, holder, via=late), role(cluster, late, via=holder)) == ("voter", "voter")
    cluster.kill(holder)  # its voice counts again
    assert cluster.leader() != holder
    cluster.restart(holder)
    cluster.kill(wiped)
    cluster.restart(wiped)
    assert cluster.get("promised", via=wiped) == b"by the two that were up"


def test_a_member_that_met_a_voter_knows_that_its_directory_is_another(make_cluster: Callable[..., Cluster]) -> None:
    """Before any feature level: all three were never up at once."""
    cluster = make_cluster()
    for name in ("n2", "n3"):
        cluster.spawn(name)
    cluster.put("before", b"1", via=cluster.leader())
    for name in ("n2", "n3"):
        wait_until(partial(met, cluster, name), 5.0, f"{name} has noted whom it met")
    cluster.kill("n3")
    cluster.spawn("n1")
    wait_until(lambda: cluster.is_ready("n1"), 10.0, "n1 is ready")
    cluster.put("promised", b"by the two that were up", via=cluster.leader())
    assert cluster.status("n1").get("feature_level", 0) == 0
    wait_until(lambda: met(cluster, "n1"), 5.0, "n1 has noted whom it met")
    for name in ("n1", "n2"):
        cluster.kill(name)
    shutil.rmtree(cluster.nodes["n2"].data_dir)
    for name in ("n2", "n3"):
        cluster.spawn(name)
    wait_until(lambda: cluster.probe("n2", "/readyz/blocking_errors") == 503, 10.0, "it says what is wrong with it")
    assert "kvnode member replace n2" in cluster.request("n2", "GET", "/readyz/blocking_errors").json()["message"]
    began = time.monotonic()
    while time.monotonic() - began < 3.0:  # some elections long; and nothing may happen in it
        assert [cluster.probe(name, LEADER_PROBE) for name in ("n2", "n3")] == [503, 503]
        time.sleep(0.1)
    cluster.spawn("n1")
    cluster.leader()
    wait_until(lambda: role(cluster, "n2", via="n1") == "new voter", 15.0, "it has caught up and votes again")
    cluster.wait_ready()
    for name in cluster.nodes:
        assert cluster.get("promised", via=name) == b"by the two that were up"
    wait_until(lambda: cluster.status("n1").get("feature_level") == 1, 10.0, "it has its level")
    cluster.kill("n1")
    assert cluster.leader() in ("n2", "n3")


def test_two_voters_that_forgot_make_no_majority_after_a_restart_either(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    cluster.start()
    wait_until(lambda: all(at_level_1(cluster, name) for name in cluster.nodes), 10.0, "feature level 1")
    leader = cluster.leader()
    cluster.put("promised", b"by all")
    others = [name for name in cluster.nodes if name != leader]
    for name in others:
        cluster.kill(name)
        shutil.rmtree(cluster.nodes[name].data_dir)
    for name in others:
        cluster.spawn(name)
    for name in others:
        wait_until(partial(knows_that_it_forgot, cluster, name), 10.0, f"{name} has noted that it does not vote")
    for name in cluster.nodes:
        cluster.kill(name)
    for name in others:
        cluster.spawn(name)
    for name in others:
        wait_until(lambda name=name: cluster.probe(name, "/livez") == 200, 10.0, f"{name} is up")  # type: ignore[misc]
    began = time.monotonic()
    while time.monotonic() - began < 3.0:  # some elections long; and nothing may happen in it
        assert [cluster.probe(name, LEADER_PROBE) for name in others] == [503, 503]
        time.sleep(0.1)


def knows_that_it_forgot(cluster: Cluster, name: str) -> bool:
    file = cluster.nodes[name].data_dir / "identity.json"
    return file.exists() and json.loads(file.read_text()).get("forgetful") is True


def at_level_1(cluster: Cluster, name: str) -> bool:
    return bool(cluster.status(name).get("feature_level") == 1)


def met(cluster: Cluster, name: str) -> dict[str, str]:
    return dict(json.loads((cluster.nodes[name].data_dir / "identity.json").read_text()).get("met", {}))


def test_the_leader_is_not_replaced(cluster: Cluster) -> None:
    leader = cluster.leader()
    for name in cluster.nodes:
        answer = cluster.request(name, "POST", f"/admin/api/v1/members/{leader}/replace")
        assert (answer.status, answer.json()["error"]) == (409, "conflict"), name
        assert f"Node {leader} answers" in answer.json()["message"]
    assert "AssertionError" not in cluster.log(leader)


def test_a_voter_that_is_well_is_not_replaced(cluster: Cluster) -> None:
    follower = cluster.followers()[0]
    answer = cluster.request(cluster.leader(), "POST", f"/admin/api/v1/members/{follower}/replace")
    assert answer.status == 409, answer.body
    assert "knows what it has promised" in answer.json()["message"]
    cluster.kill(follower)
    answer = cluster.request(cluster.leader(), "POST", f"/admin/api/v1/members/{follower}/replace")
    assert answer.status == 200, answer.body
    assert role(cluster, follower, via=cluster.leader()) == "new learner"
    # Its old data speaks for nobody any more; with an empty directory it comes back as started before.
    cluster.spawn(follower)
    assert cluster.wait_exit(follower, 10.0) != 0
    shutil.rmtree(cluster.nodes[follower].data_dir)
    cluster.restart(follower)
    wait_until(lambda: role(cluster, follower, via=follower) == "new voter", 10.0, "it votes again")


def test_a_level_that_only_one_log_has_keeps_no_cluster_from_a_leader(make_cluster: Callable[..., Cluster]) -> None:
    """The first leader was killed when it had written the level and no other member had it yet."""
    cluster = make_cluster()
    for name in ("n1", "n2"):  # the third has not been met, so there is no level yet
        cluster.spawn(name)
    leader = cluster.leader()
    cluster.put("before", b"1")
    for name in ("n1", "n2"):
        cluster.kill(name)
    append(cluster.nodes[leader].data_dir, RaiseLevel(1).encode())
    cluster.start()
    assert cluster.get("before") == b"1"
    for name in cluster.nodes:
        wait_until(partial(at_level_1, cluster, name), 10.0, f"{name} is at level 1")
    cluster.kill(cluster.leader())
    cluster.put("after", b"2")
