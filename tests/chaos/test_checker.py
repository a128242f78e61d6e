"""The checker against histories known good and bad, and against trying every order on small random ones."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.chaos.brute import is_linearizable
from tests.chaos.checker import check, check_key, check_revisions
from tests.chaos.history import ABSENT, Operation, by_key

NEVER = math.inf


def op(kind: str, began: float, ended: float, **told: Any) -> Operation:
    """An ok operation, unless it says otherwise or never ended."""
    told.setdefault("outcome", "unknown" if ended == NEVER else "ok")
    told.setdefault("key", "k")
    told.setdefault("number", 0)
    return Operation(client=0, node="n1", kind=kind, began=began, ended=ended, **told)  # type: ignore[arg-type]


def put(value: str, began: float, ended: float, revision: int | None = None, **told: Any) -> Operation:
    return op("put", began, ended, value=value, revision=revision, **told)


def get(found: str | None, began: float, ended: float, revision: int = ABSENT, **told: Any) -> Operation:
    return op("get", began, ended, found=found, revision=revision, **told)


def delete(began: float, ended: float, revision: int | None = None, **told: Any) -> Operation:
    return op("delete", began, ended, revision=revision, **told)


A, B = put("a", 0, 1, 1), put("b", 2, 3, 2)

GOOD = {
    "one after the other": [A, get("a", 1.5, 1.7, 1), B, get("b", 4, 5, 2)],
    "a read during a write may see either": [A, B, get("a", 2.1, 2.9, 1), get("b", 2.2, 2.8, 2)],
    "an unknown write that shows at once": [A, put("u", 2, NEVER), get("u", 3, 4, 7)],
    "an unknown write that shows much later": [A, put("u", 1, NEVER), get("a", 2, 3, 1), B, get("u", 9, 10, 8)],
    "an unknown write that never shows": [A, put("u", 1, NEVER), get("a", 2, 3, 1), B, get("b", 9, 10, 2)],
    "an unknown delete that shows": [A, delete(2, NEVER), get("a", 3, 4, 1), get(None, 5, 6)],
    "compare-and-set on what was seen": [A, put("c", 2, 3, 5, expect=1), get("c", 4, 5, 5)],
    "a refusal that tells the present revision": [A, put("c", 2, 3, 1, expect=9, outcome="refused")],
    "a refusal is the only trace of an unknown write": [
        A,
        put("u", 2, NEVER),
        put("c", 3, 4, 4, expect=1, outcome="refused"),
        put("b", 5, 6, 9),
    ],
    "an unknown compare-and-set on an unknown write": [
        A,
        put("u", 2, NEVER),
        put("v", 2, NEVER, expect=4),
        get("v", 3, 4, 6),
    ],
    "only if absent, after a delete": [A, delete(2, 3, 2), put("c", 4, 5, 3, expect=ABSENT), get("c", 6, 7, 3)],
    "a delete needs the unknown write before it": [put("u", 0, NEVER), delete(1, 2, 5), get(None, 3, 4)],
    "deleting nothing": [delete(0, 1, ABSENT, outcome="refused"), A],
}

BAD = {
    "stale read": [A, B, get("a", 4, 5, 1)],
    "lost write": [A, get(None, 2, 3)],
    "reads that go back": [A, B, get("b", 2.1, 2.2, 2), get("a", 2.3, 2.4, 1)],
    "a value that nobody wrote": [A, get("x", 2, 3, 2)],
    "a value with another's revision": [A, B, get("b", 4, 5, 1)],
    "a refused write that shows": [A, put("c", 2, 3, 1, expect=9, outcome="refused"), get("c", 4, 5, 2)],
    "compare-and-set won twice": [A, put("b", 2, 3, 2, expect=1), put("c", 4, 5, 3, expect=1)],
    "a compare-and-set applied twice, refused the second time": [
        A,
        put("c", 2, 3, 2, expect=1, outcome="refused"),
        get("c", 4, 5, 2),
    ],
    "refused though it was as demanded": [A, put("c", 2, 3, 1, expect=1, outcome="refused")],
    "refused as absent though it was there": [A, delete(2, 3, ABSENT, outcome="refused")],
    "an unknown write that shows and is gone again": [
        A,
        put("u", 2, NEVER),
        get("u", 3, 4, 2),
        get("a", 5, 6, 1),
    ],
    "an unknown write that shows before it was asked for": [A, get("u", 2, 3, 2), put("u", 4, NEVER)],
    "an unknown write at two revisions": [A, put("u", 2, NEVER), get("u", 3, 4, 2), B, get("u", 5, 6, 9)],
    "revisions against the order in time": [put("a", 0, 1, 5), put("b", 2, 3, 4)],
    "a write that comes back after the one that followed it": [A, B, get("b", 4, 5, 2), get("a", 6, 7, 3)],
    "only if absent, and it was there": [A, put("c", 4, 5, 3, expect=ABSENT)],
    "a delete that was undone": [A, delete(2, 3, 2), get("a", 4, 5, 1)],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_what_could_have_happened_is_accepted(history: list[Operation]) -> None:
    assert is_linearizable(history), "the example itself is wrong"
    assert check(history) == []


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_what_cannot_have_happened_is_refused(history: list[Operation]) -> None:
    assert not is_linearizable(history), "the example itself is wrong"
    verdict = check_key("k", history)
    assert verdict.result == "violation"
    assert "k: " in verdict.explanation
    assert check(history) != []


def test_an_unanswered_write_and_a_failed_one_are_not_the_same() -> None:
    failed = put("u", 2, 3, outcome="failed")
    assert check([A, failed, get("a", 4, 5, 1)]) == []
    assert check([A, failed, get("u", 4, 5, 2)]) != []
    assert by_key([failed]) == {}


@pytest.mark.parametrize(
    "history",
    [
        [A, put("b", 2, 3, 1, key="other")],  # each key for itself is fine
        [put("a", 0, 1, 5), put("b", 2, 3, 4, key="other")],
        [put("a", 0, 1, 5), get("c", 2, 3, 2, key="other", store_revision=4)],
        [get("c", 2, 3, 2, store_revision=7), put("a", 4, 5, 6)],
    ],
    ids=["one revision twice", "back between writes", "a read of an old store", "a write behind a read"],
)
def test_revisions_hold_across_keys(history: list[Operation]) -> None:
    assert check_revisions(history).result == "violation"


# --- against every order -----------------------------------------------------------------------------------------


def _random_history(chance: random.Random, size: int) -> list[Operation]:
    """What clients of a correct store would see: everything takes place in turn, its answer comes when it comes."""
    value, revision, store, history = None, ABSENT, 0, []
    for number in range(size):
        at = float(number)
        began, ended = at - chance.choice([0.2, 1.5, 3.5]), at + chance.choice([0.2, 1.5, 3.5])
        kind = chance.choice(["put", "put", "put", "get", "get", "delete"])
        store += chance.choice([0, 0, 1])  # another key's
        if kind == "get":
            history.append(get(value, began, ended, revision, number=number))
            continue
        expect = chance.choice([None, None, revision, ABSENT, chance.randint(1, 6)])
        if kind == "delete" and expect == ABSENT:
            expect = None
        known = chance.random() < 0.65
        fields: dict[str, Any] = {"expect": expect, "number": number}
        fields |= {"value": f"v{chance.choice([number, number, 0])}"} if kind == "put" else {}
        if (expect is not None and expect != revision) or (kind == "delete" and value is None):
            fields |= {"outcome": "refused", "revision": revision} if known else {"outcome": "unknown"}
        elif known or chance.random() < 0.6:  # applied, whether or not anybody hears of it
            store += 1
            value, revision = (fields["value"], store) if kind == "put" else (None, ABSENT)
            fields |= {"revision": store} if known else {"outcome": "unknown"}
        else:
            fields["outcome"] = "unknown"
        history.append(replace(op(kind, began, ended if known else NEVER), **fields))
    return history


def _spoiled(chance: random.Random, history: list[Operation]) -> list[Operation]:
    """The history with one thing changed that a client was told, or one write left out."""
    at = chance.randrange(len(history))
    operation = history[at]
    others = [o for o in history if o is not operation]
    fields: dict[str, Any] = {}
    match chance.choice(["time", "revision", "found", "gone"]):
        case "time":
            began = operation.began + chance.choice([-3, 3])
            fields = {"began": began, "ended": began + 0.3 if operation.certain else NEVER}
        case "revision" if operation.certain:
            fields = {"revision": chance.randint(0 if operation.kind == "get" else 1, 8)}
        case "found" if operation.kind == "get" and others:
            other = chance.choice(others)
            fields = {"found": other.value or other.found, "revision": other.revision or ABSENT}
        case "gone" if operation.writes:
            return others
    return [*history[:at], replace(operation, **fields), *history[at + 1 :]]


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 60))
def test_what_a_correct_store_answers_is_accepted(seed: int, size: int) -> None:
    chance = random.Random(seed)
    history = _random_history(chance, size)
    chance.shuffle(history)
    verdict = check_key("k", history)
    assert verdict.result == "ok", (verdict.explanation, history)


@settings(max_examples=400, deadline=None)
@example(seed=0, size=3)
@given(st.integers(0, 2**40), st.integers(1, 6))
def test_the_checker_agrees_with_trying_every_order(seed: int, size: int) -> None:
    chance = random.Random(seed)
    history = _spoiled(chance, _random_history(chance, size))
    expected = "ok" if is_linearizable(history) else "violation"
    assert check_key("k", history).result == expected, history


# --- size ---------------------------------------------------------------------------------------------------------


def _long_history(size: int, unknown_every: int) -> list[Operation]:
    """Eight clients at a time on one key; one write in `unknown_every` is never answered, and half of those happen."""
    chance = random.Random(7)
    value, revision, store, history = "", ABSENT, 0, []
    for number in range(size):
        began, ended = number - chance.uniform(0, 8), number + chance.uniform(0, 8)
        if chance.random() < 0.5 and store:
            history.append(get(value, began, ended, revision, number=number))
        elif chance.random() * unknown_every < 1:
            history.append(put(f"u{number}", began, NEVER, number=number))
            if chance.random() < 0.5:
                store += 1
                value, revision = f"u{number}", store
        else:
            store += 1
            value, revision = f"v{number}", store
            history.append(put(value, began, ended, store, number=number))
    return history


def test_thousands_of_operations_on_one_key_take_seconds_at_most() -> None:
    history = _long_history(10_000, unknown_every=20)
    began = time.process_time()
    assert check_key("k", history).result == "ok"
    stale = next(o for o in history[5_000:] if o.kind == "get" and o.outcome == "ok")
    spoiled = [replace(o, found="v100", revision=101) if o is stale else o for o in history]
    assert check_key("k", spoiled).result == "violation"
    assert time.process_time() - began < 20.0


def test_a_search_that_is_too_long_is_called_undecided() -> None:
    verdict = check_key("k", _long_history(200, unknown_every=3), configurations_max=50)
    assert verdict.result == "undecided"
