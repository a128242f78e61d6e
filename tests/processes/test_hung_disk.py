"""A disk that hangs: nothing fails and nothing ends. The node must notice by what it has not answered."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.disk import HangingDisk
from tests.cluster import LEADER_PROBE, Cluster, wait_until

pytestmark = pytest.mark.alone

ELECTION_TIMEOUT_S = 1.2

# Stands in for a real disk where none can be made to hang: what a process asks of it waits while a file is there.
HANGS = """
import os, time
def hanging(call):
    def wait(*arguments):
        while os.path.exists(f"{os.environ['HANGS_DIR']}/{os.getpid()}"):
            time.sleep(0.01)
        return call(*arguments)
    return wait
for name in ("fdatasync", "writev", "fsync"):
    setattr(os, name, hanging(getattr(os, name)))
"""


class Disks:
    """Makes the disk of a running node hang, and answer again."""

    def __init__(self, cluster: Cluster, real: dict[str, HangingDisk], folder: Path) -> None:
        self.cluster, self._real, self._folder = cluster, real, folder

    def hang(self, name: str) -> None:
        if self._real:
            self._real[name].hang()
        else:
            (self._folder / str(self.cluster.pid(name))).touch()

    def thaw(self, name: str) -> None:
        if self._real:
            self._real[name].thaw()
        else:
            (self._folder / str(self.cluster.pid(name))).unlink(missing_ok=True)


@pytest.fixture(params=["frozen", "stand-in"])
def disks(request: pytest.FixtureRequest, make_cluster: Callable[..., Cluster], tmp_path: Path) -> Iterator[Disks]:
    """A ready cluster of three, each on a disk of its own."""
    with ExitStack() as stack:
        real: dict[str, HangingDisk] = {}
        hanging, site = tmp_path / "hanging", tmp_path / "site"
        hanging.mkdir()
        site.mkdir()
        (site / "sitecustomize.py").write_text(HANGS)
        path = f"{site}{os.pathsep}{Path(__file__).resolve().parents[2]}"
        cluster = make_cluster(env={"HANGS_DIR": str(hanging), "PYTHONPATH": path})
        if request.param == "frozen":
            for name in cluster.nodes:
                try:
                    real[name] = HangingDisk(tmp_path / f"disk-{name}")
                except OSError as why:
                    pytest.skip(f"a file system that hangs cannot be made here: {why}")
                stack.callback(real[name].close)
                cluster.nodes[name].data_dir = real[name].folder / "data"
        cluster.start()
        stack.callback(cluster.close)
        made = Disks(cluster, real, hanging)
        for name in cluster.nodes:
            stack.callback(made.thaw, name)  # before the processes are killed: in the kernel no signal reaches them
        yield made


def reason(cluster: Cluster, name: str) -> str | None:
    """Of the leader probe; None where it says 200."""
    return cluster.request(name, "GET", LEADER_PROBE, timeout_s=3.0).headers["Kvnode-Reason"]


def storage(cluster: Cluster, name: str) -> str:
    answer = cluster.request(name, "GET", "/readyz/storage", timeout_s=3.0)
    return "" if answer.status == 200 else str(answer.json()["message"])


def outstanding_s(cluster: Cluster, name: str) -> float:
    page = cluster.request(name, "GET", "/metrics").body.decode()
    family = 'kvnode_outstanding_oldest_seconds{kind="journal"} '
    return next(float(line.removeprefix(family)) for line in page.splitlines() if line.startswith(family))


def test_a_leader_whose_disk_hangs_hands_over_by_itself_and_nothing_is_lost(disks: Disks) -> None:
    cluster = disks.cluster
    leader, follower = cluster.leader(), cluster.followers()[0]
    for number in range(20):
        cluster.put(f"before/{number}", b"%d" % number, via=leader)
    reasons: list[str | None] = []
    over = threading.Event()

    def probe() -> None:
        while not over.is_set():
            reasons.append(reason(cluster, leader))
            time.sleep(0.005)

    watching = threading.Thread(target=probe)
    watching.start()
    disks.hang(leader)
    began = time.monotonic()
    try:
        # It is in the old leader's log and not on its disk: the next leader has it, or the client would not be told so.
        answer = cluster.request(follower, "PUT", "/v1/kv/waiting", b"x" * 2_000, timeout_s=10.0)
        took_s = time.monotonic() - began
        assert answer.status == 200, answer.body
        assert took_s < 3.0, f"writes are acknowledged again after {took_s:.1f} s"
        refused = cluster.request(leader, "PUT", "/v1/kv/refused", b"1")
        assert (refused.status, refused.json()["outcome"]) == (503, "not_applied"), "certain, and at once"
        assert cluster.get("waiting", via=follower) == b"x" * 2_000
        assert "has not answered for" in storage(cluster, leader)
        assert cluster.probe(leader, "/readyz") == 503
        assert cluster.probe(leader, "/livez") == 200
        assert outstanding_s(cluster, leader) > ELECTION_TIMEOUT_S
        assert reason(cluster, leader) == "storage", "why it leads no more, for as long as its disk hangs"
    finally:
        over.set()
        watching.join()
        disks.thaw(leader)
    assert set(reasons) <= {None, "unverified", "storage"}, f"the probe says why from the first 503 on: {set(reasons)}"
    assert len([line for line in cluster.log(leader).splitlines() if "The disk has not answered" in line]) == 1
    wait_until(lambda: cluster.probe(leader, "/readyz") == 200, 10.0, "the old leader is well again")
    for name in cluster.nodes:
        cluster.kill(name)
    cluster.start()
    assert all(cluster.get(f"before/{number}", via=leader) == b"%d" % number for number in range(20))
    assert cluster.get("waiting", via=leader) == b"x" * 2_000
    assert cluster.get("refused", via=leader) is None


def test_a_follower_whose_disk_hangs_is_not_ready_and_the_others_go_on(disks: Disks) -> None:
    cluster = disks.cluster
    leader, follower = cluster.leader(), cluster.followers()[0]
    disks.hang(follower)
    try:
        began = time.monotonic()
        for number in range(50):
            cluster.put(f"meanwhile/{number}", b"1", via=leader)
        assert time.monotonic() - began < 3.0
        wait_until(lambda: "has not answered for" in storage(cluster, follower), 3.0, "the follower is not ready")
        assert cluster.probe(follower, "/livez") == 200
        refused = cluster.request(
            leader, "POST", "/admin/api/v1/leader/transfer", b'{"to":"%s"}' % follower.encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        assert refused.status == 409, refused.body
        assert cluster.leader() == leader, "no election came of it"
    finally:
        disks.thaw(follower)
    wait_until(lambda: cluster.probe(follower, "/readyz") == 200, 10.0, "the follower is well again")


def test_where_all_disks_hang_the_writes_fail_for_certain_or_are_in_doubt_and_all_is_well_afterwards(
    disks: Disks,
) -> None:
    cluster = disks.cluster
    leader = cluster.leader()
    for name in cluster.nodes:
        disks.hang(name)
    try:
        first = cluster.request(leader, "PUT", "/v1/kv/first", b"1", timeout_s=10.0)
        assert (first.status, first.json()["outcome"]) == (504, "unknown")
        later = cluster.request(leader, "PUT", "/v1/kv/later", b"1", timeout_s=10.0)
        assert (later.status, later.json()["outcome"]) == (503, "not_applied"), "what was never proposed is certain"
        assert reason(cluster, leader) == "storage"
    finally:
        for name in cluster.nodes:
            disks.thaw(name)
    cluster.wait_ready(15.0)
    assert cluster.get("later") is None
    assert cluster.put("well", b"1")
