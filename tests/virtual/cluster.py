"""A cluster of whole nodes in virtual time, and clients that talk to it over simulated connections."""

from __future__ import annotations

import gc
import logging
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import aiohttp
import pysyncobj.syncobj as core
from aiohttp.client_proto import ResponseHandler

from kvnode.client import Access, Client, calls
from kvnode.node.compaction import Bounds
from kvnode.server.joining import join
from tests.simulation.clock import _NoPoller, patched
from tests.virtual.judge import Judge
from tests.virtual.network import Network
from tests.virtual.node import RAFT, Node
from tests.virtual.process import Process
from tests.virtual.world import World


class Connector(aiohttp.BaseConnector):
    """aiohttp's pool of connections over the loop's own connections, without sockets and names."""

    def __del__(self, **_: Any) -> None:
        pass  # a process that is killed closes nothing

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        try:
            async with aiohttp.helpers.ceil_timeout(timeout.sock_connect):  # type: ignore[attr-defined]
                _, protocol = await self._loop.create_connection(self._factory, req.url.raw_host, req.url.port)
        except OSError as error:
            raise aiohttp.ClientConnectorError(req.connection_key, error) from error
        return protocol  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Simulated(Access):
    """How simulated clients connect."""

    def session(self, *, connections: int = 100, **settings: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(auto_decompress=False, connector=Connector(limit=connections), **settings)


class Cluster:
    """The verbs of a test. Nodes are n1, n2, …; clients are processes of their own."""

    def __init__(self, world: World, size: int = 3) -> None:
        self.world = world
        self.network = Network(world)
        self.judge = Judge(world)
        self.log_bounds = Bounds()  # beyond which nodes take snapshots
        self.nodes: dict[str, Node] = {}
        names = [f"n{number}" for number in range(1, size + 1)]
        peers = {name: (name, RAFT) for name in names}
        for name in names:
            self.nodes[name] = Node(self, name, peers)

    def join(self) -> Node:
        """One node more, which asks the others to let it in. It has not been started."""
        name = f"n{len(self.nodes) + 1}"
        urls = [node.url for node in self.nodes.values()]
        node = Node(self, name, {name: (name, RAFT)})
        node.join = partial(join, urls, name, (name, RAFT), node.url, Simulated())
        self.nodes[name] = node
        return node

    def start(self, *names: str) -> None:
        for name in names or self.nodes:
            self.nodes[name].start()

    def process(self, name: str) -> Process:
        """One without a node, for clients."""
        return Process(self.world, self.network, name)

    def client(self, *names: str, timeout_s: float = 10.0) -> Client:
        """To be used in a process of its own; it asks these nodes, all of them by default, in their order."""
        return Client([self.nodes[name].url for name in names or self.nodes], timeout_s, access=Simulated())

    def run(self, process: Process, coroutine: Any, for_s: float = 30.0) -> Any:
        """Lets time pass until the coroutine has ended in that process; its result."""
        task = process.spawn(coroutine)
        self.world.run(task.done, for_s)
        return task.result()

    def voters(self) -> frozenset[str]:
        """As the newest configuration has it that any running node knows."""
        known = [node.group._engine.roster.current for node in self.nodes.values() if node.up and node.started]
        return frozenset(max(known, key=lambda each: each.index).voters) if known else frozenset(self.nodes)

    @property
    def leader(self) -> Node | None:
        """Of the latest term, of those that are up and lead as they see it themselves."""
        leading = [node for node in self.nodes.values() if node.up and node.group is not None and _term(node)]
        return max(leading, key=_term, default=None)

    def await_leader(self, for_s: float = 10.0) -> Node:
        self.world.run(lambda: self.leader is not None, for_s)
        leader = self.leader
        assert leader is not None
        return leader


def _term(node: Node) -> int:
    """The term that it leads and serves in, 0 where it does not."""
    group = node.group
    engine = None if group is None else group._engine
    return engine.replica.term if engine is not None and engine.replica.serving else 0


@contextmanager
def simulated(seed: int, size: int = 3) -> Iterator[Cluster]:
    """A cluster whose nodes have not been started. Everything in it repeats for the same seed.

    The core takes time and chance from module globals: they are the running process's time, and the seed's chance.
    """
    world = World(seed)

    def read() -> float:
        return world.running.clock() if world.running is not None else world.now

    chance = random.getstate()
    random.seed(seed)
    swept()
    gc.disable()  # what it would end early, it would end at a moment that no seed knows
    try:
        with (
            warnings.catch_warnings(),
            patched(core, monotonicTime=read, createPoller=lambda kind: _NoPoller()),
            patched(calls, uuid4=lambda: UUID(int=world.draw.getrandbits(128))),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # likewise of those that had not begun
            yield Cluster(world, size)
    finally:
        gc.enable()
        random.setstate(chance)


def swept() -> None:
    """What is left of processes that ended goes, without a word: coroutines that had not, above all."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
    logging.disable(logging.NOTSET)
    sys.unraisablehook = hook
