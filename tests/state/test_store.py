"""The state machine against a plain dict, and its promises: total, deterministic, views that stay as they were."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.state.changes import CHANGE_DELETE, CHANGE_PUT
from kvnode.state.commands import (
    ABSENT,
    DELETE,
    DELETE_PREFIX,
    EXISTS,
    EXPIRE,
    PUT,
    TXN,
    Delete,
    Put,
)
from kvnode.state.items import (
    Item,
    packed,
    prefix_end,
    unpacked,
)
from kvnode.state.limits import (
    CHUNK_BYTES_MAX,
    CONTENT_TYPE_BYTES_MAX,
    KEY_BYTES_MAX,
    VALUE_BYTES_MAX,
)
from kvnode.state.results import (
    Deleted,
    Got,
    Invalid,
    ReadsTooLarge,
    Refused,
    TxnResult,
    Written,
)
from kvnode.state.store import KeyValueStore
from kvnode.state.transactions import (
    GET,
    OPERATORS,
    VALUE,
    holds,
)

# Few keys, so that commands meet; odd ones, so that order and encoding matter.
keys = st.sampled_from(["a", "a/", "a//b", "é", "z", "\ud7ff", "\ue000", "\uffff", "\U0001f600", "\U0010ffff", "\0"])
expects = st.none() | st.lists(st.integers(-1, 12), max_size=3)
puts = st.tuples(st.just(PUT), keys, st.binary(max_size=8), st.sampled_from(["", "text/plain"]), expects).map(list)
deletes = st.tuples(st.just(DELETE), keys, expects).map(list)
commands = st.lists(puts | deletes, max_size=60)


def store_of(*puts: Put | Delete) -> KeyValueStore:
    store = KeyValueStore()
    for command in puts:
        apply(store, command)
    return store


def apply(store: KeyValueStore, command: Put | Delete) -> Any:
    """Through the real encoding, as every node applies it."""
    return store.apply(msgpack.unpackb(command.encode()))


def chunks_of(store: KeyValueStore) -> list[bytes]:
    return list(store.view().chunks())


class DictModel:
    """What the store should do, said as plainly as possible."""

    def __init__(self) -> None:
        self.revision = 0
        self.items: dict[str, Item] = {}

    def apply(self, command: list[Any]) -> Any:
        key, expect = command[1], command[-1]
        old = self.items.get(key)
        mod = old.mod_revision if old else 0
        if expect is not None and not any(e == mod or (e == EXISTS and old) for e in expect):
            return Refused(self.revision, mod)
        if command[0] == PUT:
            self.revision += 1
            created = old.create_revision if old else self.revision
            version = old.version + 1 if old else 1
            self.items[key] = Item(command[2], command[3], created, self.revision, version)
            return Written(self.revision, version)
        if old is None:
            return Deleted(0, self.revision)
        self.revision += 1
        del self.items[key]
        return Deleted(1, self.revision)

    def range(self, start: str, end: str | None, limit: int) -> list[tuple[str, Item]]:
        ordered = sorted((k.encode(), k) for k in self.items)
        inside = [k for _, k in ordered if k >= start and (end is None or k < end)]
        return [(k, self.items[k]) for k in inside[:limit]]


@given(commands, keys, st.none() | keys, st.integers(0, 5))
def test_the_store_does_what_a_dict_would(history: list[Any], start: str, end: str | None, limit: int) -> None:
    store, model = KeyValueStore(), DictModel()
    for command in history:
        assert store.apply(command) == model.apply(command)
        assert store.revision == model.revision
    assert len(store) == len(model.items)
    for key in model.items:
        assert store.get(key) == model.items[key]
    assert store.range("", None, 1000) == model.range("", None, 1000)
    assert store.range(start, end, limit) == model.range(start, end, limit)


@given(commands, commands)
def test_a_view_stays_as_it_was_while_commands_go_on(before: list[Any], after: list[Any]) -> None:
    store = KeyValueStore()
    for command in before:
        store.apply(command)
    view = store.view()
    revision, items = store.revision, dict(store.range("", None, 1000))
    for command in after:
        store.apply(command)
    assert view.revision == revision
    assert {key: view.item(key) for key in view.items} == items
    assert list(view.keys()) == sorted(items)


@given(commands)
def test_a_snapshot_brings_back_the_same_store(history: list[Any]) -> None:
    store = KeyValueStore()
    for command in history:
        store.apply(command)
    chunks = chunks_of(store)
    loaded = KeyValueStore.load(chunks)
    assert loaded.revision == store.revision
    assert loaded.range("", None, 1000) == store.range("", None, 1000)
    assert chunks_of(loaded) == chunks
    assert loaded.apply([PUT, "more", b"", "", None]) == Written(store.revision + 1, 1)


def test_the_same_commands_give_the_same_bytes_in_every_process() -> None:
    # Another process has another hash salt: what depended on it would differ.
    program = (
        "import hashlib; from kvnode.state.store import KeyValueStore; s = KeyValueStore()\n"
        "for i in range(20_000): s.apply([1, f'key-{i * 7919 % 5003}', b'%d' % i, '', None])\n"
        "print(s.revision, hashlib.sha256(b''.join(s.view().chunks())).hexdigest())"
    )

    def run(salt: str) -> str:
        environment = {"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(sys.path)}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert run("1") == run("2")


def test_a_snapshot_of_many_items_is_cut_into_bounded_chunks() -> None:
    store = KeyValueStore()
    for i in range(20_000):  # more than one sorted run
        store.apply([PUT, f"key-{i * 7919 % 20_000}", b"x" * 20, "", None])
    store.apply([PUT, "k" * KEY_BYTES_MAX, b"v" * VALUE_BYTES_MAX, "c" * CONTENT_TYPE_BYTES_MAX, None])
    chunks = chunks_of(store)
    assert len(chunks) > 10
    assert max(map(len, chunks)) <= CHUNK_BYTES_MAX
    seen = [fields[0] for chunk in chunks[1:] for fields in msgpack.unpackb(chunk)]
    assert seen == sorted(seen)
    assert len(seen) == 20_001


@pytest.mark.parametrize(
    ("key", "content_type", "count"), [("{:05}", "c" * CONTENT_TYPE_BYTES_MAX, 1_236), ("{:05}" + "😀" * 254, "", 213)]
)
def test_what_a_chunk_holds_is_counted_in_the_bytes_that_it_takes(key: str, content_type: str, count: int) -> None:
    """Or a store could be written by puts whose snapshots and backups nobody reads, version 0.1 among them."""
    store = KeyValueStore()
    for number in range(count):  # a chunk that is nearly full, were keys counted by characters and nothing else
        store.apply([PUT, key.format(number), b"", content_type, None])
    store.apply([PUT, "9" * KEY_BYTES_MAX, b"v" * VALUE_BYTES_MAX, "c" * CONTENT_TYPE_BYTES_MAX, None])
    chunks = chunks_of(store)
    assert max(map(len, chunks)) <= 65_536 + VALUE_BYTES_MAX + KEY_BYTES_MAX + CONTENT_TYPE_BYTES_MAX + 64
    assert chunks_of(KeyValueStore.load(chunks)) == chunks


def test_a_chunk_is_read_that_counted_keys_by_characters_and_no_content_types() -> None:
    """As version 0.1 wrote them: 49 bytes for each of these."""
    store = KeyValueStore()
    for number in range(1_336):
        store.apply([PUT, f"{number:04}"[:4], b"", "c" * CONTENT_TYPE_BYTES_MAX, None])
    store.apply([PUT, "9" * KEY_BYTES_MAX, b"v" * VALUE_BYTES_MAX, "c" * CONTENT_TYPE_BYTES_MAX, None])
    head, *chunks = chunks_of(store)
    items = [fields for chunk in chunks for fields in msgpack.unpackb(chunk)]
    whole = msgpack.packb(items)
    assert len(whole) > 65_536 * 5 + VALUE_BYTES_MAX
    assert chunks_of(KeyValueStore.load([head, whole])) == [head, *chunks]


def test_restore_replaces_everything() -> None:
    store = store_of(Put("old", b"1"))
    store.restore(9, [("b", Item(b"2", "", 3, 4, 2)), ("a", Item(b"1", "x/y", 9, 9, 1))])
    assert store.revision == 9
    assert [key for key, _ in store.range("", None, 10)] == ["a", "b"]
    assert store.get("old") is None
    assert apply(store, Put("b", b"3")) == Written(10, 3)


def test_adopt_takes_over_a_loaded_store_for_everyone_who_holds_this_one() -> None:
    held = store_of(Put("old", b"1"))
    held.adopt(KeyValueStore.load(chunks_of(store_of(Put("a", b"1"), Put("b", b"2")))))
    assert held.revision == 2
    assert [key for key, _ in held.range("", None, 10)] == ["a", "b"]
    assert apply(held, Delete("a")) == Deleted(1, 3)


def test_adopt_hands_back_what_was_there_to_be_given_up() -> None:
    held, loaded = store_of(Put("old", b"1")), store_of(Put("a", b"1"))
    held.adopt(loaded)
    assert loaded.get("old") is not None
    loaded.release()
    assert len(loaded) == 0
    assert held.get("a") is not None


@pytest.mark.parametrize(
    "damage", ["empty", "format", "revision", "counts", "count", "torn", "fields", "kind", "bounds"]
)
def test_a_damaged_snapshot_is_refused_with_a_sentence(damage: str) -> None:
    header, batch = chunks_of(store_of(Put("a", b"1"), Put("b", b"2")))
    bad: dict[str, list[bytes]] = {
        "empty": [],
        "format": [msgpack.packb([99, 2, 2]), batch],
        "revision": [msgpack.packb([1, "2", 2]), batch],
        "counts": [msgpack.packb([2, 2, 2, None]), batch],
        "count": [header],
        "torn": [header, batch[:-1]],
        "fields": [header, msgpack.packb([["a", b"1"]])],
        "kind": [header, msgpack.packb([[b"a", b"1", "", 1, 1, 1]])],
        "bounds": [header, msgpack.packb([["a", b"1", "", -1, 1, 1]])],
    }
    with pytest.raises(ValueError, match="snapshot"):
        KeyValueStore.load(bad[damage])


# --- conditions ------------------------------------------------------------------------------------


def test_conditional_writes() -> None:
    store = store_of(Put("a", b"1"))
    assert apply(store, Put("a", b"2", expect=(ABSENT,))) == Refused(1, 1)
    assert apply(store, Put("b", b"2", expect=(EXISTS,))) == Refused(1, 0)
    assert apply(store, Put("a", b"2", expect=(7, 1))) == Written(2, 2)
    assert apply(store, Put("a", b"3", expect=(1,))) == Refused(2, 2)
    assert apply(store, Put("a", b"3", expect=())) == Refused(2, 2)
    assert apply(store, Put("a", b"3", expect=(EXISTS,))) == Written(3, 3)
    assert apply(store, Put("b", b"1", expect=(ABSENT,))) == Written(4, 1)
    assert store.get("a") == Item(b"3", "", 1, 3, 3)


def test_conditional_deletes() -> None:
    store = store_of(Put("a", b"1"))
    assert apply(store, Delete("b")) == Deleted(0, 1)
    assert apply(store, Delete("b", expect=(EXISTS,))) == Refused(1, 0)
    assert apply(store, Delete("b", expect=(1,))) == Refused(1, 0)
    assert apply(store, Delete("a", expect=(ABSENT,))) == Refused(1, 1)
    assert apply(store, Delete("a", expect=(9,))) == Refused(1, 1)
    assert apply(store, Delete("a", expect=(1,))) == Deleted(1, 2)
    assert store.get("a") is None
    assert apply(store, Put("a", b"1")) == Written(3, 1)


# --- totality --------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
nearly = st.lists(anything, max_size=6).map(lambda rest: [PUT, *rest]) | st.lists(anything, max_size=4).map(
    lambda rest: [DELETE, *rest]
)


@given(anything | nearly)
def test_no_command_raises_and_an_invalid_one_changes_nothing(command: Any) -> None:
    store = store_of(Put("a", b"1"))
    before = chunks_of(store)
    result = store.apply(command)
    assert isinstance(result, Written | Deleted | Refused | Invalid)
    if isinstance(result, Invalid):
        assert result.revision == 1
        assert chunks_of(store) == before


@pytest.mark.parametrize(
    "command",
    [
        None,
        [],
        [99, "a"],
        [PUT],
        [PUT, "a", b"", "", None, "key", "more"],
        [PUT, "a", b"", "", None, ""],
        [PUT, "a", b"", "", None, "k" * 65],
        [PUT, "a", b"", "", None, "é"],
        [PUT, "a", b"", "", None, "a\nb"],
        [PUT, "a", b"", "", None, b"key"],
        [PUT, "", b"", "", None],
        [PUT, "k" * 1025, b"", "", None],
        [PUT, "é" * 513, b"", "", None],
        [PUT, "\ud800", b"", "", None],
        [PUT, b"a", b"", "", None],
        [PUT, "a", "text", "", None],
        [PUT, "a", b"v" * (VALUE_BYTES_MAX + 1), "", None],
        [PUT, "a", b"", "c" * 257, None],
        [PUT, "a", b"", None, None],
        [PUT, "a", b"", "", 1],
        [PUT, "a", b"", "", ["1"]],
        [PUT, "a", b"", "", [True]],
        [PUT, "a", b"", "", [-2]],
        [DELETE, "a"],
        [DELETE, "", None],
        [DELETE, "a", "x"],
        [DELETE, "a", None, 1],
        [DELETE, "a", None, "key", "more"],
    ],
)
def test_a_command_out_of_bounds_is_invalid(command: Any) -> None:
    store = store_of(Put("a", b"1"))
    result = store.apply(command)
    assert isinstance(result, Invalid)
    assert result.reason
    assert (store.revision, len(store)) == (1, 1)


def test_bounds_are_inclusive() -> None:
    store = KeyValueStore()
    assert store.apply([PUT, "é" * 512, b"v" * VALUE_BYTES_MAX, "c" * 256, None]) == Written(1, 1)
    assert store.apply([PUT, "k" * KEY_BYTES_MAX, b"", "", []]) == Refused(1, 0)


# --- ranges ----------------------------------------------------------------------------------------


@given(st.text(max_size=4), st.lists(st.text(max_size=5), max_size=20))
def test_a_prefix_and_its_end_bracket_exactly_the_keys_that_start_with_it(prefix: str, others: list[str]) -> None:
    end = prefix_end(prefix)
    for key in [*others, *(prefix + other for other in others)]:
        inside = key >= prefix and (end is None or key < end)
        assert inside == key.startswith(prefix)


def test_the_key_after_a_key_is_the_key_and_a_zero() -> None:
    store = store_of(Put("a", b""), Put("a\0", b""), Put("a\0\0", b""), Put("a\x01", b""))
    assert [key for key, _ in store.range("a\0", None, 9)] == ["a\0", "a\0\0", "a\x01"]


def test_the_changes_of_a_command_are_noted_while_somebody_wants_to_know() -> None:
    store = store_of(Put("unseen", b"1"))
    assert store.changes is None
    store.changes = []
    apply(store, Put("a", b"1", "text/plain"))
    apply(store, Put("a", b"2", expect=(7,)))  # refused
    apply(store, Delete("none"))
    apply(store, Delete("unseen"))
    put, delete = store.changes
    assert put[:3] == (CHANGE_PUT, "a", 2)
    assert unpacked(put[3]) == store.get("a")
    assert (put[4], delete[:4]) == (b"", (CHANGE_DELETE, "unseen", 3, b""))
    assert unpacked(delete[4]).value == b"1"
    other = KeyValueStore()
    store.adopt(other)
    assert len(store.changes) == 2
    assert other.changes is None


def test_an_expiry_of_several_leases_takes_none_but_their_keys_out_of_the_order() -> None:
    """The keys come by lease: "a", "x", "c" begin and end three places apart, with a "b" in between that stays."""
    store = KeyValueStore()
    for key in "abcx":
        store.apply([PUT, key, b"", "", None])
    for key in "axc":
        store.apply([PUT, key, b"", "", None, None, 0, 5])
    assert store.apply([EXPIRE, [[1, 0], [2, 0], [3, 0]]]) == Deleted(3, 8)
    assert [key for key, _ in store.range("", None, 9)] == ["b"]
    assert store.apply([DELETE_PREFIX, "b"]) == Deleted(1, 9)


def transaction(*branch: list[Any]) -> list[Any]:
    return [TXN, [], list(branch), []]


def test_what_a_transaction_reads_is_bounded_and_referred_to() -> None:
    store = KeyValueStore()
    for number in range(4):
        store.apply([PUT, f"k{number}", b"x" * VALUE_BYTES_MAX, "t", None])
    store.apply([PUT, "one", b"x", "", None])
    reads = [[GET, f"k{number}"] for number in range(4)]
    over = transaction([PUT, "new", b"1", "", 0, 0], *reads, [GET, "one"])
    assert isinstance(store.apply(over), TxnResult), "as 0.1.0 did, while one of its nodes may be a member"
    store.level, before = 1, store.revision
    for command in (over, [*over, "key"], transaction([PUT, "k0", b"", "", 0, 0], *[[GET, "k1"]] * 5)):
        assert store.apply(command) == ReadsTooLarge(before)
    result = store.apply(transaction(*reads))
    assert isinstance(result, TxnResult)
    for read, key in zip(result.results, ("k0", "k1", "k2", "k3"), strict=True):
        assert isinstance(read, Got)
        assert read.packed is store.packed(key), "no copy"
    for branch in (
        [[DELETE, "k0"], *reads, [GET, "one"]],
        [[DELETE_PREFIX, "k"], *reads, *reads],
    ):
        assert isinstance(store.apply(transaction(*branch)), TxnResult), "what it deletes first, it does not read"
    own = [[PUT, "own", b"x" * VALUE_BYTES_MAX, "", 0, 0], *[[GET, "own"]] * 5]
    assert store.apply(transaction(*own)) == ReadsTooLarge(store.revision)
    assert isinstance(store.apply(transaction(*reversed(own))), TxnResult), "read before it is there"


def test_a_repeated_transaction_reads_no_more_than_it_may() -> None:
    store = KeyValueStore()
    store.apply([PUT, "k", b"x" * VALUE_BYTES_MAX, "", None])
    command = [*transaction(*[[GET, "k"]] * 6), "key"]
    first, store.level = store.apply(command), 1
    again = store.apply(command)
    assert isinstance(first, TxnResult)
    assert isinstance(again, TxnResult)
    assert all(isinstance(each, Got) and each.packed is not None for each in first.results)
    assert [isinstance(each, Got) and each.packed is not None for each in again.results] == [True] * 4 + [False] * 2


@given(st.binary(max_size=4), st.binary(max_size=4), st.sampled_from(sorted(OPERATORS)))
def test_a_comparison_with_a_value_is_that_of_all_its_bytes(value: bytes, operand: bytes, sign: str) -> None:
    for content_type, lease in (("", 0), ("text/plain", 0), ("", 7), ("t", 7)):
        kept = packed(value, content_type, 1, 2, 3, lease)
        assert holds(["k", VALUE, sign, operand], kept) is OPERATORS[sign](value, operand)
