"""One holder at a time, with real processes: killed, stopped and cut off holders, and tokens that rise."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode import errors
from kvnode.client import Client, LockLost
from tests.cli.command import COMMAND, environment, is_one_sentence, kvnode, run_kvnode
from tests.cluster import Cluster, wait_until

pytestmark = pytest.mark.alone

TTL_S = 3


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Cluster(tmp_path_factory.mktemp("locks"), size=1).start() as cluster:
        yield cluster.url("n1")


def start(url: str, name: str, *command: str, ttl_s: int = TTL_S, caught: bool = False) -> subprocess.Popen[bytes]:
    arguments = ("lock", "--url", url, "--ttl", str(ttl_s), name, "--", *command)
    # In a group of its own: where the group that the tests run in has lost its parent, SIGTSTP stops none of it.
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if caught else None,
        env=environment(),
        process_group=0,
    )


def running(path: Path) -> str | None:
    """What a command wrote into its file, once it has written a whole line."""
    text = path.read_text() if path.exists() else ""
    return text.strip() if text.endswith("\n") else None


def report(path: Path) -> str:
    return f"echo $KVNODE_LOCK_TOKEN >{path}; exec sleep {TTL_S + 10}"


def test_a_killed_holder_is_followed_after_the_ttl_and_not_before_with_a_higher_token(
    urls: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    holder = start(urls, "killed", "sh", "-c", report(first))
    waiting = None
    try:
        token = wait_until(lambda: running(first), 20, "the first holder's command to run")
        waiting = start(urls, "killed", "sh", "-c", report(second))
        # Longer than the ttl: what keeps the second out is that the first renews its lease.
        time.sleep(TTL_S + 1)
        assert holder.poll() is None
        assert not second.exists()
        killed_at = time.monotonic()
        holder.kill()
        later = wait_until(lambda: running(second), TTL_S + 10, "the second holder's command to run")
        waited_s = time.monotonic() - killed_at
        # The last renewal was a third of the ttl before the kill at most.
        assert waited_s > TTL_S * 2 / 3 - 0.5, waited_s
        assert int(later) > int(token)
    finally:
        holder.kill()
        holder.wait(10)
        if waiting is not None:
            waiting.send_signal(signal.SIGTERM)
            assert waiting.wait(10) == 128 + signal.SIGTERM


def test_the_command_has_its_exit_code_its_signals_and_the_lock_is_free_at_once(urls: str, tmp_path: Path) -> None:
    done = kvnode("lock", "--url", urls, "exits", "--", "sh", "-c", "echo $KVNODE_LOCK; exit 7")
    assert (done.code, done.out) == (7, b"exits\n")
    done = kvnode("lock", "exits", "--url", urls, "--wait", "0", "--", "sh", "-c", "kill -9 $$")
    assert done.code == 128 + 9
    done = kvnode("lock", "--url", urls, "--wait", "0", "exits", "--", "/no/such/command")
    assert done.code == 127
    assert is_one_sentence(done.err)
    ready = tmp_path / "ready"
    script = f"trap 'exit 3' USR1; echo >{ready}; while :; do sleep 0.05; done"
    process = start(urls, "exits", "sh", "-c", script)
    wait_until(ready.exists, 20, "the command to run")
    taken = kvnode("lock", "--url", urls, "--wait", "0.2", "exits", "--", "true")
    assert taken.code == 4
    assert is_one_sentence(taken.err)
    assert f":{process.pid}." in taken.err
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=10)
    assert process.returncode == 3
    assert kvnode("get", "locks/exits", "--url", urls).code == 3


def test_a_holder_that_loses_its_lock_stops_its_command_and_says_so(urls: str, tmp_path: Path) -> None:
    ready, stopped = tmp_path / "ready", tmp_path / "stopped"
    script = f"trap 'echo >{stopped}; exit 0' TERM; echo >{ready}; while :; do sleep 0.05; done"
    process = start(urls, "broken", "sh", "-c", script, caught=True)
    wait_until(ready.exists, 20, "the command to run")
    assert kvnode("delete", "locks/broken", "--url", urls).code == 0
    _, err = process.communicate(timeout=TTL_S + 5)
    assert process.returncode == 1
    assert stopped.exists()
    assert b"was lost" in err


def test_a_frozen_holder_finds_its_lock_lost_when_it_goes_on(urls: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = start(urls, "frozen", "sh", "-c", f"echo >{ready}; exec sleep 30", ttl_s=1)
    wait_until(ready.exists, 20, "the command to run")
    process.send_signal(signal.SIGSTOP)
    try:
        assert kvnode("lock", "--url", urls, "frozen", "--", "true").code == 0
    finally:
        process.send_signal(signal.SIGCONT)
    process.communicate(timeout=10)
    assert process.returncode == 1


async def test_the_block_of_a_lock_that_is_lost_is_cancelled(urls: str) -> None:
    async with Client([urls]) as client:

        async def lose() -> None:
            async with client.lock("block", ttl_s=2) as held:
                await client.delete(held.key)
                await asyncio.wait_for(asyncio.sleep(20), 10)

        with pytest.raises(LockLost):
            await lose()
        async with client.lock("block", ttl_s=2) as held:
            assert held.held
        with pytest.raises(errors.KeyNotFound):
            await client.get("locks/block")


async def test_contenders_take_turns_and_every_token_is_higher(urls: str) -> None:
    inside, tokens = 0, []

    async def contend() -> None:
        nonlocal inside
        async with Client([urls], 20) as client:
            for _ in range(4):
                async with client.lock("turns", ttl_s=10) as held:
                    inside += 1
                    assert inside == 1
                    tokens.append(held.token)
                    await asyncio.sleep(0.01)
                    inside -= 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(contend())
    assert len(tokens) == 20
    assert tokens == sorted(set(tokens))


async def test_who_observes_an_election_is_told_every_leader(urls: str) -> None:
    async with Client([urls]) as client:
        seen = client.lock("leader").observe()
        assert await anext(seen) is None
        tokens = []
        for name in (b"one", b"two"):
            async with client.lock("leader", value=name) as held:
                assert await anext(seen) == (held.token, name)
                assert await client.lock("leader").holder() == name
                assert not await client.lock("leader").acquire(0)
                tokens.append(held.token)
            assert await anext(seen) is None
        assert tokens == sorted(tokens)
        await seen.aclose()  # type: ignore[attr-defined]


async def test_a_lock_outlives_the_leader_of_the_cluster(cluster: Cluster) -> None:
    urls = [cluster.url(name) for name in cluster.nodes]
    async with Client(urls, 20) as client, Client(urls, 20) as other:
        async with client.lock("failover", ttl_s=8) as held:
            cluster.kill(cluster.leader())
            await asyncio.to_thread(cluster.leader)
            assert not await other.lock("failover").acquire(4)
            assert held.held
        assert await other.lock("failover").acquire(5)


async def test_the_cli_prints_the_holder(urls: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "lock", "--url", urls, "--observe", "seen", stdout=asyncio.subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"-\n"
        done = await run_kvnode("lock", "--url", urls, "--value", "me", "seen", "--", "true")
        assert done.code == 0
        assert (await process.stdout.readline()).endswith(b"\tme\n")
    finally:
        process.kill()
        await process.wait()


# --- the command, as a whole ----------------------------------------------------------------------------

# A command, its child, one in a session of its own, and one whose parent has gone: none of them ends by SIGTERM.
FAMILY = """
import os, signal, subprocess, sys, time
def live(name):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(f"{sys.argv[1]}/{name}.part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{sys.argv[1]}/{name}.part", f"{sys.argv[1]}/{name}")
    time.sleep(60)
if os.fork() == 0:
    live("child")
if os.fork() == 0:
    os.setsid()
    live("session")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        live("orphan")
    os._exit(0)
live("command")
"""
MEMBERS = ("command", "child", "session", "orphan")


def family(folder: Path) -> list[int]:
    """The pids of all four, once they run."""
    wait_until(lambda: all((folder / name).exists() for name in MEMBERS), 20, "the whole family to run")
    return [int((folder / name).read_text()) for name in MEMBERS]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("loss", ["deleted", "overwritten"])
def test_what_a_command_started_ends_at_once_when_the_key_is_gone(urls: str, tmp_path: Path, loss: str) -> None:
    process = start(urls, loss, sys.executable, "-c", FAMILY, str(tmp_path), ttl_s=60, caught=True)
    pids = family(tmp_path)
    lost_at = time.monotonic()
    change = ("delete", f"locks/{loss}") if loss == "deleted" else ("put", f"locks/{loss}", "mine now")
    assert kvnode(*change, "--url", urls).code == 0
    wait_until(lambda: not any(map(is_alive, pids)), 10, "all of it to end")
    assert time.monotonic() - lost_at < 5  # the ttl is 60 s: it was noticed, not waited for
    _, err = process.communicate(timeout=10)
    assert (process.returncode, is_one_sentence(err.decode())) == (1, True)


def test_a_killed_holder_leaves_nothing_running(urls: str, tmp_path: Path) -> None:
    process = start(urls, "nine", sys.executable, "-c", FAMILY, str(tmp_path))
    pids = family(tmp_path)
    process.kill()
    process.wait(10)
    # Long before its lease ends and the next holder begins.
    wait_until(lambda: not any(map(is_alive, pids)), 2, "all of it to end")


def test_a_killed_guardian_takes_the_command_with_it(urls: str, tmp_path: Path) -> None:
    process = start(urls, "guard", sys.executable, "-c", FAMILY, str(tmp_path))
    pids = family(tmp_path)
    guardian = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
    assert guardian != process.pid
    os.kill(guardian, signal.SIGKILL)
    assert process.wait(10) == 128 + signal.SIGKILL
    assert not is_alive(pids[0])
    assert not is_alive(pids[1])
    for pid in pids[2:]:  # in sessions of their own: nothing finds them without the guardian, as job.py says
        os.kill(pid, signal.SIGKILL)


def test_what_a_command_left_in_its_group_ends_before_the_lock_is_free(urls: str, tmp_path: Path) -> None:
    left = tmp_path / "left"
    done = kvnode("lock", "--url", urls, "rest", "--", "sh", "-c", f"sleep 50 & echo $! >{left}; exit 5")
    assert done.code == 5
    assert not is_alive(int(left.read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_whole_group(urls: str, tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    # The shell waits for its child, so what ends it is that the child hears the signal as well.
    script = f"trap 'exit 9' {number.name[3:]}; echo >{ready}; sleep 50"
    process = start(urls, "group", "sh", "-c", script)
    wait_until(ready.exists, 20, "the command to run")
    process.send_signal(number)
    assert process.wait(10) == 9


def test_a_holder_that_is_stopped_by_its_terminal_stands_still_with_its_command(urls: str, tmp_path: Path) -> None:
    ready, ticks = tmp_path / "ready", tmp_path / "ticks"
    script = f"echo $$ >{ready}; while :; do echo >>{ticks}; sleep 0.05; done"
    process = start(urls, "stopped", "sh", "-c", script, ttl_s=60)
    command = int(wait_until(lambda: running(ready), 20, "the command to run"))
    for _ in range(2):
        process.send_signal(signal.SIGTSTP)
        wait_until(lambda: state(process.pid) == state(command) == "T", 10, "both to stand still")
        process.send_signal(signal.SIGCONT)
        ticks.write_text("")
        wait_until(lambda: ticks.stat().st_size > 0, 10, "the command to go on")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM


def test_a_command_that_was_stopped_for_longer_than_its_lease_never_goes_on(urls: str, tmp_path: Path) -> None:
    ready, ticks = tmp_path / "ready", tmp_path / "ticks"
    script = f"trap '' TERM; echo $$ >{ready}; while :; do echo >>{ticks}; sleep 0.05; done"
    process = start(urls, "overdue", "sh", "-c", script, ttl_s=1)
    command = int(wait_until(lambda: running(ready), 20, "the command to run"))
    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: state(command) == "T", 10, "the command to stand still")
    assert kvnode("lock", "--url", urls, "overdue", "--", "true").code == 0  # the next holder
    process.send_signal(signal.SIGCONT)
    assert process.wait(10) == 1
    assert not is_alive(command)


def state(pid: int) -> str:
    """As proc(5) has it: T for stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_command_has_the_terminal_and_its_ctrl_c(urls: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        script = (
            'read line; echo "read $line."; trap "echo caught; exit 4" INT; echo waiting; while :; do sleep 0.1; done'
        )
        os.execve(sys.executable, [*COMMAND, "lock", "--url", urls, "tty", "--", "sh", "-c", script], environment())
    shown = bytearray()
    try:
        os.write(terminal, b"hello\n")
        _read_until(terminal, shown, b"waiting")
        assert b"read hello." in shown
        os.write(terminal, b"\x03")
        _read_until(terminal, shown, b"caught")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 4
    finally:
        os.close(terminal)


def _read_until(terminal: int, shown: bytearray, text: bytes) -> None:
    deadline = time.monotonic() + 20
    while text not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096)


async def test_a_key_that_is_gone_ends_the_block_at_once(urls: str) -> None:
    async with Client([urls]) as client:

        async def hold(is_deleted: bool) -> None:
            async with client.lock("watched", ttl_s=60) as held:
                await (client.delete(held.key) if is_deleted else client.put(held.key, b"mine now"))
                await asyncio.wait_for(asyncio.sleep(60), 20)

        for is_deleted in (True, False):
            began = time.monotonic()
            with pytest.raises(LockLost):
                await hold(is_deleted)
            assert time.monotonic() - began < 5
            await client.delete_prefix("locks/watched")


async def test_a_lock_is_waited_for_longer_than_a_call_while_there_is_no_leader(cluster: Cluster) -> None:
    urls = [cluster.url(name) for name in cluster.nodes]
    gone = cluster.followers()
    for name in gone:
        cluster.freeze(name)
    async with Client(urls, 0.5) as client:
        lock = client.lock("patient")
        waiting = asyncio.create_task(lock.acquire())
        watching = asyncio.create_task(anext(client.watch(key="locks/patient")))
        await asyncio.wait((waiting, watching), timeout=4)  # eight times what a call may take
        assert not waiting.done()
        assert not watching.done()
        for name in gone:
            cluster.thaw(name)
        assert await asyncio.wait_for(waiting, 20)
        watching.cancel()
        await lock.release()
