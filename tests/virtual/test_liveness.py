"""What must go on, whatever lasts: a majority that can talk has a leader, and its nodes answer."""

from __future__ import annotations

from itertools import permutations

import pytest

from kvnode.node.compaction import Bounds
from tests.virtual.node import ELECTION_S
from tests.virtual.scene import scene_of
from tests.virtual.schedule import LEADER_S

TIMEOUT_S = ELECTION_S[1]


def test_a_leader_whose_disk_hangs_makes_way() -> None:
    with scene_of(21) as scene:
        scene.node("n1").device.hang(1e9)
        hung_at = scene.world.now
        assert scene.write("n2", "x", 5.0).outcome == "ok"
        assert scene.world.now - hung_at < 3.0
        scene.world.pass_s(max(0.0, hung_at + TIMEOUT_S + 0.1 - scene.world.now))
        assert scene.probe("n1") == (503, "storage")
        scene.node("n1").device.thaw()
        scene.world.pass_s(3.0)
        assert scene.read("n1", "x").outcome == "ok"


def test_a_follower_whose_disk_hangs_holds_nobody_up() -> None:
    with scene_of(22) as scene:
        scene.node("n3").device.hang(1e9)
        for _ in range(20):
            assert scene.write("n2", "x", 0.5).outcome == "ok"
            scene.world.pass_s(0.2)
        scene.node("n3").device.thaw()


@pytest.mark.parametrize(("source", "target"), [("n1", "n2"), ("n2", "n1")])
def test_half_of_a_connection_with_the_leader_breaks_and_reads_go_on(source: str, target: str) -> None:
    """Again and again: the one who wrote on it learns of it, what was on the way is lost, and it dials anew."""
    with scene_of(23) as scene:
        for _ in range(10):
            for end in scene.network.connections(source, target):
                end.muted = True
                read = scene.begin(scene.work.get(scene.clients["n2"], "x"))
                scene.world.pass_s(0.05)
                end.lost_soon(ConnectionResetError())
            scene.world.run(read.done, TIMEOUT_S)
            assert scene.cluster.judge.operations[-1].outcome == "ok"
            assert scene.read("n2", "x", TIMEOUT_S).outcome == "ok"


@pytest.mark.parametrize("hub", ["n1", "n5"])
def test_the_hub_of_a_star_leads(hub: str) -> None:
    """Only through it can a majority talk, however its name stands among the others."""
    with scene_of(24, 5, leader="n3") as scene:
        names = list(scene.cluster.nodes)
        for one in names:
            for other in names:
                if one != other and hub in (one, other):
                    scene.network.link(one, other).latency_s = (0.04, 0.08)
                elif one != other:
                    scene.network.block(one, other)
        scene.world.pass_s(LEADER_S)
        assert scene.cluster.leader is scene.node(hub)
        for name in names:
            assert scene.write(name, "x", 2.0).outcome == "ok"
            assert scene.read(name, "x", 2.0).outcome == "ok"


def test_two_of_three_are_drained_and_the_third_is_gone() -> None:
    with scene_of(25) as scene:
        for name in ("n2", "n3"):
            scene.finish(scene.clients["n1"].drain(name))
        scene.node("n1").kill()
        scene.world.run(lambda: scene.cluster.leader is not None, LEADER_S)
        assert scene.write("n2", "x", 5.0).outcome == "ok"
        assert scene.read("n3", "x", 5.0).outcome == "ok"
        scene.node("n1").start()


def test_a_node_catches_up_by_snapshot_while_writes_go_on() -> None:
    """Newer snapshots are made all the time, faster than one is fetched."""
    with scene_of(26) as scene:
        scene.node("n3").kill()
        for name in ("n1", "n2"):
            scene.engine(name)._compaction.bounds = Bounds(entries=30, tail_entries=3)
        writing = [scene.begin(scene.load("n1", 0.01)) for _ in range(2)]
        scene.world.pass_s(5.0)
        scene.slow("n1", "n3", 0.15)
        scene.node("n3").start()
        scene.world.run(lambda: scene.node("n3").started, 5.0)

        def behind() -> int:
            return scene.engine("n1").store.revision - scene.engine("n3").store.revision

        scene.world.run(lambda: behind() < 60, 15.0)
        scene.loaded = False
        scene.world.run(lambda: all(each.done() for each in writing), 10.0)


def test_a_leader_that_stood_still_says_nothing_untrue_when_it_goes_on() -> None:
    with scene_of(27) as scene:
        process = scene.node("n1").process
        assert process is not None
        process.stall(5.0)
        probe = scene.begin(scene.work._probe(scene.clients["n1"], "n1", scene.node("n1").url))
        assert scene.write("n2", "x", 4.5).outcome == "ok"
        read = scene.begin(scene.work.get(scene.clients["n1"], "x"))
        scene.world.run(lambda: bool(read.done() and probe.done()), 10.0)


@pytest.mark.parametrize("seed", range(30, 38))
def test_a_leader_that_stands_still_is_replaced_within_half_a_second(seed: int) -> None:
    """Its connections stay open: that it is silent is all that the others have."""
    with scene_of(seed) as scene:
        scene.world.pass_s(scene.world.draw.uniform(0.0, 0.2))
        scene.stall(3.0, "n1")
        stood_still_at = scene.world.now
        scene.world.run(lambda: scene.cluster.leader in (scene.node("n2"), scene.node("n3")), 0.5)
        assert scene.write("n2", "x", 0.5).outcome == "ok"
        assert scene.world.now - stood_still_at < 0.55


def test_nodes_that_stand_still_together_keep_their_leader() -> None:
    """A machine that has no time for them: each one finds the heartbeats of others late, and its own ticks as well."""
    with scene_of(38) as scene:
        term = scene.engine("n1").replica.term
        for names in [("n1", "n2", "n3"), ("n2", "n3"), ("n2",), ("n3",)] * 5:
            scene.stall(scene.world.draw.uniform(0.3, 0.55), *names)
            scene.world.pass_s(1.5)
            scene.stall(0.2, "n1")  # a leader alone, for less than the others wait
            scene.world.pass_s(0.5)
        assert {scene.engine(name).replica.term for name in scene.cluster.nodes} == {term}
        assert scene.cluster.leader is scene.node("n1")


@pytest.mark.parametrize("latency_s", [(0.2, 0.2), (0.0, 0.2)])
def test_latency_of_200_ms_changes_no_leader(latency_s: tuple[float, float]) -> None:
    """Neither when it sets in, nor while it lasts or varies, nor when it ends."""
    with scene_of(39) as scene:
        term = scene.engine("n1").replica.term
        for _ in range(5):
            for source, target in permutations(scene.cluster.nodes, 2):
                scene.network.link(source, target).latency_s = latency_s
            scene.world.pass_s(5.0)
            scene.network.mend()
            scene.world.pass_s(2.0)
        assert {scene.engine(name).replica.term for name in scene.cluster.nodes} == {term}
        assert scene.cluster.leader is scene.node("n1")


def test_the_machine_of_the_leader_loses_power_again_and_again() -> None:
    """Whatever the power cut leaves of what was not synced."""
    with scene_of(28) as scene:
        for _ in range(8):
            leader = scene.cluster.await_leader(LEADER_S)
            other = next(name for name in scene.cluster.nodes if name != leader.name)
            writes = [scene.begin(scene.work.put(scene.clients[other], f"r{number}")) for number in range(5)]
            scene.world.pass_s(scene.world.draw.uniform(0.0, 0.02))
            leader.power_off()
            scene.world.run(lambda: all(write.done() for write in writes), 10.0)  # noqa: B023
            leader.start()
            scene.world.pass_s(2.0)
