"""What PySyncObj's core does wrong, told as stories: each breaks a promise there, and none here.

A story is one schedule of faults in verbs that both clusters have. The bare core must fail it with the very
violation that is named here, which proves that the story is a real one; kvnode's replica must come through.
The numbers R1 … are those that `kvnode/raft/guard.py` and `replica.py` refer to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.simulation.cluster import Cluster
from tests.simulation.oracle import Violation
from tests.simulation.stock import StockCluster

AnyCluster = Cluster | StockCluster


def a_deposed_leader_gets_a_snapshot(cluster: AnyCluster) -> None:
    """R1: a frame without a log check raises the commit index over the follower's own divergent tail."""
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    cluster.isolate("A")
    cluster.propose("A", "never committed")
    cluster.tick("A")
    cluster.elect("B", votes_from="C")
    cluster.settle("BC")
    for n in range(20):
        cluster.propose("B", n)
    cluster.settle("BC")
    cluster.take_snapshot("B")
    cluster.settle("BC")
    cluster.rejoin("A")
    cluster.tick("B")
    cluster.deliver("B", "A")
    cluster.deliver("A", "B")
    cluster.tick("B")
    cluster.deliver("B", "A", 1)
    cluster.tick("A")
    cluster.settle()
    cluster.must_agree()


def entries_are_sent_twice(cluster: AnyCluster) -> None:
    """R2: what is resent cuts off the matching entries behind it, which were acknowledged already."""
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    cluster.isolate("C")
    for n in range(4):
        cluster.propose("A", f"write {n} " + "." * 30)
    cluster.tick("A")
    cluster.tick("A")
    cluster.lose("A", "B")
    cluster.tick("A")
    cluster.tick("A")
    cluster.deliver("A", "B")  # two heartbeats, two refusals
    for _ in range(2):
        cluster.deliver("B", "A", 1)
        cluster.tick("A")  # all four writes, in frames of two, and once more
    cluster.deliver("A", "B", 2)
    cluster.deliver("B", "A")
    cluster.tick("A")
    cluster.deliver("A", "B", 1)
    cluster.isolate("A")
    cluster.join("B", "C")
    cluster.elect("B", votes_from="C")
    cluster.settle("BC")
    cluster.propose("B", "new")
    cluster.settle("BC")
    cluster.must_agree("B", "C")


def an_old_terms_acknowledgement_arrives_late(cluster: AnyCluster) -> None:
    """R3: an acknowledgement without a term counts in a later one, for entries that are gone since."""
    cluster.elect("A", votes_from="BCDE")
    cluster.settle()
    for other in "CDE":
        cluster.mute("A", other)
    for n in range(8):
        cluster.propose("A", f"old {n}")
    cluster.tick("A")
    cluster.tick("A")
    cluster.deliver("A", "B")
    late = cluster.intercept("B", "A")
    for node_id in "AB":
        cluster.isolate(node_id)
    cluster.elect("C", votes_from="DE")
    cluster.lose("C", "D")
    cluster.lose("C", "E")
    cluster.join("C", "A")
    for _ in range(14):  # C's first entry reaches A alone, and takes the place of A's eight
        cluster.tick("C")
        cluster.lose("C", "D")
        cluster.lose("C", "E")
        cluster.deliver("C", "A")
        cluster.deliver("A", "C")
    cluster.isolate("C")
    for other in "DE":
        cluster.join("A", other)
    cluster.elect("A", votes_from="DE")
    cluster.lose("A", "D")
    cluster.lose("A", "E")
    cluster.join("A", "B")
    cluster.mute("A", "B")
    cluster.mute("A", "E")
    cluster.propose("A", "precious")
    cluster.tick("A")
    cluster.replay("B", "A", late)
    cluster.deliver("B", "A")
    for _ in range(6):
        cluster.tick("A")
        cluster.deliver("A", "D")
        cluster.deliver("D", "A")
    cluster.tick("A")
    cluster.isolate("A")
    cluster.isolate("D")
    for a, b in ("BC", "CE", "BE"):
        cluster.join(a, b)
    cluster.campaign("E")
    cluster.deliver("E", "B")
    cluster.deliver("E", "C")
    for a, b in ("EB", "EC", "BE", "CE", "BC", "CB"):
        cluster.lose(a, b)
    cluster.elect("C", votes_from="BE")
    cluster.settle("BCE")
    cluster.propose("C", "another")
    cluster.settle("BCE")
    cluster.must_agree("B", "C", "E")


def a_snapshot_is_damaged_on_its_way(cluster: AnyCluster) -> None:
    """R4: a snapshot that was never installed is acknowledged, with the index of a divergent log."""
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    cluster.isolate("A")
    for n in range(80):
        cluster.propose("A", f"never committed {n}")
    cluster.tick("A")
    cluster.elect("B", votes_from="C")
    cluster.settle("BC")
    for n in range(45):
        cluster.propose("B", n)
    cluster.settle("BC")
    cluster.take_snapshot("B")
    cluster.settle("BC")
    cluster.rejoin("A")
    cluster.isolate("C")
    for _ in range(3):
        cluster.tick("B")
        cluster.lose_snapshot("B", "A")
        cluster.deliver("B", "A")
        cluster.deliver("A", "B")
    cluster.isolate("A")
    cluster.propose("B", "precious")
    for _ in range(3):
        cluster.tick("B")
    cluster.join("A", "C")
    cluster.elect("C", votes_from="A")
    cluster.settle("AC", rounds=100)
    cluster.propose("C", "another")
    cluster.settle("AC")
    cluster.must_agree("A", "C")


def two_members_are_added_at_once(cluster: AnyCluster) -> None:
    """R5: two changes of membership in flight make two majorities that share no node."""
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    cluster.start_node("D", peers="ABCE")
    cluster.start_node("E", peers="ABCD")
    cluster.partition("ADE", "BC")
    cluster.add_member("A", "D")
    cluster.add_member("A", "E")
    cluster.settle("ADE", rounds=8)
    cluster.propose("A", "left")
    cluster.settle("ADE")
    cluster.elect("B", votes_from="C")
    cluster.propose("B", "right")
    cluster.settle("BC")


def a_vote_arrives_twice(cluster: AnyCluster) -> None:
    """R10: votes are counted by the message, so one member's voice makes a majority of two."""
    cluster.elect("A", votes_from="BCDE")
    cluster.settle()
    for node_id in "ABCDE":
        cluster.isolate(node_id)
    cluster.join("B", "C")
    cluster.campaign("B")
    cluster.deliver("B", "C")
    cluster.duplicate("C", "B")
    cluster.deliver("C", "B")
    cluster.join("D", "A")
    cluster.join("D", "E")
    cluster.elect("D", votes_from="AE")


def an_old_snapshot_arrives_again(cluster: AnyCluster) -> None:
    """R13: a snapshot that is sent twice takes away what was acknowledged since."""
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    cluster.isolate("B")
    for n in range(20):
        cluster.propose("A", n)
    cluster.settle("AC")
    cluster.take_snapshot("A")
    cluster.settle("AC")
    cluster.rejoin("B")
    cluster.isolate("C")
    cluster.tick("A")
    cluster.tick("A")
    cluster.deliver("A", "B")
    resets = cluster.intercept("B", "A")
    cluster.replay("B", "A", resets[:1])
    cluster.deliver("B", "A")
    cluster.tick("A")
    cluster.deliver_snapshot("A", "B")
    for n in range(3):
        cluster.propose("A", f"precious {n}")
    cluster.tick("A")
    cluster.tick("A")
    cluster.deliver("A", "B")
    acknowledgements = cluster.intercept("B", "A")
    cluster.replay("B", "A", resets[1:] or resets)
    cluster.deliver("B", "A")
    cluster.tick("A")
    cluster.replay("B", "A", acknowledgements)
    for _ in range(4):
        cluster.deliver("B", "A")
        cluster.tick("A")
        if any(write.acknowledged and write.payload == b"precious 2" for write in cluster.oracle.writes):
            break
        cluster.deliver_snapshot("A", "B")
        cluster.deliver("A", "B")
    cluster.deliver_snapshot("A", "B")
    cluster.isolate("A")
    cluster.lose("A", "B")
    cluster.lose("B", "A")
    cluster.join("B", "C")
    cluster.elect("B", votes_from="C")
    cluster.settle("BC")
    cluster.propose("B", "another")
    cluster.settle("BC")
    cluster.must_agree("B", "C")


def one_divergent_entry_and_many_newer_ones(cluster: AnyCluster) -> None:
    """R16: the refusals of pipelined frames send the leader back to the same place for ever."""
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    cluster.isolate("A")
    cluster.propose("A", "never committed")
    cluster.tick("A")
    cluster.elect("B", votes_from="C")
    cluster.settle("BC")
    for n in range(5):
        cluster.propose("B", f"{n}" * 30_000)
    cluster.settle("BC")
    cluster.rejoin("A")
    cluster.must_catch_up("A", within_heartbeats=200)
    cluster.must_agree()


@dataclass(frozen=True)
class Told:
    story: Callable[[Any], None]
    breaks: str  # what the bare core does, as the oracle says it
    ids: str = "ABC"
    stock_options: dict[str, int] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=dict)


STORIES = {
    "R1": Told(a_deposed_leader_gets_a_snapshot, "divergent apply"),
    "R2": Told(
        entries_are_sent_twice,
        "divergent apply",
        stock_options={"appendEntriesBatchSizeBytes": 80},
        options={"frame_entries": 2},
    ),
    "R3": Told(an_old_terms_acknowledgement_arrives_late, "divergent apply", ids="ABCDE", options={"frame_entries": 1}),
    "R4": Told(a_snapshot_is_damaged_on_its_way, "divergent apply", stock_options={"logCompactionBatchSize": 200}),
    "R5": Told(two_members_are_added_at_once, "divergent apply"),
    "R10": Told(a_vote_arrives_twice, "two leaders in term 2: B and D", ids="ABCDE"),
    "R13": Told(an_old_snapshot_arrives_again, "divergent apply"),
    "R16": Told(one_divergent_entry_and_many_newer_ones, "A did not catch up", options={"frame_entries": 2}),
}


@pytest.mark.parametrize("number", STORIES)
def test_the_bare_core_breaks_the_promise(number: str, make_stock: Callable[..., StockCluster]) -> None:
    told = STORIES[number]
    with pytest.raises(Violation, match=told.breaks):
        told.story(make_stock(told.ids, **told.stock_options))


@pytest.mark.parametrize("number", STORIES)
def test_kvnode_keeps_the_promise(number: str, make_simulation: Callable[..., Cluster]) -> None:
    told = STORIES[number]
    cluster = make_simulation(told.ids, **told.options)
    told.story(cluster)
    cluster.heal()
    for link in cluster.network.busy():
        cluster.lose(*link)
    leader = max(cluster.leaders, key=lambda node_id: cluster[node_id].term)
    last = cluster.propose(leader, "all is well again")
    cluster.settle(rounds=30)
    assert last.acknowledged
    cluster.must_agree(leader, *cluster[leader].peer_ids)  # who was never made a member is owed nothing
