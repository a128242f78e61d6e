"""Single messages that no sound cluster sends, or sends too late: each is refused, and some stop the node."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvnode.errors import Fatal
from kvnode.raft import messages
from tests.simulation.cluster import Cluster


@pytest.fixture
def cluster(make_simulation: Callable[..., Cluster]) -> Cluster:
    """A leads in term 1; everybody has applied up to index 5."""
    cluster = make_simulation("ABC")
    cluster.elect("A", votes_from="BC")
    for n in range(3):
        cluster.propose("A", n)
    cluster.settle()
    assert cluster["B"].committed_floor == 5
    return cluster


def append(term: int, prev: int, prev_term: int, *entries: tuple[int, bytes], commit: int = 0) -> messages.Message:
    return (messages.APPEND, term, prev, prev_term, commit, 0, [list(entry) for entry in entries])


@pytest.mark.parametrize(
    "message",
    [
        append(2, 3, 2),
        append(2, 5, 2),
        append(2, 3, 1, (2, b"\0another")),
        append(2, 4, 1, (2, b"\0another"), (2, b"\0more")),
    ],
    ids=["below the floor", "at the floor", "an entry below it", "an entry at it"],
)
def test_a_leader_with_another_history_stops_the_node(message: messages.Message, cluster: Cluster) -> None:
    """What is committed is in every later leader's log: where it is not, two clusters have met, or a disk lied."""
    with pytest.raises(Fatal, match="histories differ"):
        cluster.nodes["B"].receive("A", message)
    assert [index for _, index, _ in cluster.nodes["B"].journal[:]] == [1, 2, 3, 4, 5]


def test_a_second_leader_of_the_same_term_stops_the_node(cluster: Cluster) -> None:
    with pytest.raises(Fatal, match="leads in term 1, and so does this one"):
        cluster.nodes["A"].receive("B", append(1, 5, 1))


def test_who_is_no_member_has_no_voice(cluster: Cluster) -> None:
    before = cluster.network.sent.copy()
    last = cluster["B"].last
    for message in (
        append(9, 5, 1, (9, b"\0from outside")),
        (messages.VOTE, 9, 99, 9, True),
        (messages.PRE_VOTE, 9, 99, 9),
        (messages.TERM_NOTICE, 9),
        (messages.ACK, 1, True, False, 6, 0, 5, True),
    ):
        cluster["B"].guard.receive("X", message)
    assert (cluster["B"].term, cluster["B"].last) == (1, last)
    assert cluster.network.sent == before


def test_an_acknowledgement_beyond_the_log_counts_for_nothing(cluster: Cluster) -> None:
    cluster.isolate("B")
    cluster.isolate("C")
    write = cluster.propose("A", "alone")
    for follower in "BC":
        cluster.nodes["A"].receive(follower, (messages.ACK, 1, True, False, 900, 0, 5, True))
    cluster.tick("A")
    assert not write.acknowledged
    assert cluster["A"].match_index("B") <= 5


def test_a_vote_of_another_term_counts_for_nothing(make_simulation: Callable[..., Cluster]) -> None:
    cluster = make_simulation("ABC")
    cluster.campaign("A")
    for term in (0, 2, 7):
        cluster.nodes["A"].receive("B", (messages.VOTED, term))
    assert cluster["A"].role == "candidate"
    cluster.nodes["A"].receive("B", (messages.VOTED, 1))
    assert cluster["A"].is_leader


def test_an_append_of_an_old_term_is_answered_with_the_new_one(cluster: Cluster) -> None:
    cluster.isolate("A")
    cluster.elect("B", votes_from="C")
    cluster.join("A", "C")
    last = cluster["C"].last
    cluster.lose("C", "A")
    cluster.nodes["C"].receive("A", append(1, 5, 1, (1, b"\0too late")))
    assert cluster["C"].last == last
    assert list(cluster.network.take(("C", "A"))) == [messages.TERM_NOTICE, 2]


def test_an_entry_that_is_there_already_is_not_written_again(cluster: Cluster) -> None:
    mutation = cluster.nodes["B"].journal.mutation
    cluster.nodes["B"].receive("A", append(1, 2, 1, (1, b"\x000"), (1, b"\x001"), (1, b"\x002"), commit=5))
    assert cluster.nodes["B"].journal.mutation == mutation


def test_only_the_leader_can_ask_to_be_relieved(cluster: Cluster) -> None:
    cluster.nodes["B"].receive("C", (messages.TIMEOUT_NOW, 1))
    cluster.tick("B")
    assert cluster["B"].role == "follower"
