"""What comes from outside the protocol ends no node: SIGHUP at any moment, and whatever becomes of its stderr."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.cluster import Cluster, free_ports, wait_until

NOTHING_TO_READ = "SIGHUP: there is nothing to read again"


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def metric(cluster: Cluster, name: str, family: str) -> float:
    page = cluster.request(name, "GET", "/metrics").body.decode()
    (value,) = re.findall(rf"^{family} (\S+)$", page, re.MULTILINE)
    return float(value)


def ended(pid: int) -> bool:
    """Without reaping it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_sighup_ends_a_node_at_no_moment_of_its_life(
    make_cluster: Callable[..., Cluster], tmp_path: Path, secured: bool
) -> None:
    args: list[str] = []
    if secured:
        authority = Authority(tmp_path / "authority")
        authority.sign("n1")
        args = ["--tls-cert", str(authority.folder / "n1.pem"), "--tls-key", str(authority.folder / "n1-key.pem")]
        cluster = make_cluster(size=1, args=args, tls=authority.client())
    else:
        cluster = make_cluster(size=1, args=args)
    cluster.spawn("n1")
    pid = cluster.pid("n1")
    # step: from when Python has come to the node's first line, until the node is ready
    wait_until(lambda: catches(pid, signal.SIGHUP), 5.0, "the first thing that stands is the handler")
    assert cluster.probe("n1", "/admin/healthz") is None, "nothing else stands yet"
    wait_until(lambda: os.kill(pid, signal.SIGHUP) or cluster.is_ready("n1"), 15.0, "ready in spite of SIGHUP")
    said = "Read --tls-cert again" if secured else NOTHING_TO_READ
    wait_until(lambda: said in cluster.log("n1"), 5.0, "one line says what came of it")
    # step: while it serves
    lines = cluster.log("n1").count(said)
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: cluster.log("n1").count(said) == lines + 1, 5.0, "one line for one signal")
    cluster.put("k", b"v")
    # step: while it stops, to the last moment
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: os.kill(pid, signal.SIGHUP) or ended(pid), 15.0, "it ends")
    assert cluster.wait_exit("n1", 1.0) == 0


def test_sighup_reads_the_token_file_again(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    old, new = "old-" + "1" * 40, "new-" + "2" * 40
    file = tmp_path / "token"
    file.write_text(old + "\n")
    file.chmod(0o600)
    cluster = make_cluster(size=1, args=["--token-file", str(file)], token=old).start()
    pid = cluster.pid("n1")

    def status(token: str) -> int:
        bearer = {"Authorization": f"Bearer {token}"}
        return cluster.request("n1", "GET", "/admin/api/v1/cluster", headers=bearer).status

    file.write_text(new + "\n")
    assert (status(old), status(new)) == (200, 401), "nothing happens before it is asked for"
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: status(new) == 200, 5.0, "the new token counts")
    assert status(old) == 401
    # step: a file that no node would start with changes nothing
    for count, content in enumerate(("", "short", "with spaces in it, and long enough for all that"), 1):
        file.write_text(content)
        os.kill(pid, signal.SIGHUP)
        wait_until(
            lambda count=count: cluster.log("n1").count("The token stays what it was") == count, 5.0, "the refusal"
        )
        assert (status(old), status(new)) == (401, 200)
    file.unlink()
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: "the file cannot be read" in cluster.log("n1"), 5.0, "the missing file is said")
    assert status(new) == 200
    assert old not in cluster.log("n1")
    assert new not in cluster.log("n1")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_stderr_that_nobody_reads_stops_nothing(make_cluster: Callable[..., Cluster], form: str) -> None:
    """A pipe holds 64 KiB: with a line for each request it is full after some three hundred."""
    cluster = make_cluster(size=1, args=["--log-requests", "--log-format", form])
    reading, writing = os.pipe()
    try:
        cluster.spawn("n1", writing)
        cluster.wait_ready()
        for number in range(600):
            assert cluster.put(f"{number:0200}", b"v")["version"] == 1
        assert metric(cluster, "n1", "kvnode_log_lines_dropped_total") == 0, "four megabytes wait for the reader"
        age = r'kvnode_outstanding_oldest_seconds\{kind="log"\}'
        wait_until(lambda: metric(cluster, "n1", age) > 0.2, 5.0, "what stderr does not take is seen to wait")
        began = time.monotonic()
        assert cluster.terminate("n1", 12.0) == 0
        assert time.monotonic() - began < 5.0, "the end waits for the log no longer than half a second"
    finally:
        os.close(writing)
        os.close(reading)


def test_a_stderr_on_a_full_disk_or_whose_reader_has_gone_stops_nothing(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(size=1, args=["--log-requests"])
    gone, broken = os.pipe()
    os.close(gone)
    full = os.open("/dev/full", os.O_WRONLY)
    for output in (full, broken):
        cluster.spawn("n1", output)
        cluster.wait_ready()
        cluster.put("k", b"v")
        before = metric(cluster, "n1", "kvnode_log_lines_dropped_total")
        assert before > 0
        cluster.put("k", b"v")
        wait_until(lambda before=before: metric(cluster, "n1", "kvnode_log_lines_dropped_total") > before, 5.0, "count")
        assert cluster.terminate("n1", 12.0) == 0
        os.close(output)


def test_a_closed_stderr_stops_nothing_and_no_file_of_the_node_takes_its_place(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(size=1, args=["--log-requests"])
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    command = cluster.command("n1")
    cluster.command = lambda name: [*shell, *command]  # type: ignore[method-assign]
    cluster.start()
    cluster.put("k", b"v")
    streams = [os.readlink(f"/proc/{cluster.pid('n1')}/fd/{number}") for number in (0, 1, 2)]
    assert streams == [os.devnull] * 3
    assert cluster.terminate("n1", 12.0) == 0


def test_the_last_lines_before_the_end_are_written(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(size=1).start()
    assert metric(cluster, "n1", r'kvnode_outstanding_oldest_seconds\{kind="log"\}') == 0
    assert cluster.terminate("n1") == 0
    assert cluster.log("n1").endswith("Node n1 has stopped.\n")
    # step: a node that cannot start says why
    (port,) = free_ports(1)
    cluster.args = ["--tls-cert", "/nonexistent", "--tls-key", "/nonexistent", "--probes", f"127.0.0.1:{port}"]
    cluster.spawn("n1")
    assert cluster.wait_exit("n1", 10.0) == 2
    assert "kvnode: --tls-cert '/nonexistent'" in cluster.log("n1").splitlines()[-1]
