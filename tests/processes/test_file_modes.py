"""What a node and its commands write is their user's alone, whatever the umask; a secret for all eyes is refused."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.cluster import PROJECT, Cluster, free_ports, wait_until

SECRET = "a secret of this cluster, long enough"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture(autouse=True)
def careless() -> Iterator[None]:
    """The umask of somebody who thinks of nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Of the folder and of all in it."""
    found = {str(each.relative_to(folder)): each.stat().st_mode for each in folder.rglob("*")}
    return {name: stat.S_IMODE(mode) for name, mode in {".": folder.stat().st_mode, **found}.items()}


def private(folder: Path) -> bool:
    return all(mode == (0o700 if (folder / name).is_dir() else 0o600) for name, mode in modes(folder).items())


def kvnode(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **variables}
    command = [sys.executable, "-m", "kvnode", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)


def serve(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A start that must be refused."""
    http, raft = free_ports(2)
    ports = ("--http", f"127.0.0.1:{http}", "--raft", f"127.0.0.1:{raft}")
    return kvnode("serve", *ports, "--data-dir", str(tmp_path / "data"), *arguments)


def test_what_a_node_writes_is_its_users_alone_and_what_was_not_is_mended(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(size=1).start()
    folder = cluster.nodes["n1"].data_dir
    cluster.put("a", b"1")
    assert private(folder), modes(folder)
    cluster.stop()
    folder.chmod(0o755)
    for each in folder.iterdir():
        each.chmod(0o644)
    cluster.restart("n1")
    assert private(folder), modes(folder)
    assert cluster.log("n1").count("was open to other users: it is this user's alone now") == 1
    assert cluster.get("a") == b"1"


@AS_ROOT
def test_a_data_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12_345, -1)
    done = serve(tmp_path)
    assert done.returncode == 2
    assert "belongs to another user" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("option", ["cluster-secret-file", "token-file", "session-key-file"])
@pytest.mark.parametrize("mode", [0o644, 0o604, 0o444])
def test_a_secret_that_everybody_can_read_is_refused(tmp_path: Path, option: str, mode: int) -> None:
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef" * 4)
    file.chmod(mode)
    done = serve(tmp_path, f"--{option}", str(file))
    assert done.returncode == 2
    assert f"--{option}" in done.stderr
    assert f"chmod 600 {file}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "0123456789abcdef" not in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o440])
def test_a_secret_that_a_group_can_read_is_taken(
    make_cluster: Callable[..., Cluster], tmp_path: Path, mode: int
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(mode)
    make_cluster(size=1, args=["--cluster-secret-file", str(file)]).start()


def test_a_key_that_everybody_can_read_is_said(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    authority.sign("n1", ("127.0.0.1",))
    cert, key = (f"{authority.folder}/{name}.pem" for name in ("n1", "n1-key"))
    Path(key).chmod(0o644)
    cluster = make_cluster(size=1, args=["--tls-cert", cert, "--tls-key", key], tls=authority.client()).start()
    wait_until(lambda: f"chmod 600 {key}" in cluster.log("n1"), 5.0, "a warning")


def test_backups_and_what_is_restored_offline_are_their_users_alone(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(size=1).start()
    cluster.put("a", b"1")
    file, folder = tmp_path / "backup", tmp_path / "restored"
    done = kvnode("backup", str(file), "--url", cluster.url("n1"))
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    done = kvnode("restore", str(file), "--data-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert private(folder), modes(folder)
