"""Snapshots with packed items: they say what the others say, without a step for each key, and bad ones are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import msgpack
import pytest

from kvnode.state.admin_commands import packed_contents
from kvnode.state.commands import GRANT, LEVEL, PUT, REPLACE, RESTORE_BEGIN, RESTORE_PIECE
from kvnode.state.items import LEASED, MARKS, Item, in_order, packed
from kvnode.state.limits import ARRAY_MAX, CHUNK_BYTES, CHUNK_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX
from kvnode.state.results import Invalid
from kvnode.state.store import KeyValueStore
from kvnode.state.view import SNAPSHOT_FORMAT, SNAPSHOT_FORMAT_PACKED, read_header, unpack_chunk
from kvnode.storage.salvage import salvage


def filled(keys: int = 0, level: int = 1) -> KeyValueStore:
    store = KeyValueStore()
    store.apply([LEVEL, level])
    store.apply([GRANT, 60])
    for number in range(keys):
        store.apply([PUT, f"key-{number:06d}", b"x" * 100, "", None])
    store.apply([PUT, "plain", b"1", "", None])
    store.apply([PUT, "plain", b"2", "", None])
    store.apply([PUT, "typed", b"{}", "application/json", None])
    store.apply([PUT, "leased", b"3", "text/plain", None, None, 1, 0])
    store.apply([PUT, "kéy \U0001f511", b"", "", None])
    return store


def chunks_with(items: dict[str, bytes], revision: int = 9, count: int | None = None) -> list[bytes]:
    """A packed snapshot of these items, with one lease that is number 1."""
    header = [SNAPSHOT_FORMAT_PACKED, revision, len(items) if count is None else count, 0, 1, 1, {"level": 1}]
    return [msgpack.packb(chunk) for chunk in (header, [[1, 60, 0, False]], [*items, *items.values()])]


def same(one: KeyValueStore, other: KeyValueStore) -> bool:
    return list(one.view().chunks()) == list(other.view().chunks())


def test_a_packed_snapshot_gives_back_the_store() -> None:
    store = filled(2_000)
    chunks = list(store.view().snapshot_chunks())
    assert unpack_chunk(chunks[0])[0] == SNAPSHOT_FORMAT_PACKED
    loaded = KeyValueStore.load_snapshot(chunks)
    assert same(loaded, store)
    assert loaded.between("", None) == sorted(loaded.between("", None))
    assert loaded.leases.keys(1) == ["leased"]


def test_a_restore_that_is_under_way_is_in_it() -> None:
    store = filled(10)
    header, _, *pieces = filled(300, level=0).view().chunks()
    head = read_header(unpack_chunk(header))
    store.apply([RESTORE_BEGIN, [b"r" * 16, head.revision, head.item_count, head.lease_count, head.last_lease_id]])
    store.apply([RESTORE_PIECE, [b"r" * 16, 0, msgpack.packb([[1, 60, 0, False]])]])
    store.apply([RESTORE_PIECE, [b"r" * 16, 1, pieces[-1]]])
    assert store.staging is not None
    assert store.staging.pieces == 2
    assert same(KeyValueStore.load_snapshot(store.view().snapshot_chunks()), store)


def test_values_of_any_size_and_crowded_shards_stay_within_the_bounds_of_a_chunk() -> None:
    store = filled()
    for number in range(6):
        store.apply([PUT, f"large-{number}", bytes(VALUE_BYTES_MAX), "", None])
    view = store.view()
    one_shard = {key: packed(b"", "", 1, 1, 1) for key in (f"{number:05d}" for number in range(2 * ARRAY_MAX))}
    crowded = view._replace(items=type(view.items)((one_shard, dict(view.items)), len(one_shard) + len(view.items)))
    chunks = list(crowded.snapshot_chunks())
    assert max(map(len, chunks)) <= CHUNK_BYTES_MAX
    loaded = KeyValueStore.load_snapshot(chunks)
    assert dict(loaded.view().items) == {key: item for shard in crowded.items.shards for key, item in shard.items()}


@pytest.mark.parametrize("character", ["k", "é", "漢", "\U0001f511"])
@pytest.mark.parametrize("in_one_shard", [300, 900, 1_700])
def test_long_keys_with_nothing_in_them_count(character: str, in_one_shard: int) -> None:
    """Counted by their values alone, they make chunks that no reader takes."""
    view = filled().view()
    length = KEY_BYTES_MAX // len(character.encode()) - 5
    shards = tuple(
        {f"{number:05d}{character * length}": packed(b"", "", 1, 1, 1) for number in range(begin, begin + in_one_shard)}
        for begin in range(0, 4 * in_one_shard, in_one_shard)
    )
    chunks = list(view._replace(items=type(view.items)(shards, 4 * in_one_shard)).snapshot_chunks())
    assert max(map(len, chunks)) <= CHUNK_BYTES_MAX
    assert len(KeyValueStore.load_snapshot(chunks)) == 4 * in_one_shard


def test_below_level_one_a_snapshot_is_what_older_nodes_read() -> None:
    """A node of 0.1.0 may be sent it."""
    view = filled(300, level=0).view()
    assert list(view.snapshot_chunks()) == list(view.chunks())


def test_nothing_from_outside_the_cluster_may_have_packed_items() -> None:
    """Members that are older would answer such a REPLACE otherwise, and a backup is read by any version."""
    chunks = list(filled(5).view().snapshot_chunks())
    with pytest.raises(ValueError, match="not in a format"):
        KeyValueStore.load(chunks)
    assert isinstance(filled().apply([REPLACE, packed_contents(chunks)]), Invalid)
    assert unpack_chunk(next(filled(5).view().chunks()))[0] == SNAPSHOT_FORMAT


GOOD = packed(b"v", "", 1, 1, 1)
BAD: dict[str, tuple[list[bytes], str]] = {
    "too short": (chunks_with({"a": GOOD[: MARKS.size - 1]}), "ends too early"),
    "changed later than the snapshot": (chunks_with({"a": packed(b"v", "", 1, 10, 1)}), "up to the snapshot's"),
    "created after it was changed": (chunks_with({"a": packed(b"v", "", 3, 2, 1)}), "up to the snapshot's"),
    "never created": (chunks_with({"a": packed(b"v", "", 0, 1, 1)}), "up to the snapshot's"),
    "too many versions": (chunks_with({"a": packed(b"v", "", 1, 2, 3)}), "up to the snapshot's"),
    "no version": (chunks_with({"a": packed(b"v", "", 1, 1, 0)}), "up to the snapshot's"),
    "no key": (chunks_with({"": GOOD}), "a key is"),
    "a long key": (chunks_with({"k" * (KEY_BYTES_MAX + 1): GOOD}), "a key is"),
    "a long key of two-byte characters": (chunks_with({"é" * KEY_BYTES_MAX: GOOD}), "a key is"),
    "a large value": (chunks_with({"a": packed(bytes(VALUE_BYTES_MAX + 1), "", 1, 1, 1)}), "a value is"),
    "a long name": (chunks_with({"a": packed(b"v", "x" * 257, 1, 1, 1)}), "a content type is"),
    "a name that is longer than the rest": (chunks_with({"a": MARKS.pack(1, 1, 1, 9) + b"abc"}), "not packed"),
    "a name that is no text": (chunks_with({"a": MARKS.pack(1, 1, 1, 2) + b"\xff\xff"}), "utf-8"),
    "a lease that is cut": (chunks_with({"a": MARKS.pack(1, 1, 1, LEASED) + b"abc"}), "out of bounds"),
    "a lease of number 0": (chunks_with({"a": MARKS.pack(1, 1, 1, LEASED) + bytes(8)}), "not packed"),
    "a lease that is not there": (chunks_with({"a": packed(b"v", "", 1, 1, 1, 7)}), "does not hold"),
    "fewer than promised": (chunks_with({"a": GOOD}, count=2), "promises 2 items"),
    "more than promised": (chunks_with({"a": GOOD, "b": GOOD}, count=1), "promises 1 items"),
    "a key twice": ([*chunks_with({"a": GOOD}, count=2), msgpack.packb(["a", GOOD])], "twice"),
    "one too many": ([*chunks_with({}, count=1)[:2], msgpack.packb(["a", GOOD, GOOD])], "as many items"),
    "empty": ([*chunks_with({}, count=1)[:2], msgpack.packb([])], "as many items"),
    "keys that are no text": ([*chunks_with({}, count=1)[:2], msgpack.packb([b"a", GOOD])], "as many items"),
    "items as elsewhere": ([*chunks_with({}, count=1)[:2], msgpack.packb([["a", b"v", "", 1, 1, 1]])], "as many items"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_breaks_a_limit_is_refused_in_words(what: str) -> None:
    chunks, why = BAD[what]
    with pytest.raises(ValueError, match=why):
        KeyValueStore.load_snapshot(chunks)


def test_a_good_one_of_the_same_make_is_taken() -> None:
    leased = {"a": GOOD, "é": packed(b"v", "x" * 256, 1, 2, 2, 1), "k" * KEY_BYTES_MAX: packed(b"", "", 9, 9, 1)}
    store = KeyValueStore.load_snapshot(chunks_with(leased))
    assert store.get("é") == Item(b"v", "x" * 256, 1, 2, 2, 1)
    assert len(store) == 3


def test_what_is_sound_of_a_bad_one_can_be_kept() -> None:
    items = {"a": GOOD, "b": packed(b"w", "", 5, 4, 1), "c": b"short", "d": packed(b"x", "", 1, 1, 1, 7)}
    store, done = salvage(chunks_with(items))
    assert [(key, item.value) for key, item in store.walk("", None)] == [("a", b"v"), ("b", b"w"), ("d", b"x")]
    assert (done.mended, done.left_out) == (2, 1)


def calls_of(work: Callable[[], Any]) -> int:
    """How often `work` calls anything, C or Python."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_a_snapshot_takes_no_step_for_each_key() -> None:
    few, many = (filled(keys).view() for keys in (10_000, 40_000))
    more = calls_of(lambda: list(many.snapshot_chunks())) - calls_of(lambda: list(few.snapshot_chunks()))
    assert more < 30_000 / 20
    assert max(map(len, many.snapshot_chunks())) < 2 * CHUNK_BYTES


@pytest.mark.parametrize("count", [0, 1, 8_191, 8_192, 8_193, 70_000])
def test_keys_come_in_order_in_slices(count: int) -> None:
    keys = [f"{number * 7_919 % 1_000_003:07d}" for number in range(count)]
    assert list(in_order(keys)) == sorted(keys)
    assert list(in_order(sorted(keys))) == sorted(keys)
    assert list(in_order(sorted(keys, reverse=True))) == sorted(keys)
    assert list(in_order(["same"] * count)) == ["same"] * count
