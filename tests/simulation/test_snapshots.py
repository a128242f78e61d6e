"""Followers that are too far behind, and snapshots that arrive when they should not."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.cluster import Cluster


def led_by_a(make_simulation: Callable[..., Cluster], **options: object) -> Cluster:
    cluster = make_simulation("ABC", **options)
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    return cluster


def test_a_follower_that_missed_more_than_the_log_holds_gets_a_snapshot(
    make_simulation: Callable[..., Cluster],
) -> None:
    cluster = led_by_a(make_simulation)
    cluster.isolate("B")
    for n in range(50):
        cluster.propose("A", n)
    cluster.settle("AC")
    cluster.take_snapshot("A", keep=3)
    assert cluster.nodes["A"].first_index > 40
    cluster.rejoin("B")
    cluster.must_catch_up("B", within_heartbeats=10)
    assert cluster.nodes["B"].first_index > 40
    cluster.must_agree()


def test_a_follower_that_waits_for_a_snapshot_is_not_asked_again_and_again(
    make_simulation: Callable[..., Cluster],
) -> None:
    """It refuses all that it is sent until then, and each refusal answered at once would be another (R18)."""
    cluster = led_by_a(make_simulation)
    cluster.isolate("B")
    for n in range(50):
        cluster.propose("A", n)
    cluster.settle("AC")
    cluster.take_snapshot("A", keep=3)
    cluster.nodes["B"].quick = False  # and it takes its time
    cluster.rejoin("B")
    cluster.settle(rounds=3)
    before = cluster.network.sent["A", "B"]
    for _ in range(100):
        cluster.deliver("B", "A")
        cluster.deliver("A", "B")
        cluster.tick("A", after_s=0.0)
    assert cluster.network.sent["A", "B"] - before < 10, "no time has passed"


def test_a_late_snapshot_leaves_what_was_acknowledged_behind_it(make_simulation: Callable[..., Cluster]) -> None:
    """Raft §7: where the log has the snapshot's last entry, what follows it stays (R13)."""
    cluster = led_by_a(make_simulation, frame_entries=1)
    cluster.isolate("C")
    cluster.propose("A", "to be missed")
    cluster.tick("A")
    cluster.lose("A", "B")
    cluster.tick("A")
    cluster.deliver("A", "B")
    refusal = cluster.intercept("B", "A")
    cluster.replay("B", "A", refusal)
    cluster.deliver("B", "A")
    cluster.tick("A")
    cluster.deliver("A", "B")
    cluster.deliver("B", "A")
    writes = [cluster.propose("A", f"precious {n}") for n in range(8)]
    cluster.tick("A")
    cluster.deliver("A", "B")  # B holds all eight and knows none of them as committed
    cluster.deliver("B", "A", 5)
    cluster.take_snapshot("A", keep=2)
    behind = cluster.nodes["A"].applied_index
    cluster.deliver("B", "A")
    cluster.lose("A", "B")
    assert all(write.acknowledged for write in writes)
    assert cluster["B"].committed_floor < behind < writes[-1].index
    cluster.replay("B", "A", refusal)  # an old refusal makes A believe that B has next to nothing
    cluster.deliver("B", "A")
    cluster.tick("A")
    cluster.deliver_snapshot("A", "B")
    assert cluster.nodes["B"].applied_index >= behind
    cluster.isolate("A")
    cluster.join("B", "C")
    cluster.elect("B", votes_from="C")
    cluster.settle("BC", rounds=30)
    cluster.must_agree("B", "C")


def test_a_snapshot_older_than_the_newest_changes_nothing(make_simulation: Callable[..., Cluster]) -> None:
    """One that was begun before a peer's newer one was installed, and is written only afterwards."""
    cluster = led_by_a(make_simulation)
    for n in range(5):
        cluster.propose("A", n)
    cluster.settle()
    slow = cluster.nodes["B"]
    slow.quick = False
    cluster.take_snapshot("B")
    cluster.isolate("B")
    for n in range(60):
        cluster.propose("A", n)
    cluster.settle("AC")
    cluster.take_snapshot("A")
    cluster.settle("AC")
    for n in range(60):
        cluster.propose("A", n)
    cluster.settle("AC")
    cluster.rejoin("B")
    for _ in range(20):
        cluster.settle(rounds=1)
        slow.end_flight()
        slow.begin_flight()
        while slow.jobs > 1:  # the pieces of a snapshot that arrive meanwhile, and its verification
            slow.work_on(1)
    last = slow.last_index
    assert slow.applied_index == cluster.oracle.highest_applied
    assert slow.jobs == 1
    slow.get_on()
    newest = slow.snapshots.newest
    assert newest is not None
    assert slow.first_index <= newest.index, "the log starts behind what the newest snapshot holds"
    cluster.restart("B")
    assert cluster.nodes["B"].last_index == last
