"""`kvnode lock`: a command that runs on one machine at a time, and who it is that holds the lock."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import click

from kvnode.cli.calls import Finite, call, connected, output_option
from kvnode.cli.keys import shown

if TYPE_CHECKING:
    from kvnode.client import Client, Lock

HELD_BY_ANOTHER: Final = 4
NOT_STARTED: Final = 127
LOST: Final = 1
# Ctrl-C reaches a command in the foreground by itself, so that one is passed on only where there is no terminal.
PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


@click.command()
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
    COMMAND finds the fencing token in KVNODE_LOCK_TOKEN: it rises with every holder. Exit code 4 where the lock was not
    free within --wait, 1 where it was lost: COMMAND then gets SIGTERM, and SIGKILL before anybody else can hold it.
    """
    if observe == bool(command):
        raise click.UsageError("give either a COMMAND, after --, or --observe")
    given = None if value is None else value.encode("utf-8", "surrogateescape")
    if observe:
        call(url, timeout_s, lambda c: _observe(c.lock(name), output))
    else:
        raise SystemExit(call(url, timeout_s, lambda c: _locked(c, name, command, ttl_s, wait_s, given)))


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
    client: Client, name: str, command: tuple[str, ...], ttl_s: int, wait_s: float | None, value: bytes | None
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
        return await _run(lock, command)
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


async def _run(lock: Lock, command: tuple[str, ...]) -> int:
    environment = os.environ | {"KVNODE_LOCK": lock.name, "KVNODE_LOCK_TOKEN": str(lock.token)}
    try:
        process = await asyncio.create_subprocess_exec(*command, env=environment)
    except OSError as e:
        print(f"kvnode: {command[0]} cannot be run: {e.strerror}.", file=sys.stderr)
        return NOT_STARTED
    _pass_signals_on(process)
    ended, lost = asyncio.create_task(process.wait()), asyncio.create_task(lock.lost.wait())
    try:
        await asyncio.wait((ended, lost), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return _exit_code(ended.result())
        print(f"kvnode: The lock {lock.name} was lost: stopping {command[0]}.", file=sys.stderr)
        _send(process, signal.SIGTERM)
        await asyncio.wait((ended,), timeout=max(0.0, lock.ends_in_s))
        _send(process, signal.SIGKILL)
        await ended
        return LOST
    finally:
        lost.cancel()


def _pass_signals_on(process: asyncio.subprocess.Process) -> None:
    loop = asyncio.get_running_loop()
    for number in PASSED_ON:
        loop.add_signal_handler(number, _send, process, number)
    loop.add_signal_handler(signal.SIGINT, _interrupted, process)


def _interrupted(process: asyncio.subprocess.Process) -> None:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        _send(process, signal.SIGINT)
        return
    try:
        if os.tcgetpgrp(terminal) != os.getpgrp():
            _send(process, signal.SIGINT)
    except OSError:
        _send(process, signal.SIGINT)
    finally:
        os.close(terminal)


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except ProcessLookupError:
        pass


def _exit_code(status: int) -> int:
    """As a shell says it: 128 and the number of the signal that ended it."""
    return status if status >= 0 else 128 - status
