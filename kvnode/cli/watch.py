"""`kvnode watch`: one line for each change, for as long as it is let."""

from __future__ import annotations

import json
import os
import sys
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import click

from kvnode.cli.calls import call, connected, output_option
from kvnode.cli.keys import preview, shown

if TYPE_CHECKING:
    from kvnode.client import Client
    from kvnode.client.watching import Event


@click.command()
@click.argument("prefix", default="")
@click.option("--key", metavar="KEY", help="This key alone.")
@click.option("--from-revision", metavar="REVISION", type=click.IntRange(1), help="Begin there [default: now].")
@output_option
@connected
def watch(prefix: str, key: str | None, from_revision: int | None, output: str, url: str, timeout_s: float) -> None:
    """Print every change to the keys that begin with PREFIX: its revision, what it was, the key and the value.

    Goes on by itself at the next node when one goes away, and for ever, also without a leader; after --timeout of that
    a warning says so. Only where no node answers at first does it give up after --timeout. Ctrl-C ends it.
    """
    if key is not None and prefix:
        raise click.UsageError("PREFIX and --key exclude each other")

    async def follow(client: Client) -> None:
        async for event in client.watch(prefix, key=key, from_revision=from_revision):
            print(json.dumps(_as_json(event), ensure_ascii=False) if output == "json" else _line(event), flush=True)

    try:
        call(url, timeout_s, follow)
    except BrokenPipeError:
        # Whoever read along has enough, as `head` has: no error. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
