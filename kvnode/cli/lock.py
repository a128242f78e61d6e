"""`kvnode lock`: a command that runs on one machine at a time, and who it is that holds the lock."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import click

from kvnode.cli.calls import Finite, call, connected, output_option
from kvnode.cli.command import Command
from kvnode.cli.job import REST_S, Job
from kvnode.cli.keys import shown

if TYPE_CHECKING:
    from kvnode.client import Client, Lock

HELD_BY_ANOTHER: Final = 4
NOT_STARTED: Final = 127
LOST: Final = 1
# A lock that is known to be gone may have its next holder already: the command has this long for SIGTERM, which is for
# what it must undo. One whose lease merely cannot be renewed has until the lease can end, a quarter of the ttl.
LOST_GRACE_S: Final = 0.5
KILL_MARGIN_S: Final = 0.2  # SIGKILL comes so long before another can hold the lock
PASSED_ON: Final = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip


@click.command(cls=Command)
@click.option(
    "--ttl",
    "ttl_s",
    metavar="SECONDS",
    type=click.IntRange(1),
    default=15,
    show_default=True,
    help="How long after this machine died another may have the lock; from 5 on it outlives a leader change.",
)
@click.option("--wait", "wait_s", metavar="SECONDS", type=Finite(0), help="For the lock [default: for ever].")
@click.option("--value", help="What others see of the holder [default: host and process].")
@click.option("--observe", is_flag=True, help="Run nothing: print the holder, and every later one, one a line.")
@output_option
@connected
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def lock(
    name: str,
    command: tuple[str, ...],
    ttl_s: int,
    wait_s: float | None,
    value: str | None,
    observe: bool,
    output: str,
    url: str,
    timeout_s: float,
) -> None:
    """Run COMMAND (behind --) while holding the lock NAME, which one holds at a time.

    Waits for the lock, renews it while COMMAND runs, passes signals on, releases it and exits as COMMAND did.
    COMMAND finds the fencing token in KVNODE_LOCK_TOKEN: it rises with every holder. What it left running in its
    process group is ended before the lock is released. Exit code 4 where the lock was not free within --wait, 1 where
    it was lost: COMMAND and all that it started get SIGTERM, then SIGKILL before another holder can begin; at once
    where the lock is known to be gone. --timeout is for one question to the cluster.
    """
    if observe == bool(command):
        raise click.UsageError("give either a COMMAND, after --, or --observe")
    given = None if value is None else value.encode("utf-8", "surrogateescape")
    if observe:
        call(url, timeout_s, lambda c: _observe(c.lock(name), output))
        return
    job = Job()  # forks: before there is a loop or a thread
    try:
        code = call(url, timeout_s, lambda c: _locked(c, job, name, command, ttl_s, wait_s, given))
    finally:
        job.leave()
    raise SystemExit(code)


async def _observe(lock: Lock, output: str) -> None:
    import json

    async for holder in lock.observe():
        token, value = holder or (None, b"")
        text = value.decode("utf-8", "replace")
        if output == "json":
            print(json.dumps({"token": token, "value": text if holder else None}, ensure_ascii=False), flush=True)
        else:
            print(f"{token}\t{shown(text)}" if holder else "-", flush=True)


async def _locked(
    client: Client,
    job: Job,
    name: str,
    command: tuple[str, ...],
    ttl_s: int,
    wait_s: float | None,
    value: bytes | None,
) -> int:
    lock = client.lock(name, ttl_s=ttl_s, value=value)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stopped_by: list[int] = []

    def stop(number: int) -> None:
        stopped_by.append(number)
        task.cancel()

    # Until the command runs, a signal ends the waiting. What was taken by then is released below; a lock whose taking
    # is not answered yet is known to nobody here, and ends by itself.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        if not await lock.acquire(wait_s):
            print(f"kvnode: The lock {name} is held by {_who(await lock.holder())}.", file=sys.stderr)
            return HELD_BY_ANOTHER
        return await _run(lock, job, command)
    except asyncio.CancelledError:
        if not stopped_by:
            raise
        return 128 + stopped_by[0]
    finally:
        try:
            await lock.release()
        except Exception as e:  # the command's exit code matters more; the lease ends by itself
            print(
                f"kvnode: The lock {name} may not be released ({e}): it is free after {ttl_s} s at most.",
                file=sys.stderr,
            )


def _who(value: bytes | None) -> str:
    return "nobody any more; try again" if value is None else shown(value.decode("utf-8", "replace"))


async def _run(lock: Lock, job: Job, command: tuple[str, ...]) -> int:
    """Once the lock is held, and its lease was renewed where the answer came late."""
    environment = os.environ | {"KVNODE_LOCK": lock.name, "KVNODE_LOCK_TOKEN": str(lock.token)}
    loop = asyncio.get_running_loop()
    for number in PASSED_ON:  # before the start: what comes now is told to the guardian after it
        loop.add_signal_handler(number, job.send, number)
    loop.add_signal_handler(signal.SIGTSTP, _stand_still, lock, job)
    refused = await job.start(command, environment)
    if refused is not None:
        print(f"kvnode: {command[0]} cannot be run: {refused}.", file=sys.stderr)
        return NOT_STARTED
    assert job.ended is not None
    lost, stopped = asyncio.create_task(lock.lost.wait()), asyncio.create_task(_stop_with(lock, job))
    try:
        await asyncio.wait((job.ended, lost), return_when=asyncio.FIRST_COMPLETED)
        if job.ended.done():
            ending = asyncio.create_task(job.end(REST_S, all_of_it=False))
            await asyncio.wait((ending, lost), return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return _exit_code(job.ended.result())
            ending.cancel()
        print(f"kvnode: The lock {lock.name} was lost: stopping {command[0]}.", file=sys.stderr)
        if not await job.end(max(LOST_GRACE_S, lock.ends_in_s - KILL_MARGIN_S), all_of_it=True):
            print(f"kvnode: {command[0]} cannot be killed: look for what hangs in a device.", file=sys.stderr)
        return LOST
    finally:
        lost.cancel()
        stopped.cancel()


def _stand_still(lock: Lock, job: Job) -> None:
    """Ctrl-Z: nothing renews the lease while this process is stopped, so its command stands still as well."""
    job.stop()
    _stop_here(lock, job)


def _stop_here(lock: Lock, job: Job) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    if lock.held:  # and otherwise the command never goes on: it is killed as it stands
        job.go_on()


async def _stop_with(lock: Lock, job: Job) -> None:
    """The command has the terminal, and was stopped there."""
    while True:
        await job.stopped.wait()
        _stop_here(lock, job)
        await asyncio.sleep(0.05)


def _exit_code(status: int) -> int:
    """As a shell says it: 128 and the number of the signal that ended it."""
    return status if status >= 0 else 128 - status
