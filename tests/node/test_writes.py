"""What a leader does with a follower's writes that come before it may answer for anything."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from kvnode.configuration import named
from kvnode.node.disk_health import DiskHealth
from kvnode.node.outstanding import Outstanding
from kvnode.node.proposals import Proposals
from kvnode.node.writes import ENTRY_GAP_S, GROUP_WORTHWHILE, VERDICTS_KEPT, Writes
from kvnode.raft import messages
from kvnode.raft.membership import Roster
from kvnode.raft.messages import Message
from kvnode.raft.ready import RoleChanged
from kvnode.raft.replica import Replica
from kvnode.state.commands import Put
from kvnode.state.entries import decode_entry, encode_group
from kvnode.state.store import KeyValueStore
from kvnode.storage.disk import Directory
from kvnode.storage.journal import Journal
from kvnode.storage.records import REGULAR
from kvnode.storage.segments import Segments


class Nobody:
    """Who waits for a write, and does not ask what became of it."""

    def done(self) -> bool:
        return False

    def set_result(self, result: object, /) -> None: ...
    def set_exception(self, exception: object, /) -> None: ...


class Desk:
    """n1's replica and writes, over a real journal; what it sends is kept, and peers say what the test says."""

    def __init__(self, folder: Path) -> None:
        self.later_s = 0.0  # how far the clock is put forward
        self.sent: list[tuple[str, Message]] = []
        self.segments = Segments(Directory(folder), bytes(16))
        self.journal = Journal(self.segments.recover())
        self.journal.reconcile(0, 0, str(folder))
        roster = Roster("n1", self.journal, named("n1", "n2", "n3"))
        self.replica = Replica(roster, self.journal, self.clock, random.Random(0).uniform)
        self.proposals = Proposals(b"origin-1", KeyValueStore().apply, self.clock)
        self.leader: str | None = None
        self.writes = Writes(
            self.replica,
            self.proposals,
            DiskHealth(Outstanding(lambda: 0.0), lambda: None, 1.2),
            self,  # type: ignore[arg-type]  # `send` is all that is asked of a network here
            lambda: self.leader,
        )

    def clock(self) -> float:
        return time.monotonic() + self.later_s

    def process_at(self, node_id: str) -> bytes:
        return b"origin-2"

    def is_up(self, node_id: str) -> bool:
        return True

    def submit(self, count: int) -> bool:
        """Whether the last of them calls for a step."""
        put = Put("k", b"v").encode()
        return [self.writes.submit(put, Nobody(), self.clock() + 5.0, None) for _ in range(count)][-1]

    def send(self, node_id: str, message: Message) -> bool:
        self.sent.append((node_id, message))
        return True

    def step(self) -> None:
        """As the engine does it, what is not of writes left out."""
        self.replica.due = True
        self.replica.advance()
        self.carry_out()
        for command, index, term in self.replica.committed():
            self.writes.applied(index)
            self.proposals.applied(term, command[1:] if command[0] == REGULAR else b"")
            self.replica.applied(command, index)
        self.replica.tell(patient=False)
        self.carry_out()

    def receive(self, node_id: str, message: Message) -> None:
        self.replica.guard.receive(node_id, message)
        self.carry_out()

    def carry_out(self) -> None:
        ready = self.replica.ready
        if any(isinstance(event, RoleChanged) for event in ready.events):
            self.writes.role_changed()
        self.sent += ready.messages
        ready.events.clear()
        ready.messages.clear()

    def flush(self) -> None:
        while (flight := self.journal.begin_flight()) is not None:
            self.segments.append(flight.buffers, flight.last_index, flight.state, sync=False)
            self.journal.end_flight(flight)
            self.replica.durable()

    def elect(self) -> None:
        """n1 becomes leader with n2's vote; its own term's no-op is not committed yet."""
        self.replica.guard.connected("n2")
        self.replica.election.transfer_to_self(self.replica.term)
        self.receive("n2", (messages.APPEND, self.replica.term, 1, 0, 1, 0, []))
        self.replica.hasten_election((0.0, 0.0))
        self.step()
        self.flush()
        self.receive("n2", (messages.VOTED, self.replica.term))
        self.step()
        self.flush()
        assert self.replica.is_leader
        assert not self.replica.serving

    def commit(self) -> None:
        """n2 has everything."""
        self.flush()
        self.receive("n2", (messages.ACK, self.replica.term, True, False, self.journal[-1][1] + 1, 0, 1, True))
        self.step()

    def refusals(self) -> list[int]:
        return [message[1] for _, message in self.sent if message[0] == messages.REFUSED]


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes but what a test lets pass."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_new_leader_keeps_what_is_forwarded_to_it_until_it_serves(desk: Desk) -> None:
    """Refused, it would come again only after a pause: longer than the whole change of leader."""
    desk.elect()
    desk.writes.forwarded_here("n3", desk.replica.term, 7, encode_group(b"origin-3", 7, [Put("a", b"1").encode()]))
    assert not desk.writes.pump()  # nothing is proposed by a leader that does not know what is committed
    assert desk.refusals() == []
    desk.commit()
    assert desk.replica.serving
    assert desk.writes.pump()


def test_a_leader_that_never_came_to_serve_gives_back_what_it_kept(desk: Desk) -> None:
    desk.elect()
    term = desk.replica.term
    desk.writes.forwarded_here("n3", term, 7, encode_group(b"origin-3", 7, [Put("a", b"1").encode()]))
    desk.receive("n2", (messages.APPEND, term + 1, 1, 0, 1, 0, []))
    assert not desk.replica.is_leader
    assert desk.refusals() == [7]


def test_what_comes_while_an_entry_is_in_flight_waits_for_it_or_for_the_gap(desk: Desk, still: None) -> None:
    desk.elect()
    desk.commit()
    assert desk.submit(1)
    assert desk.writes.pump()  # a lone one goes at once
    assert not desk.submit(20)
    assert not desk.writes.pump()
    desk.commit()  # the first is applied, and all that came meanwhile are one entry
    assert desk.writes.pump()
    assert not desk.proposals.waiting
    desk.submit(1)
    assert not desk.writes.pump()
    desk.later_s += ENTRY_GAP_S  # which is not soon in coming
    assert desk.submit(1)
    assert desk.writes.pump()
    desk.submit(GROUP_WORTHWHILE)
    assert desk.writes.pump()  # many need not wait
    desk.submit(GROUP_WORTHWHILE)
    assert desk.writes.pump()
    desk.submit(GROUP_WORTHWHILE)
    assert not desk.writes.pump()  # but for those that are in flight already, four of them
    assert len(desk.proposals.waiting) == GROUP_WORTHWHILE


def test_a_follower_forwards_as_a_leader_proposes(desk: Desk, still: None) -> None:
    desk.leader = "n2"
    for count, sent in ((1, 1), (20, 1), (GROUP_WORTHWHILE, 2), (1, 2)):
        desk.submit(count)
        desk.writes.pump()
        assert sum(1 for _, message in desk.sent if message[0] == messages.FORWARD) == sent
    desk.later_s += ENTRY_GAP_S
    desk.writes.pump()
    assert not desk.proposals.waiting


def group_of(sequence: int, origin: bytes = b"origin-3") -> bytes:
    return encode_group(origin, sequence, [Put("a", b"1").encode()])


def proposed(desk: Desk) -> list[tuple[bytes, int]]:
    """(origin, sequence) of each group in the log."""
    groups = [group for command, *_ in desk.journal[0:] if command[0] == REGULAR for group in decode_entry(command[1:])]
    return [(origin, sequence) for origin, sequence, _ in groups]


def test_a_group_that_is_sent_again_is_taken_once(desk: Desk) -> None:
    desk.elect()
    desk.commit()
    term = desk.replica.term
    for sequence in (7, 8, 7, 8):
        desk.writes.forwarded_here("n3", term, sequence, group_of(sequence))
    desk.writes.pump()
    desk.commit()
    for sequence in (7, 8, 9):
        desk.writes.forwarded_here("n3", term, sequence, group_of(sequence))
    desk.writes.pump()
    assert proposed(desk) == [(b"origin-3", sequence) for sequence in (7, 8, 9)]
    assert desk.refusals() == []


def test_the_next_process_of_a_node_has_numbers_of_its_own(desk: Desk) -> None:
    desk.elect()
    desk.commit()
    term = desk.replica.term
    desk.writes.forwarded_here("n3", term, 1, group_of(1))
    desk.writes.forwarded_here("n3", term, 1, group_of(1, b"origin-X"))
    desk.writes.pump()
    assert proposed(desk) == [(b"origin-3", 1), (b"origin-X", 1)]


def test_what_was_taken_is_never_refused_whatever_becomes_of_the_leader(desk: Desk) -> None:
    """Its node would send it to the next leader, and this one's log may hold it all the same."""
    desk.elect()
    desk.commit()
    term = desk.replica.term
    desk.writes.forwarded_here("n3", term, 7, group_of(7))
    desk.writes.pump()
    desk.writes.transferring = True
    desk.writes.forwarded_here("n3", term, 7, group_of(7))
    desk.receive("n2", (messages.APPEND, term + 1, 1, 0, 1, 0, []))
    assert not desk.replica.is_leader
    desk.writes.forwarded_here("n3", term, 7, group_of(7))
    assert desk.refusals() == []
    desk.writes.forwarded_here("n3", term, 8, group_of(8))
    assert desk.refusals() == [8]


def test_what_was_refused_is_never_taken_and_the_refusal_is_given_again(desk: Desk) -> None:
    """The refusal may be lost, or the group may come twice: its node has another number for it by then."""
    desk.elect()
    desk.commit()
    term = desk.replica.term
    desk.writes.transferring = True
    desk.writes.forwarded_here("n3", term, 7, group_of(7))
    desk.writes.transferring = False
    desk.writes.forwarded_here("n3", term, 7, group_of(7))
    desk.writes.pump()
    assert desk.refusals() == [7, 7]
    assert proposed(desk) == []


def test_groups_that_were_kept_and_given_back_are_not_taken_in_a_later_term(desk: Desk) -> None:
    desk.elect()
    term = desk.replica.term
    desk.writes.forwarded_here("n3", term, 7, group_of(7))
    desk.receive("n2", (messages.APPEND, term + 1, 1, 0, 1, 0, []))
    desk.writes.forwarded_here("n3", term, 7, group_of(7))
    assert desk.refusals() == [7, 7]


def test_what_is_remembered_of_forwarded_groups_is_bounded(desk: Desk) -> None:
    desk.elect()
    desk.commit()
    term, last = desk.replica.term, 3 * VERDICTS_KEPT
    for sequence in range(1, last + 1):
        desk.writes.forwarded_here("n3", term, sequence, group_of(sequence))
    desk.writes.forwarded_here("n3", term, 1, group_of(1))  # far behind: neither taken nor refused
    desk.writes.pump()
    assert [sequence for _, sequence in proposed(desk)] == [*range(1, last + 1)]
    assert desk.refusals() == []
