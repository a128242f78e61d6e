"""A cluster in a state to begin a test from, with a client for each node: what happens then, happens step by step."""

from __future__ import annotations

import asyncio
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
        self.loaded = True
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

    def write(self, node: str, key: str, for_s: float = 10.0) -> Operation:
        """What became of a put through that node, which must have ended by then."""
        self.finish(self.work.put(self.clients[node], key), for_s)
        return self.cluster.judge.operations[-1]

    def read(self, node: str, key: str, for_s: float = 10.0) -> Operation:
        """A linearizable one."""
        self.finish(self.work.get(self.clients[node], key), for_s)
        return self.cluster.judge.operations[-1]

    async def load(self, node: str, pause_s: float) -> None:
        """One write after another, until `loaded` is False."""
        while self.loaded:
            await self.work.put(self.clients[node], "load")
            await asyncio.sleep(pause_s)

    def probe(self, node: str) -> tuple[int, str]:
        """Status and reason of the leader probe; (0, "") where none came within a second."""
        answer = self.finish(self.clients[node].look(self.node(node).url, "/admin/healthz/leader", 1.0))
        return (0, "") if answer is None else (answer.status, answer.headers.get("Kvnode-Reason", ""))

    def lead(self, name: str) -> None:
        """Leadership goes there, wherever it is."""

        async def transfer() -> None:
            await self.clients[next(iter(self.clients))].transfer(name)

        if self.cluster.leader is not self.node(name):
            self.finish(transfer())
        assert self.cluster.leader is self.node(name)

    def slow(self, source: str, target: str, latency_s: float) -> None:
        self.network.link(source, target).latency_s = (latency_s, latency_s)

    def stall(self, seconds: float, *names: str) -> None:
        """These processes stand still together, from now on."""
        for name in names:
            process = self.node(name).process
            assert process is not None
            process.stall(seconds)

    def cut(self, *pairs: str) -> None:
        """Such as `n1>n2`, and `n1-n2` for both directions."""
        for pair in pairs:
            one, other = pair[:2], pair[3:]
            self.network.block(one, other)
            if pair[2] == "-":
                self.network.block(other, one)


@contextmanager
def scene_of(seed: int, size: int = 3, leader: str = "n1") -> Iterator[Scene]:
    """At its end everything is mended, and the judge looks at all that has happened."""
    with simulated(seed, size) as cluster:
        scene = Scene(cluster, leader)
        yield scene
        scene.end()
