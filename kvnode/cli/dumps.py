"""What other stores write when they are asked for all keys: read as puts for `kvnode import --from`.

    etcd      etcdctl get "" --prefix -w json         one object, "kvs" with key and value in base64
    consul    consul kv export                        an array, with "key" as text, "value" in base64 and "flags"

Neither says how long a key has still to live. A key of etcd that hangs on a lease is set without one, and Consul's
flags have no place here; both are counted, so that the command can say so.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from kvnode import errors

DUMP_BYTES_MAX: Final = 2 * 1_073_741_824  # read as a whole: a store of etcd's largest recommended size, as JSON


@dataclass(slots=True)
class Dump:
    """`puts` gives (number of the key, from 1, and its operation); what is `left_out` is known behind the last."""

    puts: Iterator[tuple[int, dict[str, Any]]]
    left_out: dict[str, int]


def read(kind: str, file: BinaryIO) -> Dump:
    """The keys of a dump of this kind, "etcd" or "consul". Raises BadRequest here and while it is gone through."""
    try:
        content = file.read(DUMP_BYTES_MAX + 1)
        document = json.loads(content) if content.strip() and len(content) <= DUMP_BYTES_MAX else None
    except (ValueError, RecursionError):
        document = None
    find, put, how = _KINDS[kind]
    rows = find(document)
    if not isinstance(rows, list):
        raise errors.BadRequest(f"This is not what {how} writes; nothing was set.")
    left_out: dict[str, int] = {}

    def puts() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, row in enumerate(rows, 1):
            try:
                yield number, {"put": put(row, left_out)}
            except (ValueError, TypeError, LookupError, AttributeError):
                raise errors.BadRequest(
                    f"Key number {number} is no key with a value as {how} writes it, or no UTF-8: of the keys before "
                    "it any may be set."
                ) from None

    return Dump(puts(), left_out)


def _etcd(row: dict[str, Any], left_out: dict[str, int]) -> dict[str, Any]:
    if int(row.get("lease", 0)):
        left_out["a lease"] = left_out.get("a lease", 0) + 1
    value = row.get("value", "")
    b64decode(value, validate=True)
    return {"key": b64decode(row["key"], validate=True).decode(), "value": value}


def _consul(row: dict[str, Any], left_out: dict[str, int]) -> dict[str, Any]:
    if int(row.get("flags") or 0):
        left_out["flags"] = left_out.get("flags", 0) + 1
    value = row.get("value") or ""
    b64decode(value, validate=True)
    key = row["key"]
    if not isinstance(key, str):
        raise TypeError
    return {"key": key, "value": value}


def _rows_of_etcd(document: Any) -> Any:
    # An empty store is an object with a header alone.
    return document.get("kvs", []) if isinstance(document, dict) and "header" in document else None


_KINDS: Final[dict[str, tuple[Callable[[Any], Any], Callable[[Any, dict[str, int]], dict[str, Any]], str]]] = {
    "etcd": (_rows_of_etcd, _etcd, "'etcdctl get \"\" --prefix -w json'"),
    "consul": (lambda document: document, _consul, "'consul kv export'"),
}
