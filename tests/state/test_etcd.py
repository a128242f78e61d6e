"""etcd's requests on keys, against a model of etcd's store, and what no model stumbles on."""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack
import pytest

from kvnode.http.past import range_at
from kvnode.state.changes import CHANGE_DELETE, CHANGE_PUT
from kvnode.state.commands import ETCD_DELETE, ETCD_TXN, LEVEL, Delete, Grant
from kvnode.state.commands import Put as PlainPut
from kvnode.state.entries import frees_space
from kvnode.state.etcd import OverBudget, ReadBudget, evaluate, read_range
from kvnode.state.etcd_requests import (
    COMPARE_VALUE,
    DUPLICATE,
    EQUAL,
    TOO_DEEP,
    TOO_MANY,
    Compare,
    DeleteRange,
    Operation,
    Past,
    Put,
    Range,
    Txn,
    transaction_fault,
)
from kvnode.state.items import unpacked
from kvnode.state.limits import NESTING_MAX, OPERATIONS_MAX, TRANSACTION_READ_BYTES_MAX
from kvnode.state.results import (
    Deleted,
    FutureRevision,
    Granted,
    Invalid,
    KeyMissing,
    LeaseMissing,
    PastRead,
    PutDone,
    RangeDeleted,
    RangeRead,
    ReadsTooLarge,
    Result,
    TxnDone,
    Written,
)
from kvnode.state.spans import Span, signed, span, unsigned
from kvnode.state.store import KeyValueStore
from kvnode.watch.hub import Hub
from tests.state.etcd_model import Etcd, Kv, Refused

KEYS = [b"a", b"a/", b"a/b", "é".encode(), "\U0010ffff".encode()]
BOUNDS = [*KEYS, b"\0", b"b", b"a0", b"\xc3", b"\xc3\xaa", b"\xff", b"\xf4\x8f\xc0"]
VALUES = [b"", b"1", b"2", b"11"]


# --- a model -------------------------------------------------------------------------------------------


class Requests:
    """Random requests, as the model takes them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def bounds(self) -> tuple[bytes, bytes]:
        choice = self.random.choice
        return (choice(BOUNDS), choice(BOUNDS)) if self.random.random() < 0.5 else (choice(KEYS), b"")

    def compare(self) -> tuple[Any, ...]:
        random, target = self.random, self.random.randrange(5)
        operand: Any = random.choice(VALUES) if target == 3 else random.randrange(-1, 9)
        if target in (1, 2) and random.random() < 0.5:
            operand = random.randrange(200)
        return (*self.bounds(), target, random.randrange(4), operand)

    def operation(self, depth: int) -> tuple[Any, ...]:
        random, kind = self.random, self.random.random()
        if kind < 0.3:
            options = {name: random.random() < 0.3 for name in ("prev", "ignore_value", "ignore_lease")}
            value = b"" if options["ignore_value"] else random.choice(VALUES)
            lease = 0 if options["ignore_lease"] else random.choice((0, 0, 0, 1, -(2**63), 7))
            return ("put", random.choice(KEYS), value, lease, options)
        if kind < 0.5:
            return ("delete", *self.bounds(), random.random() < 0.5)
        if kind < 0.7 and depth < 3:
            return self.txn(depth + 1)
        return ("range", *self.bounds(), self.options())

    def options(self) -> dict[str, int]:
        random, options = self.random, dict[str, int]()
        for name, most in (("limit", 4), ("sort_by", 5), ("sort", 3)):
            if random.random() < 0.4:
                options[name] = random.randrange(most)
        for name in ("min_mod", "max_mod", "min_create", "max_create"):
            if random.random() < 0.1:
                options[name] = random.randrange(60)
        if random.random() < 0.1:
            options["count_only"] = 1
        return options

    def txn(self, depth: int) -> tuple[Any, ...]:
        random = self.random
        branches = ([self.operation(depth) for _ in range(random.randrange(4))] for _ in range(2))
        return ("txn", [self.compare() for _ in range(random.randrange(3))], *branches)


def of(request: tuple[Any, ...]) -> Any:
    """The same request for the state machine."""
    kind, *rest = request
    if kind == "txn":
        compares = tuple(Compare(span(key, end), *more) for key, end, *more in rest[0])
        return Txn(compares, tuple(map(of, rest[1])), tuple(map(of, rest[2])))
    if kind == "put":
        key, value, lease, options = rest
        ignored = (options["ignore_value"], options["ignore_lease"])
        return Put(key.decode(), value, unsigned(lease), options["prev"], *ignored)
    if kind == "delete":
        return DeleteRange(span(rest[0], rest[1]), rest[2])
    options = dict(rest[2])
    return Range(span(rest[0], rest[1]), count_only=bool(options.pop("count_only", 0)), **options)


def kv(packed: bytes) -> Kv:
    value, _, create, mod, version, lease = unpacked(packed)
    return Kv(value, create, mod, version, signed(lease))


def entries(items: tuple[tuple[str, bytes], ...]) -> list[tuple[bytes, Kv]]:
    return [(key.encode(), kv(packed)) for key, packed in items]


def seen(result: Any) -> Any:
    """An answer of the state machine as the model gives it."""
    if isinstance(result, TxnDone):
        return ("txn", result.succeeded, [seen(each) for each in result.results])
    if isinstance(result, PutDone):
        return ("put", result.revision, None if result.previous is None else kv(result.previous))
    if isinstance(result, RangeDeleted):
        return ("delete", result.deleted, result.revision, entries(result.previous))
    assert isinstance(result, RangeRead)
    return ("range", entries(result.items), result.count, result.more, result.revision)


class Node:
    """A store as a node has it: with a history."""

    def __init__(self) -> None:
        self.store = KeyValueStore()
        self.watches = Hub(self.store, lambda call: None)
        self.apply([LEVEL, 1])

    def apply(self, command: bytes | list[Any]) -> Result:
        decoded = command if isinstance(command, list) else msgpack.unpackb(command, use_list=True)
        result = self.store.apply(decoded)
        assert not self.store.failures, self.store.failures
        return result


@pytest.mark.parametrize("seed", range(4))
def test_transactions_do_what_a_model_of_etcd_does(seed: int) -> None:
    """10,000 requests in all, each judged by its answer and by what the store holds after it; through snapshots too."""
    requests, model, node = Requests(seed), Etcd(), Node()
    for lease in (1, -(2**63)):
        node.apply(Grant(60, None, unsigned(lease)).encode())
        model.leases.add(lease)
    refused = 0
    for number in range(2_500):
        request = requests.txn(0) if requests.random.random() < 0.7 else requests.operation(3)
        changes = node.store.changes
        assert changes is not None
        noted = len(changes)
        asked = of(request)
        wanted = model.answer(request)
        if isinstance(wanted, Refused):
            refused += 1
            before = list(node.store.walk_packed("", None))
            result = node.apply((asked if isinstance(asked, Txn) else Txn((), (asked,), ())).encode())
            kinds = {"duplicate key": Invalid, "key not found": KeyMissing, "lease not found": LeaseMissing}
            assert type(result) is kinds[str(wanted)], (request, result)
            assert list(node.store.walk_packed("", None)) == before
            assert len(changes) == noted
            continue
        if isinstance(asked, Range):
            assert seen(read_range(node.store, asked)) == wanted, request
        elif isinstance(asked, DeleteRange):
            result = node.apply(asked.encode())
            assert seen(result) == wanted, request
        elif isinstance(asked, Put):
            result = node.apply(asked.encode())
            plain = ("put", result.revision, None) if isinstance(result, Written) else None
            if plain is None:
                assert isinstance(result, TxnDone)
                plain = seen(result.results[0])
            assert plain == wanted, request
        else:
            if not asked.writes:
                assert seen(evaluate(node.store, asked.packed)) == wanted
            result = node.apply(asked.encode())
            assert seen(result) == wanted, request
            assert isinstance(result, TxnDone)
            assert result.revision == model.revision
        assert node.store.revision == model.revision
        assert {key.encode(): kv(item) for key, item in node.store.walk_packed("", None)} == model.kvs
        for lease in model.leases:
            held = [key.decode() for key in sorted(model.kvs) if model.kvs[key].lease == lease]
            assert node.store.leases.keys(unsigned(lease)) == held
        for kind, key, revision, packed, previous in changes[noted:]:
            was = model.past[revision - 1].get(key.encode())
            assert (kv(previous) if previous else None) == was
            now = model.kvs.get(key.encode())
            assert (kind, kv(packed) if packed else None) == (CHANGE_PUT if now else CHANGE_DELETE, now)
        if number % 500 == 499:
            chunks = list(node.store.view().chunks())
            loaded = KeyValueStore.load(chunks)
            assert list(loaded.view().chunks()) == chunks
    assert 200 < refused < 1_500


class Group:
    """What a read of the past needs."""

    def __init__(self, node: Node) -> None:
        self.store, self.watches = node.store, node.watches


def test_the_past_is_read_as_the_model_had_it() -> None:
    requests, model, node = Requests(5), Etcd(), Node()
    for _ in range(400):
        request = requests.txn(1)
        if isinstance(model.answer(request), Refused):
            continue
        node.apply(of(request).encode())
        node.watches.publish()
        key, end = requests.bounds()
        revision, options = requests.random.randrange(1, model.revision + 1), requests.options()
        asked = of(("range", key, end, options))
        found: Any = range_at(Group(node), asked, revision, ReadBudget())  # type: ignore[arg-type]
        assert seen(found)[1:4] == model.range(model.past[revision], key, end, options), (revision, request)


# --- what no model stumbles on ---------------------------------------------------------------------------


def node_with(*keys: str) -> Node:
    node = Node()
    for key in keys:
        node.apply(PlainPut(key, b"v").encode())
    return node


def test_the_level_lifts_an_empty_store_to_revision_1_and_no_other() -> None:
    store = KeyValueStore()
    store.apply([LEVEL, 1])
    assert (store.revision, store.level) == (1, 1)
    store.apply([LEVEL, 2])
    assert store.revision == 1
    old = KeyValueStore()
    old.apply(msgpack.unpackb(PlainPut("a", b"1").encode()))
    old.apply([LEVEL, 1])
    assert old.revision == 1


def test_before_level_1_no_member_does_anything_with_these_commands() -> None:
    store = KeyValueStore()
    store.apply(msgpack.unpackb(PlainPut("a", b"1").encode()))
    before = list(store.view().chunks())
    for command in (
        Txn((), (Put("a", b"2", prev_kv=True),), ()).encode(),
        DeleteRange(Span("a")).encode(),
        Grant(60, None, 7).encode(),
        Grant(60, None, 0).encode(),
    ):
        assert store.apply(msgpack.unpackb(command)) == Invalid(1, "unknown command")
    assert list(store.view().chunks()) == before


def nested(depth: int) -> Txn:
    return Txn((), (nested(depth - 1),) if depth > 1 else (Put("a", b""),), ())


def wide(operations: int) -> tuple[Operation, ...]:
    return tuple(Put(f"{number}", b"") for number in range(operations))


@pytest.mark.parametrize(
    ("txn", "wanted"),
    [
        (Txn((), wide(OPERATIONS_MAX), ()), None),
        (Txn((), wide(OPERATIONS_MAX + 1), ()), TOO_MANY),
        (Txn((), (), wide(OPERATIONS_MAX + 1)), TOO_MANY),
        (Txn((Compare(Span("a"), 0, 0, 0),) * (OPERATIONS_MAX + 1), (), ()), TOO_MANY),
        # What the outer one has is not left for those within it.
        (Txn((), (Txn((), wide(OPERATIONS_MAX - 1), ()),), ()), None),
        (Txn((), (Txn((), wide(OPERATIONS_MAX), ()),), ()), TOO_MANY),
        (nested(NESTING_MAX), None),
        (nested(NESTING_MAX + 1), TOO_DEEP),
        (Txn((), tuple(Txn((), (), tuple(Past(1) for _ in range(20))) for _ in range(60)), ()), TOO_DEEP),
        (Txn((), (Put("a", b""), Put("a", b"")), ()), DUPLICATE),
        (Txn((), (Put("a", b""),), (Put("a", b""),)), None),
        (Txn((), (Txn((), (Put("a", b""),), (Put("a", b""),)),), ()), None),
        (Txn((), (Txn((), (Put("a", b""),), (DeleteRange(Span("a", "b")),)),), ()), None),
        (Txn((), (Txn((), (Put("a", b""),), ()), Txn((), (), (DeleteRange(Span("", "")),))), ()), DUPLICATE),
        (Txn((), (Txn((), (DeleteRange(Span("a")),), ()), Put("a", b"")), ()), DUPLICATE),
        (Txn((), (DeleteRange(Span("a")), DeleteRange(Span("", ""))), ()), None),
        (Txn((), (Put("b", b""), DeleteRange(Span("a", "b")), DeleteRange(Span("c", ""))), ()), None),
    ],
)
def test_the_form_of_a_transaction(txn: Txn, wanted: str | None) -> None:
    assert transaction_fault(txn.packed) == wanted
    result = node_with().apply(txn.encode())
    assert (result.reason if isinstance(result, Invalid) else None) == wanted


def test_a_read_of_the_past_is_left_out_and_one_of_the_future_refused() -> None:
    node = node_with("a")
    assert node.store.revision == 2
    done = node.apply(Txn((), (Past(2), Put("a", b"2")), ()).encode())
    assert done == TxnDone(True, 3, (PastRead(2), PutDone(3, 2, 0, None)))
    before = list(node.store.view().chunks())
    assert node.apply(Txn((), (Put("a", b"3"), Past(4)), ()).encode()) == FutureRevision(3)
    assert list(node.store.view().chunks()) == before


@pytest.mark.parametrize(
    "last",
    [Range(Span("", "")), DeleteRange(Span("", ""), prev_kv=True), Range(Span("", ""), sort_by=4, limit=1)],
    ids=["range", "previous", "sort by value"],
)
def test_a_transaction_that_reads_too_much_changes_nothing(last: Operation) -> None:
    node = node_with()
    node.apply(Grant(60).encode())
    for number in range(5):
        node.apply(PlainPut(f"{number}", bytes(TRANSACTION_READ_BYTES_MAX // 5), lease=1).encode())
    before = list(node.store.view().chunks())
    changes = list(node.store.changes or ())
    txn = Txn((), (Txn((), (Put("new", b""),), ()), last) if isinstance(last, Range) else (Range(Span("0")), last), ())
    assert node.apply(txn.encode()) == ReadsTooLarge(node.store.revision)
    assert list(node.store.view().chunks()) == before
    assert node.store.changes == changes
    assert node.store.leases.keys(1) == ["0", "1", "2", "3", "4"]
    if not txn.writes:
        assert evaluate(node.store, txn.packed) == ReadsTooLarge(node.store.revision)
    # Without values there is room for them all.
    counted = node.apply(Txn((), (Range(Span("", ""), keys_only=True),), ()).encode())
    assert isinstance(counted, TxnDone)
    assert seen(counted.results[0])[2] == 5


def test_many_keys_that_are_looked_at_count_as_well() -> None:
    node = Node()
    node.store.restore(9, [(f"{number:05}", unpacked(bytes(26))._replace(version=1)) for number in range(70_000)])
    node.store.level = 1
    every = Span("", "")
    for txn in (
        Txn((Compare(every, 0, 1, 0),), (), ()),
        Txn((), (Range(every, min_mod=5),), ()),
        Txn((), (Range(every, limit=1, sort_by=2),), ()),
        Txn((), (Range(every, keys_only=True),), ()),
    ):
        assert node.apply(txn.encode()) == ReadsTooLarge(9)
    done = node.apply(Txn((), (Range(every, limit=1), Range(every, count_only=True)), ()).encode())
    assert isinstance(done, TxnDone)
    assert [each.count for each in done.results if isinstance(each, RangeRead)] == [70_000, 70_000]
    with pytest.raises(OverBudget):
        read_range(node.store, Range(every), ReadBudget(10_000))


def test_commands_that_say_the_same_are_the_shorter_ones_and_deletions_fit_a_full_disk() -> None:
    assert Put("a", b"1", 5).encode() == PlainPut("a", b"1", lease=5).encode()
    assert msgpack.unpackb(Put("a", b"1", prev_kv=True).encode())[0] == ETCD_TXN
    assert msgpack.unpackb(DeleteRange(Span("a", "b")).encode())[0] == ETCD_DELETE
    assert frees_space(DeleteRange(Span("a", "b"), prev_kv=True).encode())
    assert not frees_space(Txn((), (DeleteRange(Span("a", "b")),), ()).encode())
    assert node_with("a").apply(Delete("a").encode()) == Deleted(1, 3)


def test_all_that_a_transaction_names() -> None:
    inner = Txn(
        (Compare(Span("c"), COMPARE_VALUE, EQUAL, b""),), (Put("p", b""), Past(1)), (DeleteRange(Span("d", "e")),)
    )
    txn = Txn((Compare(Span("x", ""), 0, 0, 0),), (inner,), (Range(Span("r")),))
    assert list(txn.spans()) == [Span("x", ""), Span("c"), Span("p"), Span("d", "e"), Span("r")]
    assert txn.writes
    assert not Txn((), (Range(Span("r")), Past(1)), (Txn((), (), ()),)).writes


def test_a_put_may_keep_what_the_key_has() -> None:
    node = Node()
    assert node.apply(Grant(60).encode()) == Granted(1, 60)
    node.apply(PlainPut("a", b"1", "text/plain", lease=1).encode())
    node.apply(Put("a", b"", ignore_value=True).encode())
    assert node.store.get("a") == (b"1", "text/plain", 2, 3, 2, 0)
    node.apply(Put("a", b"2", lease=1).encode())
    node.apply(Put("a", b"3", ignore_lease=True).encode())
    assert node.store.get("a") == (b"3", "", 2, 5, 4, 1)
    assert node.store.leases.keys(1) == ["a"]
    before = list(node.store.view().chunks())
    for put in (Put("no", b"", ignore_value=True), Put("no", b"", ignore_lease=True)):
        assert node.apply(put.encode()) == KeyMissing(5)
    assert list(node.store.view().chunks()) == before
