"""The parts of a transaction or batch, as the JSON that a person would write by hand: each returns one entry."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Literal

from kvnode.client.misuse import octets, text

Entry = dict[str, Any]
Operator = Literal["=", "!=", "<", ">", "<=", ">="]


def when(
    key: str,
    op: Operator = "=",
    *,
    value: bytes | None = None,
    exists: bool | None = None,
    version: int | None = None,
    create_revision: int | None = None,
    mod_revision: int | None = None,
) -> Entry:
    """A comparison with exactly one of the five; a key that does not exist has version 0 and no value."""
    named: Entry = {
        "value": None if value is None else b64encode(octets(value)).decode(),
        "exists": exists,
        "version": version,
        "create_revision": create_revision,
        "mod_revision": mod_revision,
    }
    return {"key": text("The key", key), "op": op} | {
        name: operand for name, operand in named.items() if operand is not None
    }


def put(
    key: str, value: bytes, *, content_type: str | None = None, ttl: int | None = None, lease: int | None = None
) -> Entry:
    """Sets a key; `ttl` in whole seconds, or the id of a `lease`."""
    optional: Entry = {"content_type": content_type, "ttl": ttl, "lease": lease}
    fields = {"key": text("The key", key), "value": b64encode(octets(value)).decode()}
    return {"put": fields | {name: given for name, given in optional.items() if given is not None}}


def get(key: str) -> Entry:
    """Reads a key; in transactions alone."""
    return {"get": {"key": text("The key", key)}}


def delete(key: str) -> Entry:
    return {"delete": {"key": text("The key", key)}}


def delete_prefix(prefix: str) -> Entry:
    """Removes all keys that begin with `prefix`; in transactions alone."""
    return {"delete_prefix": {"prefix": text("The prefix", prefix)}}
