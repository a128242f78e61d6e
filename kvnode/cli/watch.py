"""`kvnode watch`: one line for each change, for as long as it is let."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final

import click

from kvnode.cli.calls import call, complain, connected, output_option
from kvnode.cli.command import Command
from kvnode.cli.keys import preview, shown

if TYPE_CHECKING:
    from kvnode.client import Client
    from kvnode.client.watching import Event

VARIABLE_BYTES_MAX: Final = 65_536  # Linux takes 128 KiB for one variable
END_S: Final = 5.0  # for a command that is ended by SIGTERM
LOOK_S: Final = 0.02


@click.command(cls=Command)
@click.argument("prefix", default="")
@click.option("--key", metavar="KEY", help="This key alone.")
@click.option("--from-revision", metavar="REVISION", type=click.IntRange(1), help="Begin there [default: now].")
@click.option("--exec", "command", metavar="CMD", help="Run this in a shell for each change, instead of printing it.")
@output_option
@connected
def watch(
    prefix: str,
    key: str | None,
    from_revision: int | None,
    command: str | None,
    output: str,
    url: str,
    timeout_s: float,
) -> None:
    """Print every change to the keys that begin with PREFIX: its revision, what it was, the key and the value.

    --exec: CMD finds the change in KVNODE_WATCH_EVENT (put, delete or expire), KVNODE_WATCH_KEY, KVNODE_WATCH_REVISION
    and, where it is text of at most 64 KiB, KVNODE_WATCH_VALUE; the value itself is its stdin. One runs at a time, in
    the order of the changes; that one fails is said, and the next one runs.

    Goes on by itself at the next node when one goes away, and for ever, also without a leader; after --timeout of that
    a warning says so. Only where no node answers at first does it give up after --timeout. Ctrl-C ends it.
    """
    if key is not None and prefix:
        raise click.UsageError("PREFIX and --key exclude each other")
    if command is not None and not command.strip():
        raise click.UsageError("--exec names no command")

    ended_by: list[int] = []

    async def follow(client: Client) -> None:
        if command is not None:
            _end_with_signals(ended_by)
        async for event in client.watch(prefix, key=key, from_revision=from_revision):
            if command is not None:
                await _run(command, event)
                continue
            print(json.dumps(_as_json(event), ensure_ascii=False) if output == "json" else _line(event), flush=True)

    try:
        call(url, timeout_s, follow)
    except asyncio.CancelledError:
        raise SystemExit(128 + ended_by[0]) from None
    except BrokenPipeError:
        # Whoever read along has enough, as `head` has: no error. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_with_signals(ended_by: list[int]) -> None:
    """A signal ends the watch by way of its task, so that the command that runs is ended as well."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def end(number: int) -> None:
        ended_by.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)


async def _run(command: str, event: Event) -> None:
    """The user's command to its end; with all that it started, where this one is ended before it."""
    change = {"EVENT": event.kind, "KEY": event.key, "REVISION": str(event.revision)}
    if len(event.value) <= VARIABLE_BYTES_MAX and b"\0" not in event.value:
        with contextlib.suppress(UnicodeDecodeError):
            change["VALUE"] = event.value.decode()
    if "\0" in event.key:
        del change["KEY"]  # no variable of an environment can hold it
    environment = os.environ | {f"KVNODE_WATCH_{name}": text for name, text in change.items()}
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_shell(command, stdin=asyncio.subprocess.PIPE, env=environment, process_group=0)
    )
    try:
        # A signal may come while the process starts: what it has started by then would be left running.
        process = await asyncio.shield(starting)
        await process.communicate(event.value)
    except asyncio.CancelledError:
        await _end(await starting)
        raise
    if process.returncode:
        complain(f"The command ended with {process.returncode} for revision {event.revision} of {shown(event.key)}.")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends the command's process group with SIGTERM, and after END_S, or at another signal, with SIGKILL."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + END_S
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGTERM)
        try:
            while loop.time() < deadline_s:
                await asyncio.sleep(LOOK_S)
                os.killpg(process.pid, 0)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _line(event: Event) -> str:
    line = f"{event.revision}\t{event.kind}\t{shown(event.key)}"
    return f"{line}\t{shown(preview(event.value))}" if event.kind == "put" else line


def _as_json(event: Event) -> dict[str, Any]:
    document: dict[str, Any] = {"event": event.kind, "key": event.key, "revision": event.revision}
    if event.kind == "put":
        document |= {
            "value": b64encode(event.value).decode(),
            "content_type": event.content_type,
            "create_revision": event.create_revision,
            "version": event.version,
        }
    return document
