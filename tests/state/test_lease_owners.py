"""Leases of tokens with prefixes: whose they are, and that nobody else's keys come on them or go with them."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvnode.state.commands import (
    GRANT,
    LEVEL,
    PUT,
    RENEW,
    REVOKE,
    TOKEN_PUT,
    TXN,
    WITHIN,
    Grant,
    Put,
    Renew,
    Revoke,
    encode_within,
)  # fmt: skip
from kvnode.state.results import Granted, Invalid, LeaseForeign, LeaseMissing, Revoked, Written
from kvnode.state.store import KeyValueStore

APP, OTHER = ("app", ("app/", "b/")), ("other", ("c/",))


def at_level_1() -> KeyValueStore:
    store = KeyValueStore()
    store.apply([LEVEL, 1])
    return store


def within(store: KeyValueStore, token: tuple[str, tuple[str, ...]], command: bytes, *leases: int) -> Any:
    result = store.apply(msgpack.unpackb(encode_within(*token, leases, command)))
    return ("foreign", result.lease) if isinstance(result, LeaseForeign) else result


def foreign(lease: int) -> tuple[str, int]:
    return ("foreign", lease)


def put(key: str, lease: int, idempotency_key: str | None = None) -> bytes:
    return Put(key, b"v", lease=lease, idempotency_key=idempotency_key).encode()


def test_an_empty_lease_is_its_owners_alone_and_anybodys_without_one() -> None:
    store = at_level_1()
    assert within(store, APP, Grant(60).encode()) == Granted(1, 60)
    store.apply([GRANT, 60])
    assert store.leases.get(1).owner == "app"  # type: ignore[union-attr]
    for command in (Renew(1).encode(), Revoke(1).encode(), put("c/1", 1)):
        assert within(store, OTHER, command, 1) == foreign(1)
    assert within(store, APP, Renew(1).encode(), 1) == Granted(1, 60)
    assert store.leases.get(1).owner == "app", "a renewal keeps it"  # type: ignore[union-attr]
    assert within(store, OTHER, put("c/1", 2), 2) == Written(store.revision, 1, 2)
    assert within(store, APP, put("app/1", 2), 2) == foreign(2), "it has somebody else's key by now"


def test_a_lease_is_for_those_to_whom_all_its_keys_belong() -> None:
    store = at_level_1()
    within(store, APP, Grant(60).encode())
    for key in ("app/1", "app/2", "b/1"):
        assert isinstance(within(store, APP, put(key, 1), 1), Written)
    assert within(store, ("more", ("app/", "b/", "c/")), Renew(1).encode(), 1) == Granted(1, 60)
    assert within(store, ("less", ("app/",)), Renew(1).encode(), 1) == foreign(1)
    # step: whoever may do everything puts a stranger's key on it, which is not to go with it
    assert isinstance(store.apply([PUT, "x", b"", "", None, None, 1, 0]), Written)
    for command in (Renew(1).encode(), Revoke(1).encode(), put("app/3", 1)):
        assert within(store, APP, command, 1) == foreign(1)
    assert isinstance(store.apply([REVOKE, 1]), Revoked)
    assert within(store, APP, Renew(1).encode(), 1) == LeaseMissing(store.revision, 1)


def test_nothing_of_a_transaction_on_a_foreign_lease_is_carried_out() -> None:
    store = at_level_1()
    within(store, OTHER, Grant(60).encode())
    txn = [TXN, [], [[PUT, "app/1", b"", "", 0, 0], [PUT, "app/2", b"", "", 1, 0]], []]
    assert within(store, APP, msgpack.packb(txn), 1) == foreign(1)
    assert len(store) == 0


def test_a_repetition_is_given_its_first_outcome_whoever_has_the_lease_by_now() -> None:
    store = at_level_1()
    within(store, APP, Grant(60).encode())
    first = within(store, APP, put("app/1", 1, "key-1"), 1)
    store.apply([PUT, "x", b"", "", None, None, 1, 0])
    assert within(store, APP, put("app/1", 1, "key-1"), 1) == first
    assert within(store, APP, put("app/1", 1, "key-2"), 1) == foreign(1)


def test_below_feature_level_1_there_is_no_such_command() -> None:
    store = KeyValueStore()
    assert within(store, APP, Grant(60).encode()) == Invalid(0, "unknown command")
    assert len(store.leases) == 0


@pytest.mark.parametrize(
    "command",
    [
        [WITHIN], [WITHIN, None, None], [WITHIN, ["a", [], []]], [WITHIN, ["a", [], []], None],
        [WITHIN, ["a", [], []], []],
        [WITHIN, ["", [], []], [GRANT, 60]], [WITHIN, ["a", ["b", "a"], []], [GRANT, 60]],
        [WITHIN, ["a", ["a", "ab"], []], [GRANT, 60]], [WITHIN, ["a", [], [0]], [GRANT, 60]],
        [WITHIN, ["a", [], [1] * 129], [GRANT, 60]], [WITHIN, ["a", [], []], [GRANT, 0]],
        [WITHIN, ["a", [], []], [WITHIN, ["a", [], []], [GRANT, 60]]], [WITHIN, ["a", [], []], [GRANT, 60], "key"],
        [WITHIN, ["a", [], []], [TXN, [], [[99]], []]], [TOKEN_PUT, [b"", []]], [TOKEN_PUT, None],
    ],
)  # fmt: skip
def test_a_malformed_command_changes_nothing(command: list[Any]) -> None:
    store = at_level_1()
    assert isinstance(store.apply(command), Invalid)
    assert (len(store.leases), len(store.tokens), store.leases.grantee) == (0, 0, "")


def test_snapshots_say_whose_leases_are() -> None:
    store = at_level_1()
    for _ in range(2):
        within(store, APP, Grant(60).encode())
    store.apply([GRANT, 60])
    within(store, APP, put("app/1", 1), 1)
    chunks = list(store.view().chunks())
    loaded = KeyValueStore.load(chunks)
    assert [loaded.leases.get(lease).owner for lease in (1, 2, 3)] == ["app", "app", ""]  # type: ignore[union-attr]
    assert list(loaded.view().chunks()) == chunks
    assert within(loaded, OTHER, Renew(2).encode(), 2) == foreign(2)
    store.apply([RENEW, 2])
    loaded.apply([RENEW, 2])
    assert list(loaded.view().chunks()) == list(store.view().chunks())
