"""Who may lead, and when: pre-vote, stickiness, stepping down, hand-over. Times are simulated seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvnode.raft import messages
from tests.simulation.cluster import Cluster

TIMEOUT_MIN_S, TIMEOUT_MAX_S = 0.6, 1.2
STEP_S = 0.02

Make = Callable[..., Cluster]


@pytest.fixture
def lively(make_simulation: Make) -> Cluster:
    """Three nodes with real election timeouts, one of which leads."""
    cluster = make_simulation("ABC", patient=False)
    cluster.run_until_led()
    cluster.run(1.0)
    return cluster


def leader_of(cluster: Cluster) -> tuple[str, str, str]:
    """The leader, then the two others."""
    (leader,) = cluster.leaders
    first, second = (node_id for node_id in cluster.nodes if node_id != leader)
    return leader, first, second


def seconds_until(cluster: Cluster, condition: Callable[[], bool], within_s: float) -> float:
    for step in range(round(within_s / STEP_S)):
        if condition():
            return step * STEP_S
        cluster.run(STEP_S)
    raise AssertionError(f"not within {within_s} s")


@pytest.mark.parametrize("seed", range(8))
def test_a_cluster_that_starts_finds_one_leader_soon(seed: int, make_simulation: Make) -> None:
    cluster = make_simulation("ABCDE", seed=seed, patient=False)
    cluster.run_until_led(within_s=4 * TIMEOUT_MAX_S)
    assert len(cluster.leaders) == 1


def test_terms_do_not_rise_behind_a_partition(lively: Cluster) -> None:
    leader, cut_off, _ = leader_of(lively)
    term = lively[leader].term
    lively.isolate(cut_off)
    lively.run(20 * TIMEOUT_MAX_S)
    assert lively[cut_off].role == "follower"
    assert lively[cut_off].term == term


def test_a_node_that_comes_back_unseats_nobody(lively: Cluster) -> None:
    leader, cut_off, _ = leader_of(lively)
    term = lively[leader].term
    lively.isolate(cut_off)
    lively.run(5 * TIMEOUT_MAX_S)
    lively.propose(leader, "written meanwhile")
    lively.rejoin(cut_off)
    lively.run(3 * TIMEOUT_MAX_S)
    assert lively.leaders == [leader]
    assert lively[leader].term == term
    lively.must_agree()


def test_a_node_that_hears_nothing_but_is_heard_unseats_nobody(lively: Cluster) -> None:
    """The link is dead in one direction, and nobody is told: the hardest case for stickiness."""
    leader, deaf, other = leader_of(lively)
    term = lively[leader].term
    lively.mute(leader, deaf)
    lively.mute(other, deaf)
    lively.run(10 * TIMEOUT_MAX_S)
    assert lively.leaders == [leader]
    assert lively[leader].term == term


def test_a_request_for_votes_does_not_reach_who_hears_a_leader(lively: Cluster) -> None:
    """Stickiness holds against a candidate with no manners, as a node of another make would be one."""
    leader, rude, other = leader_of(lively)
    term = lively[leader].term
    for voter in (leader, other):
        last_term, last_index = lively[rude].last
        lively.nodes[voter].receive(rude, (messages.VOTE, term + 5, last_index + 9, last_term + 5, False))
    lively.run(1.0)
    assert lively.leaders == [leader]
    assert {lively[node_id].term for node_id in lively.nodes} == {term}


@pytest.mark.parametrize("told", [True, False], ids=["links-break", "links-go-silent"])
def test_a_leader_without_a_majority_steps_down_within_a_timeout(told: bool, lively: Cluster) -> None:
    leader, *others = leader_of(lively)
    for other in others:
        for link in ((leader, other), (other, leader)):
            (lively.cut if told else lively.mute)(*link)
    took_s = seconds_until(lively, lambda: leader not in lively.leaders, within_s=TIMEOUT_MAX_S + 2 * STEP_S)
    assert took_s > 0.5 * TIMEOUT_MIN_S, "one late answer must not be enough"


def test_the_majority_replaces_a_leader_that_it_lost(lively: Cluster) -> None:
    old, first, second = leader_of(lively)
    lively.isolate(old)
    new = lively.run_until_led(within_s=3 * TIMEOUT_MAX_S, among=first + second)
    lively.propose(new, "after")
    lively.rejoin(old)
    lively.run(2 * TIMEOUT_MAX_S)
    assert lively.leaders == [new]
    lively.must_agree()


def test_a_hasty_election_takes_a_fraction_of_the_timeout(lively: Cluster) -> None:
    """The leader's process is gone and its connections have closed: both others are told, and need not wait."""
    old, first, second = leader_of(lively)
    lively.crash(old)
    for node_id in (first, second):
        lively.nodes[node_id].run(lambda replica: replica.hasten_election((0.05, 0.15)))
    took_s = seconds_until(lively, lambda: bool(lively.leaders), within_s=TIMEOUT_MAX_S)
    assert took_s <= 0.5 * TIMEOUT_MIN_S


def test_a_hasty_node_alone_unseats_nobody(lively: Cluster) -> None:
    """Its own connection broke, the leader is well: the others still hear it and refuse."""
    leader, hasty, _ = leader_of(lively)
    term = lively[leader].term
    lively.nodes[hasty].run(lambda replica: replica.hasten_election((0.0, 0.0)))
    lively.run(2 * TIMEOUT_MAX_S)
    assert lively.leaders == [leader]
    assert lively[leader].term == term


def test_a_transfer_takes_a_few_message_rounds(lively: Cluster) -> None:
    leader, target, _other = leader_of(lively)
    term = lively[leader].term
    assert lively[leader].transfer_to(target)
    for _ in range(4):  # timeout now, votes asked, votes given, first entry
        for source in lively.nodes:
            for to in lively.nodes:
                if source != to:
                    lively.deliver(source, to)
        lively.tick(*lively.nodes, after_s=0.001)
    assert lively.leaders == [target]
    assert lively[target].term == term + 1
    lively.run(2 * TIMEOUT_MAX_S)
    assert lively.leaders == [target]


def test_no_transfer_to_a_node_that_is_behind(lively: Cluster) -> None:
    leader, behind, _ = leader_of(lively)
    lively.mute(leader, behind)
    lively.propose(leader, "not there yet")
    lively.tick(leader)
    assert not lively[leader].transfer_to(behind)


def test_a_candidate_of_an_old_term_learns_the_new_one(make_simulation: Make) -> None:
    """A refused pre-vote carries the term, so that a node that slept through elections asks for the right one."""
    cluster = make_simulation("ABC")
    cluster.isolate("A")
    for leader in "BCB":
        cluster.elect(leader, votes_from="C" if leader == "B" else "B")
        cluster.settle("BC")
    assert (cluster["A"].term, cluster["B"].term) == (0, 3)
    cluster.join("A", "C")
    cluster.nodes["A"].run(lambda replica: replica.hasten_election((0.0, 0.0)))
    cluster.tick("A", after_s=0.001)
    cluster.deliver("A", "C")
    cluster.deliver("C", "A")
    assert cluster["A"].term == 3
    assert cluster["A"].role == "follower"


def test_a_stale_leader_hears_of_the_newer_term_from_its_first_follower(make_simulation: Make) -> None:
    cluster = make_simulation("ABC")
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    cluster.isolate("A")
    cluster.elect("B", votes_from="C")
    cluster.settle("BC")
    cluster.join("A", "C")
    assert cluster.leaders == ["A", "B"]
    cluster.tick("A")
    cluster.deliver("A", "C")
    cluster.deliver("C", "A")
    assert cluster.leaders == ["B"]


def test_one_vote_in_a_term_also_after_a_restart(make_simulation: Make) -> None:
    """R10: the vote is on disk before it is given."""
    cluster = make_simulation("ABC")
    cluster.campaign("A")
    cluster.deliver("A", "C")
    cluster.restart("C")
    cluster.isolate("A")
    cluster.campaign("B")
    cluster.deliver("B", "C")
    cluster.deliver("C", "B")
    assert cluster["B"].role == "candidate"


def test_a_vote_waits_for_the_disk(make_simulation: Make) -> None:
    cluster = make_simulation("ABC")
    cluster.nodes["C"].quick = False
    cluster.campaign("A")
    cluster.deliver("A", "C")
    assert not cluster.network.flying["C", "A"]
    cluster.nodes["C"].get_on()
    cluster.deliver("C", "A")
    assert cluster["A"].is_leader


def test_a_single_node_applies_nothing_before_its_disk_has_it(make_simulation: Make) -> None:
    """Also not the first entry of its term, which it writes, commits and applies in one breath of the bare core."""
    cluster = make_simulation("A", patient=False)
    cluster.run_until_led(within_s=2 * TIMEOUT_MAX_S)
    node = cluster.nodes["A"]
    node.quick = False
    write = cluster.propose("A", "alone")
    cluster.tick("A")
    cluster.tick("A")
    assert not write.acknowledged
    node.get_on()
    cluster.tick("A")
    assert write.acknowledged


# --- what rides on leadership ------------------------------------------------------------------------------


def test_a_read_is_confirmed_by_one_exchange_and_writes_no_entry(lively: Cluster) -> None:
    leader, *_ = leader_of(lively)
    last = lively.nodes[leader].last_index
    read = lively.read(leader)
    lively.run(3 * STEP_S)
    assert read.confirmed_index == last
    assert lively.nodes[leader].last_index == last


def test_a_leader_that_was_replaced_confirms_no_read(make_simulation: Make) -> None:
    cluster = make_simulation("ABC")
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    cluster.isolate("A")
    cluster.elect("B", votes_from="C")
    cluster.propose("B", "newer")
    cluster.settle("BC")
    read = cluster.read("A")
    cluster.settle("A")
    cluster.heal()
    cluster.settle()
    assert read.confirmed_index is None
    assert not cluster.nodes["A"].reads, "whoever waits is told"


# --- what the core would do on its own (R9, R18, R19) --------------------------------------------------------


def test_no_clients_code_runs_inside_the_core(make_simulation: Make) -> None:
    """R9: a callback that raises makes the bare core apply an entry twice. Here there is none to raise."""
    cluster = make_simulation("ABC")
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    for n in range(3):
        cluster.propose("A", n)
    assert not cluster["A"]._SyncObj__commandsWaitingCommit
    assert not cluster["A"]._SyncObj__commandsWaitingReply


def test_a_follower_that_needs_a_snapshot_gets_two_frames_a_heartbeat(make_simulation: Make) -> None:
    """R18: the bare core sends heartbeats in a loop while a snapshot is not at hand."""
    cluster = make_simulation("ABC")
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    cluster.isolate("B")
    for n in range(20):
        cluster.propose("A", n)
    cluster.settle("AC")
    cluster.take_snapshot("A")
    cluster.rejoin("B")
    cluster.tick("A")
    cluster.deliver("A", "B")
    cluster.deliver("B", "A")
    before = cluster.network.sent["A", "B"]
    for _ in range(10):
        cluster.tick("A")
    assert cluster.network.sent["A", "B"] - before <= 20


def test_any_number_of_proposals_between_two_ticks(make_simulation: Make) -> None:
    """R19: the bare core raises at the 65,536th, although it has queued it."""
    cluster = make_simulation("A", patient=False)
    cluster.run_until_led(within_s=2 * TIMEOUT_MAX_S)
    replica = cluster["A"]
    before = cluster.nodes["A"].last_index
    assert before >= 2
    for _ in range(66_000):
        replica.propose(b"x")
    assert cluster.nodes["A"].last_index == before + 66_000


# --- a disk that hangs ----------------------------------------------------------------------------------------


def test_a_leader_whose_disk_hangs_hands_over_and_its_last_write_is_acknowledged(lively: Cluster) -> None:
    leader, *others = leader_of(lively)
    lively.nodes[leader].hung = True
    write = lively.propose(leader, "it is in the log of all, and on the disks of the others")
    took_s = seconds_until(lively, lambda: write.acknowledged, within_s=2 * TIMEOUT_MAX_S)
    assert took_s >= TIMEOUT_MAX_S, "what takes a moment is no hang"
    assert lively.leaders != [leader]
    lively.run(5 * TIMEOUT_MAX_S)
    term = lively[leader].term
    lively.nodes[leader].hung = False
    lively.run(2 * TIMEOUT_MAX_S)
    assert set(lively.leaders) < set(others)
    assert lively[leader].term == term
    lively.must_agree()


def test_a_node_whose_disk_hangs_does_not_campaign(lively: Cluster) -> None:
    """Its own vote would not become durable; its higher term alone would unseat the leader that the others find."""
    leader, hung, other = leader_of(lively)
    lively.nodes[hung].hung = True
    lively.propose(leader, "what its disk does not answer")
    lively.run(2 * TIMEOUT_MAX_S)
    term = lively[leader].term
    lively.cut(leader, hung)
    lively.cut(other, hung)
    lively.crash(other)
    lively.run(10 * TIMEOUT_MAX_S)
    assert lively[hung].term == term
    assert lively[hung].role == "follower"


def test_no_leadership_goes_to_a_node_that_is_not_fit(lively: Cluster) -> None:
    leader, hung, other = leader_of(lively)
    lively.nodes[hung].hung = True
    lively.propose(leader, "what its disk does not answer")
    lively.run(2 * TIMEOUT_MAX_S)
    assert lively[leader].fit_peers() == [other]
    lively.nodes[hung].hung = False
    lively.run(0.5)
    assert set(lively[leader].fit_peers()) == {hung, other}


@pytest.mark.parametrize("hub", ["A", "C", "E"], ids=["smallest-id", "middle", "largest-id"])
@pytest.mark.parametrize("seed", range(3))
def test_a_hub_that_alone_reaches_all_others_leads_whatever_its_id(hub: str, seed: int, make_simulation: Make) -> None:
    """Frames take 20 to 60 ms each way, so that the spokes' questions meet the hub's own."""
    cluster = make_simulation("ABCDE", seed=seed, patient=False)
    leader = cluster.run_until_led()
    if leader == hub:
        cluster.crash(hub)
        cluster.run_until_led()
        cluster.restart(hub)
        cluster.run(1.0)
    spokes = [node_id for node_id in cluster.nodes if node_id != hub]
    for one in spokes:
        for other in spokes:
            if one != other:
                cluster.cut(one, other)
    for step in range(round(8 * TIMEOUT_MAX_S / STEP_S)):
        cluster.tick(*cluster.up, after_s=STEP_S)
        if step % 3 == 0:
            for link in cluster.network.busy():
                cluster.deliver(*link)
        if cluster[hub].serving:
            return
    raise AssertionError(f"{hub} does not lead: {[(n, cluster[n].role, cluster[n].term) for n in cluster.nodes]}")
