"""`kvnode txn`: a transaction as its JSON, from a file or stdin."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from kvnode.cli.calls import call, connected, output_option, print_json
from kvnode.cli.command import Command
from kvnode.cli.keys import idempotency_key_option, preview, shown

if TYPE_CHECKING:
    from kvnode.client import Found, Put, Txn

LISTS: Final = ("compare", "success", "failure")
FAILURE_RAN: Final = 4
BYTES_MAX: Final = 4 * 1_048_576


@click.command(cls=Command)
@click.argument("file", type=click.File("rb"), default="-")
@idempotency_key_option
@output_option
@connected
def txn(file: BinaryIO, idempotency_key: str | None, output: str, url: str, timeout_s: float) -> None:
    """Carry out the transaction in FILE, or on stdin, all or nothing, in one revision.

    \b
    {"compare": [{"key": "job", "exists": false}],
     "success": [{"put": {"key": "job", "text": "mine"}}],
     "failure": [{"get": {"key": "job"}}]}

    Prints which branch ran and what each of its operations did; exit code 4 where "failure" ran.
    """
    document = _read(file)
    lists = [document.get(name, []) for name in LISTS]
    done = call(url, timeout_s, lambda c: c.txn(*lists, idempotency_key=idempotency_key))
    ran = lists[1] if done.succeeded else lists[2]
    if output == "json":
        print_json(_as_json(done, ran))
    else:
        print(f"{'success' if done.succeeded else 'failure'}\t{done.revision}")
        for operation, result in zip(ran, done.results, strict=True):
            print(_line(next(iter(operation)), result, operation))
    raise SystemExit(0 if done.succeeded else FAILURE_RAN)


def _read(file: BinaryIO) -> dict[str, Any]:
    if file.isatty():
        print("Reading the transaction from the terminal; Ctrl-D ends it.", file=sys.stderr)
    try:
        document = json.loads(file.read(BYTES_MAX + 1))
    except (ValueError, RecursionError):
        raise click.UsageError("the transaction is not JSON of at most 4 MiB") from None
    if not isinstance(document, dict) or not set(document) <= set(LISTS):
        raise click.UsageError(f"a transaction is a JSON object with {', '.join(LISTS)} at most")
    if not all(isinstance(document.get(name, []), list) for name in LISTS):
        raise click.UsageError(f"{', '.join(LISTS)} are lists")
    return document


def _line(name: str, result: Put | int | Found, operation: dict[str, Any]) -> str:
    content = operation[name]
    key = shown(str(content.get("prefix") or content.get("key")))
    if isinstance(result, int):
        return f"{name}\t{key}\t{result}"
    if name == "put":
        return f"put\t{key}\t{result.version}"
    value = getattr(result, "value", None)
    return f"get\t{key}\t{'-' if value is None else shown(preview(value))}"


def _as_json(done: Txn, ran: list[dict[str, Any]]) -> dict[str, Any]:
    results = [{next(iter(operation)): _fields(result)} for operation, result in zip(ran, done.results, strict=True)]
    return {"succeeded": done.succeeded, "revision": done.revision, "results": results}


def _fields(result: Put | int | Found) -> dict[str, Any]:
    if isinstance(result, int):
        return {"deleted": result}
    names = [name for name in result.__slots__ if getattr(result, name) is not None]
    fields = {name: getattr(result, name) for name in names}
    return fields | ({"value": b64encode(fields["value"]).decode()} if "value" in fields else {})
