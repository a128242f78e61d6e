"""Table: a mapping with O(1) immutable views, for a million keys in one event loop.

A plain dict, cut into shards by the hash of the key. A view takes the shards as they are, which costs the copy of one
list; from then on a shard is copied before it is first changed. So a snapshot walks its view in another thread without
a lock, and no single step grows much with the table: not a view, not a change (a shard holds N / SHARDS keys), not the
resizing of a dict.

The other reason for plain dicts is Python's cyclic garbage collector, which stops the process while it visits every
container. A dict that holds only text, bytes and numbers is none to it (up to Python 3.13 it does not even know of
it), so a full collection takes the same few milliseconds however many keys there are. With an object for each key in
the nodes of a persistent trie it took over a second at a million keys: longer than an election timeout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from itertools import chain
from typing import Final, TypeVar

SHARDS: Final = 8_192  # about 120 keys in each at a million; a power of two, so that the hash is masked and not divided

K = TypeVar("K")
V = TypeVar("V")


class TableView(Mapping[K, V]):
    """A table as it was: immutable, in no order, safe to walk in any thread."""

    __slots__ = ("_count", "shards")

    def __init__(self, shards: tuple[dict[K, V], ...], count: int) -> None:
        self.shards = shards  # read-only; for callers that take many keys in one call
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(self.shards) if self._count else iter(())

    def __getitem__(self, key: K) -> V:
        return self.shards[hash(key) & (len(self.shards) - 1)][key]


class Table(MutableMapping[K, V]):
    """A mutable mapping with views. Keys and values should be text, bytes or numbers: the module says why."""

    __slots__ = ("_count", "_mask", "_own", "_shards")

    def __init__(self, shards: int = SHARDS) -> None:
        assert shards & (shards - 1) == 0, "a power of two"
        self._mask = shards - 1
        # One empty dict stands for them all until they are changed: thousands of dicts would take longer to make than
        # many a table to fill.
        self._shards: list[dict[K, V]] = [{}] * shards
        self._own = bytearray(shards)  # 0: the shard is shared, with a view or with other shard numbers
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(self._shards) if self._count else iter(())

    def __getitem__(self, key: K) -> V:
        return self._shards[hash(key) & self._mask][key]

    def get(self, key: K, default: V | None = None) -> V | None:  # type: ignore[override]
        return self._shards[hash(key) & self._mask].get(key, default)

    def __setitem__(self, key: K, value: V) -> None:
        shard = self._to_change(key)
        before = len(shard)
        shard[key] = value
        self._count += len(shard) - before

    def shard(self, key: K) -> dict[K, V]:
        """The dict that holds `key` or would hold it, for a look followed by a set; report a new key with `added`.

        The same as `get` and `[key] =` in a third of the calls, and for a write they are a third of its time.
        """
        number = hash(key) & self._mask
        return self._shards[number] if self._own[number] else self._to_change(key)

    def fill(self, keys: list[K], values: list[V]) -> None:
        """Sets many keys, in half the time; `count_again` is for the end of them all."""
        shards, own, mask = self._shards, self._own, self._mask
        numbers = [number & mask for number in map(hash, keys)]
        for number, key, value in zip(numbers, keys, values, strict=True):
            if own[number]:
                shards[number][key] = value
            else:
                self._to_change(key)[key] = value

    def added(self) -> None:
        """A key was set in its `shard` that was not there before."""
        self._count += 1

    def removed(self, count: int) -> None:
        """So many keys were taken out of their `shard`s."""
        self._count -= count

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        del self._to_change(key)[key]
        self._count -= 1

    def discard(self, key: K) -> V | None:
        """What the key had, which is gone now; None where there was none. `pop` takes three times the steps."""
        if key not in self._shards[hash(key) & self._mask]:
            return None
        self._count -= 1
        return self._to_change(key).pop(key)

    def __contains__(self, key: object) -> bool:
        return key in self._shards[hash(key) & self._mask]

    def view(self) -> TableView[K, V]:
        """The table as it is now. O(1) in the number of keys."""
        self._own = bytearray(len(self._shards))
        return TableView(tuple(self._shards), self._count)

    def count_again(self) -> None:
        """After a change by way of `shard` that was not gone through with."""
        self._count = sum(map(len, self._shards))

    def release(self) -> None:
        """Empties the table shard by shard: freed at once, a million keys would hold the interpreter for long."""
        self._count = 0
        for number in range(len(self._shards)):
            self._shards[number] = {}

    def _to_change(self, key: K) -> dict[K, V]:
        number = hash(key) & self._mask
        if not self._own[number]:
            self._own[number] = 1
            self._shards[number] = self._shards[number].copy()
        return self._shards[number]
