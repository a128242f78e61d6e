"""KeyValueStore: the replicated state machine. Pure, total, deterministic: no clock, no randomness, no I/O.

The same commands in the same order give the same items, the same answers and the same snapshot bytes on
every node. So nothing here raises for a bad command (it answers `Invalid` and changes nothing), and nothing
depends on a hash order: Python salts `hash(str)` per process, and every walk that leaves this file is sorted.

Two structures hold one truth. `_items` is a `Table`, so that a snapshot takes it in O(1) and walks it in another
thread while `apply` goes on; each item is kept packed, which takes half the memory and is nothing to the garbage
collector (`items.py`). `_keys` keeps the keys in order for range reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import islice
from typing import Any

from sortedcontainers import SortedList

from kvnode.changes import CHANGE_DELETE, CHANGE_PUT, Change
from kvnode.commands import ABSENT, DELETE_FIELDS, EXISTS, PUT, PUT_FIELDS, command_fault
from kvnode.items import MARKS, Item, in_order, packed, unpacked
from kvnode.outcomes import Outcome, Outcomes, fingerprint
from kvnode.results import Deleted, Invalid, Refused, Result, Reused, Written
from kvnode.table import Table
from kvnode.view import StoreView, read_contents


class KeyValueStore:
    """The state machine. `apply` is its only way to change, apart from `restore` and `adopt`."""

    __slots__ = ("_items", "_keys", "_outcomes", "changes", "revision")

    def __init__(self) -> None:
        self.revision = 0
        # Where `apply` notes what it changed (`changes.py`), if somebody wants to know and takes it away.
        self.changes: list[Change] | None = None
        self._outcomes = Outcomes()
        self._items: Table[str, bytes] = Table()
        self._keys: SortedList[str] = SortedList()

    def __len__(self) -> int:
        return len(self._items)

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> Item | None:
        """The key's item, or None where it does not exist."""
        found = self._items.get(key)
        return None if found is None else unpacked(found)

    def range(self, start: str, end: str | None, limit: int) -> list[tuple[str, Item]]:
        """Up to `limit` items with start <= key < end (None: no end), in byte order. O(log n + page).

        To go on after a page, start at its last key + "\\0": nothing sorts between the two.
        """
        if end is not None and end <= start:
            return []
        items = self._items
        keys = self._keys.irange(start, end, (True, False))
        return [(key, unpacked(items[key])) for key in islice(keys, max(0, limit))]

    def view(self) -> StoreView:
        """The store as it stands now, immutable. O(1): later changes copy what they touch, a little at a time."""
        return StoreView(self.revision, self._items.view(), self._outcomes.view())

    # --- changing --------------------------------------------------------------------------------

    def apply(self, command: Any) -> Result:
        """Applies one decoded command (an array of `commands.py`) and answers it. Never raises.

        An invalid command is invalid at any time, so nothing needs to be remembered of it, whatever key it carries.
        """
        fault = command_fault(command)
        if fault is not None:
            return Invalid(self.revision, fault)
        fields = PUT_FIELDS if command[0] == PUT else DELETE_FIELDS
        if len(command) == fields:
            return self._carry_out(command)
        *request, idempotency_key = command
        return self._carry_out(request) if idempotency_key is None else self._carry_out_once(request, idempotency_key)

    def _carry_out_once(self, request: list[Any], idempotency_key: str) -> Result:
        """The first outcome under the key, however often the request comes (`outcomes.py`)."""
        mark = fingerprint(request)
        first = self._outcomes.get(idempotency_key)
        if first is None:
            result = self._carry_out(request)
            self._outcomes.remember(idempotency_key, Outcome(mark, result))
            return result
        return first.result if first.fingerprint == mark else Reused(self.revision)

    def _carry_out(self, request: list[Any]) -> Result:
        return self._put(request) if request[0] == PUT else self._delete(request)

    def _put(self, request: list[Any]) -> Result:
        _, key, value, content_type, expect = request
        create_revision, mod_revision, version = self._marks(key)
        if expect is not None and not _holds(expect, mod_revision):
            return Refused(self.revision, mod_revision)
        self.revision = revision = self.revision + 1
        version += 1
        self._items[key] = item = packed(value, content_type, create_revision or revision, revision, version)
        if version == 1:
            self._keys.add(key)
        if self.changes is not None:
            self.changes.append((CHANGE_PUT, key, revision, item))
        return Written(revision, version)

    def _delete(self, request: list[Any]) -> Result:
        _, key, expect = request
        _, mod_revision, version = self._marks(key)
        if expect is not None and not _holds(expect, mod_revision):
            return Refused(self.revision, mod_revision)
        if version == 0:
            return Deleted(0, self.revision)
        self.revision += 1
        del self._items[key]
        self._keys.remove(key)
        if self.changes is not None:
            self.changes.append((CHANGE_DELETE, key, self.revision, b""))
        return Deleted(1, self.revision)

    def _marks(self, key: str) -> tuple[int, int, int]:
        """(create_revision, mod_revision, version) of a key, all 0 where it does not exist. Never copies the value."""
        found = self._items.get(key)
        if found is None:
            return 0, 0, 0
        create_revision, mod_revision, version, _ = MARKS.unpack_from(found)
        return create_revision, mod_revision, version

    # --- snapshots -------------------------------------------------------------------------------

    def restore(self, revision: int, items: Iterable[tuple[str, Item]], outcomes: Outcomes | None = None) -> None:
        """Replaces everything. O(n log n), fastest where `items` come in order, as those of a snapshot do."""
        table: Table[str, bytes] = Table()
        keys: list[str] = []
        for key, item in items:
            table[key] = packed(*item)
            if len(keys) + 1 == len(table) and (not keys or key > keys[-1]):
                keys.append(key)
        self._items = table
        self._keys = SortedList(keys if len(keys) == len(table) else in_order(table))
        self._outcomes = Outcomes() if outcomes is None else outcomes
        self.revision = revision

    def adopt(self, other: KeyValueStore) -> None:
        """Exchanges contents with another store in O(1). What is noted of changes stays: its reader is the owner's.

        For a snapshot that was loaded in a worker thread: the loop swaps it in without a pause, whoever holds this
        store keeps holding the right one, and what was here can be given up elsewhere (`release`).
        """
        for name in self.__slots__:
            if name == "changes":
                continue
            mine, others = getattr(self, name), getattr(other, name)
            setattr(self, name, others)
            setattr(other, name, mine)

    def release(self) -> None:
        """Gives up everything, in steps that let other threads run in between; the store must not be used again."""
        self._keys.clear()  # only the order: the table still has each key
        self._items.release()

    @classmethod
    def load(cls, chunks: Iterable[bytes]) -> KeyValueStore:
        """A new store from `StoreView.chunks()`, in any thread. ValueError says what is wrong with them."""
        contents = read_contents(chunks)
        store = cls()
        try:
            store.restore(contents.revision, contents.items, contents.outcomes)
        except struct.error:
            raise ValueError("an item of the snapshot has a number out of bounds") from None
        if len(store) != contents.item_count:
            raise ValueError(f"the snapshot promises {contents.item_count} items and holds {len(store)}")
        return store


def _holds(expect: list[int], mod_revision: int) -> bool:
    """Whether the key is as a conditional write expects it (`commands.Expect`); its mod_revision is 0 without it."""
    if mod_revision == 0:
        return ABSENT in expect
    return mod_revision in expect or EXISTS in expect
