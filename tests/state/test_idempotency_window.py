"""No outcome is forgotten while a client may still repeat its write, and no client fills the window for the others."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from kvnode.node.replicated_clock import ReplicatedClock
from kvnode.state import idempotency as module
from kvnode.state.commands import (
    ADVANCE_CLOCK,
    LEVEL,
    PUT,
    RENEW,
    AdvanceClock,
    Grant,
    Put,
)
from kvnode.state.limits import (
    OUTCOME_LARGEST_BYTES,
    OUTCOMES_MAX,
    OUTCOMES_YOUNG_BYTES_MAX,
    OUTCOMES_YOUNG_MAX,
    REPEAT_WINDOW_S,
    SOURCE_MAX,
)
from kvnode.state.results import (
    ClockAdvanced,
    Granted,
    Invalid,
    OutcomesFull,
    Result,
    Written,
)
from kvnode.state.store import KeyValueStore

SMALL = 256  # outcomes in the window of most tests here: the rules are the same, and faster


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTCOMES_YOUNG_BYTES_MAX", 256 * SMALL + OUTCOME_LARGEST_BYTES)


def at_level_1() -> KeyValueStore:
    store = KeyValueStore()
    store.apply([LEVEL, 1])
    return store


def put(store: KeyValueStore, key: str, source: int = 1) -> Result:
    return store.apply(msgpack.unpackb(Put("k", b"", idempotency_key=(key, source)).encode()))


def fill(store: KeyValueStore, source: int, name: str) -> int:
    """How many writes of this source are taken until one is refused."""
    for number in range(2 * OUTCOMES_YOUNG_MAX):
        if isinstance(put(store, f"{name}-{number}", source), OutcomesFull):
            return number
    raise AssertionError("none was refused")


def second(store: KeyValueStore, clock_s: int) -> None:
    assert store.apply(msgpack.unpackb(AdvanceClock(clock_s).encode())) == ClockAdvanced(store.revision, clock_s)


def snapshot(store: KeyValueStore) -> bytes:
    return b"".join(store.view().chunks())


def reloaded(store: KeyValueStore) -> KeyValueStore:
    return KeyValueStore.load(list(store.view().chunks()))


def test_a_write_that_is_repeated_a_day_later_is_known() -> None:
    """One keyed write a second, and none of them is young any more: what is old stays while there is room."""
    outcomes = module.Outcomes()
    outcomes.begin_time()
    first = module.Outcome(bytes(16), Written(2, 0))
    outcomes.remember("first", first)
    for clock_s in range(1, 86_400):
        outcomes.advance(clock_s)
        outcomes.remember(f"of second {clock_s}", module.Outcome(bytes(16), Written(clock_s + 2, 0)))
    assert outcomes.get("first") == first


def test_every_young_outcome_is_known_whatever_comes_behind_it() -> None:
    """At full size: two clients send as fast as they can, and what a third one wrote before them stays."""
    store = at_level_1()
    first = put(store, "retry-me", 3)
    assert fill(store, 1, "one") == pytest.approx(OUTCOMES_YOUNG_MAX * 3 / 4, rel=0.01)
    fill(store, 2, "two")
    assert len(store.outcomes) > OUTCOMES_MAX
    assert put(store, "retry-me", 3) == first
    assert put(store, "one-0", 1) == Written(3, 2), "a repetition is answered, though a new write is refused"
    revision = store.revision
    assert put(store, "one more", 1) == OutcomesFull(revision)
    assert store.revision == revision
    assert put(store, "another client's", 4) == Written(revision + 1, revision)


def test_room_comes_back_when_the_window_has_passed_and_not_before(small: None) -> None:
    store = at_level_1()
    second(store, 1)
    taken = fill(store, 1, "a")  # noted by second 2 at the latest
    second(store, 2)
    for clock_s in range(3, REPEAT_WINDOW_S + 3):
        second(store, clock_s)
        assert isinstance(put(store, "b", 1), OutcomesFull), clock_s
    second(store, REPEAT_WINDOW_S + 3)
    assert isinstance(put(store, "b", 1), Written)
    assert put(store, "a-0", 1) == Written(2, 1), "an old one is known until there is no place for it"
    assert len(store.outcomes) == taken + 1


def test_the_clock_never_goes_back_and_counts_from_level_1_on_alone() -> None:
    store = KeyValueStore()
    assert isinstance(store.apply([ADVANCE_CLOCK, 5]), Invalid)
    assert isinstance(store.apply([PUT, "k", b"", "", None, ["key", 1]]), Invalid)
    assert store.mark == 0
    store = at_level_1()
    second(store, 9)
    assert store.apply([ADVANCE_CLOCK, 4]) == ClockAdvanced(1, 9)
    assert store.outcomes.clock_s == 9
    assert store.mark != at_level_1().mark


def test_what_was_there_before_level_1_may_be_forgotten_at_once() -> None:
    store = KeyValueStore()
    for number in range(OUTCOMES_MAX):
        store.apply([PUT, "k", b"", "", None, f"key-{number}"])
    store.apply([LEVEL, 1])
    revision = store.revision
    assert put(store, "new") == Written(revision + 1, revision + 1)
    assert len(store.outcomes) == OUTCOMES_MAX


def test_a_renewal_that_cannot_be_remembered_is_carried_out(small: None) -> None:
    store = at_level_1()
    assert store.apply(msgpack.unpackb(Grant(60).encode())) == Granted(1, 60)
    fill(store, 1, "a")
    assert store.apply([RENEW, 1, ["renewal", 1]]) == Granted(1, 60)
    lease = store.leases.get(1)
    assert lease is not None
    assert lease.renewals == 1


def test_young_outcomes_over_the_usual_number_are_given_up_in_steps_once_they_are_old(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORGOTTEN_AT_ONCE", 64)
    store = at_level_1()
    store.outcomes = module.Outcomes(limit=SMALL // 2)
    store.outcomes.begin_time()
    taken = fill(store, 1, "a")
    assert taken > SMALL // 2
    for clock_s in range(1, REPEAT_WINDOW_S + 2):
        second(store, clock_s)
    assert len(store.outcomes) == taken
    clock_s = REPEAT_WINDOW_S + 2
    while store.outcomes.awaits_time:
        before = len(store.outcomes)
        second(store, clock_s)
        assert before - len(store.outcomes) <= 64
        clock_s += 1
        assert clock_s < 100
    assert len(store.outcomes) == SMALL // 2


@pytest.mark.parametrize("seed", range(12))
def test_a_loaded_store_goes_on_as_the_one_that_was_saved(seed: int, small: None) -> None:
    """Any order of writes, seconds and snapshots: both answer alike and write the same bytes."""
    draw = random.Random(seed)
    store, clock_s, sent = at_level_1(), 0, 0
    other = reloaded(store)
    for _ in range(1_500):
        what = draw.random()
        if what < 0.01:
            clock_s += draw.choice((1, 1, 1, 2, 9, 25))
            command: list[Any] = [ADVANCE_CLOCK, clock_s]
        elif what < 0.02:
            other = reloaded(store)
            continue
        else:
            sent += what > 0.2
            command = [PUT, "k", b"", "", None, [f"key-{sent}", draw.choice((0, 1, 2, 2, 2, SOURCE_MAX))]]
        assert store.apply(command) == other.apply(command)
    assert snapshot(store) == snapshot(other)
    assert store.outcomes.awaits_time == other.outcomes.awaits_time


@pytest.mark.parametrize(
    "times",
    [
        *(None, [], [1], [1, [], -1], [1, [], True], [-1, [], 1], [0, [], 0], [1, [[2, 1]], 0], [1, [[1, 0]], 0]),
        *([9, [[5, 1], [5, 1]], 0], [9, [[5]], 0], [9, ["5"], 0], [1, [[1, 1]], 2], [99, [[1, 1]], 0], [1, {}, 1]),
        [99, [[99 - REPEAT_WINDOW_S - 1 + n, 1] for n in range(REPEAT_WINDOW_S + 2)], 0],
    ],
)
def test_times_that_no_node_writes_are_refused(times: Any) -> None:
    store = at_level_1()
    put(store, "a")
    put(store, "b")
    header, *rest = [msgpack.unpackb(chunk) for chunk in store.view().chunks()]
    assert header[6]["times"] == [0, [], 2]
    header[6]["times"] = times
    with pytest.raises(ValueError, match="snapshot"):
        KeyValueStore.load([msgpack.packb(each) for each in (header, *rest)])


@pytest.mark.parametrize(
    "field", [["key"], ["key", -1], ["key", SOURCE_MAX + 1], ["", 1], [None, 1], [1, 1], ["k", True]]
)
def test_a_keyed_write_says_whose_it_is_in_bounds(field: list[Any]) -> None:
    assert isinstance(at_level_1().apply([PUT, "k", b"", "", None, field]), Invalid)


# --- the leader's side -------------------------------------------------------------------------------


class Leading:
    """A leader's clock over a store; the test moves time and terms."""

    def __init__(self) -> None:
        self.store = at_level_1()
        self.now_s, self.term = 100.0, 1
        self.clock = ReplicatedClock(lambda: self.term, self.store, lambda: self.now_s)

    def due(self) -> int | None:
        """The second that goes into the next entry, applied at once."""
        group = self.clock.due()
        if group is None:
            return None
        ((command,)) = msgpack.unpackb(group)[2]
        self.store.apply(command)
        return int(command[1])


def test_a_second_is_proposed_once_and_only_while_it_matters() -> None:
    leading = Leading()
    leading.now_s += 50
    assert leading.due() is None, "there is nothing to forget"
    put(leading.store, "a")
    assert leading.due() is None, "its time begins with the first outcome"
    leading.now_s += 2.5
    assert leading.due() == 2
    assert leading.due() is None
    leading.now_s += REPEAT_WINDOW_S
    assert leading.due() == REPEAT_WINDOW_S + 2
    leading.now_s += 1
    assert leading.due() == REPEAT_WINDOW_S + 3
    leading.now_s += 1
    assert leading.due() is None, "nothing is young any more"


def test_the_next_leader_goes_on_from_the_last_ones_clock_and_never_runs_ahead() -> None:
    leading = Leading()
    put(leading.store, "a")
    assert leading.due() is None
    leading.now_s += 7.9
    assert leading.due() == 7
    leading.term, leading.now_s = 2, leading.now_s + 1_000  # nobody led meanwhile, or somebody who wrote nothing
    assert leading.due() is None
    leading.now_s += 1.2
    assert leading.due() == 8
    assert leading.store.outcomes.awaits_time
    assert put(leading.store, "a") == Written(2, 1)


def test_the_room_for_one_outcome_fits_the_largest() -> None:
    assert OUTCOME_LARGEST_BYTES < 8_192
    assert OUTCOMES_YOUNG_BYTES_MAX // OUTCOMES_YOUNG_MAX == module.COST_MIN == 256
