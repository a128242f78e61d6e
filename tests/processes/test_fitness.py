"""What a node says of itself when something is wrong with it, with real processes: probes that tell the truth."""

from __future__ import annotations

import http.client
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import LEADER_PROBE, Cluster, free_ports, wait_until

PROBES = ("/admin/healthz", LEADER_PROBE, "/healthz", "/livez", "/readyz", "/readyz/leader", "/livez/event_loop")
HANG_S = 6
# A node whose event loop stands still for a while when it is told to: the handler runs in the loop's own thread.
HANGS = f"""
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: time.sleep({HANG_S}))
from kvnode.cli import main
main()
"""


class Hangable(Cluster):
    def command(self, name: str) -> list[str]:
        python, _, _, *rest = super().command(name)
        return [python, "-c", HANGS, *rest]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hangable]:
    with Hangable(tmp_path_factory.mktemp("fitness"), args=["--cluster-id", "blue"]) as cluster:
        yield cluster.start()


def failures(cluster: Cluster, name: str, check: str) -> str:
    """What one check of /readyz says; empty where it is well, or nobody answers yet."""
    if cluster.probe(name, f"/readyz/{check}") != 503:
        return ""
    return str(cluster.request(name, "GET", f"/readyz/{check}").json()["message"])


def test_every_probe_answers_within_a_tenth_of_a_second(cluster: Cluster) -> None:
    for name in cluster.nodes:
        connection = http.client.HTTPConnection(*cluster.nodes[name].http, timeout=5)
        for path in PROBES:
            took = []
            for _ in range(40):
                began = time.monotonic()
                connection.request("GET", path)
                connection.getresponse().read()
                took.append(time.monotonic() - began)
            assert sorted(took)[-2] < 0.1, (name, path, sorted(took)[-3:])  # one may meet a machine that is busy
        connection.close()


def test_a_hanging_loop_is_never_alive_and_the_log_says_where_it_hangs(cluster: Cluster) -> None:
    name = cluster.followers()[0]
    cluster.nodes[name].process.send_signal(signal.SIGUSR1)  # type: ignore[union-attr]
    began = time.monotonic()
    # Asked while it hangs, answered as soon as it does not any more: not alive yet.
    answer = cluster.request(name, "GET", "/livez", timeout_s=HANG_S + 5.0)
    assert time.monotonic() - began > HANG_S - 1
    assert answer.status == 503
    assert "event loop has not run for" in answer.json()["message"]
    assert "in <lambda>" in cluster.log(name)
    wait_until(lambda: cluster.probe(name, "/livez") == 200, 5.0, "it is alive again")
    wait_until(lambda: cluster.is_ready(name), 5.0, "and ready")


def test_liveness_does_not_depend_on_peers(cluster: Cluster) -> None:
    alone, *others = cluster.nodes
    for name in others:
        cluster.freeze(name)
    wait_until(lambda: failures(cluster, alone, "leader"), 5.0, "it has no leader")
    answer = cluster.request(alone, "GET", "/readyz?verbose")
    assert (answer.status, b"[-]leader failed: " in answer.body) == (503, True)
    assert cluster.probe(alone, "/readyz?exclude=leader") == 200
    assert cluster.probe(alone, "/livez") == 200
    began = time.monotonic()
    assert cluster.probe(alone, LEADER_PROBE) == 503
    assert time.monotonic() - began < 0.7
    for name in others:
        cluster.thaw(name)
    cluster.wait_ready()


def start(cluster: Cluster, name: str, folder: Path, http: int, **options: str) -> subprocess.Popen[bytes]:
    """A process that says it is node `name`, somewhere else."""
    command = cluster.command(name)
    for flag, text in {"http": f"127.0.0.1:{http}", "data-dir": str(folder / name), **options}.items():
        command[command.index(f"--{flag}") + 1] = text
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def test_whose_id_or_cluster_id_is_in_use_says_so_and_disturbs_nobody(cluster: Cluster, tmp_path: Path) -> None:
    cluster.wait_ready()
    term = cluster.status("n1")["term"]
    http, raft, other_http, other_raft = free_ports(4)
    (tmp_path / "double").mkdir()
    (tmp_path / "other").mkdir()
    # n3 a second time, with an empty directory; and another cluster's n7, which was given the same --cluster-id.
    double = start(cluster, "n3", tmp_path / "double", http, raft=f"127.0.0.1:{raft}")
    peers = f"n7=127.0.0.1:{other_raft},n1=127.0.0.1:{cluster.nodes['n1'].raft[1]},n8=127.0.0.1:1"
    here = {"node-id": "n7", "raft": f"127.0.0.1:{other_raft}", "peers": peers}
    other = start(cluster, "n3", tmp_path / "other", other_http, **here)
    try:
        shadows = Cluster(tmp_path, size=2)
        shadows.nodes["n1"].http, shadows.nodes["n2"].http = ("127.0.0.1", http), ("127.0.0.1", other_http)
        for name, sentence in {"n1": "another running process is node 'n3'", "n2": "'n7' is not a member"}.items():
            wait_until(
                lambda name=name, sentence=sentence: sentence in failures(shadows, name, "blocking_errors"),  # type: ignore[misc]
                10.0,
                sentence,
            )
            assert (shadows.probe(name, "/readyz"), shadows.probe(name, "/livez")) == (503, 200)
        for name in cluster.nodes:
            assert cluster.is_ready(name)
        assert cluster.status("n1")["term"] == term, "nobody stood for election"
        cluster.put("all the same", b"1")
        # The right one may come and go.
        cluster.kill("n3")
        cluster.restart("n3")
        assert cluster.get("all the same", via="n3") == b"1"
        wait_until(lambda: failures(shadows, "n1", "blocking_errors"), 5.0, "the double is told again")
    finally:
        for process in (double, other):
            process.kill()
            process.wait(10)
