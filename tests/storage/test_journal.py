"""What is durable and what is not: mutations, flights, truncation during a flight, and the fit to a snapshot."""

from __future__ import annotations

import pytest

from kvnode.errors import StartupError
from kvnode.storage.journal import Flight, Journal
from kvnode.storage.records import NO_OP
from kvnode.storage.segments import Recovered, Segments
from tests.simulation.disk import MemoryDisk

CLUSTER_ID = b"0123456789abcdef"


def journal_to(last: int, first: int = 1, term: int = 1) -> Journal:
    """A journal that recovered these entries from disk."""
    return Journal(Recovered([(b"c%d" % index, index, term) for index in range(first, last + 1)], term=term))


def flight_of(journal: Journal) -> Flight:
    flight = journal.begin_flight()
    assert flight is not None
    return flight


def land(journal: Journal) -> None:
    while (flight := journal.begin_flight()) is not None:
        journal.end_flight(flight)


def indexes(journal: Journal) -> list[int]:
    return [index for _, index, _ in journal[:]]


def test_what_was_recovered_is_durable() -> None:
    journal = journal_to(5)
    assert journal.clean
    assert journal.durable_index == 5
    assert journal.begin_flight() is None


def test_an_entry_is_durable_when_its_flight_has_landed() -> None:
    journal = journal_to(2)
    journal.add(b"new", 3, 1)
    flight = flight_of(journal)
    assert (journal.clean, journal.durable_index) == (False, 2)
    journal.end_flight(flight)
    assert (journal.clean, journal.durable_index) == (True, 3)


def test_what_is_added_during_a_flight_waits_for_the_next() -> None:
    journal = journal_to(2)
    journal.add(b"new", 3, 1)
    flight = flight_of(journal)
    journal.add(b"newer", 4, 1)
    assert journal.begin_flight() is None, "one flight at a time"
    journal.end_flight(flight)
    assert (journal.clean, journal.durable_index) == (False, 3)
    land(journal)
    assert (journal.clean, journal.durable_index) == (True, 4)


def test_a_truncation_during_a_flight_takes_back_what_the_flight_will_bring() -> None:
    journal = journal_to(2)
    for index in (3, 4, 5):
        journal.add(b"old", index, 1)
    flight = flight_of(journal)
    journal.deleteEntriesFrom(3)  # position 3 is entry 4
    journal.add(b"new", 4, 2)
    journal.end_flight(flight)
    assert journal.durable_index == 3, "entry 4 on the disk is still the old one"
    assert not journal.clean
    land(journal)
    assert journal.durable_index == 4


def test_a_truncation_is_a_change_of_its_own() -> None:
    journal = journal_to(5)
    journal.deleteEntriesFrom(2)
    assert (journal.clean, journal.durable_index) == (False, 2)
    journal.deleteEntriesFrom(2)  # nothing is there any more
    assert journal.mutation == 1


def test_term_and_vote_are_a_change_of_their_own() -> None:
    journal = journal_to(1)
    journal.setCurrentTerm(4, "n2")
    assert not journal.clean
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (4, "n2")


def test_a_rebase_during_a_flight_leaves_nothing_durable_of_the_old_log() -> None:
    journal = journal_to(2)
    journal.add(b"old", 3, 1)
    flight = flight_of(journal)
    journal.rebase(50, 2)
    journal.end_flight(flight)
    assert journal.durable_index == 0
    land(journal)
    assert journal.durable_index == 50
    assert journal[:] == [(NO_OP, 50, 2)]


def test_the_owner_is_called_once_for_many_changes_of_a_flight() -> None:
    calls: list[int] = []
    journal = Journal(Recovered(), on_dirty=lambda: calls.append(1))
    journal.add(b"first", 1, 0)
    flight = flight_of(journal)
    before = len(calls)
    for index in range(2, 50):
        journal.add(b"next", index, 0)
    assert len(calls) == before, "nobody can start a second flight"
    journal.end_flight(flight)
    assert len(calls) == before + 1


def test_compaction_forgets_the_front_and_asks_for_the_files_to_go() -> None:
    journal = journal_to(9)
    journal.compact(6)
    assert indexes(journal) == [6, 7, 8, 9]
    assert journal.term_at(5) is None
    assert flight_of(journal).drop_before == 6
    assert journal.durable_index == 9


@pytest.mark.parametrize("first_index", [1, 3, 5])
def test_compaction_behind_the_start_of_the_log_does_nothing(first_index: int) -> None:
    """A snapshot that was begun before a newer one was installed may still be written afterwards."""
    journal = journal_to(9, first=5)
    journal.compact(first_index)
    assert indexes(journal) == [5, 6, 7, 8, 9]


def test_the_bytes_in_memory_are_counted() -> None:
    journal = Journal(Recovered())
    for index, size in ((1, 10), (2, 20), (3, 30)):
        journal.add(bytes(size), index, 1)
    journal.deleteEntriesFrom(2)
    assert journal.command_bytes == 30
    journal.deleteEntriesTo(1)
    assert journal.command_bytes == 20
    journal.rebase(9, 1)
    assert journal.command_bytes == 0


def test_a_commit_index_is_not_kept() -> None:
    """R8: one that outlives the log it spoke of commits what was never agreed."""
    journal = journal_to(3)
    journal.setRaftCommitIndex(3)
    assert journal.getRaftCommitIndex() == 1


# --- the fit to a snapshot -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "index", "term", "kept"),
    [
        ((1, 9), 0, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9]),  # no snapshot
        ((1, 9), 4, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),  # a crash before the log was compacted
        ((4, 9), 4, 1, [4, 5, 6, 7, 8, 9]),
        ((1, 9), 4, 2, [4]),  # the log says otherwise: it was not rebased before the crash
        ((1, 3), 7, 1, [7]),  # the log ends before it
    ],
)
def test_the_log_is_fitted_to_the_snapshot(log: tuple[int, int], index: int, term: int, kept: list[int]) -> None:
    journal = journal_to(log[1], first=log[0])
    journal.reconcile(index, term, "data")
    assert indexes(journal) == kept
    assert journal.getRaftCommitIndex() == max(1, index)
    if index:
        assert journal.term_at(index) == term


def test_a_snapshot_alone_is_enough() -> None:
    journal = Journal(Recovered())
    journal.reconcile(7, 3, "data")
    assert journal[:] == [(NO_OP, 7, 3)]
    assert not journal.clean


def test_a_gap_between_snapshot_and_log_is_refused() -> None:
    with pytest.raises(StartupError, match=r"starts at entry 5, .* ends at 3"):
        journal_to(9, first=5).reconcile(3, 1, "data")


def test_flights_written_to_segments_come_back_as_the_same_log() -> None:
    disk = MemoryDisk()
    segments = Segments(disk, CLUSTER_ID, segment_bytes=200)
    journal = Journal(segments.recover())

    def write() -> None:
        while (flight := journal.begin_flight()) is not None:
            segments.append(flight.buffers, flight.last_index, flight.state, sync=True)
            if flight.drop_before:
                segments.drop_before(flight.drop_before)
            journal.end_flight(flight)

    for index in range(1, 40):
        journal.add(b"command %d" % index, index, 1 + index // 10)
        if index % 3 == 0:
            write()
    journal.deleteEntriesFrom(35)
    journal.setCurrentTerm(9, "n1")
    write()
    journal.compact(20)
    journal.add(b"last", 36, 9)
    write()
    again = Segments(disk, CLUSTER_ID, segment_bytes=200).recover()
    assert again.entries[-17:] == journal[:]
    assert again.entries[0][1] > 1, "whole segments are gone"
    assert (again.term, again.vote) == (9, "n1")
