"""`kvnode token`: who may use the HTTP API of the cluster."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click

from kvnode.cli.calls import call, complain, connected, output_option, print_json
from kvnode.cli.command import Group
from kvnode.cli.keys import shown


@click.group(cls=Group)
def token() -> None:
    """Create, list or revoke access tokens; takes one with the role full."""


@token.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["read_only", "full"]), default="read_only", show_default=True)
@output_option
@connected
def create(name: str, role: str, output: str, url: str, timeout_s: float) -> None:
    """Print a new token, once and never again: the cluster keeps its hash. NAME says whose it is."""
    made = call(url, timeout_s, lambda c: c.change_tokens("POST", "", name=name, role=role))
    if output == "json":
        print_json(made)
        return
    print(made["token"])
    if "warning" in made:
        complain(made["warning"])
    if sys.stdout.isatty():
        print(f"Its id is {made['id']}; 'kvnode token revoke {made['id']}' ends it.", file=sys.stderr)


@token.command("list")
@output_option
@connected
def list_tokens(output: str, url: str, timeout_s: float) -> None:
    """Print each token's id, role, time of creation and name, parted by tabs."""
    body = call(url, timeout_s, lambda c: c.tokens())
    if output == "json":
        print_json(body)
        return
    for each in body["tokens"]:
        line = "\t".join((each["id"], each["role"], _time(each), shown(each["name"])))
        print(line.expandtabs(12) if sys.stdout.isatty() else line)


@token.command()
@click.argument("token_id", metavar="ID")
@output_option
@connected
def revoke(token_id: str, output: str, url: str, timeout_s: float) -> None:
    """End the token with this ID, on every node."""
    body = call(url, timeout_s, lambda c: c.change_tokens("DELETE", "/" + quote(token_id, safe="")))
    if output == "json":
        print_json(body)
    else:
        print(f"revoked {token_id}" if sys.stdout.isatty() else token_id)


def _time(each: dict[str, Any]) -> str:
    return datetime.fromtimestamp(each["created_ms"] / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
