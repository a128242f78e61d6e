"""What the client's calls return: immutable, with bytes as values and plain numbers as revisions."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvnode.errors import KvnodeError


@dataclass(frozen=True, slots=True)
class Item:
    """A key with its value and revisions; `revision` is the store's when it was read.

    `lease` is what the key hangs on, `ttl` what remains of it in whole seconds; None without one.
    """

    key: str
    value: bytes
    content_type: str
    mod_revision: int
    revision: int
    lease: int | None = None
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A key of a listing; `value` is empty where only keys were asked for."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    content_type: str = ""
    lease: int | None = None
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a listing; `cursor` asks for the next, None at the end.

    `watch_from`: the revision to watch from, so that nothing is missed that happened since the first page; 0 on a later
    page of a node of 0.1.0, which does not know it.
    """

    items: tuple[Listed, ...]
    cursor: str | None
    revision: int
    watch_from: int = 0


@dataclass(frozen=True, slots=True)
class Put:
    """A key was set; `lease` is what it hangs on since, where the put asked for one."""

    revision: int
    version: int
    created: bool
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a get in a transaction saw; without the key, `exists` is False, and there is nothing else.

    `value` is None too where a repetition was answered, and the key has another value by now.
    """

    key: str
    exists: bool
    value: bytes | None = None
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True)
class Txn:
    """Which branch ran, and what each of its operations did, in order: Put, the number of keys deleted, or Found."""

    succeeded: bool
    revision: int
    results: tuple[Put | int | Found, ...]


# What became of one write of a batch: a put, the revision of a deletion, or why it failed.
Batched = Put | int | KvnodeError


def listed(item: Mapping[str, Any]) -> Listed:
    return Listed(
        item["key"],
        b64decode(item.get("value") or ""),
        item["create_revision"],
        item["mod_revision"],
        item["version"],
        item.get("content_type") or "",
        item.get("lease"),
        item.get("ttl"),
    )


def read(key: str, found: Mapping[str, Any]) -> Item:
    """A key that was read together with others."""
    return Item(
        key,
        b64decode(found["value"]),
        found.get("content_type") or "application/octet-stream",
        found["mod_revision"],
        found["revision"],
        found.get("lease"),
        found.get("ttl"),
    )


def written(body: Mapping[str, Any]) -> Put:
    return Put(body["revision"], body["version"], body["created"], body.get("lease"))


def concluded(body: Mapping[str, Any]) -> Txn:
    return Txn(body["succeeded"], body["revision"], tuple(_result(each) for each in body["results"]))


def _result(result: Mapping[str, Any]) -> Put | int | Found:
    if "put" in result:
        return written(result["put"])
    if "get" not in result:
        (removed,) = result.values()
        return int(removed["deleted"])
    seen = result["get"]
    if not seen["exists"]:
        return Found(seen["key"], False)
    value = None if seen["value"] is None else b64decode(seen["value"])
    return Found(seen["key"], True, value, seen["create_revision"], seen["mod_revision"], seen["version"])
