"""One schedule for each way in which a promise was once broken, or could be: what happens when, to the millisecond."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from kvnode.client import Client
from kvnode.node.engine import Engine
from tests.virtual.cluster import Cluster, simulated
from tests.virtual.judge import Operation
from tests.virtual.node import Node
from tests.virtual.workload import Workload


class Scene:
    """A cluster with its leader and a client that does one thing at a time on a node of its choice."""

    def __init__(self, cluster: Cluster, leader: str = "n1") -> None:
        self.cluster, self.world, self.network = cluster, cluster.world, cluster.network
        cluster.start()
        cluster.await_leader()
        self.world.pass_s(1.0)
        self.work = Workload(cluster)
        self.clients: dict[str, Client] = {}
        for name in cluster.nodes:
            self.finish(self.open(name))
        self.lead(leader)
        self.finish(self.work.put(self.clients[leader], "x"))
        self.world.pass_s(0.5)

    async def open(self, name: str, timeout_s: float = 8.0) -> None:
        """A client of this node alone, in place of the one that there was."""
        if name in self.clients:
            await self.clients[name].__aexit__()
        self.clients[name] = await self.cluster.client(name, timeout_s=timeout_s).__aenter__()

    def end(self) -> None:
        """Everything is mended, every call ends, and the judge has his say."""
        self.network.mend()
        self.world.pass_s(3.0)
        for client in self.clients.values():
            self.finish(client.__aexit__())
        self.cluster.judge.check()

    def node(self, name: str) -> Node:
        return self.cluster.nodes[name]

    def engine(self, name: str) -> Engine:
        group = self.node(name).group
        assert group is not None
        assert group._engine is not None
        return group._engine

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.work.process.spawn(coroutine)

    def finish(self, coroutine: Coroutine[Any, Any, Any], for_s: float = 10.0) -> Any:
        return self.cluster.run(self.work.process, coroutine, for_s)

    def lead(self, name: str) -> None:
        """Leadership goes there, wherever it is."""

        async def transfer() -> None:
            await self.clients[next(iter(self.clients))].transfer(name)

        if self.cluster.leader is not self.node(name):
            self.finish(transfer())
        assert self.cluster.leader is self.node(name)

    def slow(self, source: str, target: str, latency_s: float) -> None:
        self.network.link(source, target).latency_s = (latency_s, latency_s)

    def cut(self, *pairs: str) -> None:
        """Such as `n1>n2`, and `n1-n2` for both directions."""
        for pair in pairs:
            one, other = pair[:2], pair[3:]
            self.network.block(one, other)
            if pair[2] == "-":
                self.network.block(other, one)


@contextmanager
def scene_of(seed: int, size: int = 3) -> Iterator[Scene]:
    with simulated(seed, size) as cluster:
        scene = Scene(cluster)
        yield scene
        scene.end()


def test_an_echo_of_an_earlier_round_confirms_no_leader() -> None:
    """n2's acknowledgements reach n1 half a second late, and still do when n2 has helped to elect another leader."""
    with scene_of(11) as scene:
        scene.slow("n2", "n1", 0.5)
        scene.world.pass_s(3.0)
        asking = scene.engine("n2").reads
        scene.world.run(lambda: asking._in_flight, 3.0)
        scene.world.run(lambda: not asking._in_flight, 3.0)  # so that none of its questions begins a round meanwhile
        for other in ("n2", "n3"):
            for end in scene.network.connections("n1", other):
                scene.network.reset(end)  # which is news to them: they do not wait for an election timeout
        scene.cut("n1>n2", "n1-n3")
        scene.world.run(lambda: scene.cluster.leader is not scene.node("n1"), 0.3)
        led = scene.cluster.leader
        assert led is not None
        newer: Operation = scene.finish(_noted(scene, scene.work.put(scene.clients[led.name], "x")), 0.1)
        assert newer.outcome == "ok"
        read = scene.begin(scene.work.get(scene.clients["n1"], "x"))
        scene.world.pass_s(6.0)
        scene.network.mend()
        scene.world.run(read.done, 10.0)


async def _noted(scene: Scene, write: Coroutine[Any, Any, None]) -> Operation:
    await write
    return scene.cluster.judge.operations[-1]


def test_a_read_on_a_follower_does_not_join_a_question_that_was_asked_before_it() -> None:
    """n2 hears everything from its leader a third of a second late, the answer to an earlier question too."""
    with scene_of(12) as scene:
        scene.slow("n1", "n2", 0.3)
        scene.world.pass_s(2.0)
        first = scene.begin(scene.work.get(scene.clients["n2"], "x"))
        scene.world.pass_s(0.1)
        scene.finish(scene.work.put(scene.clients["n1"], "x"), 0.1)
        second = scene.begin(scene.work.get(scene.clients["n2"], "x"))
        scene.world.run(lambda: bool(first.done() and second.done()), 5.0)
        assert [each.outcome for each in scene.cluster.judge.operations[-3:]] == ["ok"] * 3


def test_an_answer_to_a_question_that_was_given_up_answers_no_other() -> None:
    """What n2 asks is answered after more than its deadline, so each answer comes while a later question is open."""
    with scene_of(13) as scene:
        scene.slow("n1", "n2", 1.3)
        scene.world.pass_s(5.0)
        reads = []
        for _ in range(30):  # at every moment of the time between a question and the end of it
            scene.finish(scene.work.put(scene.clients["n1"], "x"), 1.0)
            reads.append(scene.begin(scene.work.get(scene.clients["n2"], "x")))
            scene.world.pass_s(0.07)
        scene.network.mend()
        scene.world.run(lambda: all(read.done() for read in reads), 20.0)


def test_a_write_that_was_forwarded_in_one_term_is_not_taken_in_another() -> None:
    """What n2 forwards takes two seconds; meanwhile another node leads, takes the write, and gives leadership back."""
    with scene_of(14) as scene:
        scene.slow("n2", "n1", 2.0)
        scene.world.pass_s(4.0)
        write = scene.begin(scene.work.put_once(scene.clients["n2"], "y"))
        scene.world.pass_s(0.1)
        scene.lead("n3")
        scene.world.run(write.done, 1.0)
        assert scene.cluster.judge.operations[-1].outcome == "ok"
        scene.lead("n1")
        scene.world.pass_s(4.0)


def test_what_followers_had_of_a_leaders_log_counts_for_nothing_when_it_leads_again() -> None:
    """n1 leads with a disk that hangs, and n2 acknowledges what n1 has not written. Others elect n3, whose log takes
    the place of both. When n1 leads again, n2 holds none of the entries that stand there now.
    """
    with scene_of(15, 5) as scene:
        scene.finish(scene.open("n1", timeout_s=1.0))  # what it asks for is over before anybody else leads
        scene.node("n1").device.hang(1e9)
        scene.cut("n1-n3", "n1-n4", "n1-n5", "n2-n3", "n2-n4", "n2-n5")
        for number in range(3):
            scene.begin(scene.work.put_once(scene.clients["n1"], f"y{number}"))
            scene.world.pass_s(0.05)
        others = [scene.node(name) for name in ("n3", "n4", "n5")]
        scene.world.run(lambda: scene.cluster.leader in others, 6.0)
        led = scene.cluster.leader
        assert led is not None
        scene.network.mend()
        scene.world.run(lambda: scene.engine("n1").replica.term == scene.engine(led.name).replica.term, 3.0)
        scene.world.pass_s(1.0)
        scene.node("n1").device.thaw()
        scene.world.pass_s(2.0)
        assert scene.cluster.leader is led
        transfer = scene.begin(scene.clients[led.name].transfer("n1"))
        scene.world.run(lambda: scene.engine("n1").replica.is_leader, 3.0)
        scene.cut(
            *(f"n1>{name}" for name in ("n2", "n3", "n4", "n5") if name != led.name)
        )  # its first entry does not arrive
        scene.world.pass_s(1.0)
        scene.network.mend()
        scene.world.run(transfer.done, 10.0)
        scene.world.pass_s(2.0)
