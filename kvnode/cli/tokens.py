"""`kvnode token`: who may use the HTTP API of the cluster."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import click

from kvnode.cli.calls import call, connected, output_option, print_json
from kvnode.cli.columns import print_rows
from kvnode.cli.command import Group
from kvnode.cli.keys import shown

# `http/tokens.py` has them, and this needs no server.
EXPIRES_S_MAX: Final = 10 * 366 * 86_400
GRACE_S_MAX: Final = 31 * 86_400
ROLES: Final = ("read", "write", "admin", "read_only", "full")
NEVER: Final = "never"
_DURATION: Final = re.compile(r"([0-9]{1,10})([smhd]|(?<=^0))", re.ASCII)
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "": 1}


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Whole seconds, from a number with its unit: 90d, 12h, 30m. `never` is None, where it may be said."""

    name = "duration"

    def __init__(self, least_s: int, most_s: int, may_be_never: bool = False) -> None:
        self.least_s, self.most_s, self.may_be_never = least_s, most_s, may_be_never

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if type(value) is int or (self.may_be_never and value == NEVER):
            return value  # type: ignore[no-any-return]
        match = _DURATION.fullmatch(str(value))
        seconds = int(match[1]) * _UNIT_S[match[2]] if match else -1
        if not self.least_s <= seconds <= self.most_s:
            self.fail(f"{value!r}: write a number and its unit, such as 30m, 12h or 90d.", param, ctx)
        return seconds


expires_option = click.option(
    "--expires",
    metavar="DURATION",
    type=Duration(1, EXPIRES_S_MAX, may_be_never=True),
    help="From now on, such as 90d; or never.",
)


@click.group(cls=Group)
def token() -> None:
    """Create, list, change, rotate or revoke access tokens; takes one with the role admin."""


@token.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="read", show_default=True, help="What it may; read_only is "
              "another word for read, and full for admin.")  # fmt: skip
@click.option("--prefix", "prefixes", metavar="PREFIX", multiple=True, help="Only keys that begin so; may be repeated.")
@expires_option
@output_option
@connected
def create(
    name: str, role: str, prefixes: tuple[str, ...], expires: int | str | None, output: str, url: str, timeout_s: float
) -> None:
    """Print a new token, once and never again: the cluster keeps its hash. NAME says whose it is."""
    document: dict[str, Any] = {"name": name, "role": role}
    if prefixes:
        document["prefixes"] = list(prefixes)
    if isinstance(expires, int):
        document["expires_s"] = expires
    made = call(url, timeout_s, lambda c: c.change_tokens("POST", "", **document))
    _print_made(made, output, f"'kvnode token revoke {made['id']}' ends it")


@token.command("list")
@output_option
@connected
def list_tokens(output: str, url: str, timeout_s: float) -> None:
    """Print each token's id, role, time of creation, name, prefixes, end and last use, parted by tabs.

    The last use is what the nodes have seen since they began.
    """
    body = call(url, timeout_s, lambda c: c.tokens())
    if output == "json":
        print_json(body)
        return
    rows = []
    for each in body["tokens"]:
        prefixes = " ".join(shown(prefix) for prefix in each.get("prefixes", ())) or "-"
        fields = [each["id"], each["role"], _time(each["created_ms"]), shown(each["name"]), prefixes]
        fields += (_time(each.get("expires_ms")), _time(each.get("last_used_ms")))
        rows.append(fields)
    print_rows(("id", "role", "created", "name", "prefixes", "ends", "last used"), rows)
    if body.get("unanswered"):
        away = ", ".join(shown(each) for each in body["unanswered"])
        print(f"kvnode: {away} did not answer: what was used there alone seems unused here.", file=sys.stderr)


@token.command()
@click.argument("name_or_id", metavar="TOKEN")
@click.option("--role", type=click.Choice(ROLES), help="Another role.")
@click.option("--prefix", "prefixes", metavar="PREFIX", multiple=True, help="In the place of those that it has.")
@click.option("--all-keys", is_flag=True, help="Take its prefixes away.")
@expires_option
@output_option
@connected
def update(
    name_or_id: str,
    role: str | None,
    prefixes: tuple[str, ...],
    all_keys: bool,
    expires: int | str | None,
    output: str,
    url: str,
    timeout_s: float,
) -> None:
    """Give TOKEN, by its name or id, another role, other prefixes or another end; what it let in before ends."""
    if all_keys and prefixes:
        raise click.UsageError("--all-keys and --prefix exclude each other")
    document: dict[str, Any] = {} if role is None else {"role": role}
    if all_keys or prefixes:
        document["prefixes"] = list(prefixes)
    if expires is not None:
        document["expires_s"] = None if expires == NEVER else expires
    if not document:
        raise click.UsageError("there is nothing to change: give --role, --prefix, --all-keys or --expires")
    changed = call(url, timeout_s, lambda c: c.change_tokens("PATCH", _path(name_or_id), **document))
    if output == "json":
        print_json(changed)
    else:
        print(f"changed {changed['id']}" if sys.stdout.isatty() else changed["id"])


@token.command()
@click.argument("name_or_id", metavar="TOKEN")
@click.option("--grace", "grace_s", metavar="DURATION", type=Duration(0, GRACE_S_MAX), default="1h", show_default=True,
              help="How long the former secret counts as well, such as 1h; 0: not at all.")  # fmt: skip
@output_option
@connected
def rotate(name_or_id: str, grace_s: int, output: str, url: str, timeout_s: float) -> None:
    """Print another secret for TOKEN, by its name or id, once; the former one counts for a while, so nothing stops."""
    made = call(url, timeout_s, lambda c: c.change_tokens("POST", f"{_path(name_or_id)}/rotate", grace_s=grace_s))
    _print_made(made, output, f"the former secret counts for {grace_s} s more")


@token.command()
@click.argument("name_or_id", metavar="TOKEN")
@output_option
@connected
def revoke(name_or_id: str, output: str, url: str, timeout_s: float) -> None:
    """End TOKEN, by its name or id, on every node."""
    body = call(url, timeout_s, lambda c: c.change_tokens("DELETE", _path(name_or_id)))
    if output == "json":
        print_json(body)
    else:
        print(f"revoked {body['revoked']}" if sys.stdout.isatty() else body["revoked"])


def _path(name_or_id: str) -> str:
    return "/" + quote(name_or_id, safe="")


def _print_made(made: dict[str, Any], output: str, note: str) -> None:
    if output == "json":
        print_json(made)
        return
    print(made["token"])
    if "warning" in made:
        print(f"kvnode: {made['warning']}", file=sys.stderr)
    if sys.stdout.isatty():
        print(f"Its id is {made['id']}; {note}.", file=sys.stderr)


def _time(time_ms: int | None) -> str:
    """'-' for never."""
    return "-" if not time_ms else datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
