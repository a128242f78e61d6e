"""What can be kept of a snapshot whose bytes are whole and whose contents break the limits.

A node does not start on it, and no version of kvnode that has the limits writes one; 0.1.0 did, of what a crafted
backup had brought in. This is for `kvnode recover`, which makes a new cluster of what is left: a value stays wherever
its key, its content type and itself are sound. Numbers that are not sound begin anew, as in a key that is put now.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import msgpack

from kvnode.state.idempotency import Outcomes
from kvnode.state.items import unpacked
from kvnode.state.limits import (
    COUNTER_RESTORED_MAX,
    KEY_BYTES_MAX,
    TOKENS_MAX,
    ended_sessions_fault,
    granted_fault,
    item_fault,
    level_fault,
    renewals_fault,
    session_keys_fault,
    text_fault,
    value_fault,
)
from kvnode.state.store import KeyValueStore
from kvnode.state.tokens import packed_fault
from kvnode.state.view import SNAPSHOT_FORMAT, SNAPSHOT_FORMAT_PACKED


@dataclass(slots=True)
class Salvaged:
    """What was done to a snapshot: items and leases whose numbers begin anew, and everything that was left out."""

    mended: int = 0
    left_out: int = 0


def salvage(chunks: Iterable[bytes]) -> tuple[KeyValueStore, Salvaged]:
    """The store, and what had to be done. ValueError where there is nothing that could be a snapshot."""
    source = (_unpack(chunk) for chunk in chunks)
    header = next(source, [])
    if len(header) not in (3, 4, 6, 7) or header[0] not in range(1, SNAPSHOT_FORMAT_PACKED + 1):
        raise ValueError("the snapshot does not begin like one")
    done = Salvaged()
    elements = [element for chunk in source for element in chunk]
    small = dict(_small(header[6], done)) if len(header) == 7 and type(header[6]) is dict else {}
    counts = header[2:5]
    staged = len(header) == 7 and type(header[6]) is dict and "staged" in header[6]
    if staged and all(type(count) is int and count >= 0 for count in counts):
        elements = elements[: sum(counts)]  # a restore that had not come to its end
    # An outcome has two fields or three, a lease four, an item six or seven.
    outcomes = [each for each in elements if _fields(each) in (2, 3)]
    leases = sorted((each for each in elements if _fields(each) == 4 and type(each[0]) is int), key=lambda one: one[0])
    items = [each for each in elements if _fields(each) in (6, 7)]
    done.left_out += len(elements) - len(outcomes) - len(leases) - len(items)
    kept_outcomes = list(_outcomes(outcomes, done))
    shared = small.get("renewals", 0)
    kept_leases = list(_leases(leases, shared, done))
    last_lease_id = max((lease[0] for lease in kept_leases if lease[0] <= COUNTER_RESTORED_MAX), default=0)
    least = 0 if shared else last_lease_id  # where clients chose ids, leases above the last one are no surprise
    if len(header) > 5 and type(header[5]) is int and least <= header[5] <= COUNTER_RESTORED_MAX:
        last_lease_id = header[5]
    revision = header[1] if type(header[1]) is int and 0 <= header[1] <= COUNTER_RESTORED_MAX else 0
    # Above every number that is kept: what begins anew must not look older than what a client has seen of another key.
    seen = [each[4] for each in items if type(each[4]) is int and 0 <= each[4] <= COUNTER_RESTORED_MAX]
    revision = max((revision, *seen, 1))
    kept_items = list(_items(items, revision, {lease[0] for lease in kept_leases}, done))
    made = [SNAPSHOT_FORMAT, revision, len(kept_items), len(kept_outcomes), len(kept_leases), last_lease_id, small]
    # One element in a chunk: no chunk is too large, and no array too long.
    parts: Iterator[list[Any]] = ([element] for part in (kept_outcomes, kept_leases, kept_items) for element in part)
    return KeyValueStore.load(msgpack.packb(chunk, use_bin_type=True) for chunk in chain([made], parts)), done


def _small(small: dict[Any, Any], done: Salvaged) -> Iterator[tuple[str, Any]]:
    tokens = small.get("tokens", [])
    kept = {token[0]: token for token in tokens if packed_fault(token) is None} if type(tokens) is list else {}
    done.left_out += len(tokens) - len(kept) if type(tokens) is list else 1
    if kept:
        yield "tokens", list(kept.values())[:TOKENS_MAX]
    ended = small.get("ended_sessions", [])
    sound = [entry for entry in ended if ended_sessions_fault(entry) is None] if type(ended) is list else []
    done.left_out += len(ended) - len(sound) if type(ended) is list else 1
    if sound:
        yield "ended_sessions", list({entry[0]: entry for entry in sound}.values())
    for name, fault in (("session", session_keys_fault), ("level", level_fault), ("renewals", renewals_fault)):
        if name in small and fault(small[name]) is None:
            yield name, small[name]
        elif name in small:
            done.left_out += 1


def _outcomes(outcomes: list[list[Any]], done: Salvaged) -> Iterator[list[Any]]:
    kept: set[str] = set()
    for outcome in outcomes:
        try:
            Outcomes.load(iter([[outcome]]), 1)
        except ValueError:
            done.left_out += 1
            continue
        if outcome[0] not in kept:
            kept.add(outcome[0])
            yield outcome


def _leases(leases: list[list[Any]], shared: int, done: Salvaged) -> Iterator[list[Any]]:
    before = 0
    for lease in leases:
        fault = granted_fault(lease, before, COUNTER_RESTORED_MAX, shared)
        if (
            fault is not None
            and granted_fault([lease[0], lease[1], 0, lease[3]], before, COUNTER_RESTORED_MAX, shared) is None
        ):
            lease, fault = [lease[0], lease[1], 0, lease[3]], None
            done.mended += 1
        if fault is None:
            before = lease[0]
            yield lease
        else:
            done.left_out += 1


def _items(items: list[list[Any]], revision: int, leases: set[int], done: Salvaged) -> Iterator[list[Any]]:
    kept: dict[str, list[Any]] = {}
    for item in items:
        key, value, content_type, *_ = item
        if text_fault("key", key, 1, KEY_BYTES_MAX) is not None or value_fault(value, content_type) is not None:
            done.left_out += 1
            continue
        if item_fault(item[:6], revision) is not None:
            item = [key, value, content_type, revision, revision, 1, *item[6:]]
            done.mended += 1
        if len(item) == 7 and (type(item[6]) is not int or item[6] not in leases):
            item = item[:6]
            done.mended += 1
        if key in kept:
            done.left_out += 1
        kept[key] = item
    for key in sorted(kept):
        yield kept[key]


def _fields(element: Any) -> int:
    return len(element) if type(element) is list else 0


def _unpack(chunk: bytes) -> list[Any]:
    try:
        decoded = msgpack.unpackb(chunk, use_list=True, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException):
        raise ValueError("a chunk of the snapshot is not msgpack") from None
    if type(decoded) is not list:
        return []
    return list(_packed_items(decoded)) if decoded and type(decoded[0]) is str else decoded


def _packed_items(chunk: list[Any]) -> Iterator[list[Any] | None]:
    """The items of a chunk that has keys, and behind them as many packed items; None for one that cannot be read."""
    half = len(chunk) // 2
    for key, item in zip_longest(chunk[:half], chunk[half:]):
        try:
            fields = unpacked(item)
        except (struct.error, TypeError, UnicodeDecodeError):
            yield None
        else:
            yield [key, *(fields if fields.lease else fields[:-1])]
