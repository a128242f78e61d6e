"""Crafted backups and snapshots through every way into the state machine: refused, or as good as any other.

    python -m tests.hostile.loaders --count 1000000 --seed 1

Each case is a sound store as its snapshot's parts, changed in a few places: a field replaced by a hostile value, an
element taken away, doubled, moved or added, a byte of a chunk altered. All checksums and, mostly, all counts are right.
It goes in as a backup file, as a snapshot of either format, or inside a REPLACE command. Where it is refused, it is
with ValueError, `Damaged` or `Invalid`. Where it is accepted, every command of a fixed set is carried out without an
exception inside `apply`, a second store made of the same bytes answers alike, and what is written afterwards loads
as the same again.

A failure prints the seed of its one case: `--seed S --count 1` repeats it.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Final

import msgpack

from kvnode.state.admin_commands import packed_contents
from kvnode.state.commands import (
    ADVANCE_CLOCK,
    DELETE,
    DELETE_PREFIX,
    END_SESSION,
    EXPIRE,
    GRANT,
    LEVEL,
    PUT,
    RENEW,
    REPLACE,
    REVOKE,
    SESSION,
    TOKEN_CREATE,
    TOKEN_REVOKE,
    TXN,
)
from kvnode.state.idempotency import fingerprint
from kvnode.state.items import packed
from kvnode.state.limits import COUNTER_MAX, COUNTER_RESTORED_MAX, SESSION_ID_BYTES
from kvnode.state.results import Invalid
from kvnode.state.store import KeyValueStore
from kvnode.state.table import Table
from kvnode.state.transactions import GET
from kvnode.state.view import SNAPSHOT_FORMAT_PACKED
from kvnode.storage import backup
from tests.hostile.crafted import file_of

NUMBERS: Final = (
    *(-1, 0, 1, 2, 3, 9, 255, 32_767, 32_768, 65_536, 2**31, 2**32, 2**52, 2**53 - 1, 2**53, 2**53 + 1),
    *(2**63 - 1, 2**63, 2**64 - 1, COUNTER_MAX, COUNTER_MAX - 1, COUNTER_MAX + 1, COUNTER_MAX - 30),
    *(COUNTER_RESTORED_MAX + 1, COUNTER_RESTORED_MAX - 1, 366 * 86_400, 366 * 86_400 + 1),
)
OTHERS: Final = (
    *(None, True, False, 1.0, 0.5, float("nan"), float("inf"), b"", b"x", b"\xff", "", "a", "b", "\x00", "\U0010ffff"),
    *([], {}, [1], [[]], {"a": 1}, {b"a": 1}, "k" * 1_024, "k" * 1_025, "é" * 512, "é" * 513, "t" * 256, "t" * 257),
    *("t" * 32_773, "t" * 65_537, b"v" * 65, b"f" * 16, b"f" * 32, "full", "read_only", "key-1", "lone"),
    *(msgpack.ExtType(5, b""), msgpack.Timestamp(1, 0), msgpack.ExtType(1, b"x"), [[[[[[[[]]]]]]]]),
)
BRANCH: Final = [[PUT, "a", b"2", "", 0, 0], [GET, "b"], [DELETE, "d"], [DELETE_PREFIX, "p/"]]
TOKEN: Final = ["token-9", "nine", "full", b"d" * 32, 1]
SMALL: Final = [1, 2, 3, 4, 5]


def commands() -> list[list[Any]]:
    """One of each kind and more, on the keys, leases, tokens and idempotency keys that the stores below have."""
    other = KeyValueStore()
    for key in ("a", "z"):
        other.apply([PUT, key, b"other", "", None, None, 0, 30])
    keyed = [under(key, request) for key, request in KEYED]
    plain: list[list[Any]] = []
    for key in ("a", "b", "d", "p/1", "p/2", "é", "new"):
        plain += (
            [PUT, key, b"1", "text/plain", None],
            [PUT, key, b"", "", [0, -1, 7], None, 0, 60],
            [PUT, key, b"2", "", None],
        )
    plain += ([PUT, "b", b"1", "", None, None, lease, 0] for lease in SMALL)
    plain += ([RENEW, lease] for lease in SMALL)
    plain += (
        [EXPIRE, [[1, 0], [2, 3], [3, 0]]],
        [TXN, [["a", 2, ">", 0]], BRANCH, BRANCH],
        [GRANT, 60],
        [PUT, "q", b"", "", None, None, 0, 5],
        [REVOKE, 2],
        [DELETE, "é", None],
        [DELETE_PREFIX, "p"],
        [SESSION, 0, b"k" * 32, b"f" * 8, 0],
        [SESSION, 1, b"l" * 32, b"g" * 8, 60],
        [TOKEN_CREATE, TOKEN],
        [END_SESSION, ["token-0", b"s" * SESSION_ID_BYTES, 2_000_000_000]],
        [TOKEN_REVOKE, "token-1"],
        [LEVEL, 1],
        [END_SESSION, ["token-0", b"t" * SESSION_ID_BYTES, 2_000_000_000]],
        [ADVANCE_CLOCK, 6],
        [PUT, "a", b"4", "", None, ["key-9", 7]],
        [PUT, "a", b"5", "", None, ["key-10", 65_535]],
        [ADVANCE_CLOCK, 7],
        [RENEW, 1, ["key-11", 0]],
        [ADVANCE_CLOCK, 28],
        [REVOKE, 4],
        [EXPIRE, [[lease, 0] for lease in SMALL], None, 3],
        [EXPIRE, [[lease, 0] for lease in SMALL]],
    )
    replacing = [REPLACE, packed_contents(list(other.view().chunks()))]
    return [*keyed, *plain, replacing, *plain[::7], [*replacing, None, 1_000], *plain[::7], *keyed]


KEYED: Final[list[tuple[str, list[Any]]]] = [
    ("key-1", [PUT, "a", b"1", "", None]),
    ("key-2", [TXN, [], BRANCH, []]),
    ("key-3", [GRANT, 30]),
    ("key-4", [RENEW, 1]),
    ("key-5", [REVOKE, 3]),
    ("key-6", [DELETE, "gone", None]),
    ("key-7", [EXPIRE, []]),
    ("key-8", [PUT, "a", b"1", "", None, 0, 60]),
]


def under(key: str, request: list[Any]) -> list[Any]:
    """The request with this idempotency key."""
    fields = 5 if request[0] == PUT else len(request)
    return [*request[:fields], key, *request[fields:]]


class Parts:
    """A snapshot, taken apart: what msgpack would hold."""

    def __init__(self, store: KeyValueStore) -> None:
        header, *chunks = [msgpack.unpackb(chunk) for chunk in store.view().chunks()]
        self.header: list[Any] = header
        outcomes, leases = header[3], header[4]
        elements = [element for chunk in chunks for element in chunk]
        self.sections = [elements[:outcomes], elements[outcomes : outcomes + leases], elements[outcomes + leases :]]

    def settle(self) -> None:
        """Makes the counts right."""
        if len(self.header) >= 5:
            self.header[2], self.header[3], self.header[4] = (len(self.sections[place]) for place in (2, 0, 1))

    def chunks(self, pieces: int) -> list[bytes]:
        chunks = [self.header]
        for section in self.sections:
            size = max(1, len(section) // pieces)
            chunks += [section[at : at + size] for at in range(0, len(section), size)]
        return [msgpack.packb(chunk, use_bin_type=True) for chunk in chunks]

    def packed_chunks(self, pieces: int) -> list[bytes]:
        """The same with packed items, as a snapshot file has them."""
        outcomes, leases, items = self.sections
        size = max(1, len(items) // pieces)
        chunks = [[SNAPSHOT_FORMAT_PACKED, *self.header[1:6], *(self.header[6:] or [{"level": 1}])]]
        chunks += [section for section in (outcomes, leases) if section]
        for at in range(0, len(items), size):
            keys = [item[0] if type(item) is list and item else item for item in items[at : at + size]]
            chunks.append([*keys, *map(_packed_item, items[at : at + size])])
        return [msgpack.packb(chunk, use_bin_type=True) for chunk in chunks]


def _packed_item(item: Any) -> Any:
    """Of what cannot be packed, whatever it is, something of it."""
    try:
        return packed(*item[1:])
    except (AttributeError, TypeError, ValueError, struct.error):
        return item[1] if type(item) is list and len(item) > 1 else item


def sound() -> list[KeyValueStore]:
    """Stores to begin with: with a little of everything, and with less."""
    full = KeyValueStore()
    for lease in (30, 40, 50):
        full.apply([GRANT, lease])
    for key, lease in (("a", 0), ("b", 1), ("d", 1), ("p/1", 2), ("p/2", 0), ("é", 3)):
        full.apply([PUT, key, b"1", "text/plain" if lease else "", None, None, lease, 0])
        full.apply([PUT, key, b"2", "", None])
    full.apply([PUT, "own", b"", "", None, None, 0, 60])
    for key, request in KEYED:
        full.apply(under(key, request))
    for number in range(3):
        full.apply([TOKEN_CREATE, [f"token-{number}", "name", "read_only", bytes([number]) * 32, 1_700_000_000_000]])
    full.apply([SESSION, 0, b"k" * 32, b"f" * 8, 0])
    full.apply([SESSION, 1, b"l" * 32, b"g" * 8, 60])
    full.apply([LEVEL, 1])
    for number in range(4):
        full.apply([END_SESSION, [f"token-{number % 2}", bytes([number]) * SESSION_ID_BYTES, 2_000_000_000 - number]])
    full.apply([PUT, "a", b"3", "", None, ["key-9", 7]])
    full.apply([ADVANCE_CLOCK, 5])
    full.apply([PUT, "a", b"3", "", None, ["key-12", 7]])
    assert full.ended_sessions.view()
    plain = KeyValueStore()
    for key in ("a", "b", "p/1"):
        plain.apply([PUT, key, b"1", "", None])
    leased = KeyValueStore()
    leased.apply([PUT, "a", b"1", "", None, None, 0, 60])
    leased.apply([PUT, "b", b"1", "", None, "key-1", 1, 0])
    stores = [full, full, plain, leased, KeyValueStore()]
    assert not any(store.failures for store in stores)
    return stores


def hostile(rng: random.Random, value: Any) -> Any:
    """Something else in its place: a number mostly for a number, sometimes near it."""
    if type(value) is int and rng.random() < 0.8:
        return rng.choice((*NUMBERS, value - 1, value + 1, 2 * value))
    if type(value) is bytes and value and rng.random() < 0.4:
        # Packed inside: the record of an outcome is a fingerprint and a msgpack array of its own.
        place = rng.randrange(len(value))
        return rng.choice(
            (value[:-1], value + b"\x00", value[:place] + bytes([rng.randrange(256)]) + value[place + 1 :])
        )
    return deepcopy(rng.choice((*NUMBERS, *OTHERS)))


def forged(rng: random.Random) -> list[Any]:
    """An outcome under a key that the fixed commands send again, with the right fingerprint and any result."""
    key, request = rng.choice(KEYED)
    numbers = [rng.choice((0, 1, 2, 7, 2**53, 2**64 - 1)) for _ in range(rng.randrange(6))]
    result: Any = [rng.randrange(10), *numbers]
    if rng.random() < 0.4:
        result = [
            4,
            rng.random() < 0.8,
            5,
            [[rng.choice((1, 2, 8)), 1, 1, 1][: rng.randrange(5)] for _ in range(rng.randrange(6))],
        ]
    return [key, fingerprint(request) + msgpack.packb(result)]


def mutated(rng: random.Random, parts: Parts) -> None:
    if rng.random() < 0.15:
        parts.sections[0].append(forged(rng))
        return
    place = rng.randrange(5)
    target: Any = parts.header if place == 3 else parts.sections[place] if place < 3 else parts.header
    if place == 4 and len(parts.header) == 7 and isinstance(parts.header[6], dict):
        target = parts.header[6]
        if rng.random() < 0.1:
            target[rng.choice(("level", "session", "tokens", "later", b"level", "ended_sessions", "times"))] = hostile(
                rng, 1
            )
            return
    while True:  # a place in the tree, deeper three times out of four
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(target[key], list | dict) and target[key] and rng.random() < 0.75:
            target = target[key]
            continue
        break
    what = rng.random()
    if what < 0.7 or isinstance(target, dict):
        target[key] = hostile(rng, target[key])
    elif what < 0.78:
        del target[key]
    elif what < 0.86:
        target.insert(key, deepcopy(target[key]))
    elif what < 0.93:
        other = rng.randrange(len(target))
        target[key], target[other] = target[other], target[key]
    else:
        target.insert(rng.randrange(len(target) + 1), hostile(rng, 1))


def number(value: Any) -> int:
    return value if type(value) is int else 0


class Failed(AssertionError):
    """A case that is neither refused nor good."""


class Fuzz:
    """`case(seed)` runs one; `seen` counts what became of them."""

    def __init__(self) -> None:
        self.bases = [list(store.view().chunks()) for store in sound()]
        self.stores = sound()
        self.commands = commands()
        self.seen: Counter[str] = Counter()

    def case(self, seed: int) -> None:
        rng = random.Random(seed)
        parts = Parts(rng.choice(self.stores))
        way = rng.choice(("backup", "snapshot", "replace", "packed"))
        if way in ("backup", "replace") and len(parts.header) == 7 and rng.random() < 0.9:
            for name in ("session", "ended_sessions", "level", "times"):  # which no backup holds
                parts.header[6].pop(name, None)
        for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3))):
            mutated(rng, parts)
        if rng.random() < 0.9:
            parts.settle()
        try:
            pieces = rng.choice((1, 1, 2, 5))
            chunks = parts.packed_chunks(pieces) if way == "packed" else parts.chunks(pieces)
        except (OverflowError, ValueError):  # what msgpack cannot hold is in no file
            self.seen["not msgpack"] += 1
            return
        if rng.random() < 0.1:
            at = rng.randrange(len(chunks))
            place = rng.randrange(max(1, len(chunks[at])))
            chunks[at] = chunks[at][:place] + bytes([rng.randrange(256)]) + chunks[at][place + rng.randrange(2) :]
        header = parts.header + [0] * 7
        try:
            loaded = self._load(way, chunks, number(header[1]), number(header[2]))
        except (ValueError, backup.Damaged):
            self.seen[f"{way}: refused"] += 1
            return
        self.seen[f"{way}: accepted"] += 1
        self._check(loaded, twin=rng.random() < 0.3)

    def _load(self, way: str, chunks: list[bytes], revision: int, items: int) -> KeyValueStore:
        if way == "snapshot":
            return KeyValueStore.load(chunks)
        if way == "packed":
            return KeyValueStore.load_snapshot(chunks)
        if way == "backup":
            return KeyValueStore.load(backup.chunks_of(file_of(chunks, revision, items))[1])
        store = KeyValueStore.load(self.bases[0])
        before = list(store.view().chunks())
        result = store.apply([REPLACE, packed_contents(chunks)])
        self._no_failure(store)
        if isinstance(result, Invalid):
            if list(store.view().chunks()) != before:
                raise Failed("a REPLACE that was refused has changed the store")
            raise ValueError(result.reason)
        return store

    def _check(self, store: KeyValueStore, twin: bool) -> None:
        """`twin`: a store that was loaded again goes through the same, which doubles the work."""
        other = reloaded(store)
        for command in self.commands:
            result = store.apply(command)
            self._no_failure(store)
            if twin and other.apply(command) != result:
                raise Failed(f"a store that was loaded again answers {command!r} otherwise")
            self.seen["commands"] += 1
            if isinstance(result, Invalid) and command[0] not in (TOKEN_CREATE, END_SESSION):
                self.seen[f"invalid: {result.reason}"] += 1
        again = reloaded(store)
        if twin and list(other.view().chunks()) != list(again.view().chunks()):
            raise Failed("two stores that began and went on alike differ")

    @staticmethod
    def _no_failure(store: KeyValueStore) -> None:
        if store.failures:
            raise Failed("apply has failed") from store.failures[0]


def reloaded(store: KeyValueStore) -> KeyValueStore:
    """By way of a snapshot, whose bytes must be those of the next one."""
    chunks = list(store.view().chunks())
    try:
        again = KeyValueStore.load(chunks)
    except ValueError as error:
        raise Failed("what was accepted cannot be loaded again") from error
    if list(again.view().chunks()) != chunks:
        raise Failed("what was loaded again is not the same")
    return again


def run(count: int, seed: int, every: int = 0) -> Counter[str]:
    """`count` cases from `seed` on. Raises Failed, with the case's own seed."""
    with few_shards():
        fuzz = Fuzz()
        for case in range(seed, seed + count):
            try:
                fuzz.case(case)
            except Exception as error:
                raise Failed(f"case --seed {case} --count 1: {type(error).__name__}: {error}") from error
            if every and (case - seed + 1) % every == 0:
                print(f"{case - seed + 1:,} cases", file=sys.stderr, flush=True)
    return fuzz.seen


@contextmanager
def few_shards() -> Iterator[None]:
    """Tables of 16 shards: to walk 8,192 for a store of ten keys is most of what a case takes."""
    usual = Table.__init__.__defaults__
    Table.__init__.__defaults__ = (16,)
    try:
        yield
    finally:
        Table.__init__.__defaults__ = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    seen = run(options.count, options.seed, every=50_000)
    print(f"{options.count:,} cases from seed {options.seed} in {time.monotonic() - began:.0f} s")
    for what, cases in sorted(seen.items()):
        print(f"  {cases:>12,}  {what}")


if __name__ == "__main__":
    main()
