"""What a leader sends its followers, and what becomes of an append that did not leave."""

from __future__ import annotations

from kvnode.raft.messages import APPEND, Message
from kvnode.raft.progress import Replicator
from kvnode.raft.ready import Ready, SnapshotNeeded
from kvnode.storage.journal import Journal
from kvnode.storage.segments import Segments
from tests.simulation.disk import MemoryDisk


def leader(entries: int) -> tuple[Replicator, Ready, Journal]:
    """Of one follower, F, that holds the first entry and is streamed to."""
    journal = Journal(Segments(MemoryDisk(), bytes(16)).recover())
    journal.reconcile(0, 0, "here")
    for index in range(1, entries + 2):
        journal.add(b"command", index, 1)
    ready = Ready()
    replicator = Replicator(journal, ready)
    replicator.lead(["F"])
    replicator.acknowledged("F", 2, success=False, reset=True, applied=1, fit=True)
    replicator.acknowledged("F", 2, success=True, reset=False, applied=1, fit=True)
    return replicator, ready, journal


def sent(replicator: Replicator, ready: Ready) -> list[Message]:
    replicator.replicate(["F"], 1, 1, 0)
    messages = [message for _, message in ready.messages]
    ready.messages.clear()
    return messages


def test_an_append_that_did_not_leave_is_sent_again_with_what_came_since() -> None:
    replicator, ready, journal = leader(3)
    (first,) = sent(replicator, ready)
    journal.add(b"another", journal[-1][1] + 1, 1)
    (second,) = sent(replicator, ready)
    assert [len(first[6]), len(second[6])] == [3, 1]
    replicator.unsent("F", first)
    replicator.unsent("F", second)
    (again,) = sent(replicator, ready)
    assert again[0] == APPEND
    assert [command for _, command in again[6]] == [b"command"] * 3 + [b"another"]
    progress = replicator.followers["F"]
    assert len(progress.in_flight) == 1  # nothing is counted twice
    replicator.acknowledged("F", journal[-1][1] + 1, success=True, reset=False, applied=1, fit=True)
    assert progress.in_flight_bytes == 0


def test_a_probe_that_did_not_leave_does_not_count_as_out() -> None:
    replicator, ready, _ = leader(3)
    replicator.reconnected("F", 1)
    (probe,) = sent(replicator, ready)
    assert len(probe[6]) == 3
    assert not sent(replicator, ready)[0][6]  # a heartbeat: one probe at a time
    replicator.unsent("F", probe)
    assert sent(replicator, ready) == [probe]


def test_a_heartbeat_that_did_not_leave_changes_nothing() -> None:
    replicator, ready, _ = leader(3)
    sent(replicator, ready)
    before = replicator.followers["F"].next
    (heartbeat,) = sent(replicator, ready)
    assert not heartbeat[6]
    replicator.unsent("F", heartbeat)
    assert replicator.followers["F"].next == before


def test_a_follower_behind_the_log_needs_a_snapshot() -> None:
    replicator, ready, journal = leader(3)
    journal.compact(3)
    assert not sent(replicator, ready)[0][6]
    assert ready.events == [SnapshotNeeded("F")]
