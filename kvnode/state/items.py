"""One key's value, and how the store keeps it: packed, in half the memory and nothing to the garbage collector.

Keys are in order as Python strings: comparing code points gives the same order as comparing their UTF-8 bytes,
because UTF-8 was laid out for that.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

from kvnode.state.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX, item_fault

# A sort holds the interpreter lock from start to end: runs of this many keys take a few milliseconds each,
# so that a snapshot thread never stops the event loop for longer than that.
SORT_RUN_KEYS: Final = 8_192
_SAMPLE_KEYS: Final = 64  # of so many keys of a run one is a sample, …
_SAMPLES: Final = 16_384  # … and of more where that would be more samples than these, which are sorted in one step
# A packed item: create_revision, mod_revision, version and the content type's length, then content type and value.
# Where the length has its highest bit set, the id of a lease stands between.
MARKS: Final = struct.Struct("<QQQH")
LEASED: Final = 0x8000
LEASED_AT: Final = MARKS.size - 1  # the byte of a packed item that has that bit …
LEASED_BIT: Final = LEASED >> 8  # … and which of its bits it is
_LEASE_ID: Final = struct.Struct("<Q")

K = TypeVar("K", str, int)
Batch = tuple[list[str], list[bytes]]  # keys, and the packed item of each


class Item(NamedTuple):
    """One key's present value. Revisions are the store's, `version` counts the puts since it was created.

    `lease` is the id of the lease that it leaves with, 0 without one.
    """

    value: bytes
    content_type: str
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


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


def packed(
    value: bytes, content_type: str, create_revision: int, mod_revision: int, version: int, lease: int = 0
) -> bytes:
    if not content_type and not lease:  # nearly always
        return MARKS.pack(create_revision, mod_revision, version, 0) + value
    name = content_type.encode()
    if lease:
        marks = MARKS.pack(create_revision, mod_revision, version, len(name) | LEASED)
        return b"%b%b%b%b" % (marks, _LEASE_ID.pack(lease), name, value)
    return b"%b%b%b" % (MARKS.pack(create_revision, mod_revision, version, len(name)), name, value)


def unpacked(packed: bytes) -> Item:
    create_revision, mod_revision, version, name_bytes = MARKS.unpack_from(packed)
    name_at, lease = MARKS.size, 0
    if name_bytes & LEASED:
        (lease,) = _LEASE_ID.unpack_from(packed, name_at)
        name_at += _LEASE_ID.size
        name_bytes ^= LEASED
    value_at = name_at + name_bytes
    content_type = packed[name_at:value_at].decode()
    return Item(packed[value_at:], content_type, create_revision, mod_revision, version, lease)


def content_of(packed: bytes) -> tuple[str, memoryview]:
    """Content type and value of a packed item, the value as a view of it: no copy."""
    value_at = len(packed) - value_bytes(packed)
    name_at = MARKS.size + (_LEASE_ID.size if packed[LEASED_AT] & LEASED_BIT else 0)
    return packed[name_at:value_at].decode(), memoryview(packed)[value_at:]


def value_slice(packed: bytes, bytes_max: int) -> bytes:
    """The first `bytes_max` bytes of the value of a packed item; the rest of it is not copied."""
    _, _, _, name_bytes = MARKS.unpack_from(packed)
    value_at = int(MARKS.size + (name_bytes & ~LEASED) + (_LEASE_ID.size if name_bytes & LEASED else 0))
    return packed[value_at : value_at + bytes_max]


def value_bytes(packed: bytes) -> int:
    """The length of the value of a packed item; copies nothing."""
    name_bytes = MARKS.unpack_from(packed)[3]
    return len(packed) - int(MARKS.size + (name_bytes & ~LEASED) + (_LEASE_ID.size if name_bytes & LEASED else 0))


def lease_of(packed: bytes) -> int:
    """The lease of a packed item, 0 without one; copies nothing."""
    if not packed[LEASED_AT] & LEASED_BIT:
        return 0
    return int(_LEASE_ID.unpack_from(packed, MARKS.size)[0])


def go_on() -> None:
    """The `rest` of callers that run alone: does nothing between the steps."""


def in_order(items: Iterable[K], rest: Callable[[], None] = go_on) -> Iterator[K]:
    """All keys in order. Never sorts the whole set in one step (SORT_RUN_KEYS says why): rests between them."""
    keys = iter(items)
    # Tuples, as the garbage collector soon leaves one alone that holds text or numbers only; lists of a million keys
    # would stop the loop for 80 ms each time.
    runs: list[tuple[K, ...]] = []
    while run := tuple(sorted(islice(keys, SORT_RUN_KEYS))):
        runs.append(run)
        rest()
    # Merged in slices: what all runs hold between two bounds is sorted at once, which takes a fifth of the time that
    # a merge key by key does. The bounds are drawn from the runs, so that a slice is about as long as a run.
    every = max(_SAMPLE_KEYS, sum(map(len, runs)) // _SAMPLES)
    samples = sorted(key for run in runs for key in run[::every])
    begins = [0] * len(runs)
    for bound in samples[SORT_RUN_KEYS // every :: max(1, SORT_RUN_KEYS // every)]:
        part: list[K] = []
        for number, run in enumerate(runs):
            begin, end = begins[number], bisect_left(run, bound, begins[number])
            part += run[begin:end]
            begins[number] = end
        part.sort()
        rest()
        yield from part
    yield from sorted(key for begin, run in zip(begins, runs, strict=True) for key in run[begin:])


def read_items(chunks: Iterator[list[Any]], revision: int, count: int | None = None) -> Iterator[Batch]:
    """The items of a snapshot of `revision`. ValueError for one that breaks a limit, or is not in the order of keys.

    `count`: chunks are taken until they have held so many, since others follow. None: all chunks are.
    """
    before, read = "", 0
    while count is None or read < count:
        chunk = next(chunks, None)
        if chunk is None:
            return
        read += len(chunk)
        keys: list[str] = []
        items: list[bytes] = []
        for fields in chunk:
            if (fault := item_fault(fields, revision)) is not None:
                raise ValueError(f"the snapshot breaks a limit: {fault}")
            key = fields[0]
            if key <= before:
                raise ValueError("the items of the snapshot are not in the order of their keys, each key once")
            before = key
            keys.append(key)
            items.append(packed(*fields[1:]))
        yield keys, items


def read_packed_items(chunks: Iterator[list[Any]], revision: int, count: int | None = None) -> Iterator[Batch]:
    """The same of a snapshot that holds them packed: keys, and behind them as many packed items. In no order.

    Hundreds are looked at in one call wherever one will do: a node that starts waits for this.
    """
    marks_of, read = MARKS.unpack_from, 0
    while count is None or read < count:
        chunk = next(chunks, None)
        if chunk is None:
            return
        half = len(chunk) // 2
        keys, items = chunk[:half], chunk[half:]
        if not half or len(keys) != len(items) or {*map(type, keys)} != {str} or {*map(type, items)} != {bytes}:
            raise ValueError("a chunk of items of the snapshot is not keys, and as many items")
        if min(map(len, items)) < MARKS.size:
            raise ValueError("an item of the snapshot ends too early")
        usual = (
            min(map(len, keys)) > 0
            and max(map(len, keys)) <= KEY_BYTES_MAX
            and max(map(len, items)) <= MARKS.size + VALUE_BYTES_MAX
            and "".join(keys).isascii()
        )
        for number, (created, changed, version, name_bytes) in enumerate(map(marks_of, items)):
            if not (
                usual and not name_bytes and 0 < created <= changed <= revision and 0 < version <= changed - created + 1
            ):
                _check_packed(keys[number], items[number], revision)
        yield keys, items
        read += half


def _check_packed(key: str, item: bytes, revision: int) -> None:
    fields = unpacked(item)
    if packed(*fields) != item:  # a lease of number 0, or a name that is longer than what follows
        raise ValueError("an item of the snapshot is not packed as items are")
    if (fault := item_fault([key, *(fields if fields.lease else fields[:-1])], revision)) is not None:
        raise ValueError(f"the snapshot breaks a limit: {fault}")
