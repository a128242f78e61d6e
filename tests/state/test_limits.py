"""What may enter the state machine, by which way it comes, and that `apply` answers whatever it is given."""

from __future__ import annotations

import itertools
import random
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgpack
import pytest

from kvnode.state.admin_commands import packed_contents
from kvnode.state.commands import (
    ADVANCE_CLOCK,
    DELETE,
    DELETE_PREFIX,
    END_SESSION,
    ETCD_DELETE,
    ETCD_TXN,
    EXPIRE,
    FIELDS,
    GRANT,
    LEVEL,
    PUT,
    RENEW,
    REPLACE,
    RESTORE_ABORT,
    RESTORE_BEGIN,
    RESTORE_COMMIT,
    RESTORE_PIECE,
    REVOKE,
    SESSION,
    TOKEN_CREATE,
    TOKEN_REVOKE,
    TXN,
)
from kvnode.state.limits import COUNTER_MAX, SESSION_ID_BYTES
from kvnode.state.results import (
    Deleted,
    Granted,
    IdempotencyMismatch,
    Invalid,
    KeyRotated,
    LeaseMissing,
    Refused,
    Replaced,
    Revoked,
    Written,
)
from kvnode.state.store import FAILURES_KEPT, KeyValueStore
from kvnode.state.transactions import GET
from kvnode.storage import backup
from tests.hostile import loaders
from tests.hostile.crafted import CRAFTED, KEYS, MUCH, ONLY_IN_A_SNAPSHOT, SOUND, TOKEN, backup_of, chunks_of


def as_backup(crafted: list[Any]) -> KeyValueStore:
    data = backup_of(crafted)
    return KeyValueStore.load(backup.chunks_of(data)[1])


def as_backup_file(crafted: list[Any], path: Path) -> KeyValueStore:
    path.write_bytes(backup_of(crafted))
    return backup.load(path)[1]


def as_command(crafted: list[Any]) -> KeyValueStore:
    store = KeyValueStore()
    store.apply([PUT, "before", b"1", "", None])
    before = list(store.view().chunks())
    result = store.apply([REPLACE, packed_contents(chunks_of(crafted))])
    assert not store.failures
    if isinstance(result, Invalid):
        assert list(store.view().chunks()) == before
        raise ValueError(result.reason)
    assert isinstance(result, Replaced)
    return store


@pytest.mark.parametrize("name", SOUND)
def test_what_is_within_its_limits_comes_in_by_every_way(name: str, tmp_path: Path) -> None:
    crafted = SOUND[name]
    for store in (
        KeyValueStore.load(chunks_of(crafted)),
        as_backup(crafted),
        as_backup_file(crafted, tmp_path / "file"),
        as_command(crafted),
    ):
        revision = store.revision
        assert isinstance(store.apply([PUT, "a", b"2", "", None]), Written)
        assert isinstance(store.apply([PUT, "b", b"2", "", None, None, 0, 60]), Written)
        assert store.revision == revision + 2
        assert list(KeyValueStore.load(store.view().chunks()).view().chunks()) == list(store.view().chunks())


@pytest.mark.parametrize("name", CRAFTED)
def test_what_breaks_a_limit_comes_in_by_no_way(name: str, tmp_path: Path) -> None:
    crafted = CRAFTED[name]
    with pytest.raises(ValueError, match="snapshot"):
        KeyValueStore.load(chunks_of(crafted))
    with pytest.raises(backup.Damaged):
        as_backup(crafted)
    with pytest.raises(backup.Damaged):
        as_backup_file(crafted, tmp_path / "file")
    if "session" not in name and "grace" not in name:
        with pytest.raises(ValueError, match="cannot be read"):
            as_command(crafted)


@pytest.mark.parametrize("name", ONLY_IN_A_SNAPSHOT)
def test_a_file_from_outside_brings_less_than_a_nodes_own(name: str, tmp_path: Path) -> None:
    crafted = ONLY_IN_A_SNAPSHOT[name]
    assert list(KeyValueStore.load(chunks_of(crafted)).view().chunks()) == chunks_of(crafted)
    with pytest.raises(backup.Damaged):
        as_backup(crafted)
    with pytest.raises(backup.Damaged):
        as_backup_file(crafted, tmp_path / "file")


def test_counters_stop_at_their_last_number_and_what_is_there_stays_loadable() -> None:
    store = KeyValueStore.load(
        chunks_of([[COUNTER_MAX - 1, 0, 0, 1, COUNTER_MAX, {"session": [COUNTER_MAX, *KEYS[1:]]}],
                   [[COUNTER_MAX, 60, COUNTER_MAX, False]]])
    )  # fmt: skip
    assert isinstance(store.apply([GRANT, 60]), Invalid)
    assert isinstance(store.apply([PUT, "a", b"", "", None, "key", 0, 60]), Invalid)
    assert isinstance(store.apply([TXN, [], [[PUT, "a", b"", "", 0, 60]], [], "key"]), Invalid)
    assert store.apply([SESSION, COUNTER_MAX, b"", b"f", 0]) == KeyRotated(COUNTER_MAX, False)
    assert store.apply([RENEW, COUNTER_MAX]) == Granted(COUNTER_MAX, 60)
    assert store.apply([PUT, "a", b"", "", None, "key"]) == Written(COUNTER_MAX, 1)
    for command in loaders.commands():
        store.apply(command)
    assert not store.failures
    assert store.revision == COUNTER_MAX
    assert list(KeyValueStore.load(store.view().chunks()).view().chunks()) == list(store.view().chunks())


def test_a_small_command_cannot_fill_the_memory() -> None:
    """Lists of nothing, deep lists and long ones, which take a hundred times what they are packed in."""
    many = 8 * 1_048_576
    for contents in (
        b"\xdd" + many.to_bytes(4, "big") + b"\xc0" * many,
        b"\xdd" + many.to_bytes(4, "big") + b"\x80" * many,
        b"\xdd\x00\x00\x40\x00" + (b"\xdc\x40\x00" + b"\x90" * 16_384) * 200,
        b"\x91" * 600 + b"\xc4\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xc6\xff\xff\xff\xff",
        msgpack.packb([b"\x91" * 100_000 + b"\x90"]),
        msgpack.packb([b"\xdc\x10\x00" * 300]),
    ):
        packed = zlib.compress(contents)
        store = KeyValueStore()
        assert isinstance(store.apply([REPLACE, packed]), Invalid)
        assert not store.failures


def test_an_outcome_that_no_request_had_is_no_answer_to_it() -> None:
    """The fingerprint is right, the result is of another kind of command: a file can say so, and no node does."""
    for name, request in loaders.KEYED:
        for result in ([1, 1, 1], [2, 1, 1], [3, 1, 1], [4, True, 1, []], [4, True, 1, [[1, 1, 1]] * 4], [5, 1, 1],
                       [6, 1, 1, 1, 1], [7, 1, 1]):  # fmt: skip
            record = loaders.fingerprint(request) + msgpack.packb(result)
            store = KeyValueStore.load(chunks_of([[10, 0, 1, 0, 0], [[name, record]]]))
            answer = store.apply(loaders.under(name, request))
            assert not store.failures
            fits = {PUT: (Written, Refused, LeaseMissing), DELETE: (Deleted, Refused), TXN: (LeaseMissing,)}
            fits |= {GRANT: (Granted,), RENEW: (Granted, LeaseMissing), REVOKE: (Revoked, LeaseMissing)}
            assert isinstance(answer, (IdempotencyMismatch, *fits.get(request[0], (Deleted,)))), (
                request,
                result,
                answer,
            )


HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**53, 2**63, MUCH, 2**70, -(2**70), 0.0, 1.5, float("nan"), float("inf")),
    *("", "a", "\ud800", "a" * 1_025, "é" * 512, "\x00", b"", b"x", b"\xff" * 65, b"d" * 32, [], [[]], [1], ["a", 1]),
    *([[1, 1]], [[True, 1]], [["a", 2, ">", 0]], [["a", 1, "=", b""]], [[PUT, "a", b"", "", 0, 0]], [[GET, "a"]]),
    *(TOKEN, {}, {"a": 1}, {1: 1}, msgpack.ExtType(5, b""), (), (1,), object()),
]  # fmt: skip


RESTORE_ID = b"r" * 16
RESTORED_CHUNK = msgpack.packb([["r1", b"1", "", 1, 1, 1], ["r2", b"1", "", 2, 2, 1, 4]])


def some_store() -> KeyValueStore:
    """With a backup of which the lease and the first item have come."""
    store = KeyValueStore.load(loaders.sound()[0].view().chunks())
    store.apply([RESTORE_BEGIN, [RESTORE_ID, 9, 3, 1, 7]])
    for number, elements in enumerate(([[4, 60, 0, False]], [["r0", b"1", "", 1, 1, 1]])):
        store.apply([RESTORE_PIECE, [RESTORE_ID, number, msgpack.packb(elements)]])
    return store


@pytest.mark.parametrize("kind", [*FIELDS, 0, 99, True, None, "1", [], 1.0])
def test_apply_answers_every_command_of_hostile_values(kind: Any) -> None:
    """One and two fields replaced in a sound command of each kind, and commands of nothing but hostile values."""
    sound: dict[Any, list[Any]] = {
        PUT: [PUT, "a", b"1", "", None, "key", 0, 60],
        DELETE: [DELETE, "b", None, "key"],
        DELETE_PREFIX: [DELETE_PREFIX, "p", "key"],
        TXN: [TXN, [["a", 2, ">", 0]], [[PUT, "n", b"", "", 0, 60]], [[DELETE, "a"]], "key"],
        ETCD_TXN: [ETCD_TXN, [["a", None, 0, 1, 0]], [[1, "n", b"", 0, 1]], [[2, "a", "b", 1]]],
        ETCD_DELETE: [ETCD_DELETE, ["a", "b", 1]],
        GRANT: [GRANT, 60, "key"],
        RENEW: [RENEW, 1, "key"],
        REVOKE: [REVOKE, 2, "key"],
        EXPIRE: [EXPIRE, [[1, 0], [2, 0]], "key"],
        SESSION: [SESSION, 2, b"k", b"f", 1],
        TOKEN_CREATE: [TOKEN_CREATE, TOKEN],
        TOKEN_REVOKE: [TOKEN_REVOKE, "token-1"],
        END_SESSION: [END_SESSION, ["token-0", b"s" * SESSION_ID_BYTES, 2_000_000_000]],
        ADVANCE_CLOCK: [ADVANCE_CLOCK, 6],
        RESTORE_BEGIN: [RESTORE_BEGIN, [b"other" + bytes(11), 9, 1, 1, 1]],
        RESTORE_PIECE: [RESTORE_PIECE, [RESTORE_ID, 2, RESTORED_CHUNK]],
        RESTORE_COMMIT: [RESTORE_COMMIT, [RESTORE_ID, 2, 0]],
        RESTORE_ABORT: [RESTORE_ABORT, [RESTORE_ID, 0, 0]],
        LEVEL: [LEVEL, 2],
        REPLACE: [REPLACE, packed_contents(list(loaders.sound()[3].view().chunks()))],
    }
    rng = random.Random(f"{kind}")
    command = sound[kind] if type(kind) is int and kind in sound else [kind, *sound[PUT][1:]]
    store = some_store()

    def answered(command: list[Any]) -> None:
        before, failures = store.mark, len(store.failures)
        result = store.apply(command)
        assert len(store.failures) == failures, f"{command!r}: {store.failures[-1]!r}"
        assert not isinstance(result, Invalid) or store.mark == before

    for place, value in itertools.product(range(1, len(command)), HOSTILE):
        answered([*command[:place], value, *command[place + 1 :]])
        answered([*command[:place], *command[place + 1 :], value])
    for first, second in itertools.combinations(range(1, len(command)), 2):
        for value, other in itertools.product(rng.sample(HOSTILE, 12), repeat=2):
            changed = [*command]
            changed[first], changed[second] = value, other
            answered(changed)
    for _ in range(1_000):
        answered([kind, *rng.choices(HOSTILE, k=rng.randrange(8))])
    for value in HOSTILE:
        store.apply(value)
    assert not store.failures
    assert list(KeyValueStore.load(store.view().chunks()).view().chunks()) == list(store.view().chunks())


def test_apply_answers_every_transaction_of_hostile_values() -> None:
    store = some_store()
    compare, operations = (
        ["a", 2, ">", 0],
        [[PUT, "n", b"", "", 0, 60], [DELETE, "a"], [DELETE_PREFIX, "p"], [GET, "b"]],
    )
    for value in HOSTILE:
        for place in range(4):
            store.apply([TXN, [[*compare[:place], value, *compare[place + 1 :]]], [], []])
        for operation in operations:
            for place in range(len(operation)):
                changed = [*operation[:place], value, *operation[place + 1 :]]
                store.apply([TXN, [], [changed, *operations], [changed], "key"])
                store.apply([TXN, [compare], [changed], [changed]])
    assert not store.failures
    assert list(KeyValueStore.load(store.view().chunks()).view().chunks()) == list(store.view().chunks())


def test_apply_answers_every_transaction_of_etcds_of_hostile_values() -> None:
    store = some_store()
    compare, operations = (
        ["a", "z", 0, 1, 0],
        [
            [0, "a", "z", 3, 1, 1, 1, 1, 9, 1, 9],
            [1, "n", b"", 0, 1],
            [2, "b", "c", 1],
            [3, [["a", None, 3, 0, b""]], [], []],
            [4, 1],
        ],
    )
    for value in HOSTILE:
        for place in range(5):
            store.apply([ETCD_TXN, [[*compare[:place], value, *compare[place + 1 :]]], [], []])
        for operation in operations:
            for place in range(len(operation)):
                changed = [*operation[:place], value, *operation[place + 1 :]]
                store.apply([ETCD_TXN, [], [changed, *operations], [changed]])
                store.apply([ETCD_TXN, [compare], [[3, [compare], [changed], []]], [changed]])
        for place in range(3):
            store.apply([ETCD_DELETE, [*["a", "b", 1][:place], value, *["a", "b", 1][place + 1 :]]])
    assert not store.failures
    assert list(KeyValueStore.load(store.view().chunks()).view().chunks()) == list(store.view().chunks())


def test_crafted_files_are_refused_or_as_good_as_any() -> None:
    """The short run of `make hostile-loaders`."""
    seen = loaders.run(1_500, 1)
    assert sum(count for what, count in seen.items() if what.endswith("accepted")) > 300, seen
    assert sum(count for what, count in seen.items() if what.endswith("refused")) > 500, seen


# --- a fault in this program ------------------------------------------------------------------------


class Bug(Exception):
    """Raised where nothing raises."""


EACH_KIND: list[list[Any]] = [
    [PUT, "a", b"9", "", None],
    [PUT, "b", b"9", "", None],
    [PUT, "new", b"9", "t", None, "request", 0, 60],
    [PUT, "d", b"9", "", None, None, 3, 0],
    [DELETE, "b", None, "request"],
    [DELETE_PREFIX, "p"],
    [TXN, [], [[PUT, "x", b"", "", 0, 60], [PUT, "a", b"", "", 1, 0], [DELETE, "b"], [DELETE_PREFIX, "p"]], [], "once"],
    [ETCD_TXN, [["a", "z", 0, 1, 0]], [[1, "x", b"", 1, 1], [3, [], [[2, "p", "q", 1]], []], [0, "", "", 9, 2]], []],
    [ETCD_TXN, [], [[1, "a", b"", 0, 7], [2, "b", None], [2, "d", "e"], [4, 1]], []],
    [ETCD_DELETE, ["p", "q", 1]],
    [GRANT, 60, "request"],
    [GRANT, 60, None, 2**63 + 7],
    [GRANT, 60, None, 0],
    [RENEW, 1, "request"],
    [REVOKE, 1, "request"],
    [EXPIRE, [[3, 0], [1, 1], [2, 0]]],
    [TOKEN_CREATE, TOKEN],
    [TOKEN_REVOKE, "token-1"],
    [TOKEN_REVOKE, "token-0"],
    [END_SESSION, ["token-0", b"s" * SESSION_ID_BYTES, 2_000_000_000]],
    [RESTORE_BEGIN, [b"other" + bytes(11), 9, 1, 1, 1]],
    [RESTORE_PIECE, [RESTORE_ID, 2, RESTORED_CHUNK]],
    [RESTORE_ABORT, [RESTORE_ID, 0, 0]],
    [LEVEL, 2],
    [PUT, "b", b"9", "", None, ["once", 7]],
    [ADVANCE_CLOCK, 5],
    [SESSION, 2, b"k", b"f", 0],
    [REPLACE, packed_contents(list(loaders.sound()[3].view().chunks()))],
]  # fmt: skip


# Only plain containers change in these, one after the other, with what was made before: there is nothing to raise.
STORING = {"added", "forget", "_append", "advance", "replace", "_take_back", "_settle", "take_back"}


@contextmanager
def failing_at(call: int) -> Iterator[None]:
    """Raises in place of the `call`-th function of kvnode that is called inside."""
    left = itertools.count(call, -1)

    def trace(frame: FrameType, event: str, _: Any) -> None:
        if (
            event != "call"
            or "/kvnode/" not in frame.f_code.co_filename
            or frame.f_code.co_name in ("apply", "<genexpr>")
        ):
            return
        caller: FrameType | None = frame
        while caller is not None:
            if caller.f_code.co_name in STORING:
                return
            caller = caller.f_back
        if next(left) == 0:
            sys.setprofile(None)
            raise Bug

    sys.setprofile(trace)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("command", EACH_KIND, ids=lambda command: f"{command[0]}-{command[1]}"[:20])
def test_a_command_that_fails_half_way_changes_nothing(command: list[Any]) -> None:
    """Each call inside `apply` fails in turn: the same answer every time, and the store as it was, to the byte."""
    store, untouched = some_store(), some_store()
    before = list(store.view().chunks())
    store.changes = []
    for call in range(2_000):
        with failing_at(call):
            result = store.apply(command)
        if not store.failures:
            break
        assert isinstance(result, Invalid)
        assert isinstance(store.failures.pop(), Bug)
        assert list(store.view().chunks()) == before, f"call {call}"
        assert (store.revision, store.changes) == (untouched.revision, [])
        assert list(store.walk("", None)) == list(untouched.walk("", None))
        staged, as_it_was = store.staging, untouched.staging
        assert staged is not None
        assert as_it_was is not None
        assert (list(staged.keys), staged.leases.keys(4)) == (list(as_it_was.keys), as_it_was.leases.keys(4))
        assert store.leases.ids(0, 99) == untouched.leases.ids(0, 99)
        assert [store.leases.keys(lease) for lease in range(9)] == [untouched.leases.keys(lease) for lease in range(9)]
    assert call >= 3
    assert result == untouched.apply(command)
    assert list(store.view().chunks()) == list(untouched.view().chunks())


def test_failures_are_kept_for_their_reader_and_no_more_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise Bug("inside")

    store = KeyValueStore()
    monkeypatch.setattr("kvnode.state.store.packed", fail)
    answers = {store.apply([PUT, "a", b"", "", None]) for _ in range(3 * FAILURES_KEPT)}
    assert len(answers) == 1
    assert isinstance(answers.pop(), Invalid)
    assert len(store.failures) == FAILURES_KEPT
    monkeypatch.undo()
    assert store.apply([PUT, "a", b"", "", None]) == Written(1, 1)


def test_a_node_without_memory_does_not_answer_otherwise_than_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    store = KeyValueStore()
    monkeypatch.setattr("kvnode.state.store.packed", fail)
    with pytest.raises(MemoryError):
        store.apply([PUT, "a", b"", "", None])
    assert (store.revision, len(store)) == (0, 0)
