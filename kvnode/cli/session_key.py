"""`kvnode session-key`: which key signs admin sessions, and changing it for the whole cluster."""

from __future__ import annotations

from typing import Any, Final

import click

from kvnode.cli.calls import call, connected, output_option, print_json
from kvnode.cli.command import Group

GRACE_S_MAX: Final = 31 * 86_400


@click.group("session-key", cls=Group)
def session_key() -> None:
    """Show or rotate the key that signs admin sessions."""


@session_key.command("show")
@output_option
@connected
def show(output: str, url: str, timeout_s: float) -> None:
    """Print the key's fingerprint, as this node has it; never the key."""
    _print(call(url, timeout_s, lambda c: c.session_key()), output)


@session_key.command()
@click.option("--grace", "grace_s", metavar="SECONDS", type=click.IntRange(0, GRACE_S_MAX), default=28_800,
              show_default=True, help="How long the key before it is accepted; 0 ends all sessions.")  # fmt: skip
@output_option
@connected
def rotate(grace_s: int, output: str, url: str, timeout_s: float) -> None:
    """Have another key sign from now on, on every node.

    That is a new one which the cluster makes; where nodes were given one in KVNODE_SESSION_KEY, the newest that the
    asked node was given.
    """
    _print(call(url, timeout_s, lambda c: c.rotate_session_key(grace_s)), output)


def _print(state: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(state)
        return
    if not state["number"]:
        print(state["error"])
        raise SystemExit(5)
    print(f"key         {state['fingerprint']}, number {state['number']}, from the {_ORIGINS[state['origin']]}")
    if state["previous"]:
        print(f"before      {state['previous']}, accepted for {state['grace_s']} s from the change")
    if state["error"]:
        print(f"error       {state['error']}")


_ORIGINS: Final = {"cluster": "cluster itself", "given": "nodes' configuration"}
