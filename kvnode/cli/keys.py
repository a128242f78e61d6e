"""`kvnode put`, `get`, `delete`, `list`: plain values to a pipe, something readable to a terminal."""

from __future__ import annotations

import sys
from base64 import b64encode
from codecs import getincrementaldecoder
from typing import TYPE_CHECKING, Any, Final

import click

from kvnode import errors
from kvnode.cli.calls import call, connected, fail, output_option, print_json
from kvnode.cli.command import Command

if TYPE_CHECKING:
    from kvnode.client import Client, Item, Listed
    from kvnode.client.client import Consistency

VALUE_BYTES_MAX: Final = 1_048_576
SHOWN_VALUE_CHARS: Final = 60

idempotency_key_option = click.option(
    "--idempotency-key",
    metavar="KEY",
    help="Repeating the command with the same KEY does not write twice; 1 to 64 characters [default: a new one].",
)


@click.command(cls=Command)
@click.argument("key")
@click.argument("value", required=False)
@click.option("--if-match", metavar="REVISION", type=click.IntRange(1), help="Only while this is its mod_revision.")
@click.option("--if-absent", is_flag=True, help="Only if the key does not exist.")
@click.option("--content-type", metavar="TYPE", help="Stored with the value and given back.")
@click.option("--ttl", metavar="SECONDS", type=click.IntRange(1), help="The key goes away after so long.")
@click.option("--lease", metavar="ID", type=click.IntRange(1), help="The key goes away with this lease.")
@idempotency_key_option
@output_option
@connected
def put(
    key: str,
    value: str | None,
    if_match: int | None,
    if_absent: bool,
    content_type: str | None,
    ttl: int | None,
    lease: int | None,
    idempotency_key: str | None,
    output: str,
    url: str,
    timeout_s: float,
) -> None:
    """Set KEY to VALUE; without a VALUE, or with -, to what comes in on stdin.

    Prints OK, on a terminal with the new revision. A VALUE that begins with a dash goes after --.
    """
    if if_match is not None and if_absent:
        raise click.UsageError("--if-match and --if-absent exclude each other")
    if ttl is not None and lease is not None:
        raise click.UsageError("--ttl and --lease exclude each other")
    if value is None or value == "-":
        data, kind = _read_stdin(), "application/octet-stream"
    else:
        data, kind = value.encode("utf-8", "surrogateescape"), "text/plain; charset=utf-8"
    done = call(
        url,
        timeout_s,
        lambda c: c.put(
            key,
            data,
            content_type=content_type or kind,
            if_match=if_match,
            if_absent=if_absent,
            ttl=ttl,
            lease=lease,
            idempotency_key=idempotency_key,
        ),
    )
    if output == "json":
        document = {"key": key, "revision": done.revision, "version": done.version, "created": done.created}
        print_json(document | ({} if done.lease is None else {"lease": done.lease}))
    else:
        print(f"OK revision {done.revision}" if sys.stdout.isatty() else "OK")


def _read_stdin() -> bytes:
    if sys.stdin.isatty():
        print("Reading the value from the terminal; Ctrl-D ends it.", file=sys.stderr)
    # One byte over the bound is enough for the node to refuse it, and endless input must end somewhere.
    return sys.stdin.buffer.read(VALUE_BYTES_MAX + 1)


prefix_option = click.option("--prefix", "is_prefix", is_flag=True, help="Every key that begins with KEY.")


@click.command(cls=Command)
@click.argument("key")
@prefix_option
@click.option("--stale", is_flag=True, help="From the node's own memory, at once; it may be behind.")
@click.option(
    "--revision", metavar="REVISION", type=click.IntRange(1), help="As it was then, as far back as a node remembers."
)
@output_option
@connected
def get(key: str, is_prefix: bool, stale: bool, revision: int | None, output: str, url: str, timeout_s: float) -> None:
    """Print the value of KEY, byte for byte; exit code 3 if it does not exist.

    With --prefix, what 'kvnode list --values KEY' prints.
    """
    if is_prefix:
        if revision is not None:
            raise click.UsageError("--revision is for one key: a listing at an older revision is not kept")
        _print_listing(key, None, True, stale, output, url, timeout_s)
        return
    consistency: Consistency = "stale" if stale else "linearizable"
    if output == "json" and revision is None and key:
        # One key of a listing tells all of it; the answer to a get has no room for it in its headers.
        page = call(url, timeout_s, lambda c: c.list(start=key, end=f"{key}\0", limit=1, consistency=consistency))
        if not page.items:
            fail(f"There is no key {shown(key)!r}.", 3, errors.KeyNotFound.code)
        print_json(_as_json(page.items[0]) | {"revision": page.revision})
        return
    item = call(url, timeout_s, lambda c: c.get(key, consistency, revision=revision))
    if output == "json":
        document = {"key": key, "value": b64encode(item.value).decode(), "content_type": item.content_type}
        print_json(document | {"mod_revision": item.mod_revision, "revision": item.revision} | leasing(item))
        return
    sys.stdout.buffer.write(item.value)
    if sys.stdout.isatty() and not item.value.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")  # the prompt belongs on a line of its own; a pipe gets the value alone
    sys.stdout.buffer.flush()


@click.command(cls=Command)
@click.argument("key")
@prefix_option
@click.option("--if-match", metavar="REVISION", type=click.IntRange(1), help="Only while this is its mod_revision.")
@idempotency_key_option
@output_option
@connected
def delete(
    key: str,
    is_prefix: bool,
    if_match: int | None,
    idempotency_key: str | None,
    output: str,
    url: str,
    timeout_s: float,
) -> None:
    """Remove KEY; exit code 3 if it does not exist.

    With --prefix, every key that begins with KEY, in one step: prints how many there were, which may be 0.
    """
    if is_prefix:
        if if_match is not None:
            raise click.UsageError("--if-match is for one key")
        done = call(url, timeout_s, lambda c: c.delete_prefix(key, idempotency_key=idempotency_key))
        print_json({"deleted": done}) if output == "json" else print(done)
        return
    revision = call(url, timeout_s, lambda c: c.delete(key, if_match=if_match, idempotency_key=idempotency_key))
    if output == "json":
        print_json({"deleted": 1, "revision": revision})
    else:
        print(f"deleted, revision {revision}" if sys.stdout.isatty() else "1")


@click.command("list", cls=Command)
@click.argument("prefix", default="")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="At most so many keys [default: all].")
@click.option("--values", "with_values", is_flag=True, help="To a pipe: each key, a tab, and its value.")
@click.option("--stale", is_flag=True, help="From the node's own memory, at once; it may be behind.")
@output_option
@connected
def list_keys(
    prefix: str, limit: int | None, with_values: bool, stale: bool, output: str, url: str, timeout_s: float
) -> None:
    """List keys, or those that begin with PREFIX, in byte order: one a line to a pipe, a table on a terminal.

    --values: in a value, and in a key before it, a backslash, a tab, a line's end and what is no printable UTF-8 are
    written as in a shell's $'…': \\\\, \\t, \\n, \\x00. For the bytes themselves: -o json, or 'kvnode get'.
    """
    _print_listing(prefix, limit, with_values, stale, output, url, timeout_s)


def _print_listing(
    prefix: str, limit: int | None, with_values: bool, stale: bool, output: str, url: str, timeout_s: float
) -> None:
    table_wanted = output == "text" and sys.stdout.isatty()
    keys_only = output == "text" and not table_wanted and not with_values
    items = call(url, timeout_s, lambda c: _every_page(c, prefix, limit, keys_only, stale))
    if output == "json":
        print_json([_as_json(item) for item in items])
    elif table_wanted:
        _print_table(items)
    elif with_values:
        for item in items:
            print(f"{escaped(item.key.encode())}\t{escaped(item.value)}")
    else:
        for item in items:
            sys.stdout.buffer.write(item.key.encode() + b"\n")
        sys.stdout.buffer.flush()


async def _every_page(c: Client, prefix: str, limit: int | None, keys_only: bool, stale: bool) -> list[Listed]:
    found: list[Listed] = []
    cursor: str | None = None
    while limit is None or len(found) < limit:
        wanted = 1_000 if limit is None else min(1_000, limit - len(found))
        page = await c.list(
            prefix, limit=wanted, cursor=cursor, keys_only=keys_only, consistency="stale" if stale else "linearizable"
        )
        found += page.items
        cursor = page.cursor
        if cursor is None:
            break
    return found


def _as_json(item: Listed) -> dict[str, Any]:
    return {
        "key": item.key,
        "value": b64encode(item.value).decode(),
        "content_type": item.content_type,
        "create_revision": item.create_revision,
        "mod_revision": item.mod_revision,
        "version": item.version,
    } | leasing(item)


def leasing(item: Item | Listed) -> dict[str, int]:
    """What a key hangs on, and for how long still: nothing without a lease."""
    return {} if item.lease is None or item.ttl is None else {"lease": item.lease, "ttl": item.ttl}


def _print_table(items: list[Listed]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("key", "value", box=box.SIMPLE_HEAD)
    table.add_column("revision", justify="right")
    table.add_column("version", justify="right")
    table.add_column("ttl", justify="right")
    for item in items:
        ttl = "" if item.ttl is None else f"{item.ttl} s"
        numbers = (str(item.mod_revision), str(item.version), ttl)
        table.add_row(Text(shown(item.key)), Text(shown(preview(item.value))), *numbers)
    Console().print(table)


def preview(value: bytes) -> str:
    """A value as one cell of a table: the beginning of a text, or how long it is."""
    head = value[: SHOWN_VALUE_CHARS * 4]
    try:
        # A cut may fall into a character, whose beginning is left out.
        text = getincrementaldecoder("utf-8")().decode(head, final=len(head) == len(value))
    except UnicodeDecodeError:
        return f"({len(value)} bytes)"
    return text if len(text) <= SHOWN_VALUE_CHARS else text[:SHOWN_VALUE_CHARS] + "…"


def shown(text: str) -> str:
    """Without control characters: a stored escape sequence must not reach the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


_ESCAPES: Final = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}


def escaped(data: bytes) -> str:
    """On one line, and back again without a doubt: printable UTF-8 as it is, all else by its bytes."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(_ESCAPES.get(c) or (c if c.isprintable() else _as_bytes(c)) for c in text)


def _as_bytes(c: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape"))
