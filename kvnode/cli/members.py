"""`kvnode member`: who belongs to the cluster, and changing that, one member at a time."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from kvnode.cli.calls import call, connected, output_option, print_json
from kvnode.cli.columns import print_rows
from kvnode.cli.command import Group


@click.group(cls=Group)
def member() -> None:
    """List, add, promote, replace or remove members of the cluster."""


@member.command("list")
@output_option
@connected
def list_members(output: str, url: str, timeout_s: float) -> None:
    """Print each member's name, role, Raft address and URL, parted by tabs."""
    _print(call(url, timeout_s, lambda c: c.members()), output)


@member.command()
@click.argument("node")
@click.argument("raft", metavar="RAFT_ADDR")
@click.option("--learner", is_flag=True, help="Keep it a learner, which counts for no majority, until it is promoted.")
@click.option("--moved", is_flag=True, help="NODE is a member already, and has this address from now on.")
@output_option
@connected
def add(node: str, raft: str, learner: bool, moved: bool, output: str, url: str, timeout_s: float) -> None:
    """Add NODE, which its peers dial at RAFT_ADDR (HOST:PORT).

    It begins as a learner and becomes a voter by itself once it has caught up. Then start it on its machine, with an
    empty --data-dir and --join. ('kvnode serve --join' alone does both.)
    """
    _print(
        call(url, timeout_s, lambda c: c.change_members("POST", "", id=node, raft=raft, learner=learner, moved=moved)),
        output,
    )


@member.command()
@click.argument("node")
@click.option("--force", is_flag=True, help="Also where the members that stay have no majority among them now.")
@output_option
@connected
def remove(node: str, force: bool, output: str, url: str, timeout_s: float) -> None:
    """Remove NODE, running or not; a leader hands over first. It stops by itself once it knows."""
    _print(call(url, timeout_s, lambda c: c.change_members("DELETE", "", id=node, force=force)), output)


@member.command()
@click.argument("node")
@output_option
@connected
def promote(node: str, output: str, url: str, timeout_s: float) -> None:
    """Make a voter of the learner NODE, which must have caught up."""
    _print(call(url, timeout_s, lambda c: c.change_members("POST", f"/{quote(node, safe='')}/promote")), output)


@member.command("replace")
@click.argument("node")
@output_option
@connected
def replace_member(node: str, output: str, url: str, timeout_s: float) -> None:
    """Take NODE back, a voter whose data directory is lost.

    It becomes a learner, which has promised nothing yet, and a voter again once it has caught up. Start it as before,
    with an empty --data-dir. (The leader does the same by itself where such a node answers at NODE's address.)
    """
    _print(call(url, timeout_s, lambda c: c.change_members("POST", f"/{quote(node, safe='')}/replace")), output)


def _print(membership: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(membership)
        return
    rows = [(each["id"], each["role"], each["raft"], each["http"] or "-") for each in membership["members"]]
    print_rows(("id", "role", "raft", "http"), rows)
