"""Writes on their way: what is certain is answered, what is not is called unknown, nothing is applied twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from kvnode.errors import Definite, Indefinite, NoLeader, OutcomeUnknown, Overloaded
from kvnode.node.proposals import GROUP_BYTES, WAITING_COMMANDS_MAX, Proposals
from kvnode.state.commands import Put
from kvnode.state.entries import encode_entry
from kvnode.state.results import Written
from kvnode.state.store import KeyValueStore

ORIGIN = b"origin-1"


@dataclass
class Told:
    """A waiter that remembers the one thing it was told."""

    outcome: Any = None
    left: bool = False

    def done(self) -> bool:
        return self.left or self.outcome is not None

    def set_result(self, result: Any) -> None:
        assert not self.done()
        self.outcome = result

    def set_exception(self, exception: Any) -> None:
        assert not self.done()
        self.outcome = exception


@dataclass
class Desk:
    """One node's proposals over a real store, with a clock that the test moves."""

    now: float = 100.0
    store: KeyValueStore = field(default_factory=KeyValueStore)

    def __post_init__(self) -> None:
        self.proposals = Proposals(ORIGIN, self.store.apply, lambda: self.now)

    def submit(self, key: str, value: bytes = b"v", timeout_s: float = 5.0) -> Told:
        told = Told()
        self.proposals.submit(Put(key, value).encode(), told, self.now + timeout_s)
        return told


def test_a_write_is_answered_by_the_store_when_its_entry_is_applied() -> None:
    desk = Desk()
    first, second = desk.submit("a"), desk.submit("b")
    _, group = desk.proposals.take(term=1)
    assert first.outcome is None
    desk.proposals.applied(1, encode_entry([group]))
    assert (first.outcome, second.outcome) == (Written(1, 1), Written(2, 1))
    assert desk.proposals.sent == 0


def test_another_nodes_group_is_applied_and_answers_nobody_here() -> None:
    desk, other = Desk(), Desk()
    other.proposals = Proposals(b"origin-2", other.store.apply, lambda: 0.0)
    other.submit("theirs")
    told = desk.submit("mine")
    desk.proposals.take(term=1)
    desk.proposals.applied(1, encode_entry([other.proposals.take(1)[1]]))
    assert told.outcome is None
    assert desk.store.get("theirs") is not None


def test_a_group_that_a_later_term_left_behind_is_sent_again_once() -> None:
    desk = Desk()
    told = desk.submit("a")
    desk.proposals.take(term=1)
    desk.proposals.applied(2, b"")  # the next leader's no-op: nothing of term 1 can follow
    assert told.outcome is None
    assert desk.proposals.waiting
    _, again = desk.proposals.take(term=2)
    desk.proposals.applied(2, encode_entry([again]))
    assert told.outcome == Written(1, 1)


def test_groups_that_a_later_term_left_behind_are_sent_again_in_their_order() -> None:
    desk = Desk()
    for number in range(4):
        desk.submit("same", b"%d" % number)
        desk.proposals.take(term=1)
    desk.proposals.applied(2, b"")
    while desk.proposals.waiting:
        desk.proposals.applied(2, encode_entry([desk.proposals.take(term=2)[1]]))
    item = desk.store.get("same")
    assert item is not None
    assert item.value == b"3"


def test_each_write_is_counted_once_by_what_it_was_told() -> None:
    desk = Desk()
    meters = desk.proposals.meters
    for key in ("a", "b", "c"):
        desk.submit(key)
    _, group = desk.proposals.take(term=1)
    desk.submit("never sent", timeout_s=1.0)
    desk.now += 1.5
    desk.proposals.expire()
    desk.proposals.applied(1, encode_entry([group]))
    assert (meters.applied, meters.refused, meters.unknown) == (3, 1, 0)
    assert (sum(meters.batch_commands.counts), meters.batch_commands.sum) == (1, 3)
    assert (sum(meters.commit_s.counts), meters.commit_s.sum) == (1, 1.5)

    # One that was told "unknown" and is applied after all stays what its client was told.
    desk = Desk()
    desk.submit("a", timeout_s=1.0)
    desk.submit("b", timeout_s=9.0)
    _, group = desk.proposals.take(term=1)
    desk.now += 1.5
    desk.proposals.expire()
    desk.proposals.applied(1, encode_entry([group]))
    assert (desk.proposals.meters.applied, desk.proposals.meters.unknown) == (1, 1)


def test_a_group_of_an_earlier_term_that_made_it_is_answered_and_not_sent_again() -> None:
    desk = Desk()
    told = desk.submit("a")
    _, group = desk.proposals.take(term=1)
    desk.proposals.applied(1, encode_entry([group]))
    desk.proposals.applied(2, b"")
    assert told.outcome == Written(1, 1)
    assert not desk.proposals.waiting


def test_what_was_never_sent_fails_definitely_and_what_was_sent_is_unknown() -> None:
    desk = Desk()
    sent = desk.submit("sent")
    desk.proposals.take(term=1)
    waiting = desk.submit("waiting")
    desk.now += 4.9
    desk.proposals.expire()
    assert (sent.outcome, waiting.outcome) == (None, None)
    desk.now += 0.2
    desk.proposals.expire()
    assert isinstance(sent.outcome, OutcomeUnknown)
    assert isinstance(sent.outcome, Indefinite)
    assert isinstance(waiting.outcome, NoLeader)
    assert isinstance(waiting.outcome, Definite)
    assert desk.proposals.sent == 0


def test_who_was_told_unknown_is_not_served_behind_its_back() -> None:
    desk = Desk()
    desk.submit("a", timeout_s=1.0)
    later = desk.submit("b", timeout_s=9.0)
    desk.proposals.take(term=1)
    desk.now += 2.0
    desk.proposals.expire()
    desk.proposals.applied(2, b"")
    _, group = desk.proposals.take(term=2)
    desk.proposals.applied(2, encode_entry([group]))
    assert later.outcome == Written(1, 1)
    assert desk.store.get("a") is None


def test_a_snapshot_in_between_makes_it_unknown() -> None:
    desk = Desk()
    told = desk.submit("a")
    desk.proposals.take(term=1)
    desk.proposals.skipped()
    assert isinstance(told.outcome, OutcomeUnknown)


def test_a_refusal_that_sending_again_will_not_mend_reaches_the_client() -> None:
    desk = Desk()
    told = desk.submit("a")
    sequence, _ = desk.proposals.take(term=1)
    desk.proposals.refused(sequence, Overloaded("full"))
    assert isinstance(told.outcome, Overloaded)


def test_a_stopping_node_fails_what_waits_and_doubts_what_is_on_its_way() -> None:
    desk = Desk()
    sent = desk.submit("sent")
    desk.proposals.take(term=1)
    waiting = desk.submit("waiting")
    desk.proposals.abandon()
    assert isinstance(sent.outcome, OutcomeUnknown)
    assert isinstance(waiting.outcome, NoLeader)


def test_a_client_that_left_disturbs_no_other() -> None:
    desk = Desk()
    gone, stays = desk.submit("a"), desk.submit("b")
    _, group = desk.proposals.take(term=1)
    gone.left = True
    desk.proposals.applied(1, encode_entry([group]))
    assert gone.outcome is None
    assert stays.outcome == Written(2, 1)


def test_groups_and_queues_are_bounded() -> None:
    desk = Desk()
    for number in range(3):
        desk.submit(f"big{number}", b"x" * (GROUP_BYTES // 2))
    _, group = desk.proposals.take(term=1)
    assert len(group) < GROUP_BYTES + 1_000
    assert desk.proposals.waiting
    for number in range(WAITING_COMMANDS_MAX - 2):
        desk.submit(f"k{number}")
    with pytest.raises(Overloaded):
        desk.submit("one too many")


def test_a_malformed_entry_changes_nothing_and_stops_nobody() -> None:
    desk = Desk()
    for payload in (b"\xc1", b"garbage", b"\x91\x93\xc0\xc0\x91\x91\x01", b"\x81\xa1a\x01"):
        desk.proposals.applied(1, payload)
    assert desk.store.revision == 0
    told = desk.submit("a")
    desk.proposals.applied(1, encode_entry([desk.proposals.take(1)[1]]))
    assert told.outcome == Written(1, 1)


def test_a_write_whose_sender_waits_shorter_is_answered_before_those_in_front_of_it() -> None:
    desk = Desk()
    patient, hurried = desk.submit("a", timeout_s=5), desk.submit("b", timeout_s=1)
    desk.now += 1
    desk.proposals.expire()
    assert isinstance(hurried.outcome, NoLeader)
    assert patient.outcome is None
    _, group = desk.proposals.take(term=1)
    desk.proposals.applied(1, encode_entry([group]))
    assert patient.outcome == Written(1, 1)
    assert desk.store.get("b") is None  # what was answered "not applied" is not sent any more


def test_a_sent_write_whose_sender_waits_shorter_is_in_doubt_before_the_others_of_its_group() -> None:
    desk = Desk()
    patient, hurried = desk.submit("a", timeout_s=5), desk.submit("b", timeout_s=1)
    desk.proposals.take(term=1)
    desk.now += 1
    desk.proposals.expire()
    assert isinstance(hurried.outcome, OutcomeUnknown)
    assert patient.outcome is None
    desk.now += 4
    desk.proposals.expire()
    assert isinstance(patient.outcome, OutcomeUnknown)
    assert desk.proposals.sent == 0
