"""A backup that is being restored into a running cluster, as far as it has come: part of the replicated state. Pure.

A backup comes in pieces, one chunk of its items or leases each, and every node makes tables of each piece as it is
applied: they take the place of the cluster's own in one step, once all is there. Kept as bytes until then, a million
keys would have to be decoded in one entry, for which every node stands still for seconds. A piece takes milliseconds.

Pieces are numbered, and the ones that are there already are taken again without effect: who sends them may send them
again whenever it does not know what became of them. What is staged is in every snapshot, so that a node that is
restarted or catches up goes on in the middle. There is one such backup at a time: the next one to begin drops it,
and the leader drops one whose pieces have stopped to come (`node/lease_clock.py`).
It takes as much memory as the keys that it brings; no reader sees any of it before the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from sortedcontainers import SortedList

from kvnode.state.items import lease_of, packed
from kvnode.state.leases import Leases, LeasesView
from kvnode.state.limits import (
    counter_fault,
    granted_fault,
    item_fault,
    restore_fault,
)
from kvnode.state.table import Table, TableView


class StagedView(NamedTuple):
    """What is staged at one revision of the store, immutable: safe to walk in any thread."""

    fields: tuple[Any, ...]
    pieces: int
    items: TableView[str, bytes]
    leases: LeasesView

    @property
    def packed(self) -> tuple[Any, ...]:
        """What a snapshot's header says of it."""
        return (*self.fields, self.pieces, len(self.leases.granted), len(self.items))


class Staging:
    """One backup on its way in; `revision` is the backup's own, and the counts are what it will hold."""

    __slots__ = ("id", "item_count", "items", "keys", "last_key", "last_lease_id", "lease_count", "leases", "pieces",
                 "revision")  # fmt: skip

    def __init__(
        self, id: bytes, revision: int, item_count: int, lease_count: int, last_lease_id: int, renewals: int = 0
    ) -> None:
        self.id = id
        self.revision = revision
        self.item_count = item_count
        self.lease_count = lease_count
        self.last_lease_id = last_lease_id
        self.pieces = 0
        self.items: Table[str, bytes] = Table()
        self.keys: SortedList[str] = SortedList()
        self.last_key = ""
        self.leases = Leases()
        self.leases.last_id, self.leases.shared = last_lease_id, renewals

    @property
    def whole(self) -> bool:
        return len(self.items) == self.item_count and len(self.leases) == self.lease_count

    def feed(self, elements: list[Any]) -> None:
        """Takes the elements of the next chunk: all of them, or none and raises ValueError. Milliseconds."""
        if len(self.leases) < self.lease_count:
            previous = self.leases.newest
            for fields in elements:
                fault = granted_fault(fields, previous, self.last_lease_id, self.leases.shared, owned=False)
                if fault is not None:
                    raise ValueError(fault)
                previous = fields[0]
            if len(self.leases) + len(elements) > self.lease_count:
                raise ValueError("it holds more leases than it promised")
            self.leases.append(elements)
        else:
            self._append(*self._checked(elements))
        self.pieces += 1

    def _checked(self, elements: list[Any]) -> tuple[dict[str, bytes], list[tuple[int, str]]]:
        if len(self.items) + len(elements) > self.item_count:
            raise ValueError("it holds more items than it promised")
        items: dict[str, bytes] = {}
        attached: list[tuple[int, str]] = []
        before, revision, leases = self.last_key, self.revision, self.leases
        for fields in elements:
            if (fault := item_fault(fields, revision)) is not None:
                raise ValueError(fault)
            key = fields[0]
            if key <= before:
                raise ValueError("its items are not in the order of their keys, each key once")
            before = key
            items[key] = item = packed(*fields[1:])
            if len(fields) > 6:
                lease = lease_of(item)
                if lease not in leases:
                    raise ValueError("an item has a lease that it does not hold")
                attached.append((lease, key))
        return items, attached

    def _append(self, items: dict[str, bytes], attached: list[tuple[int, str]]) -> None:
        """Plain containers alone change from here on: nothing raises, so nothing has to be taken back."""
        self.items.update(items)
        self.keys.update(items)
        if items:
            self.last_key = next(reversed(items))
        self.leases.attach_all(attached)

    # --- snapshots -----------------------------------------------------------------------------------------

    def view(self) -> StagedView:
        """O(1)."""
        fields = (self.id, self.revision, self.item_count, self.lease_count, self.last_lease_id)
        shared = (self.leases.shared,) if self.leases.shared else ()
        return StagedView((*fields, *shared), self.pieces, self.items.view(), self.leases.view())

    @classmethod
    def load(cls, packed: Any, chunks: Iterator[list[Any]]) -> Staging:
        """From what a snapshot holds of it: the header's part, and the chunks at the end. ValueError for bad ones."""
        if type(packed) is not list or len(packed) not in (8, 9):
            raise ValueError("a staged backup in the snapshot has eight or nine fields")
        *fields, pieces, lease_count, item_count = packed
        for what, number in (("piece", pieces), ("lease", lease_count), ("item", item_count)):
            if (fault := counter_fault(f"count of {what}s", number)) is not None:
                raise ValueError(f"the snapshot breaks a limit: {fault}")
        if (fault := restore_fault(fields)) is not None:
            raise ValueError(f"the snapshot breaks a limit: {fault}")
        staging = cls(*fields)
        for elements in chunks:
            staging.feed(elements)
        if (len(staging.leases), len(staging.items)) != (lease_count, item_count):
            raise ValueError("the snapshot holds something else of a staged backup than it promises")
        staging.pieces = pieces
        return staging
