"""Hundreds of random schedules in every run, none of which may break a promise; and proof that they could."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from kvnode.raft.guard import Guard
from kvnode.raft.outbox import Outbox
from kvnode.raft.read_rounds import ReadRounds
from tests.simulation.clock import patched
from tests.simulation.cluster import Cluster
from tests.simulation.fuzz import report
from tests.simulation.oracle import Violation
from tests.simulation.schedule import run_schedule
from tests.simulation.test_disk_faults import without_syncing_files, without_syncing_the_directory
from tests.simulation.test_reproductions import STORIES

SCHEDULES = 320
BATCHES = 8
DISK_SCHEDULES = 80


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_schedule_breaks_a_promise(batch: int) -> None:
    writes = 0
    for seed in range(batch * SCHEDULES // BATCHES, (batch + 1) * SCHEDULES // BATCHES):
        outcome = run_schedule(seed)
        assert outcome.finding is None, report(outcome)
        writes += outcome.writes
    assert writes > 10 * SCHEDULES / BATCHES, "schedules in which next to nothing is written prove next to nothing"


def test_no_schedule_breaks_a_promise_where_disks_fail() -> None:
    """Half of those above have such disks too; these are some more."""
    accidents = 0
    for seed in range(SCHEDULES, SCHEDULES + DISK_SCHEDULES):
        outcome = run_schedule(seed, disk_faults=True)
        assert outcome.finding is None, report(outcome)
        accidents += outcome.accidents
    assert accidents > DISK_SCHEDULES


def test_a_seed_repeats_its_schedule_in_any_process() -> None:
    """Also with other hash seeds: no order of a set may reach the schedule."""
    program = (
        "from tests.simulation.schedule import run_schedule\n"
        "print([(o.steps, o.finding, o.writes, o.reads) for o in map(run_schedule, range(7, 12))])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, check=True
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(runs) == 1


# --- each rule, switched off ------------------------------------------------------------------------------


def without_term_fencing() -> AbstractContextManager[None]:
    """G1: an acknowledgement counts whatever term it was given in."""
    acknowledged = Guard._acknowledged

    def unfenced(self: Guard, node_id: str, term: int, *rest: Any) -> None:
        acknowledged(self, node_id, self._core.term, *rest)

    return patched(Guard, _acknowledged=unfenced)


def without_the_vote_book() -> AbstractContextManager[None]:
    """G2: a vote counts as often as its frame arrives."""

    def voted(self: Guard, node: Any, term: int) -> None:
        self._onMessageReceived(node, {"type": "response_vote", "term": term})

    return patched(Guard, _voted=voted)


def with_truncation_at_every_append() -> AbstractContextManager[None]:
    """G3: the core truncates behind what the message starts with, conflict or not."""
    normalise = Guard._normalise

    def truncating(
        self: Guard, leader_id: str, term: int, prev: int, prev_term: int, entries: list[Any]
    ) -> dict[str, Any]:
        message = normalise(self, leader_id, term, prev, prev_term, entries)
        if self._journal.term_at(prev) == prev_term and entries and prev >= self._core.committed_floor:
            message.update(entries=entries, prevLogIdx=prev, prevLogTerm=prev_term)
        return message

    return patched(Guard, _normalise=truncating)


def without_the_commit_cap() -> AbstractContextManager[None]:
    """G4: the leader's commit index counts for whatever this log holds there."""
    normalise = Guard._normalise

    def uncapped(self: Guard, *arguments: Any) -> dict[str, Any]:
        return normalise(self, *arguments) | {"commit_index": 2**31}

    return patched(Guard, _normalise=uncapped)


def without_holding_promises() -> AbstractContextManager[None]:
    """G9: acknowledgements and votes leave before they are on disk."""

    def send(self: Outbox, to: str, message: Any) -> bool:
        self._ready.send(to, message)
        return True

    return patched(Outbox, send=send)


def with_the_leader_counting_unwritten_entries() -> AbstractContextManager[None]:
    """G9: the leader counts itself among those who have an entry before its own disk has it."""
    acknowledged = Guard._acknowledged

    def early(self: Guard, *arguments: Any) -> None:
        journal = self._journal
        durable, journal.durable_index = journal.durable_index, journal[-1][1]
        try:
            acknowledged(self, *arguments)
        finally:
            journal.durable_index = durable

    return patched(Guard, _acknowledged=early)


def with_reads_confirmed_by_nobody() -> AbstractContextManager[None]:
    """A leader answers reads without asking whether it still is one."""
    begin = ReadRounds.begin
    return patched(ReadRounds, begin=lambda self, commit_index, majority: begin(self, commit_index, 0))


@pytest.mark.parametrize(
    ("switched_off", "says"),
    [
        (with_truncation_at_every_append, "hold durably|divergent|lost|without the committed"),
        (without_the_commit_cap, "hold durably|divergent|lost|without the committed"),
        (without_holding_promises, "hold durably|two leaders"),
        (with_the_leader_counting_unwritten_entries, "hold durably"),
        (with_reads_confirmed_by_nobody, "confirmed"),
    ],
)
def test_the_schedules_miss_a_rule_that_is_switched_off(
    switched_off: Callable[[], AbstractContextManager[None]], says: str
) -> None:
    with switched_off():
        for seed in range(SCHEDULES):
            finding = run_schedule(seed).finding
            if finding is not None and re.search(says, finding):
                return
    pytest.fail(f"{SCHEDULES} schedules did not miss the rule")


@pytest.mark.parametrize("switched_off", [without_syncing_files, without_syncing_the_directory])
def test_the_schedules_miss_a_disk_rule_that_is_switched_off(
    switched_off: Callable[[], AbstractContextManager[None]],
) -> None:
    with switched_off():
        assert any(run_schedule(seed, disk_faults=True).finding is not None for seed in range(SCHEDULES))


@pytest.mark.parametrize(("switched_off", "number"), [(without_term_fencing, "R3"), (without_the_vote_book, "R10")])
def test_the_stories_miss_a_rule_that_is_switched_off(
    switched_off: Callable[[], AbstractContextManager[None]],
    number: str,
    make_simulation: Callable[..., Cluster],
) -> None:
    """These two need a coincidence that thousands of schedules may not bring, and a story does."""
    told = STORIES[number]
    with switched_off(), pytest.raises(Violation):
        told.story(make_simulation(told.ids, **told.options))
