"""Transactions, prefixes and leases against a model of plain dicts, by way of snapshots and repetitions too."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvnode.state.changes import CHANGE_DELETE, CHANGE_EXPIRE, CHANGE_PUT
from kvnode.state.commands import (
    DELETE,
    DELETE_PREFIX,
    EXPIRE,
    GRANT,
    PUT,
    RENEW,
    REVOKE,
    TXN,
)
from kvnode.state.idempotency import Outcome, Outcomes
from kvnode.state.items import Item, packed, unpacked
from kvnode.state.results import (
    Deleted,
    Got,
    Granted,
    IdempotencyMismatch,
    Invalid,
    LeaseMissing,
    Result,
    Revoked,
    TxnResult,
    Written,
    decode_result,
    encode_result,
)
from kvnode.state.store import KeyValueStore
from kvnode.state.transactions import (
    CREATE_REVISION,
    EXISTS,
    GET,
    MOD_REVISION,
    VALUE,
    VERSION,
)

keys = st.sampled_from(["a", "a/", "a/b", "b", "é", "\U0010ffff"])
values = st.sampled_from([b"", b"1", b"2"])
leases = st.integers(1, 6)
leasing = st.sampled_from([(0, 0), (0, 0), (0, 9)]) | st.tuples(leases, st.just(0))
signs = st.sampled_from(["=", "!=", "<", ">", "<=", ">="])
numbers = st.sampled_from([VERSION, CREATE_REVISION, MOD_REVISION])
compares = (
    st.tuples(keys, numbers, signs, st.integers(0, 12))
    | st.tuples(keys, st.just(VALUE), signs, values)
    | st.tuples(keys, st.just(EXISTS), st.sampled_from(["=", "!="]), st.booleans())
).map(list)
operations = (
    st.tuples(keys, values, leasing).map(lambda p: [PUT, p[0], p[1], "", *p[2]])
    | keys.map(lambda key: [DELETE, key])
    | keys.map(lambda key: [DELETE_PREFIX, key])
    | keys.map(lambda key: [GET, key])
)
branches = st.lists(operations, max_size=4)
SIGNS = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip


@dataclass
class ModelLease:
    ttl_s: int
    private: bool
    renewals: int = 0


@dataclass
class Model:
    """What the store should do, said as plainly as possible."""

    revision: int = 0
    last_lease: int = 0
    items: dict[str, Item] = field(default_factory=dict)
    leases: dict[int, ModelLease] = field(default_factory=dict)
    changes: list[tuple[int, str, int]] = field(default_factory=list)
    left: set[int] = field(default_factory=set)  # leases that a key has left during a command

    def held(self, lease: int) -> list[str]:
        return [key for key in sorted(self.items) if self.items[key].lease == lease]

    def grant(self, ttl_s: int, private: bool) -> int:
        self.last_lease += 1
        self.leases[self.last_lease] = ModelLease(ttl_s, private)
        return self.last_lease

    def settle(self) -> None:
        for lease in self.left:
            if lease in self.leases and self.leases[lease].private and not self.held(lease):
                del self.leases[lease]
        self.left.clear()

    def put(self, revision: int, key: str, value: bytes, lease: int, ttl_s: int) -> Written:
        if ttl_s:
            lease = self.grant(ttl_s, True)
        old = self.items.get(key)
        created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
        self.items[key] = Item(value, "", created, revision, version, lease)
        if old:
            self.left.add(old.lease)
        self.changes.append((CHANGE_PUT, key, revision))
        return Written(revision, version, lease)

    def delete(self, revision: int, gone: list[str], kind: int = CHANGE_DELETE) -> int:
        for key in gone:
            self.left.add(self.items.pop(key).lease)
            self.changes.append((kind, key, revision))
        return len(gone)

    def delete_all(self, gone: list[str], kind: int = CHANGE_DELETE) -> Deleted:
        if gone:
            self.revision += 1
        return Deleted(self.delete(self.revision, gone, kind), self.revision)

    def starting(self, prefix: str) -> list[str]:
        return [key for key in sorted(self.items) if key.startswith(prefix)]

    def holds(self, key: str, target: int, sign: str, operand: Any) -> bool:
        item = self.items.get(key)
        if target == EXISTS:
            return bool(SIGNS[sign](item is not None, operand))
        if target == VALUE:
            return item is not None and bool(SIGNS[sign](item.value, operand))
        present = {VERSION: 4, CREATE_REVISION: 2, MOD_REVISION: 3}[target]
        return bool(SIGNS[sign](item[present] if item else 0, operand))

    def transact(self, asked: list[Any], success: list[Any], failure: list[Any]) -> Result | None:
        for branch in (success, failure):
            put = [o[1] for o in branch if o[0] == PUT]
            taken = [key for key in put for o in branch if (o[0] == DELETE and o[1] == key)]
            taken += [key for key in put for o in branch if o[0] == DELETE_PREFIX and key.startswith(o[1])]
            if len(put) != len(set(put)) or taken:
                return None
        succeeded = all(self.holds(*compare) for compare in asked)
        branch = success if succeeded else failure
        for operation in branch:
            if operation[0] == PUT and operation[4] and operation[4] not in self.leases:
                return LeaseMissing(self.revision, operation[4])
        before, changed, results = self.revision, False, list[Any]()
        for kind, key, *rest in branch:
            if kind == GET:
                item = self.items.get(key)
                results.append(Got(*item[2:5], packed(*item)) if item else Got(0, 0, 0, None))
            elif kind == PUT:
                changed = True
                results.append(self.put(before + 1, key, rest[0], rest[2], rest[3]))
            else:
                gone = self.starting(key) if kind == DELETE_PREFIX else [key] if key in self.items else []
                changed = changed or bool(gone)
                results.append(Deleted(self.delete(before + 1, gone), before + changed))
        self.revision = before + changed
        return TxnResult(succeeded, self.revision, tuple(results))


class StoreMachine(RuleBasedStateMachine):
    """The store and the model, the same commands to both."""

    def __init__(self) -> None:
        super().__init__()
        self.store, self.model = KeyValueStore(), Model()
        self.store.changes = []
        self.sent: list[tuple[list[Any], Result]] = []

    def apply(self, *command: Any) -> Result:
        """Through the real encoding, under an idempotency key of its own."""
        keyed = msgpack.unpackb(msgpack.packb([*command, f"key-{len(self.sent)}"]))
        result = self.store.apply(keyed)
        if not isinstance(result, Invalid):
            self.sent.append((keyed, result))
        return result

    @rule(key=keys, value=values, wanted=leasing)
    def put(self, key: str, value: bytes, wanted: tuple[int, int]) -> None:
        number = f"key-{len(self.sent)}"
        command = [PUT, key, value, "", None, number, *wanted]
        result = self.store.apply(command)
        self.sent.append((command, result))
        if wanted[0] and wanted[0] not in self.model.leases:
            assert result == LeaseMissing(self.model.revision, wanted[0])
            return
        self.model.revision += 1
        assert result == self.model.put(self.model.revision, key, value, *wanted)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.apply(DELETE, key, None) == self.model.delete_all([key] if key in self.model.items else [])

    @rule(prefix=keys)
    def delete_prefix(self, prefix: str) -> None:
        assert self.apply(DELETE_PREFIX, prefix) == self.model.delete_all(self.model.starting(prefix))

    @rule(asked=st.lists(compares, max_size=2), success=branches, failure=branches)
    def transact(self, asked: list[Any], success: list[Any], failure: list[Any]) -> None:
        result = self.apply(TXN, asked, success, failure)
        expected = self.model.transact(asked, success, failure)
        assert isinstance(result, Invalid) if expected is None else result == expected

    @rule(ttl_s=st.integers(1, 9))
    def grant(self, ttl_s: int) -> None:
        assert self.apply(GRANT, ttl_s) == Granted(self.model.grant(ttl_s, False), ttl_s)

    @rule(lease=leases)
    def renew(self, lease: int) -> None:
        result, known = self.apply(RENEW, lease), self.model.leases.get(lease)
        if known is None:
            assert result == LeaseMissing(self.model.revision, lease)
        else:
            known.renewals += 1
            assert result == Granted(lease, known.ttl_s)

    @rule(lease=leases)
    def revoke(self, lease: int) -> None:
        result, known = self.apply(REVOKE, lease), self.model.leases.get(lease)
        if known is None:
            assert result == LeaseMissing(self.model.revision, lease)
            return
        deleted = self.model.delete_all(self.model.held(lease))
        self.model.leases.pop(lease, None)
        assert result == Revoked(lease, known.ttl_s, deleted.deleted, self.model.revision)

    @rule(over=st.lists(st.tuples(leases, st.integers(0, 2)), max_size=4))
    def expire(self, over: list[tuple[int, int]]) -> None:
        result = self.apply(EXPIRE, over)
        ended = [
            lease
            for lease, renewals in dict.fromkeys(over)
            if lease in self.model.leases and self.model.leases[lease].renewals == renewals
        ]
        assert result == self.model.delete_all([key for e in ended for key in self.model.held(e)], CHANGE_EXPIRE)
        for lease in ended:
            self.model.leases.pop(lease, None)

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The first outcome again, but for values that were read and are gone."""
        if not self.sent:
            return
        command, first = data.draw(st.sampled_from(self.sent))
        before = self.store.mark
        again = self.store.apply(command)
        assert self.store.mark == before
        if isinstance(first, TxnResult):
            assert isinstance(again, TxnResult)
            assert encode_result(again) == encode_result(first)
            for one, other in zip(first.results, again.results, strict=True):
                if isinstance(one, Got) and isinstance(other, Got) and other.item is not None:
                    assert one.item is not None
                    assert one.item[:5] == other.item[:5]
        else:
            assert again == first

    @rule()
    def reload(self) -> None:
        chunks = list(self.store.view().chunks())
        changes = self.store.changes
        self.store = KeyValueStore.load(chunks)
        self.store.changes = changes
        assert list(self.store.view().chunks()) == chunks

    @invariant()
    def same(self) -> None:
        store, model = self.store, self.model
        model.settle()  # when the command is over: a transaction may hand a lease on
        assert store.revision == model.revision
        assert store.range("", None, 99) == sorted(model.items.items())
        assert store.count("a", "b") == len([key for key in model.items if "a" <= key < "b"])
        assert store.leases.ids(0, 99) == sorted(model.leases)
        for lease, known in model.leases.items():
            assert store.leases.get(lease) == (known.ttl_s, known.renewals, known.private, "")
            assert store.leases.keys(lease) == model.held(lease)
            assert store.leases.key_count(lease) == len(model.held(lease))
        assert store.changes is not None
        assert [change[:3] for change in store.changes] == model.changes
        before: dict[str, bytes] = {}
        for kind, key, revision, kept, previous in store.changes:
            assert (kept == b"") is (kind != CHANGE_PUT)
            assert previous == before.get(key, b"")
            before[key] = kept
            if key in model.items and model.items[key].mod_revision == revision and kept:
                assert unpacked(kept) == model.items[key]


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


# --- what a machine would not stumble on ---------------------------------------------------------------


def test_a_snapshot_from_before_there_were_leases_is_still_read() -> None:
    store = KeyValueStore.load([msgpack.packb([2, 9, 1, 0]), msgpack.packb([["a", b"1", "x/y", 3, 4, 2]])])
    assert (store.revision, store.get("a"), store.apply([GRANT, 5])) == (9, Item(b"1", "x/y", 3, 4, 2), Granted(1, 5))


@pytest.mark.parametrize(
    "chunks",
    [
        [[3, 1, 0, 0, 1, 1]],
        [[3, 1, 0, 0, 1, 1], [[2, 5, 0, False]]],
        [[3, 1, 0, 0, 1, 1], [[1, 0, 0, False]]],
        [[3, 1, 0, 0, 1, 1], [[1, 5, -1, False]]],
        [[3, 1, 0, 0, 1, 1], [[1, 5, 0, 0]]],
        [[3, 1, 0, 0, 2, 2], [[1, 5, 0, False], [1, 5, 0, False]]],
        [[3, 1, 0, 0, 1, 1], ["x"]],
        [[3, 1, 1, 0, 0, 1], [["a", b"1", "", 1, 1, 1, 1]]],
        [[3, 1, 0, 0, 0]],
    ],
)
def test_damaged_leases_are_refused_with_a_sentence(chunks: list[Any]) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        KeyValueStore.load([msgpack.packb(chunk) for chunk in chunks])


def test_a_transaction_may_hand_a_lease_from_one_key_to_another() -> None:
    store = KeyValueStore()
    assert store.apply([PUT, "a", b"", "", None, None, 0, 9]) == Written(1, 1, 1)
    result = store.apply([TXN, [], [[DELETE, "a"], [PUT, "b", b"", "", 1, 0]], []])
    assert result == TxnResult(True, 2, (Deleted(1, 2), Written(2, 1, 1)))
    loaded = KeyValueStore.load(list(store.view().chunks()))
    for each in (store, loaded):
        assert each.leases.keys(1) == ["b"]
        assert each.apply([DELETE, "b", None]) == Deleted(1, 3)
        assert 1 not in each.leases


def test_outcomes_are_bounded_in_bytes_too() -> None:
    outcomes = Outcomes(limit=100, bytes_max=1_000)
    result = TxnResult(True, 1, tuple(Written(1, 1) for _ in range(100)))
    assert decode_result(encode_result(result)) == result
    for number in range(5):
        outcomes.remember(f"key-{number}", Outcome(b"f" * 16, result))
    assert [outcomes.get(f"key-{number}") is not None for number in range(5)] == [False, False, True, True, True] or (
        len(outcomes) == 1_000 // (5 + 16 + len(encode_result(result)))
    )
    assert len(outcomes) < 5


def test_another_request_under_the_key_of_a_transaction_is_refused() -> None:
    store = KeyValueStore()
    assert store.apply([TXN, [], [[PUT, "a", b"1", "", 0, 0]], [], "k"]) == TxnResult(True, 1, (Written(1, 1),))
    assert store.apply([TXN, [], [[PUT, "a", b"2", "", 0, 0]], [], "k"]) == IdempotencyMismatch(1)
