"""Is there an order in which all of this could have happened? Linearizability of a history, key by key.

Linearizability composes (Herlihy and Wing, 1990): a history is linearizable when each key's part is. For one key the
search is Wing and Gong's with Lowe's memory of what was visited (2017): build the order operation by operation,
never one whose invocation came after the end of another that is still missing, and go back where it does not fit.

What the store tells makes the search nearly straight. Acknowledged writes carry their revision, so their order is
given. An observation that fits the present state may be taken at once: it changes nothing for the others. Only
writes of unknown outcome leave a choice, and one of them is worth taking only if the next operation needs it:
a write that nobody notices might as well never have happened.

The memory is of (how far every operation is in the order, which later ones are as well, which unknown writes are,
the state): it never reaches back behind the oldest operation still missing, however long the history is.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.chaos.history import ABSENT, Operation, by_key

CONFIGURATIONS_MAX = 1_000_000  # for one key: about half a minute; more is "undecided", which fails a run
SHOWN = 12


class State(NamedTuple):
    """The key. `revision` is its `mod_revision` where `exact`, else the lowest that it can be; for no key, the
    lowest that the store's counter can be."""

    value: str | None = None
    revision: int = 0
    exact: bool = True


@dataclass(frozen=True)
class Verdict:
    """`ok`, or what is wrong with which key."""

    result: Literal["ok", "violation", "undecided"]
    key: str | None = None
    explanation: str = ""


def check(operations: Sequence[Operation], configurations_max: int = CONFIGURATIONS_MAX) -> list[Verdict]:
    """Every verdict that is not `ok`, of every key and of the revisions of all of them."""
    verdicts = [check_revisions(operations)]
    for key, history in sorted(by_key(operations).items()):
        verdicts.append(check_key(key, history, configurations_max))
    return [verdict for verdict in verdicts if verdict.result != "ok"]


# --- what one operation does to one key ---------------------------------------------------------------------


def step(operation: Operation, state: State) -> State | None:
    """The state after the operation took place in `state`; None where it cannot have."""
    if operation.outcome == "refused":
        expected = operation.expect
        return None if operation.revision == expected else _observed(operation.revision, state)
    if operation.kind == "get":
        return _observed(operation.revision, state) if operation.found == state.value else None
    required: State | None = state
    if operation.expect is not None:
        required = _observed(operation.expect, state)
    elif operation.kind == "delete" and state.value is None:
        required = None
    if required is None:
        return None
    if operation.outcome == "unknown":
        return State(operation.value, required.revision + 1, operation.kind == "delete")
    revision = operation.revision
    return State(operation.value, revision, True) if revision is not None and revision > required.revision else None


def _observed(revision: int | None, state: State) -> State | None:
    """The state, now known to be at this `mod_revision` (ABSENT: to be no key)."""
    if revision is None or (revision == ABSENT) != (state.value is None):
        return None
    if revision == ABSENT:
        return state
    if state.exact:
        return state if state.revision == revision else None
    return State(state.value, revision, True) if revision >= state.revision else None


# --- the search -----------------------------------------------------------------------------------------------


class _Configuration(NamedTuple):
    """A beginning of an order. `done` certain operations from the oldest on are in it, and those in the bits of `later`
    (counted from `done`); `written` of the acknowledged writes; the unknown writes in the bits of `used`."""

    done: int
    later: int
    written: int
    used: int
    state: State
    unnoticed: bool  # the last operation is an unknown write, and the next has to need it


class _Search:
    def __init__(self, history: Iterable[Operation]) -> None:
        ordered = sorted(history, key=lambda operation: operation.began)
        self.certain = [operation for operation in ordered if operation.certain]
        self.unknown = [operation for operation in ordered if not operation.certain]
        writes = [position for position, operation in enumerate(self.certain) if operation.writes]
        self.writes = sorted(writes, key=lambda position: self.certain[position].revision or 0)
        # What is known of the value at a revision, from whoever wrote or saw it.
        self.values = {o.revision: _seen(o) for o in self.certain if o.outcome == "ok" and o.revision}
        self.revisions: dict[str | None, list[int]] = {}
        for revision, value in sorted(self.values.items()):
            self.revisions.setdefault(value, []).append(revision)
        # Revisions that somebody names and whose value nobody tells: an unknown write may have made them.
        named = {o.revision for o in self.certain if o.outcome == "refused"} | {o.expect for o in ordered}
        self.orphans = sorted(revision for revision in named if revision and revision not in self.values)

    def run(self, configurations_max: int) -> tuple[str, list[Operation], _Configuration]:
        """The result, and the longest order that was found with what it led to."""
        best = start = _Configuration(0, 0, 0, 0, State(), False)
        parents: dict[_Configuration, tuple[_Configuration, Operation] | None] = {start: None}
        stack = [(start, self._following(start))]
        while stack:
            configuration, following = stack[-1]
            if configuration.done == len(self.certain):
                return "ok", _path(configuration, parents), configuration
            if len(parents) > configurations_max:
                return "undecided", _path(best, parents), best
            for operation, after in following:
                if after not in parents:
                    parents[after] = (configuration, operation)
                    stack.append((after, self._following(after)))
                    best = max(best, after, key=_length)
                    break
            else:
                stack.pop()
        return "violation", _path(best, parents), best

    def eligible(self, configuration: _Configuration) -> tuple[list[int], float]:
        """Certain operations that may come next, and the time before which an unknown one must have begun."""
        found: list[int] = []
        first_end = math.inf
        later = configuration.later
        for position in range(configuration.done, len(self.certain)):
            operation = self.certain[position]
            if operation.began > first_end:
                break
            if not later & 1:
                found.append(position)
                first_end = min(first_end, operation.ended)
            later >>= 1
        return [position for position in found if self.certain[position].began <= first_end], first_end

    def _following(self, configuration: _Configuration) -> Iterator[tuple[Operation, _Configuration]]:
        """What may come next, the likeliest first."""
        state, fitting = configuration.state, []
        next_write = self.writes[configuration.written] if configuration.written < len(self.writes) else -1
        candidates, first_end = self.eligible(configuration)
        for position in candidates:
            operation = self.certain[position]
            if operation.writes and position != next_write:
                continue
            after = step(operation, state)
            if after is None or self._contradicts(after) or not _allowed(operation, configuration):
                continue
            if after == state:  # it fits, and it changes nothing: now is as good as at any other time
                yield operation, self._with(configuration, position, state)
                return
            fitting.append((operation.writes, position, after))
        for _, position, after in sorted(fitting):
            yield self.certain[position], self._with(configuration, position, after)
        write_after = self.certain[next_write] if next_write >= 0 else None
        for number, operation in enumerate(self.unknown):
            if operation.began > first_end:
                break
            if configuration.used >> number & 1 or not _allowed(operation, configuration):
                continue
            after = step(operation, state)
            if after is not None and self._noticed(operation, state, after.revision, write_after):
                used = configuration.used | 1 << number
                yield operation, configuration._replace(used=used, state=after, unnoticed=True)

    def _noticed(self, operation: Operation, state: State, revision_min: int, write_after: Operation | None) -> bool:
        """Whether anything can need this unknown write between here and the next acknowledged one."""
        if operation.kind == "delete":
            return True
        if state.value is None and write_after is not None and write_after.kind == "delete":
            return True  # there has to be something to delete
        revision_end = math.inf if write_after is None else write_after.revision or 0
        for revisions in (self.revisions.get(operation.value, []), self.orphans):
            at = bisect_left(revisions, revision_min)
            if at < len(revisions) and revisions[at] < revision_end:
                return True
        return False

    def _with(self, configuration: _Configuration, position: int, state: State) -> _Configuration:
        done = configuration.done
        later = configuration.later | 1 << (position - done)
        while later & 1:
            later >>= 1
            done += 1
        written = configuration.written + self.certain[position].writes
        return _Configuration(done, later, written, configuration.used, state, False)

    def _contradicts(self, state: State) -> bool:
        return state.exact and self.values.get(state.revision, state.value) != state.value and state.value is not None


def _path(
    last: _Configuration, parents: dict[_Configuration, tuple[_Configuration, Operation] | None]
) -> list[Operation]:
    path = []
    while (parent := parents[last]) is not None:
        last, operation = parent
        path.append(operation)
    return path[::-1]


def _allowed(operation: Operation, configuration: _Configuration) -> bool:
    """After an unknown write only what needs it: anything but a put that would overwrite it unseen."""
    return (
        not configuration.unnoticed or operation.kind != "put" or operation.expect is not None or not operation.writes
    )


def _length(configuration: _Configuration) -> int:
    return configuration.done + configuration.later.bit_count()


def check_key(key: str, history: Sequence[Operation], configurations_max: int = CONFIGURATIONS_MAX) -> Verdict:
    """The verdict on one key's history."""
    search = _Search(history)
    result, path, last = search.run(configurations_max)
    if result == "ok":
        return Verdict("ok", key)
    blocked = [search.certain[position] for position in search.eligible(last)[0]]
    state = last.state
    where = f"{state.value!r} at {'' if state.exact else '>='}{state.revision}" if state.value is not None else "no key"
    lines = [
        f"{key}: {len(path)} of {len(search.certain)} operations fit into an order (and {len(search.unknown)} unknown "
        f"writes were there to choose from); it ends",
        *(f"    {operation}" for operation in path[-SHOWN:]),
        f"  with the key then: {where}; and none of these can come next:",
        *(f"    {operation}" for operation in blocked[:SHOWN]),
    ]
    return Verdict("undecided" if result == "undecided" else "violation", key, "\n".join(lines))


# --- revisions, across all keys -------------------------------------------------------------------------------


def check_revisions(operations: Sequence[Operation]) -> Verdict:
    """One change has one revision, and the store's counter never falls behind what anybody was already told."""
    owners: dict[int, Operation] = {}
    for operation in operations:
        revision = operation.revision
        if not operation.certain or not revision or operation.outcome == "refused":
            continue
        owner = owners.setdefault(revision, operation)
        both_write = owner is not operation and owner.writes and operation.writes
        if both_write or (owner.key, _seen(owner)) != (operation.key, _seen(operation)):
            return Verdict("violation", operation.key, f"one revision for two changes:\n    {owner}\n    {operation}")
    told = sorted((o for o in operations if _reached(o) is not None), key=lambda o: o.ended)
    asked = sorted(told, key=lambda o: o.began)
    newest: Operation | None = None
    ended = 0
    for operation in asked:
        while told[ended].ended < operation.began:
            if newest is None or (_reached(told[ended]) or 0) > (_reached(newest) or 0):
                newest = told[ended]
            ended += 1
        if newest is None:
            continue
        reached, before = _reached(operation) or 0, _reached(newest) or 0
        # A refusal tells of the key alone, which may well be older than what others were told of the store.
        if operation.outcome == "ok" and (reached <= before if operation.writes else reached < before):
            explanation = f"the store's revision went back:\n    {newest}\n    {operation}"
            return Verdict("violation", operation.key, explanation)
    return Verdict("ok")


def _seen(operation: Operation) -> str | None:
    return operation.found if operation.kind == "get" else operation.value


def _reached(operation: Operation) -> int | None:
    """What the store's counter had certainly reached when the operation ended."""
    if not operation.certain:
        return None
    return operation.store_revision if operation.kind == "get" else operation.revision
