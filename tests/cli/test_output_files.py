"""Where `kvnode backup` and `export` write to: a file is whole or as it was, and nothing else is ever replaced."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvnode.storage import backup
from tests.cli.command import COMMAND, Done, environment, kvnode, kvnode_here
from tests.cluster import Cluster, free_ports

KEYS = 300


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Cluster(tmp_path_factory.mktemp("one"), size=1).start() as cluster:
        for number in range(KEYS):
            cluster.put(f"k{number:04}", os.urandom(2_000))
        yield cluster.url("n1")


def backup_is_whole(data: bytes) -> bool:
    return backup.read_through(io.BytesIO(data)).items == KEYS


def export_is_whole(data: bytes) -> bool:
    return data.count(b"\n") == KEYS


COMMANDS: list[tuple[str, Callable[[bytes], bool]]] = [("backup", backup_is_whole), ("export", export_is_whole)]
both = pytest.mark.parametrize(("command", "is_whole"), COMMANDS, ids=["backup", "export"])


def run(url: str, command: str, target: str | Path) -> Done:
    return kvnode_here(command, str(target), "--url", url)


@both
def test_a_file_is_replaced_whole_and_nobody_else_may_read_it(
    url: str, tmp_path: Path, command: str, is_whole: Callable[[bytes], bool]
) -> None:
    file = tmp_path / "file"
    for _ in range(2):
        done = run(url, command, file)
        assert done.code == 0, done.err
        assert is_whole(file.read_bytes())
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["file"]


@both
def test_a_file_stays_as_it_was_where_the_cluster_does_not_answer(
    tmp_path: Path, command: str, is_whole: Callable[[bytes], bool]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"the one before")
    (port,) = free_ports(1)
    done = kvnode(
        command, str(file), "--url", f"http://127.0.0.1:{port}", *(["--timeout", "1"] * (command == "export"))
    )
    assert done.code == 5
    assert (file.read_bytes(), os.listdir(tmp_path)) == (b"the one before", ["file"])


@both
def test_a_symbolic_link_stays_and_what_it_leads_to_is_replaced(
    url: str, tmp_path: Path, command: str, is_whole: Callable[[bytes], bool]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link, second = tmp_path / "elsewhere" / "file", tmp_path / "link", tmp_path / "second"
    link.symlink_to("elsewhere/file")
    second.symlink_to(link)
    for name in (link, second):  # at first it leads to nothing
        assert run(url, command, name).code == 0
        assert name.is_symlink()
        assert is_whole(target.read_bytes())
    assert os.listdir(target.parent) == ["file"]


@both
def test_a_pipe_is_written_through(url: str, tmp_path: Path, command: str, is_whole: Callable[[bytes], bool]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    done = run(url, command, pipe)
    reader.join(20.0)
    assert done.code == 0, done.err
    assert is_whole(read[0])
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


@both
def test_a_device_is_written_through(url: str, tmp_path: Path, command: str, is_whole: Callable[[bytes], bool]) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    for target in ("/dev/null", link):
        assert run(url, command, target).code == 0
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert link.is_symlink()
    if os.geteuid() == 0:  # a device of our own, in case somebody would replace it
        device = tmp_path / "device"
        try:
            os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
            device.write_bytes(b"")
        except OSError:
            pytest.skip("devices cannot be made or used here")
        assert run(url, command, device).code == 0
        assert stat.S_ISCHR(device.stat().st_mode)


@both
def test_a_full_device_is_an_error(url: str, command: str, is_whole: Callable[[bytes], bool]) -> None:
    done = run(url, command, "/dev/full")
    assert done.code == 1
    assert "cannot be written" in done.err
    assert "Traceback" not in done.err


@both
@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_stdout_is_written_through_and_what_is_said_goes_to_stderr(
    url: str, tmp_path: Path, command: str, is_whole: Callable[[bytes], bool], name: str
) -> None:
    done = kvnode(command, name, "--url", url)
    assert done.code == 0, done.err
    assert is_whole(done.out)
    assert str(KEYS) in done.err
    # step: a shell's `>>` goes on behind what is there
    file = tmp_path / "appended"
    file.write_bytes(b"before\n")
    with file.open("ab") as target:
        appended = [*COMMAND, command, name, "--url", url]
        subprocess.run(appended, stdout=target, stderr=subprocess.DEVNULL, env=environment(), check=True, timeout=30)
    data = file.read_bytes()
    assert data.startswith(b"before\n")
    assert is_whole(data.removeprefix(b"before\n"))


@both
def test_two_at_once_into_the_same_file_do_not_meet(
    url: str, tmp_path: Path, command: str, is_whole: Callable[[bytes], bool]
) -> None:
    file = tmp_path / "file"
    (tmp_path / "file.part").write_bytes(b"somebody else's")
    both = [subprocess.Popen([*COMMAND, command, str(file), "--url", url], env=environment(), stdout=-3) for _ in "ab"]
    assert [each.wait(30.0) for each in both] == [0, 0]
    assert is_whole(file.read_bytes())
    assert (tmp_path / "file.part").read_bytes() == b"somebody else's"
    assert sorted(os.listdir(tmp_path)) == ["file", "file.part"]


def test_what_goes_through_a_pipe_and_is_cut_off_is_said(
    url: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    from kvnode.cli.backup import Check

    whole = kvnode("backup", "-", "--url", url).out
    for data in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"x", whole[:200] + b"x" + whole[201:]):
        with Check() as check:
            check.write(data)
        with pytest.raises(backup.Damaged):
            check.verdict()
    with Check() as check:
        for at in range(0, len(whole), 7_777):
            check.write(whole[at : at + 7_777])
    assert check.verdict().items == KEYS


@both
def test_a_directory_is_refused(url: str, tmp_path: Path, command: str, is_whole: Callable[[bytes], bool]) -> None:
    assert run(url, command, tmp_path).code in (1, 2)
    assert os.listdir(tmp_path) == []
