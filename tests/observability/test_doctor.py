"""`kvnode doctor` and `kvnode status` in front of three real nodes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from kvnode.http import release
from kvnode.tools.doctor import machine
from tests.cli.command import COMMAND, environment, kvnode_here
from tests.cli.scripted import Reply, always, scripted
from tests.cluster import Cluster, free_ports, wait_until


def options(cluster: Cluster, node: str) -> list[str]:
    """Those that the node was started with."""
    return cluster.command(node)[4:-3]


def doctor(cluster: Cluster, *args: str) -> tuple[int, list[tuple[str, str, str]]]:
    urls = ",".join(cluster.url(name) for name in cluster.nodes)
    done = kvnode_here("doctor", "--url", urls, *args)
    assert done.err == ""
    return done.code, [tuple(line.split("\t")) for line in done.out.decode().splitlines()]  # type: ignore[misc]


def test_a_healthy_cluster_has_no_problem(trio: Cluster) -> None:
    code, findings = doctor(trio, *options(trio, "n1"))
    assert code == 0, findings
    said = [message for _, _, message in findings]
    assert f"{trio.leader()} leads 3 members in term {trio.status('n1')['term']}." in said
    assert sum("is ready, runs" in message for message in said) == 3
    assert sum("is n1's own, which runs" in message for message in said) == 2
    assert {check for _, check, _ in findings} >= {"version", "files", "disk", "fsync", "names", "ports", "peers"}
    assert not list(trio.nodes["n1"].data_dir.glob(".doctor*"))


def test_what_is_wrong_with_the_options_is_found_with_what_to_do(trio: Cluster, tmp_path: Path) -> None:
    (taken_port, raft) = free_ports(2)
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef0123456789abcdef")
    secret.chmod(0o644)
    peers = f"n9=127.0.0.1:{raft},n8=nowhere.invalid:7001,n7=127.0.0.1:{free_ports(1)[0]}"
    with socket.create_server(("127.0.0.1", taken_port)):
        done = kvnode_here(
            *("doctor", "-o", "json", "--url", trio.url("n1"), "--node-id", "n9", "--peers", peers),
            *("--http", f"127.0.0.1:{taken_port}", "--raft", f"127.0.0.1:{raft}"),
            *("--cluster-secret-file", str(secret), "--data-dir", str(tmp_path / "not" / "yet")),
        )
    assert done.code == 1
    found = {(f["check"], f["level"]): f["message"] for f in json.loads(done.out)}
    assert "stop what uses it, or change --http" in found["ports", "problem"]
    assert found["names", "problem"].startswith("nowhere.invalid (--peers n8)")
    # A node goes by the file's own mode, although the folder of this test is its owner's alone.
    assert found["secret", "problem"].endswith(f"and a node refuses it: chmod 600 {secret}.")
    assert "Nobody takes a connection" in found["peers", "warning"]
    assert found["ports", "ok"] == f"127.0.0.1:{raft} is free for --raft."
    assert not (tmp_path / "not").exists()


def test_a_member_that_is_down_is_a_problem_and_named_in_status(trio: Cluster) -> None:
    gone = trio.followers()[0]
    trio.kill(gone)
    leader = trio.leader()
    wait_until(
        lambda: not next(m for m in trio.status(leader)["members"] if m["id"] == gone)["reachable"], 5.0, "it is missed"
    )
    code, findings = doctor(trio)
    assert code == 1
    assert any(level == "problem" and f"do not reach {gone}" in message for level, _, message in findings)
    document = json.loads(kvnode_here("status", "-o", "json", "--url", trio.url(leader)).out)
    health = {member["id"]: member["health"] for member in document["groups"][0]["members"]}
    assert health == {name: None if name == gone else "ready" for name in trio.nodes}
    trio.restart(gone)
    wait_until(lambda: doctor(trio)[0] == 0, 10.0, "no problem any more")


@pytest.mark.parametrize(
    ("reply", "level", "sentence"),
    [
        (Reply(401, b'{"error":"unauthorized","message":"It asks."}'), "problem", "It asks. Give the --token-file"),
        (Reply(404, b"<html>"), "warning", "does the URL point at one? Start a node, or name another"),
    ],
)
async def test_a_cluster_that_cannot_be_looked_at_is_not_called_silent(
    reply: Reply, level: str, sentence: str, tmp_path: Path
) -> None:
    http, raft = (f"127.0.0.1:{port}" for port in free_ports(2))
    mine = ("--http", http, "--raft", raft, "--data-dir", str(tmp_path))
    async with scripted(always(reply)) as node:
        done = await asyncio.to_thread(kvnode_here, "doctor", "-o", "json", "--url", node.url, *mine)
    [found] = [each for each in json.loads(done.out) if each["check"] == "cluster"]
    assert found["level"] == level
    assert sentence in found["message"]
    assert done.code == (level == "problem")


def test_an_unusable_option_is_a_usage_error() -> None:
    done = kvnode_here("doctor", "--http", "nonsense")
    assert (done.code, done.out) == (2, b"")
    assert done.err.startswith("kvnode: --http 'nonsense'")


def test_a_secret_that_everybody_can_read_is_told() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        secret = Path(folder) / "secret"
        secret.write_text("0123456789abcdef0123456789abcdef")
        for mode, level in ((0o644, "problem"), (0o640, "ok"), (0o600, "ok")):
            secret.chmod(mode)
            assert machine.private_file(str(secret), refused=True).level == level
        secret.chmod(0o644)
        assert machine.private_file(str(secret), refused=False).level == "warning", "a certificate's key"
        assert machine.private_file(f"{folder}/gone", refused=True).level == "problem"


def test_what_a_node_refuses_to_start_with_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    [found] = [each for each in machine.disk(tmp_path) if "another user" in each.message]
    assert found.level == "warning", "the node may run as that user, and the doctor as root"
    monkeypatch.setattr(release.aiohttp, "__version__", "3.13.5")
    assert machine.versions().level == "problem"
    assert "pip install --force-reinstall aiohttp==" in machine.versions().message


@pytest.mark.parametrize(("size", "level"), [(100, "problem"), (1_024, "warning"), (65_536, "ok")])
def test_the_limit_of_files(monkeypatch: pytest.MonkeyPatch, size: int, level: str) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (size, size))
    assert machine.file_limit().level == level


def on_terminal(*args: str, **env: str) -> str:
    """What a terminal would be sent."""
    mine, theirs = pty.openpty()
    extra = {"TERM": "xterm", "COLUMNS": "160"} | env
    process = subprocess.Popen(
        [*COMMAND, *args], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment(extra)
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(mine, 65_536):
            said += piece
    except OSError:
        pass  # how Linux says that the other end is closed
    finally:
        os.close(mine)
    process.wait(20)
    return said.decode()


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_colour_is_for_terminals_that_want_it(trio: Cluster, command: str) -> None:
    args = (command, "--url", trio.url("n1"))
    coloured = on_terminal(*args)
    assert "\x1b[32m" in coloured
    assert "ready" in coloured
    plain = on_terminal(*args, NO_COLOR="1")
    assert "\x1b[3" not in plain
    assert "ready" in plain
