"""Faults of the schedules happen, and the judge sees what a node may not make of them."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from tests.simulation.disk import Fault
from tests.virtual.cluster import simulated
from tests.virtual.judge import Violation
from tests.virtual.scene import Scene, scene_of


@pytest.fixture
def scene() -> Iterator[Scene]:
    """n1 leads. The judge has nothing to say at the end: it has said so before."""
    with simulated(31) as cluster:
        scene = Scene(cluster)
        yield scene
        scene.world.found = None
        scene.network.mend()
        for client in scene.clients.values():
            scene.finish(client.__aexit__())
        for node in cluster.nodes.values():
            node.kill()
        scene.world.pass_s(0.01)


def test_a_bit_that_turns_over_on_the_wire_ends_the_connection_and_nothing_else() -> None:
    with scene_of(32) as scene:
        for source, target in (("n1", "n2"), ("n2", "n1")):
            before = scene.network.connections(source, target)[-1]
            before.altered = 1
            assert scene.write("n2", "x").outcome == "ok"
            scene.world.run(lambda before=before: before.gone, 3.0)  # type: ignore[misc]
            scene.world.run(lambda: bool(scene.network.connections(source, target)), 3.0)  # noqa: B023
            assert before.altered == 0
            assert scene.read("n2", "x").outcome == "ok"


def test_a_node_whose_disk_fails_a_sync_stops_and_has_promised_nothing_of_it() -> None:
    with scene_of(33) as scene:
        node = scene.node("n1")
        node.device.directory.faults.append(Fault(1, errno.EIO, frozenset(("sync",))))
        assert scene.write("n2", "x").outcome == "ok"
        scene.world.run(lambda: not node.up, 3.0)
        assert "could not be written" in node.process.exit if node.process is not None else False
        node.device.directory.mend()
        node.start()
        scene.world.run(lambda: node.started, 5.0)
        scene.world.pass_s(2.0)
        assert scene.read("n1", "x").outcome == "ok"


def test_a_node_finds_what_its_disk_has_altered_and_does_not_start(scene: Scene) -> None:
    node = scene.node("n3")
    for _ in range(5):
        assert scene.write("n1", "x").outcome == "ok"
    scene.world.pass_s(1.0)
    durable = node.durable_bytes()
    node.kill()
    name = max(durable)
    for offset in range(durable[name] // 2, durable[name], 60):
        node.device.directory.damage(name, offset)
    node.start()
    scene.world.run(lambda: bool(node.refused_to_start), 3.0)
    assert "damaged" in node.refused_to_start


def test_a_node_that_starts_without_what_was_durable_there_is_found(scene: Scene) -> None:
    node = scene.node("n3")
    node.kill()
    for name in node.device.directory.files():
        node.device.directory.unlink(name)
    node.start()
    with pytest.raises(Violation, match=r"n3 was started at .* without entry 2 of term 1, which was durable there"):
        scene.world.pass_s(1.0)


def test_a_vote_that_was_forgotten_is_found(scene: Scene) -> None:
    engine = scene.engine("n3")
    engine.replica.journal._term += 1
    scene.node("n3").kill()
    scene.node("n3").start()
    with pytest.raises(Violation, match="n3 was started with term and vote"):
        scene.world.pass_s(1.0)


def test_a_member_of_an_older_version_holds_the_level_until_it_is_upgraded() -> None:
    with simulated(34) as cluster:
        cluster.nodes["n2"].level = 0
        scene = Scene(cluster)
        assert {scene.engine(name).store.level for name in cluster.nodes} == {0}
        node = scene.node("n2")
        node.kill()
        node.level = 1
        node.start()
        scene.world.run(lambda: node.started and scene.engine("n2").store.level == 1, 5.0)
        assert scene.write("n2", "x").outcome == "ok"
        scene.end()


def test_a_level_that_a_member_does_not_know_is_found(scene: Scene) -> None:
    scene.cluster.judge._level = 0
    scene.node("n3").level = 0
    with pytest.raises(Violation, match=r"the cluster is at feature level 1, and its members know .*'n3': 0"):
        scene.write("n1", "x")


def test_a_cluster_that_has_drained_to_the_last_is_found(scene: Scene) -> None:
    nodes = list(scene.cluster.nodes.values())

    async def drain(name: str) -> None:
        await scene.clients["n1"].drain(name, force=True)

    for node in nodes[1:]:
        scene.finish(drain(node.name))
        scene.cluster.judge.drained(nodes)
    scene.finish(drain("n1"))
    with pytest.raises(Violation, match="all nodes drain"):
        scene.cluster.judge.drained(nodes)


def test_a_write_whose_outcome_is_told_after_its_deadline_is_found(scene: Scene) -> None:
    writes = scene.engine("n1").writes
    submit = writes.submit
    writes.submit = lambda command, waiter, deadline, request_id: submit(  # type: ignore[method-assign]
        command, waiter, deadline + 2.0, request_id
    )
    scene.cut("n1-n2", "n1-n3")
    with pytest.raises(Violation, match=r"n1 told the outcome of a write .* s too late"):
        scene.write("n1", "x", 20.0)
