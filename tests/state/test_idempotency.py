"""Exactly once: a repeated write gives the first outcome and leaves the store as if it had been sent once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.state.commands import ABSENT, DELETE, PUT, WITHIN, Delete, Put, Renew, Revoke, encode_within
from kvnode.state.entries import frees_space, group_frees_space
from kvnode.state.idempotency import Outcome, Outcomes, fingerprint
from kvnode.state.limits import (
    COMMAND_BYTES_MAX,
    IDEMPOTENCY_KEY_CHARS_MAX,
    OUTCOME_BYTES_MAX,
    OUTCOMES_MAX,
    VALUE_BYTES_MAX,
)
from kvnode.state.results import (
    Deleted,
    IdempotencyMismatch,
    Invalid,
    Refused,
    Result,
    Written,
    decode_result,
    encode_result,
)
from kvnode.state.store import KeyValueStore

keys = st.sampled_from(["a", "b", "é"])
expects = st.none() | st.lists(st.integers(-1, 8), max_size=2)
puts = st.tuples(st.just(PUT), keys, st.sampled_from([b"", b"1", b"2"]), st.sampled_from(["", "x/y"]), expects)
deletes = st.tuples(st.just(DELETE), keys, expects)
histories = st.lists((puts | deletes).map(list), max_size=20)


def apply(store: KeyValueStore, command: Put | Delete) -> Result:
    """Through the real encoding, as every node applies it."""
    return store.apply(msgpack.unpackb(command.encode()))


def snapshot(store: KeyValueStore) -> bytes:
    return b"".join(store.view().chunks())


def reloaded(store: KeyValueStore) -> KeyValueStore:
    return KeyValueStore.load(list(store.view().chunks()))


# --- repetitions -----------------------------------------------------------------------------------


# A machine with other work to do may take its time over an example.
@settings(deadline=None)
@given(histories, st.data())
def test_repetitions_change_nothing_and_give_the_first_outcome(history: list[list[Any]], data: st.DataObject) -> None:
    """The same requests, once each, and with any of them repeated anywhere later, by way of snapshots too."""
    once, often = KeyValueStore(), KeyValueStore()
    sent: list[tuple[list[Any], Result]] = []
    for number, request in enumerate(history):
        keyed = [*request, f"key-{number}"]
        first = often.apply(keyed)
        assert first == once.apply(keyed)
        assert first == KeyValueStore.load([*once.view().chunks()]).apply(keyed)
        sent.append((keyed, first))
        for again, outcome in data.draw(st.lists(st.sampled_from(sent), max_size=3)):
            assert often.apply(again) == outcome
            assert often.revision == once.revision
        if data.draw(st.booleans()):
            often = reloaded(often)
    assert snapshot(often) == snapshot(once)
    assert once.range("", None, 99) == often.range("", None, 99)


@settings(deadline=None)
@given(histories)
def test_a_key_changes_nothing_about_a_write_that_comes_once(history: list[list[Any]]) -> None:
    plain, keyed, absent = KeyValueStore(), KeyValueStore(), KeyValueStore()
    for number, request in enumerate(history):
        result = plain.apply(request)
        assert keyed.apply([*request, str(number)]) == result
        assert absent.apply([*request, None]) == result  # a key left out before a later version's field
    assert plain.range("", None, 99) == keyed.range("", None, 99)
    assert snapshot(plain) == snapshot(absent)


def test_every_kind_of_outcome_is_given_again_while_the_store_goes_on() -> None:
    store = KeyValueStore()
    requests = [
        Put("a", b"1", idempotency_key="created"),
        Put("a", b"2", expect=(ABSENT,), idempotency_key="refused"),
        Delete("a", idempotency_key="deleted"),
        Delete("a", idempotency_key="missing"),
    ]
    outcomes = [apply(store, request) for request in requests]
    assert outcomes == [Written(1, 1), Refused(1, 1), Deleted(1, 2), Deleted(0, 2)]
    apply(store, Put("z", b""))
    # The key is gone by now: carried out anew, the refused put would succeed and the first would create it again.
    for again in (store, reloaded(store)):
        assert [apply(again, request) for request in requests] == outcomes
        assert (again.revision, again.get("a")) == (3, None)


@pytest.mark.parametrize(
    "other",
    [
        Put("b", b"1", "x/y", (0,), "key"),
        Put("a", b"2", "x/y", (0,), "key"),
        Put("a", b"1", "x/z", (0,), "key"),
        Put("a", b"1", "x/y", (1,), "key"),
        Put("a", b"1", "x/y", None, "key"),
        Delete("a", (0,), "key"),
    ],
)
def test_another_request_under_the_same_key_is_refused_and_the_first_outcome_stands(other: Put | Delete) -> None:
    store = KeyValueStore()
    first = Put("a", b"1", "x/y", (0,), "key")
    assert apply(store, first) == Written(1, 1)
    before = snapshot(store)
    assert apply(store, other) == IdempotencyMismatch(1)
    assert snapshot(store) == before
    assert apply(store, first) == Written(1, 1)


def test_an_invalid_command_is_not_remembered() -> None:
    store = KeyValueStore()
    assert isinstance(store.apply([PUT, "", b"", "", None, "key"]), Invalid)
    assert apply(store, Put("a", b"", idempotency_key="key")) == Written(1, 1)


def test_the_fields_of_a_request_do_not_run_into_each_other() -> None:
    requests: list[list[Any]] = [
        [PUT, "a", b"b", "", None], [PUT, "ab", b"", "", None], [PUT, "a", b"", "b", None],
        [PUT, "a", b"", "", [1]], [PUT, "a", b"", "", []], [PUT, "a", b"\x01", "", []],
        [DELETE, "a", None], [DELETE, "a", []],
    ]  # fmt: skip
    assert len({fingerprint(request) for request in requests}) == len(requests)


# --- the window ------------------------------------------------------------------------------------

actions = st.lists(st.sampled_from("abcdefgh"), max_size=60)


@settings(deadline=None)
@given(actions, st.integers(1, 6), st.integers(0, 60))
def test_the_window_holds_the_newest_keys_in_order_of_first_use(used: list[str], limit: int, cut: int) -> None:
    outcomes, model = Outcomes(limit), dict[str, int]()
    for number, key in enumerate(used):
        if number == cut:
            outcomes.view()  # a view must not disturb what follows
        known = outcomes.get(key)
        assert known == (Outcome(b"f" * 16, Written(model[key], 1)) if key in model else None)
        if known is None:
            outcomes.remember(key, Outcome(b"f" * 16, Written(number, 1)))
            model[key] = number
            if len(model) > limit:
                del model[next(iter(model))]
    assert len(outcomes) == len(model)
    entries = [entry for chunk in outcomes.view().chunks() for entry in msgpack.unpackb(chunk)]
    assert [key for key, _ in entries] == list(model)


def test_a_view_of_the_outcomes_stays_as_it_was() -> None:
    outcomes = Outcomes(3)
    for key in "abc":
        outcomes.remember(key, Outcome(b"f" * 16, Written(1, 1)))
    view = outcomes.view()
    before = list(view.chunks())
    for key in "defg":
        outcomes.remember(key, Outcome(b"f" * 16, Written(2, 1)))
    assert list(view.chunks()) == before
    assert outcomes.get("a") is None


def test_the_store_forgets_the_oldest_key_and_a_loaded_one_forgets_the_same() -> None:
    store = KeyValueStore()
    apply(store, Put("first", b"", idempotency_key="key-0"))
    for number in range(1, OUTCOMES_MAX):
        store.apply([PUT, "k", b"", "", None, f"key-{number}"])
    assert apply(store, Put("first", b"", idempotency_key="key-0")) == Written(1, 1)
    view = store.view()
    loaded = KeyValueStore.load(view.chunks())
    for each in (store, loaded):
        each.apply([PUT, "k", b"", "", None, "one more"])
        assert each.apply([PUT, "k", b"", "", None, "key-1"]) == Written(2, 1)
        assert apply(each, Put("first", b"", idempotency_key="key-0")) == Written(OUTCOMES_MAX + 2, 2)
    assert snapshot(store) == snapshot(loaded)


def test_a_record_is_as_small_as_it_says() -> None:
    most = 2**63
    for result in (Written(most, most), Deleted(most, most), Refused(most, most)):
        assert decode_result(encode_result(result)) == result
        outcomes = Outcomes()
        outcomes.remember("k" * IDEMPOTENCY_KEY_CHARS_MAX, Outcome(b"f" * 16, result))
        (key, record), *_ = msgpack.unpackb(next(outcomes.view().chunks()))
        assert len(key) + len(record) <= OUTCOME_BYTES_MAX


# --- snapshots and encodings -----------------------------------------------------------------------


def test_a_snapshot_from_before_there_were_keys_is_still_read() -> None:
    item = ["a", b"1", "x/y", 3, 4, 2]
    store = KeyValueStore.load([msgpack.packb([1, 9, 1]), msgpack.packb([item])])
    assert store.revision == 9
    assert apply(store, Put("a", b"2", idempotency_key="key")) == Written(10, 3)
    assert apply(reloaded(store), Put("a", b"2", idempotency_key="key")) == Written(10, 3)


def test_restoring_without_outcomes_and_adopting_replace_them_as_everything_else() -> None:
    store, other = KeyValueStore(), KeyValueStore()
    apply(store, Put("a", b"1", idempotency_key="mine"))
    apply(other, Put("a", b"1", idempotency_key="theirs"))
    apply(other, Put("b", b"1"))
    store.adopt(reloaded(other))
    assert apply(store, Put("a", b"1", idempotency_key="theirs")) == Written(1, 1)
    assert apply(store, Put("a", b"1", idempotency_key="mine")) == Written(3, 2)
    store.restore(0, [])
    assert apply(store, Put("a", b"1", idempotency_key="theirs")) == Written(1, 1)


GOOD = [b"f" * 16 + encode_result(Written(1, 1))]


@pytest.mark.parametrize(
    ("count", "entries"),
    [
        (2, [["a", *GOOD]]),
        (1, [["a", *GOOD], ["b", *GOOD]]),
        (2, [["a", *GOOD], ["a", *GOOD]]),
        (1, [["a"]]),
        (1, [[b"a", *GOOD]]),
        (1, [["a", GOOD[0][:16]]]),
        (1, [["a", b"f" * 16 + msgpack.packb([9, 1, 1])]]),
        (1, [["a", b"f" * 16 + msgpack.packb([1, 1])]]),
        (1, [["a", b"f" * 16 + msgpack.packb([1, "1", 1])]]),
        (1, [["a", b"f" * 16 + msgpack.packb([[], 1, 1])]]),
        (1, ["a"]),
        (10**12, []),
    ],
)
def test_damaged_outcomes_are_refused_with_a_sentence(count: int, entries: list[Any]) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        KeyValueStore.load([msgpack.packb([2, 1, 0, count]), msgpack.packb(entries)])


def test_the_same_bytes_in_every_process() -> None:
    # Another process has another hash salt: what depended on it would differ.
    program = (
        "import hashlib; from kvnode.state.store import KeyValueStore; s = KeyValueStore()\n"
        "for i in range(5_000): s.apply([1, f'k{i % 99}', b'%d' % i, '', None, f'key-{i * 7919 % 4001}'])\n"
        "print(hashlib.sha256(b''.join(s.view().chunks())).hexdigest())"
    )

    def run(salt: str) -> str:
        environment = {"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(sys.path)}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    store = KeyValueStore()
    for i in range(5_000):
        store.apply([PUT, f"k{i % 99}", b"%d" % i, "", None, f"key-{i * 7919 % 4001}"])
    assert run("1") == run("2") == hashlib.sha256(snapshot(store)).hexdigest()


def test_a_write_without_a_key_is_encoded_as_it_always_was() -> None:
    assert Put("a", b"1", "x", (1,)).encode() == msgpack.packb([PUT, "a", b"1", "x", [1]])
    assert Delete("a").encode() == msgpack.packb([DELETE, "a", None])


def test_a_key_does_not_change_what_frees_space() -> None:
    put, delete = (command.encode() for command in (Put("a", b"", "", None, "key"), Delete("a", None, "key")))
    assert (frees_space(put), frees_space(delete)) == (False, True)

    def group(command: bytes) -> bytes:
        return msgpack.packb([b"o" * 8, 1, [msgpack.unpackb(command)]])

    assert (group_frees_space(group(put)), group_frees_space(group(delete))) == (False, True)


def test_what_frees_space_does_so_for_a_token_with_prefixes_too() -> None:
    for command, frees in ((Revoke(7), True), (Renew(7), False), (Put("a", b"", "", None), False)):
        within = encode_within("shop", ("shop/",), (7,), command.encode())
        group = msgpack.packb([b"o" * 8, 1, [msgpack.unpackb(within)]])
        assert (frees_space(within), group_frees_space(group)) == (frees, frees)
    nested = msgpack.packb([WITHIN, ["a", ["b"], []], [WITHIN, 1]])
    assert not frees_space(nested)


def test_the_largest_command_is_within_its_bound() -> None:
    revisions = tuple(2**63 + number for number in range(16))
    largest = Put("k" * 1024, b"v" * VALUE_BYTES_MAX, "c" * 256, revisions, "i" * IDEMPOTENCY_KEY_CHARS_MAX)
    assert len(largest.encode()) <= COMMAND_BYTES_MAX
