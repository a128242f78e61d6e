"""What watchers are told: everything that they named, in order, once; or plainly where it ends. And what it costs."""

from __future__ import annotations

import gc
import time
import tracemalloc
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.errors import Overloaded, ShuttingDown
from kvnode.http.events import text_of
from kvnode.state.changes import CHANGE_DELETE
from kvnode.state.store import KeyValueStore
from kvnode.watch import hub
from kvnode.watch.audience import TEXTS_BYTES_MAX
from kvnode.watch.history import History, changes_bytes
from kvnode.watch.watcher import Watcher
from tests.watch.node import Node, Reader, key, prefix

names = st.sampled_from(["a", "a/", "a/b", "a/c", "b", "é", "\0", "a/b/c"])
# What happens: entries of commands of keys; a turn of the loop; a watcher that begins, stalls, goes on or leaves.
entries = st.lists(st.lists(names, min_size=1, max_size=3, unique=True).map(tuple), min_size=1, max_size=4)
begins = st.tuples(st.just("watch"), names | st.just(""), st.booleans(), st.integers(-8, 3))
steps = st.lists(
    st.tuples(st.just("entry"), entries)
    | st.tuples(st.just("turn"))
    | begins
    | st.tuples(st.sampled_from(["block", "resume", "leave"]), st.integers(0, 5)),
    max_size=60,
)


@given(steps, st.sampled_from([4, 100]), st.sampled_from([1, 65_536]))
def test_a_watcher_is_told_everything_once_or_told_that_it_cannot(
    history: list[Any], changes_max: int, bytes_max: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hub, "LOG_CHANGES_MAX", 3)
        patched.setattr(hub, "TURN_WATCHERS", 2)
        node = Node(History(0, changes_max))
        everything: list[tuple[int, str]] = []
        readers: list[tuple[Reader, int]] = []
        for kind, *rest in history:
            if kind == "entry":
                for offset, keys in enumerate(rest[0]):
                    everything += [(node.store.revision + 1 + offset, each) for each in keys]
                node.entry(*rest[0])
            elif kind == "turn" and node.soon:
                node.soon.popleft()()
            elif kind == "watch":
                text, is_prefix, back = rest
                begin = max(1, node.store.revision + back)
                readers.append((Reader(node, (prefix if is_prefix else key)(text), begin, bytes_max), begin))
            elif kind in ("block", "resume", "leave") and rest[0] < len(readers):
                reader = readers[rest[0]][0]
                if kind == "leave":
                    reader.watcher.close()
                else:
                    reader.watcher.blocked = kind == "block"
                    reader.wake()
        for reader, _ in readers:
            reader.watcher.blocked = False
            reader.wake()
        node.turn()
        for reader, begin in readers:
            watcher = reader.watcher
            if watcher.ending is None:
                assert watcher.revision >= node.store.revision  # it is up to date
            wanted = [
                (revision, each)
                for revision, each in everything
                if begin <= revision <= watcher.revision and watcher.selector.of(((1, each, 0, b"", b""),))
            ]
            assert [(revision, each) for revision, keys in reader.told for each in keys] == wanted
            watcher.close()
        tables = (node.hub._keys, node.hub._prefixes, node.hub._lengths, node.hub._unread)
        assert (len(node.hub), *map(len, tables)) == (0, 0, 0, 0, 0)


def test_a_revision_that_is_still_to_come_is_waited_for() -> None:
    node = Node()
    reader = Reader(node, prefix(""), 3)
    node.entry(("a",), ("b",), ("c",))
    node.turn()
    assert reader.told == [(3, ("c",))]


def test_what_is_forgotten_is_compacted_with_the_oldest_that_can_be_had() -> None:
    node = Node(History(0, changes_max=10))
    for number in range(25):
        node.put(f"k{number}")
    reader = Reader(node, prefix(""), 15)
    assert (reader.told, reader.watcher.ending) == ([], ("compacted", 16))
    assert Reader(node, prefix(""), 16).keys == [f"k{number}" for number in range(15, 25)]


def test_history_is_bounded_by_bytes_and_lets_go_of_whole_revisions() -> None:
    node = Node(History(0, bytes_max=10_000))
    for number in range(100):
        node.put("k", b"x" * (1_000 + number))
        assert node.hub.history._bytes <= 10_000
    assert 5 < len(node.hub.history) < 10
    node.put("big", b"x" * 20_000)
    assert (len(node.hub.history), node.hub.history.oldest, node.store.revision) == (0, 102, 101)
    node.put("k")
    assert Reader(node, prefix(""), 102).keys == ["k"]
    assert node.hub.history._bytes == changes_bytes(next(node.hub.history.since(102)))


def test_a_snapshot_that_jumps_ahead_tells_everybody_of_the_gap() -> None:
    node = Node()
    node.put("a")
    idle, ahead, behind = Reader(node, key("a")), Reader(node, key("a"), 100), Reader(node, key("a"), 1)
    other = KeyValueStore()
    other.restore(50, [])
    node.store.adopt(other)
    node.hub.skipped()
    node.turn()
    assert idle.watcher.ending == behind.watcher.ending == ("compacted", 51)
    assert idle.watcher.revision == 1  # another node may go on from here
    assert ahead.watcher.ending is None
    node.put("a")
    assert Reader(node, key("a"), 50).watcher.ending == ("compacted", 51)
    assert Reader(node, key("a"), 51).keys == ["a"]


def test_a_snapshot_with_the_same_revision_is_no_gap() -> None:
    node = Node()
    node.put("a")
    reader = Reader(node, key("a"))
    other = KeyValueStore()
    other.restore(1, [])
    node.store.adopt(other)
    node.hub.skipped()
    node.put("a")
    node.turn()
    assert (reader.keys, reader.watcher.ending) == (["a"], None)


def test_a_closed_hub_ends_every_watch_with_where_to_go_on() -> None:
    node = Node()
    reader = Reader(node, key("seldom"))
    for _ in range(5):
        node.put("often")
    node.hub.close("shutting_down")
    calls = reader.calls
    node.turn()
    assert reader.calls == calls + 1
    assert (reader.watcher.ending, reader.watcher.revision) == (("shutting_down", 1), 5)
    with pytest.raises(ShuttingDown):
        node.hub.watch(key("a"), 1, lambda: None)


def test_the_count_of_watchers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "WATCHERS_MAX", 2)
    node = Node()
    Reader(node, key("a"))
    last = Reader(node, key("a"))
    with pytest.raises(Overloaded):
        Reader(node, key("a"))
    last.watcher.close()
    Reader(node, key("a"))


def test_a_slow_client_is_cut_off_and_costs_no_more_than_its_bound() -> None:
    node = Node(History(0, changes_max=1_000))
    fast, slow = Reader(node, prefix("k")), Reader(node, prefix("k"))
    slow.watcher.blocked = True
    tracemalloc.start()
    try:
        for number in range(20_000):
            node.put(f"k{number % 10}", b"x" * 1_000)
            node.turn()
            fast.told.clear()
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert fast.watcher.ending is None
    assert fast.watcher.revision == 20_000
    assert slow.watcher.ending is not None
    assert slow.watcher.ending.reason == "slow"
    assert slow.watcher.revision == 0
    assert held_bytes < 8_000_000, f"{held_bytes} bytes are held after 20 MB were written"


def test_a_log_lets_go_of_what_history_let_go_of_though_nothing_more_is_said_to_it() -> None:
    node = Node(History(0, changes_max=100))
    stalled = Reader(node, key("quiet"))
    stalled.watcher.blocked = True
    node.put("quiet")
    for _ in range(200):
        node.put("other")
    node.hub.sweep()
    assert stalled.watcher.ending is not None
    assert stalled.watcher.ending.reason == "slow"
    assert not node.hub._unread


def test_one_revision_larger_than_the_bound_reaches_a_client_that_reads() -> None:
    node = Node()
    reader = Reader(node, prefix("k"))
    node.entry(("k",), tuple(f"k{number}" for number in range(hub.LOG_CHANGES_MAX + 1_000)))
    node.turn()
    assert len(reader.keys) == hub.LOG_CHANGES_MAX + 1_001
    assert reader.watcher.ending is None


def seconds_of_puts(node: Node, name: str, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        node.put(name)
    return time.perf_counter() - began


def test_ten_thousand_watchers_cost_a_change_nothing_that_they_do_not_watch() -> None:
    alone, crowded = Node(), Node()
    readers = [Reader(crowded, key(f"watched/{number}")) for number in range(5_000)]
    readers += [Reader(crowded, prefix(f"trees/{number}/")) for number in range(5_000)]
    gc.collect()
    seconds_of_puts(alone, "other", 2_000)
    pure_s = min(seconds_of_puts(alone, "other", 2_000) for _ in range(5))
    crowded_s = min(seconds_of_puts(crowded, "other", 2_000) for _ in range(5))
    # A walk over all of them would take hundreds of times as long.
    assert crowded_s < pure_s * 5 + 0.02, f"{crowded_s / 2_000 * 1e6:.1f} against {pure_s / 2_000 * 1e6:.1f} µs"
    crowded.put("watched/77")
    crowded.put("trees/99/leaf")
    crowded.turn()
    assert readers[77].keys == ["watched/77"]
    assert readers[5_099].keys == ["trees/99/leaf"]
    assert sum(len(reader.told) for reader in readers) == 2


def test_ten_thousand_watchers_of_one_prefix_are_all_told_and_in_parts() -> None:
    node = Node()
    readers = [Reader(node, prefix("k")) for _ in range(10_000)]
    node.put("k1")
    node.put("k2")
    assert node.turn() >= 10_000 // hub.TURN_WATCHERS
    assert all(reader.keys == ["k1", "k2"] for reader in readers)
    [audience] = node.hub._prefixes.values()
    assert (len(audience.log), audience.bytes, audience.changes, audience.behind) == (0, 0, 0, 0)


def test_ten_thousand_that_come_back_are_served_in_parts() -> None:
    node = Node()
    for number in range(2_000):
        node.put(f"k{number % 100}")
    readers = [Reader(node, key(f"k{number % 100}"), 1_001) for number in range(1_000)]
    node.put("k7")
    assert all(len(reader.told) in (10, 11) for reader in readers)
    node.turn()
    assert [len(reader.told) for reader in readers] == [10 + (number % 100 == 7) for number in range(1_000)]


def test_what_watchers_take_in_one_turn_is_bounded_in_bytes() -> None:
    """Hundreds that begin in the past are each told of large values, which cost milliseconds to make text of."""
    node = Node()
    for number in range(4):
        node.put("a", bytes([number]) * 1_048_576)
    watchers = [node.hub.watch(prefix("a"), 1, lambda: None) for _ in range(50)]
    for watcher in watchers:
        watcher.wake = partial(watcher.take, 65_536)
        node.hub.call(watcher)
    taken = []
    while node.soon:
        node.soon.popleft()()
        taken.append(node.hub.taken)
    assert all(watcher.revision == 4 for watcher in watchers)
    assert max(taken) < hub.TURN_BYTES + 1_100_000
    assert len(taken) >= 50 * 4 * 1_048_576 // (hub.TURN_BYTES + 1_100_000)


def test_the_texts_of_changes_are_kept_for_their_turns_alone_and_within_a_bound() -> None:
    """A key of many letters has as many beginnings, and who watches one of them and does not read keeps its log."""
    node = Node()
    most = [0]

    def tell(watcher: Watcher) -> None:
        if not watcher.blocked:
            for piece in watcher.take(65_536):
                text_of(piece, node.hub.texts)
                most[0] = max(most[0], node.hub.texts.bytes)

    for length in range(1, 101):
        for blocked in (False, True):
            watcher = node.hub.watch(prefix("k" * length), 1, lambda: None)
            watcher.blocked = blocked
            watcher.wake = partial(tell, watcher)
    for number in range(2):
        node.put("k" * 100, bytes([number]) * 1_048_576)
        node.turn()
    pieces = [piece for audience in node.hub._prefixes.values() for piece in audience.log]
    assert len(pieces) == 200
    assert 0 < most[0] <= TEXTS_BYTES_MAX
    assert node.hub.texts.bytes == sum(len(piece.texts) for piece in pieces) == 0


def test_a_revision_of_many_changes_is_made_into_text_once_for_all_its_watchers() -> None:
    """A deleted prefix of 100,000 keys is 9 MB of text, which takes a third of a second to make."""
    node = Node()
    texts = []

    def tell(watcher: Watcher) -> None:
        texts.extend(text_of(piece, node.hub.texts) for piece in watcher.take(65_536))

    for _ in range(10):
        watcher = node.hub.watch(prefix("k"), 1, lambda: None)
        watcher.wake = partial(tell, watcher)
    assert node.store.changes is not None
    node.store.revision += 1
    revision = node.store.revision
    node.store.changes += [(CHANGE_DELETE, f"k{number:060}", revision, b"", b"") for number in range(100_000)]
    node.hub.publish()
    node.turn()
    assert len(texts) == 10
    assert len(texts[0]) > TEXTS_BYTES_MAX
    assert all(text is texts[0] for text in texts)
    assert node.hub.texts.bytes == 0
