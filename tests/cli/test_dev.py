"""`kvnode dev` for real: nodes and HAProxy up, the leader killed and replaced, everything gone after Ctrl-C."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.cli import processes
from tests.balancer import needs_haproxy
from tests.cli.command import COMMAND, environment, is_one_sentence, kvnode
from tests.cluster import free_ports, request, wait_until


def free_range(count: int) -> int:
    """The first of `count` free ports in a row."""

    def find() -> int | None:
        first = free_ports(1)[0]
        for port in range(first, first + count):
            with socket.socket() as s:
                try:
                    s.bind(("127.0.0.1", port))
                except OSError:
                    return None
        return first

    return wait_until(find, 5, f"{count} free ports in a row")


class Dev:
    """One `kvnode dev`: its ports, its process and what it printed."""

    def __init__(self, folder: Path, *args: str) -> None:
        first = free_range(8)
        self.http, self.raft, self.lb = first, first + 3, first + 6
        self.output = folder / "dev.log"
        ports = ["--http-port", str(self.http), "--raft-port", str(self.raft), "--lb-port", str(self.lb)]
        self.command = [*COMMAND, "dev", "--data-dir", str(folder / "dev"), *ports, *args]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Starts it and returns what it printed by the time that everything is up."""
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment()
            )
        wait_until(lambda: "Ctrl-C stops everything." in self.said() or self._ended(), 20, "the cluster is up")
        assert not self._ended(), self.said()
        return self.said()

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def pids(self) -> dict[str, int]:
        """The newest pid of every child, by name."""
        first = re.findall(r"^  (\w+)   http://\S+   pid (\d+)", self.said(), re.MULTILINE)
        again = re.findall(r"^dev \| (\w+) is started again, pid (\d+)", self.said(), re.MULTILINE)
        return {name: int(pid) for name, pid in [*first, *again]}

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def close(self) -> None:
        """The way out of a failed test: first what it started, then itself."""
        if self.process is not None and self.process.poll() is None:
            pids = self.pids()
            self.process.kill()
            self.process.wait(10)
            for pid in pids.values():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    dev = Dev(tmp_path)
    yield dev
    dev.close()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@needs_haproxy
def test_a_cluster_in_one_command_heals_and_leaves_nothing_behind(dev: Dev, tmp_path: Path) -> None:
    welcome = dev.start()
    front = f"http://127.0.0.1:{dev.lb}"
    assert f"export KVNODE_URL={front}" in welcome
    pids = dev.pids()
    assert set(pids) == {"lb", "n1", "n2", "n3"}
    assert request(("127.0.0.1", dev.lb + 1), "GET", "/stats").status == 200

    assert kvnode("put", "a/b", "through the balancer", "--url", front).out == b"OK\n"
    for i in range(3):
        direct = f"http://127.0.0.1:{dev.http + i}"
        assert kvnode("get", "a/b", "--url", direct).out == b"through the balancer"

    leader = kvnode("leader", "--url", front).out.decode().split("\t")[0]
    assert f"kill -9 {pids[leader]};" in welcome
    os.kill(pids[leader], signal.SIGKILL)
    killed = time.monotonic()
    again = kvnode("put", "a/b", "after the kill", "--url", front)
    assert (again.code, again.err) == (0, "")
    assert time.monotonic() - killed < 3.0
    assert kvnode("get", "a/b", "--url", front).out == b"after the kill"

    def is_a_follower() -> bool:
        rows = [row.split("\t") for row in kvnode("status", "--url", front).out.decode().splitlines()]
        return any(row[:2] == [leader, "follower"] and row[4:6] == ["0", "yes"] for row in rows)

    wait_until(is_a_follower, 15, "the old leader is back as a follower")
    assert f"{leader} was ended by SIGKILL; it is started again" in dev.said()

    pids |= dev.pids()
    assert dev.stop() == 0
    assert "Everything has stopped." in dev.said()
    assert all(is_gone(pid) for pid in pids.values())
    # The data is still there for the next time.
    dev.start()
    assert kvnode("get", "a/b", "--url", front).out == b"after the kill"
    assert dev.stop(signal.SIGTERM) == 0


def test_a_second_ctrl_c_does_not_wait_for_a_frozen_node(tmp_path: Path) -> None:
    dev = Dev(tmp_path, "--lb", "off")
    try:
        dev.start()
        pids = dev.pids()
        os.kill(pids["n2"], signal.SIGSTOP)
        assert dev.process is not None
        dev.process.send_signal(signal.SIGINT)
        wait_until(lambda: is_gone(pids["n1"]) and is_gone(pids["n3"]), 5, "the others have stopped")
        assert not is_gone(pids["n2"])
        again = time.monotonic()
        assert dev.stop() == 0
        assert time.monotonic() - again < 2.0
        assert is_gone(pids["n2"])
    finally:
        dev.close()


def test_one_node_without_a_balancer(tmp_path: Path) -> None:
    dev = Dev(tmp_path, "--nodes", "1", "--lb", "off")
    try:
        assert "kill -9" not in dev.start()
        assert kvnode("put", "k", "v", "--url", f"http://127.0.0.1:{dev.http}").code == 0
        assert dev.stop() == 0
    finally:
        dev.close()


@pytest.mark.parametrize("offset", [0, 5])
def test_a_busy_port_is_one_sentence_and_nothing_is_started(dev: Dev, offset: int) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", dev.http + offset))
        busy.listen()
        done = subprocess.run(dev.command, capture_output=True, timeout=20, env=environment(), check=False)
    assert done.returncode == 2
    assert is_one_sentence(done.stderr.decode())
    assert str(dev.http + offset) in done.stderr.decode()
    assert done.stdout == b""


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("setpriv") is None, reason="what only root may do is given up by setpriv"
)
def test_a_port_that_only_root_may_have_is_not_called_busy(tmp_path: Path) -> None:
    first = free_range(3)
    as_anybody = ["setpriv", "--bounding-set", "-net_bind_service"] if os.geteuid() == 0 else []
    arguments = ["--lb", "off", "--data-dir", str(tmp_path / "dev"), "--http-port", "81", "--raft-port", str(first)]
    command = [*as_anybody, *COMMAND, "dev", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=20, env=environment(), check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert "not permitted: choose 1024 or above with --http-port" in done.stderr.decode()


def test_a_node_that_cannot_start_stops_all_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "n2").write_text("a file where a directory should be")
    dev = Dev(tmp_path, "--lb", "off")
    done = subprocess.run(dev.command, capture_output=True, timeout=40, env=environment(), check=False)
    assert done.returncode == 2
    assert is_one_sentence(done.stderr.decode())
    assert "n2 did not start: " in done.stderr.decode()
    for port in range(dev.http, dev.http + 6):
        with socket.socket() as s:
            assert s.connect_ex(("127.0.0.1", port)) != 0


def test_a_data_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "dev").write_text("a file where a directory should be")
    done = subprocess.run(Dev(tmp_path).command, capture_output=True, timeout=20, env=environment(), check=False)
    assert done.returncode == 2
    assert is_one_sentence(done.stderr.decode())
    assert "--data-dir" in done.stderr.decode()


@pytest.mark.parametrize("args", [["--http-port", "65535"], ["--http-port", "7000", "--raft-port", "7002"]])
def test_ports_that_do_not_fit_are_one_sentence(tmp_path: Path, args: list[str]) -> None:
    done = subprocess.run(
        [*Dev(tmp_path).command, *args], capture_output=True, timeout=20, env=environment(), check=False
    )
    assert done.returncode == 2
    assert is_one_sentence(done.stderr.decode())


def test_a_node_that_keeps_dying_stays_down(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvnode.cli import processes

    monkeypatch.setattr(processes, "RESTART_S", 0.01)
    child = processes.Child("n1", ["false"], os.environ, processes.printer(["n1", "dev"]))
    child.start()
    wait_until(lambda: (child.look_after(), child.given_up)[1], 10, "it is given up")
    said = capsys.readouterr().out
    assert said.count("is started again in") == processes.QUICK_DEATHS_MAX - 1
    assert "stays down" in said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has ended")
def test_what_it_started_ends_with_it_also_by_sigkill(dev: Dev) -> None:
    dev.start()
    pids = dev.pids()
    assert set(pids) >= {"n1", "n2", "n3"}
    os.kill(pids["n3"], signal.SIGSTOP)  # not even one that cannot run any more stays
    assert dev.process is not None
    dev.process.kill()
    dev.process.wait(10)
    wait_until(lambda: all(is_gone(pid) for pid in pids.values()), 5.0, "nothing is left of it")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has ended")
def test_a_child_whose_parent_ended_before_it_could_say_so_does_not_begin(tmp_path: Path) -> None:
    began = tmp_path / "began"
    for parent, code in ((os.getpid(), 0), (os.getppid(), 0)):
        command = processes._tethered(["touch", str(began)])
        command[command.index(str(os.getpid()))] = str(parent)
        assert subprocess.run(command, check=False, timeout=20).returncode == code
        assert began.exists() == (parent == os.getpid())
        began.unlink(missing_ok=True)
