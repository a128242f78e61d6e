"""`kvnode status`, `leader`, `transfer`: the cluster as its members see it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from kvnode import errors
from kvnode.cli.calls import call, connected, fail, output_option, print_json
from kvnode.cli.command import Command

if TYPE_CHECKING:
    from kvnode.client import Client

HEALTH_S: Final = 1.5  # a probe answers within its own deadline, 500 ms, or the node is in trouble
COLUMNS: Final = ("node", "role", "term", "applied", "lag", "reachable", "http", "raft", "health")


@click.command(cls=Command)
@output_option
@connected
def status(output: str, url: str, timeout_s: float) -> None:
    """Show every member: role, term, what it has applied, how far it is behind, and its health.

    One node answers for all; what it does not know is shown as -. Health is what each node says itself, asked at its
    HTTP address. Exit code 5 where no leader is known.
    """
    body = call(url, timeout_s, _examined)
    if output == "json":
        print_json(body)
    else:
        rows = [_row(group, member) for group in body["groups"] for member in group["members"]]
        _print_rows(rows, f"as {body['node_id']} sees it, at feature level {body['groups'][0].get('feature_level', 0)}")
    if not all(group["leader_id"] for group in body["groups"]):
        fail("No leader is known at present.", 5, errors.NoLeader.code)


async def _examined(client: Client) -> dict[str, Any]:
    """The cluster as one node sees it, and what each member says of its own readiness."""
    body = await client.cluster()
    members = [member for group in body["groups"] for member in group["members"]]
    for member, health in zip(members, await asyncio.gather(*(_health(client, m) for m in members)), strict=True):
        member["health"] = health
    return body


async def _health(client: Client, member: dict[str, Any]) -> str | None:
    """'ready', or why not in the node's words; None where its HTTP cannot be asked from here."""
    answer = await client.look(member["http"], "/readyz", HEALTH_S) if member["http"] else None
    if answer is None or answer.status not in (200, 503):
        return None
    if answer.status == 200:
        return "ready"
    try:
        return f"not ready: {json.loads(answer.body)['message']}"
    except (ValueError, TypeError, LookupError):
        return "not ready"


def _row(group: dict[str, Any], member: dict[str, Any]) -> tuple[str, ...]:
    reachable = bool(member["reachable"])
    cells = (
        member["id"],
        member["role"] if reachable else "unreachable",
        group["term"] if reachable else None,
        member["applied_index"],
        member["lag"],
        "yes" if reachable else "no",
        member["http"],
        member["raft"],
        member["health"] or ("draining" if member.get("draining") else None),
    )
    return tuple("-" if cell is None else str(cell) for cell in cells)


def _print_rows(rows: list[tuple[str, ...]], caption: str) -> None:
    """A table on a terminal; columns parted by tabs, with their names first, to a pipe."""
    if not sys.stdout.isatty():
        for row in (COLUMNS, *rows):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    styles = {"leader": "green", "unreachable": "red", "candidate": "yellow", "unknown": "yellow"}
    table = Table(box=None, padding=(0, 2, 0, 0), caption=caption, caption_justify="left")
    # The role says "unreachable" already; without that column, whole addresses fit into 80 characters.
    shown = [COLUMNS.index(name) for name in ("node", "role", "term", "applied", "lag", "health", "http", "raft")]
    for i in shown:
        table.add_column(COLUMNS[i], overflow="fold")
    for row in rows:
        health = row[COLUMNS.index("health")]
        unwell = "red" if health.startswith("not ready") else None
        table.add_row(*(row[i] for i in shown), style=styles.get(row[1]) if unwell is None else unwell)
    Console().print(table)


@click.command(cls=Command)
@output_option
@connected
def leader(output: str, url: str, timeout_s: float) -> None:
    """Print the leader's name and URL, parted by a tab; exit code 5 where there is none."""
    body = call(url, timeout_s, lambda c: c.cluster())
    group = body["groups"][0]
    if not group["leader_id"]:
        fail("No leader is known at present; try again in a moment.", 5, errors.NoLeader.code)
    http = next((member["http"] for member in group["members"] if member["id"] == group["leader_id"]), None)
    if output == "json":
        print_json({"leader_id": group["leader_id"], "http": http, "term": group["term"]})
    else:
        print(f"{group['leader_id']}\t{http or '-'}")


@click.command(cls=Command)
@click.argument("node", required=False)
@output_option
@connected
def transfer(node: str | None, output: str, url: str, timeout_s: float) -> None:
    """Hand leadership to NODE, or to the member that is furthest ahead; returns once it leads."""
    leader_id, term = call(url, timeout_s, lambda c: c.transfer(node))
    if output == "json":
        print_json({"leader_id": leader_id, "term": term})
    else:
        print(f"{leader_id} leads in term {term}" if sys.stdout.isatty() else leader_id)


@click.command(cls=Command)
@click.argument("node", required=False)
@click.option("--undo", is_flag=True, help="The node takes new work again.")
@click.option("--force", is_flag=True, help="Although no other node is ready.")
@output_option
@connected
def drain(node: str | None, undo: bool, force: bool, output: str, url: str, timeout_s: float) -> None:
    """Take NODE out of rotation: its probes fail, it hands over the leadership, and watches go elsewhere.

    Without NODE it is the node at --url, or whichever a balancer there chooses; the answer names it. It still serves
    what comes, until it is stopped; --undo, or starting it again, ends the drain. Refused for the last node that is
    ready, unless forced. Exit code 1 where it has to go on leading.
    """
    if undo and force:
        raise click.UsageError("--force is for draining; --undo needs none")
    if undo:
        body = call(url, timeout_s, lambda c: c.undrain(node))
    else:
        body = call(url, timeout_s, lambda c: c.drain(node, force))
    if output == "json":
        print_json(body)
    else:
        state = "is draining" if body["draining"] else "is not draining"
        print(f"{body['node']} {state}; {body['leader_id'] or 'nobody'} leads")
    if body["draining"] and body["leads"]:
        fail(f"{body['node']} drains and still leads: {body['message']}")
