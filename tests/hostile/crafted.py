"""Backups and snapshots with one fault each: checksums and counts are right, so that only the named fault is there.

Each is a snapshot's header without its format, then its chunks.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgpack

from kvnode.state.limits import COUNTER_MAX, COUNTER_RESTORED_MAX

MUCH = 2**64 - 1
ITEM = ["a", b"1", "", 1, 1, 1]
LEASED = [*ITEM, 1]
TOKEN = ["id", "name", "full", b"d" * 32, 1]
KEYS = [1, b"k" * 32, b"f" * 8, None, 0]

SOUND: dict[str, list[Any]] = {
    "an item": [[10, 1, 0, 0, 0], [ITEM]],
    "an item with a lease": [[10, 1, 0, 1, 1], [[1, 60, 0, False]], [LEASED]],
    "the highest counters": [[COUNTER_RESTORED_MAX, 1, 0, 0, COUNTER_RESTORED_MAX], [["a", b"", "", 1, 9, 9]]],
    "a token": [[10, 1, 0, 0, 0, {"tokens": [TOKEN]}], [ITEM]],
}
CRAFTED: dict[str, list[Any]] = {
    "a version that cannot be counted on": [[10, 1, 0, 0, 0], [["a", b"1", "", 1, 1, MUCH]]],
    "more versions than revisions": [[10, 1, 0, 0, 0], [["a", b"1", "", 3, 5, 4]]],
    "a version of nothing": [[10, 1, 0, 0, 0], [["a", b"1", "", 1, 1, 0]]],
    "a version that is a flag": [[10, 1, 0, 0, 0], [["a", b"1", "", 1, 1, True]]],
    "a version with a fraction": [[10, 1, 0, 0, 0], [["a", b"1", "", 1, 1, 1.0]]],
    "a revision that cannot be counted on": [[MUCH, 1, 0, 0, 0], [ITEM]],
    "a revision that JSON cannot hold": [[2**53 + 1, 1, 0, 0, 0], [ITEM]],
    "a revision that leaves no room": [[COUNTER_MAX + 1, 1, 0, 0, 0], [ITEM]],
    "a last lease id that cannot be counted on": [[10, 1, 0, 0, MUCH], [ITEM]],
    "a creation after the change": [[10, 1, 0, 0, 0], [["a", b"1", "", 5, 4, 1]]],
    "a change after the last revision": [[10, 1, 0, 0, 0], [["a", b"1", "", 1, 11, 1]]],
    "a creation at no revision": [[10, 1, 0, 0, 0], [["a", b"1", "", 0, 1, 1]]],
    "a content type that says leased": [[10, 1, 0, 0, 0], [["a", b"1", "x" * 32_773, 1, 1, 1]]],
    "a content type over its bound": [[10, 1, 0, 0, 0], [["a", b"1", "x" * 257, 1, 1, 1]]],
    "a key over its bound": [[10, 1, 0, 0, 0], [["a" * 1_025, b"1", "", 1, 1, 1]]],
    "a key over its bound in bytes": [[10, 1, 0, 0, 0], [["é" * 513, b"1", "", 1, 1, 1]]],
    "an empty key": [[10, 1, 0, 0, 0], [["", b"1", "", 1, 1, 1]]],
    "a value over its bound": [[10, 1, 0, 0, 0], [["a", b"1" * 1_048_577, "", 1, 1, 1]]],
    "a key twice": [[10, 2, 0, 0, 0], [ITEM, ITEM]],
    "a key twice, counted once": [[10, 1, 0, 1, 1], [[1, 60, 0, False]], [LEASED, ITEM]],
    "keys out of order": [[10, 2, 0, 0, 0], [["b", b"", "", 1, 1, 1], ITEM]],
    "a lease that is not there": [[10, 1, 0, 0, 1], [LEASED]],
    "a lease of 0": [[10, 1, 0, 0, 0], [[*ITEM, 0]]],
    "a lease over its bound": [[10, 1, 0, 1, MUCH], [[MUCH, 60, 0, False]], [[*ITEM, MUCH]]],
    "a lease above the last": [[10, 0, 0, 1, 1], [[2, 60, 0, False]]],
    "a lease twice": [[10, 0, 0, 2, 2], [[1, 60, 0, False], [1, 60, 0, False]]],
    "a ttl that is a flag": [[10, 0, 0, 1, 1], [[1, True, 0, False]]],
    "a ttl with a fraction": [[10, 0, 0, 1, 1], [[1, 1.5, 0, False]]],
    "a ttl over its bound": [[10, 0, 0, 1, 1], [[1, 2**32 - 1, 0, False]]],
    "renewals that cannot be counted on": [[10, 0, 0, 1, 1], [[1, 60, MUCH, False]]],
    "renewals below 0": [[10, 0, 0, 1, 1], [[1, 60, -1, False]]],
    "an outcome without a fingerprint": [[10, 0, 1, 0, 0], [["key", msgpack.packb([1, 1, 1])]]],
    "an outcome with a number over its bound": [[10, 0, 1, 0, 0], [["key", b"f" * 16 + msgpack.packb([1, MUCH, 1])]]],
    "an outcome of another form": [[10, 0, 1, 0, 0], [["key", b"f" * 16 + b"\x93\x01\xcc\x01\x01"]]],
    "an outcome under no key": [[10, 0, 1, 0, 0], [["", b"f" * 16 + msgpack.packb([1, 1, 1])]]],
    "an outcome under a long key": [[10, 0, 1, 0, 0], [["k" * 65, b"f" * 16 + msgpack.packb([1, 1, 1])]]],
    "more outcomes than there may be": [[10, 0, 262_145, 0, 0]],
    "more leases than there may be": [[10, 0, 0, 1_048_577, 1_048_577]],
    "a role that there is not": [[10, 1, 0, 0, 0, {"tokens": [["id", "name", "root", b"d" * 32, 1]]}], [ITEM]],
    "a token's time over its bound": [[10, 1, 0, 0, 0, {"tokens": [["id", "n", "full", b"d" * 32, 2**62]]}], [ITEM]],
    "more tokens than there may be": [
        [10, 1, 0, 0, 0, {"tokens": [[f"{number}", *TOKEN[1:]] for number in range(1_025)]}],
        [ITEM],
    ],
    "a session key over its bound": [[10, 1, 0, 0, 0, {"session": [1, b"k" * 65, b"f" * 8, None, 0]}], [ITEM]],
    "a session key's number over its bound": [[10, 1, 0, 0, 0, {"session": [MUCH, *KEYS[1:]]}], [ITEM]],
    "a grace time over its bound": [[10, 1, 0, 0, 0, {"session": [2, b"k", b"f", [b"k", b"f"], 2**31]}], [ITEM]],
    "a grace time of nothing": [[10, 1, 0, 0, 0, {"session": [2, b"k", b"f", None, 60]}], [ITEM]],
    "a session key that is no pair": [[10, 1, 0, 0, 0, {"session": [2, b"k", b"f", [b"k"], 60]}], [ITEM]],
    "ended sessions out of order": [
        [10, 1, 0, 0, 0, {"ended_sessions": [["first", [0, [b"\0" * 7 + b"2" * 17, b"\0" * 7 + b"1" * 17]]]]}],
        [ITEM],
    ],
    "a generation above the revision": [[10, 1, 0, 0, 0, {"level": 1, "generation": 11}], [ITEM]],
    "something of a later version": [[10, 1, 0, 0, 0, {"later": 1}], [ITEM]],
    "an array longer than any that is written": [
        [10, 5_000, 0, 0, 0],
        [[f"{number:05}", *ITEM[1:]] for number in range(5_000)],
    ],
}  # fmt: skip
ONLY_IN_A_SNAPSHOT: dict[str, list[Any]] = {
    "a revision above what a backup may bring": [[COUNTER_RESTORED_MAX + 1, 1, 0, 0, 0], [ITEM]],
    "a lease id above what a backup may bring": [[10, 1, 0, 0, COUNTER_RESTORED_MAX + 1], [ITEM]],
    "the highest of all": [[COUNTER_MAX, 1, 0, 0, COUNTER_MAX], [ITEM]],
    "a session key": [[10, 1, 0, 0, 0, {"session": KEYS}], [ITEM]],
    "ended sessions": [[10, 1, 0, 0, 0, {"ended_sessions": [["first", [2_000_000_000, []]]]}], [ITEM]],
    "a feature level": [[10, 1, 0, 0, 0, {"level": 1}], [ITEM]],
    "a generation": [[10, 1, 0, 0, 0, {"level": 1, "generation": 10}], [ITEM]],
    "an ended session": [[10, 1, 0, 0, 0, {"ended_sessions": [["first", [0, [b"\0" * 7 + b"1" * 17]]]]}], [ITEM]],
}


def chunks_of(crafted: list[Any]) -> list[bytes]:
    header, *rest = crafted
    return [msgpack.packb([4 if len(header) == 6 else 3, *header], use_bin_type=True), *map(msgpack.packb, rest)]


def file_of(chunks: list[bytes], revision: int, items: int) -> bytes:
    """A backup with right checksums."""
    head = struct.pack("<4sHQQH", b"KVNB", 1, revision & (2**64 - 1), items & (2**64 - 1), 2) + b"c1"
    out, crcs = [head, struct.pack("<I", zlib.crc32(head))], 0
    for chunk in chunks:
        crc = zlib.crc32(chunk)
        crcs = zlib.crc32(struct.pack("<I", crc), crcs)
        out += (struct.pack("<II", len(chunk), crc), chunk)
    return b"".join((*out, struct.pack("<II", 0, crcs), struct.pack("<Q", len(chunks))))


def backup_of(crafted: list[Any]) -> bytes:
    """The backup file of one of these."""
    return file_of(chunks_of(crafted), crafted[0][0], crafted[0][1])
