"""`kvnode status`, `leader`, `transfer`: the cluster as its members see it."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from kvnode.cli.calls import call, connected, output_option, print_json

COLUMNS: Final = ("node", "role", "term", "applied", "lag", "reachable", "http", "raft")


@click.command()
@output_option
@connected
def status(output: str, url: str, timeout_s: float) -> None:
    """Show every member: role, term, what it has applied, how far it is behind, whether it can be reached.

    One node answers for all; what it does not know is shown as -. Exit code 5 where no leader is known.
    """
    body = call(url, timeout_s, lambda c: c.cluster())
    if output == "json":
        print_json(body)
    else:
        rows = [_row(group, member) for group in body["groups"] for member in group["members"]]
        _print_rows(rows, str(body["node_id"]))
    if not all(group["leader_id"] for group in body["groups"]):
        print("kvnode: No leader is known at present.", file=sys.stderr)
        raise SystemExit(5)


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
    )
    return tuple("-" if cell is None else str(cell) for cell in cells)


def _print_rows(rows: list[tuple[str, ...]], asked: str) -> None:
    """A table on a terminal; columns parted by tabs, with their names first, to a pipe."""
    if not sys.stdout.isatty():
        for row in (COLUMNS, *rows):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    styles = {"leader": "green", "unreachable": "red", "candidate": "yellow", "unknown": "yellow"}
    table = Table(box=None, padding=(0, 2, 0, 0), caption=f"as {asked} sees it", caption_justify="left")
    # The role says "unreachable" already; without that column, whole addresses fit into 80 characters.
    shown = [i for i, name in enumerate(COLUMNS) if name != "reachable"]
    for i in shown:
        table.add_column(COLUMNS[i], overflow="fold")
    for row in rows:
        table.add_row(*(row[i] for i in shown), style=styles.get(row[1]))
    Console().print(table)


@click.command()
@output_option
@connected
def leader(output: str, url: str, timeout_s: float) -> None:
    """Print the leader's name and URL, parted by a tab; exit code 5 where there is none."""
    body = call(url, timeout_s, lambda c: c.cluster())
    group = body["groups"][0]
    if not group["leader_id"]:
        print("kvnode: No leader is known at present; try again in a moment.", file=sys.stderr)
        raise SystemExit(5)
    http = next((member["http"] for member in group["members"] if member["id"] == group["leader_id"]), None)
    if output == "json":
        print_json({"leader_id": group["leader_id"], "http": http, "term": group["term"]})
    else:
        print(f"{group['leader_id']}\t{http or '-'}")


@click.command()
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
