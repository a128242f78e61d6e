"""KeyValueStore: the replicated state machine. Pure, total, deterministic: no clock, no randomness, no I/O.

The same commands in the same order give the same items, the same answers and the same snapshot bytes on
every node. So nothing here raises for a bad command (it answers `Invalid` and changes nothing), and nothing
depends on a hash order: Python salts `hash(str)` per process, and every walk that leaves this file is sorted.

Two structures hold one truth. `_items` is a `Table`, so that a snapshot takes it in O(1) and walks it in another
thread while `apply` goes on; each item is kept packed, which takes half the memory and is nothing to the garbage
collector. `_keys` keeps the keys in order for range reads. Keys are sorted as Python strings: comparing code points
gives the same order as comparing their UTF-8 bytes, because UTF-8 was laid out for that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import islice
from typing import Any, Final, NamedTuple

import msgpack
from sortedcontainers import SortedList

from kvnode.commands import (
    ABSENT,
    CONTENT_TYPE_BYTES_MAX,
    DELETE_FIELDS,
    EXISTS,
    KEY_BYTES_MAX,
    PUT,
    PUT_FIELDS,
    VALUE_BYTES_MAX,
    Deleted,
    Invalid,
    Refused,
    Result,
    Reused,
    Written,
    command_fault,
)
from kvnode.outcomes import Outcome, Outcomes, OutcomesView, fingerprint
from kvnode.table import Table, TableView

SNAPSHOT_FORMAT: Final = 2
SNAPSHOT_FORMAT_WITHOUT_OUTCOMES: Final = 1  # still read
CHUNK_BYTES: Final = 65_536
CHUNK_BYTES_MAX: Final = CHUNK_BYTES + VALUE_BYTES_MAX + KEY_BYTES_MAX + CONTENT_TYPE_BYTES_MAX + 64
# A sort holds the interpreter lock from start to end: runs of this many keys take a few milliseconds each,
# so that a snapshot thread never stops the event loop for longer than that.
SORT_RUN_KEYS: Final = 8_192
# A packed item: create_revision, mod_revision, version and the content type's length, then content type and value.
_MARKS: Final = struct.Struct("<QQQH")


class Item(NamedTuple):
    """One key's present value. Revisions are the store's, `version` counts the puts since it was created."""

    value: bytes
    content_type: str
    create_revision: int
    mod_revision: int
    version: int


def prefix_end(prefix: str) -> str | None:
    """The first key after all keys that start with `prefix`; None where no key can come after them."""
    last = len(prefix) - 1
    while last >= 0 and prefix[last] == "\U0010ffff":
        last -= 1
    if last < 0:
        return None
    # Surrogates are not characters of UTF-8 text, so the successor of U+D7FF is U+E000.
    following = "\ue000" if prefix[last] == "\ud7ff" else chr(ord(prefix[last]) + 1)
    return prefix[:last] + following


class StoreView(NamedTuple):
    """The store at one revision, immutable: safe to walk in any thread while the store goes on."""

    revision: int
    items: TableView[str, bytes]
    outcomes: OutcomesView

    def keys(self) -> Iterator[str]:
        """All keys in byte order."""
        return _in_order(self.items)

    def item(self, key: str) -> Item:
        """One key's item; KeyError where it did not exist."""
        return _unpacked(self.items[key])

    def chunks(self) -> Iterator[bytes]:
        """The snapshot's bytes: equal stores give equal bytes. Batches of about 64 KiB, CHUNK_BYTES_MAX at most.

        The first chunk is `[format, revision, item count, outcome count]`. Then come the outcomes
        (`OutcomesView.chunks`), and then the items: arrays of `[key, value, content_type, create_revision,
        mod_revision, version]`.
        """
        # A packer of its own: this runs in a worker thread, and a msgpack.Packer must not be shared between threads.
        packer = msgpack.Packer(use_bin_type=True, autoreset=True)
        pack = packer.pack
        yield pack((SNAPSHOT_FORMAT, self.revision, len(self.items), len(self.outcomes.order)))
        yield from self.outcomes.chunks()
        # Packed one by one: a batch of tuples would be young containers by the hundred, and so set off one garbage
        # collection after the other, in the middle of which the event loop stands still.
        batch: list[bytes] = []
        batch_bytes = 0
        for key in self.keys():
            item = self.item(key)
            batch.append(pack((key, *item)))
            batch_bytes += len(key) + len(item.value) + 48
            if batch_bytes >= CHUNK_BYTES:
                yield packer.pack_array_header(len(batch)) + b"".join(batch)
                batch, batch_bytes = [], 0
        if batch:
            yield packer.pack_array_header(len(batch)) + b"".join(batch)


class KeyValueStore:
    """The state machine. `apply` is its only way to change, apart from `restore` and `adopt`."""

    __slots__ = ("_items", "_keys", "_outcomes", "revision")

    def __init__(self) -> None:
        self.revision = 0
        self._outcomes = Outcomes()
        self._items: Table[str, bytes] = Table()
        self._keys: SortedList[str] = SortedList()

    def __len__(self) -> int:
        return len(self._items)

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> Item | None:
        """The key's item, or None where it does not exist."""
        packed = self._items.get(key)
        return None if packed is None else _unpacked(packed)

    def range(self, start: str, end: str | None, limit: int) -> list[tuple[str, Item]]:
        """Up to `limit` items with start <= key < end (None: no end), in byte order. O(log n + page).

        To go on after a page, start at its last key + "\\0": nothing sorts between the two.
        """
        if end is not None and end <= start:
            return []
        items = self._items
        keys = self._keys.irange(start, end, (True, False))
        return [(key, _unpacked(items[key])) for key in islice(keys, max(0, limit))]

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
        self._items[key] = _packed(value, content_type, create_revision or revision, revision, version)
        if version == 1:
            self._keys.add(key)
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
        return Deleted(1, self.revision)

    def _marks(self, key: str) -> tuple[int, int, int]:
        """(create_revision, mod_revision, version) of a key, all 0 where it does not exist. Never copies the value."""
        packed = self._items.get(key)
        if packed is None:
            return 0, 0, 0
        create_revision, mod_revision, version, _ = _MARKS.unpack_from(packed)
        return create_revision, mod_revision, version

    # --- snapshots -------------------------------------------------------------------------------

    def restore(self, revision: int, items: Iterable[tuple[str, Item]], outcomes: Outcomes | None = None) -> None:
        """Replaces everything. O(n log n), fastest where `items` come in order, as those of a snapshot do."""
        table: Table[str, bytes] = Table()
        keys: list[str] = []
        for key, item in items:
            table[key] = _packed(*item)
            if len(keys) + 1 == len(table) and (not keys or key > keys[-1]):
                keys.append(key)
        self._items = table
        self._keys = SortedList(keys if len(keys) == len(table) else _in_order(table))
        self._outcomes = Outcomes() if outcomes is None else outcomes
        self.revision = revision

    def adopt(self, other: KeyValueStore) -> None:
        """Exchanges contents with another store in O(1).

        For a snapshot that was loaded in a worker thread: the loop swaps it in without a pause, whoever holds this
        store keeps holding the right one, and what was here can be given up elsewhere (`release`).
        """
        for name in self.__slots__:
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
        source = map(_unpack, chunks)
        header = next(source, [])
        if header[:1] == [SNAPSHOT_FORMAT_WITHOUT_OUTCOMES]:
            header = [SNAPSHOT_FORMAT, *header[1:], 0]
        if len(header) != 4 or header[0] != SNAPSHOT_FORMAT:
            raise ValueError("the snapshot is not in a format that this version reads")
        _, revision, count, outcome_count = header
        if any(type(number) is not int or number < 0 for number in (revision, count, outcome_count)):
            raise ValueError("the snapshot has no revision, or does not say what it holds")
        store = cls()
        outcomes = Outcomes.load(source, outcome_count)
        try:
            store.restore(revision, _load_items(source), outcomes)
        except struct.error:
            raise ValueError("an item of the snapshot has a number out of bounds") from None
        if len(store) != count:
            raise ValueError(f"the snapshot promises {count} items and holds {len(store)}")
        return store


def _in_order(items: Iterable[str]) -> Iterator[str]:
    """All keys in byte order. Never sorts the whole set in one step (SORT_RUN_KEYS says why)."""
    keys = iter(items)
    runs = []
    # Kept as a dict, for its order alone: the garbage collector does not visit one that holds text only (`table.py`),
    # while lists of a million keys would stop the loop for 80 ms.
    while run := dict.fromkeys(sorted(islice(keys, SORT_RUN_KEYS))):
        runs.append(run)
    return merge(*runs)


def _holds(expect: list[int], mod_revision: int) -> bool:
    """Whether the key is as a conditional write expects it (`commands.Expect`); its mod_revision is 0 without it."""
    if mod_revision == 0:
        return ABSENT in expect
    return mod_revision in expect or EXISTS in expect


def _packed(value: bytes, content_type: str, create_revision: int, mod_revision: int, version: int) -> bytes:
    name = content_type.encode()
    return b"%b%b%b" % (_MARKS.pack(create_revision, mod_revision, version, len(name)), name, value)


def _unpacked(packed: bytes) -> Item:
    create_revision, mod_revision, version, name_bytes = _MARKS.unpack_from(packed)
    value_at = _MARKS.size + name_bytes
    content_type = packed[_MARKS.size : value_at].decode()
    return Item(packed[value_at:], content_type, create_revision, mod_revision, version)


def _load_items(chunks: Iterable[list[Any]]) -> Iterator[tuple[str, Item]]:
    for chunk in chunks:
        for fields in chunk:
            try:
                key, value, content_type, create_revision, mod_revision, version = fields
            except (TypeError, ValueError):
                raise ValueError("an item of the snapshot does not have its six fields") from None
            if type(key) is not str or type(value) is not bytes or type(content_type) is not str:
                raise ValueError("an item of the snapshot has a field of the wrong kind")
            yield key, Item(value, content_type, create_revision, mod_revision, version)


def _unpack(chunk: bytes) -> list[Any]:
    try:
        decoded = msgpack.unpackb(chunk, use_list=True, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException):
        raise ValueError("a chunk of the snapshot is damaged") from None
    if type(decoded) is not list:
        raise ValueError("a chunk of the snapshot is not a list")
    return decoded
