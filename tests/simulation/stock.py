"""The bare PySyncObj core behind the verbs of `cluster`, so that one story can be told to both.

No guard, no pre-vote, the core's own journal in memory and its own snapshots: what a plain embedding of the
library does. Each story of `test_reproductions` must fail here, or it would prove nothing where it holds.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

from pysyncobj import SyncObjConsumer, replicated

from kvnode.raft.core import FAIL_REASON, Node, SyncObj, SyncObjConf, Transport
from tests.simulation.clock import Clock
from tests.simulation.network import Link, links_between
from tests.simulation.oracle import Oracle, Violation, Write

FRAME_BYTES = 65_536  # the core's default


class _Links(Transport):  # type: ignore[misc]  # the core is untyped
    def __init__(self, core: StockCore, self_node: Any, other_nodes: Any) -> None:
        super().__init__(core, self_node, other_nodes)
        self.cluster, self.node_id = core.cluster, core.node_id

    def addNode(self, node: Any) -> None:  # noqa: N802
        self._onNodeConnected(node)

    def dropNode(self, node: Any) -> None:  # noqa: N802
        self._onNodeDisconnected(node)

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        link = self.node_id, node.id
        if link in self.cluster.cut_links:
            return False
        self.cluster.flying[link].append(copy.deepcopy(message))
        return True

    def receive(self, source: str, message: dict[str, Any]) -> None:
        self._onMessageReceived(Node(source), message)


class Values(SyncObjConsumer):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.values: list[str] = []

    @replicated  # type: ignore[untyped-decorator]
    def add(self, value: str) -> None:
        self.values.append(value)


class StockCore(SyncObj):  # type: ignore[misc]
    """Unchanged, but for telling the oracle what it applies."""

    def __init__(self, node_id: str, peers: Iterable[str], cluster: StockCluster, **options: Any) -> None:
        self.cluster, self.node_id, self.machine = cluster, node_id, Values()
        conf = SyncObjConf(
            autoTick=False,
            appendEntriesPeriod=0.1,
            leaderFallbackTimeout=1e9,
            logCompactionMinEntries=10**9,
            logCompactionMinTime=10**9,
            dynamicMembershipChange=True,
            **{name: value(node_id) if callable(value) else value for name, value in options.items()},
        )
        super().__init__(
            Node(node_id), [Node(peer) for peer in peers], conf=conf, consumers=[self.machine], nodeClass=Node,
            transportClass=_Links,
        )  # fmt: skip

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:  # noqa: N802
        index = self.raftLastApplied + 1
        self.cluster.oracle.applied(
            self.node_id, index, self.term_at(index) or 0, command, node_term=self.raftCurrentTerm, holders=1, needed=1
        )
        return super()._SyncObj__doApplyCommand(command)

    @property
    def first_index(self) -> int:
        return int(self._SyncObj__raftLog[0][1])

    def term_at(self, index: int) -> int | None:
        log = self._SyncObj__raftLog
        position = index - log[0][1]
        return int(log[position][2]) if 0 <= position < len(log) else None

    def stay_calm(self) -> None:
        """Any order of election timers is legal in Raft: here they fire only when the story says so."""
        self._SyncObj__raftElectionDeadline = self.cluster.clock.read() + 1e9


class StockCluster:
    """The verbs that the stories use; what they mean is said in `cluster`. Options may be functions of the node id."""

    def __init__(self, ids: str = "ABC", *, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.oracle = Oracle()
        self.flying: defaultdict[Link, deque[dict[str, Any]]] = defaultdict(deque)
        self.cut_links: set[Link] = set()
        self.cores: dict[str, StockCore] = {}
        self._options = options
        for node_id in ids:
            self.start_node(node_id, "".join(peer for peer in ids if peer != node_id))

    def __getitem__(self, node_id: str) -> StockCore:
        return self.cores[node_id]

    def start_node(self, node_id: str, peers: str) -> None:
        core = self.cores[node_id] = StockCore(node_id, peers, self, **self._options)
        for peer in peers:
            core._SyncObj__transport._onNodeConnected(Node(peer))

    # --- time and frames --------------------------------------------------------------------------------

    def tick(self, *ids: str, after_s: float = 0.11) -> None:
        self.clock.pass_s(after_s)
        for node_id in ids:
            self._run(node_id)

    def settle(self, only: Iterable[str] | None = None, rounds: int = 12) -> None:
        ids = list(self.cores if only is None else only)
        for _ in range(rounds):
            self.tick(*ids)
            for source, target in sorted(links_between(*ids)):
                self.deliver(source, target)

    def deliver(self, source: str, target: str, count: int | None = None) -> int:
        link = source, target
        count = len(self.flying[link]) if count is None else min(count, len(self.flying[link]))
        for _ in range(count):
            self.cores[target]._SyncObj__transport.receive(source, self.flying[link].popleft())
        return count

    def duplicate(self, source: str, target: str, position: int = 0) -> None:
        flying = self.flying[source, target]
        flying.append(copy.deepcopy(flying[position]))

    def lose(self, source: str, target: str, count: int | None = None) -> None:
        flying = self.flying[source, target]
        for _ in range(len(flying) if count is None else min(count, len(flying))):
            flying.popleft()

    def lose_snapshot(self, source: str, target: str) -> None:
        """One of its chunks."""
        flying = self.flying[source, target]
        chunks = [position for position, message in enumerate(flying) if message.get("serialized")]
        if len(chunks) > 2:
            del flying[chunks[1]]

    def deliver_snapshot(self, source: str, target: str) -> None:
        """Up to its last chunk."""
        while (flying := self.flying[source, target]) and not (flying[0].get("serialized") or (0, 0, 0))[2]:
            self.deliver(source, target, 1)
        self.deliver(source, target, 1)

    def intercept(self, source: str, target: str) -> list[Any]:
        held = list(self.flying[source, target])
        self.flying[source, target].clear()
        return held

    def replay(self, source: str, target: str, held: list[Any]) -> None:
        self.flying[source, target].extend(held)

    # --- links ------------------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        self.flying[source, target].clear()
        self.cut_links.add((source, target))

    def mute(self, source: str, target: str) -> None:
        self.cut_links.add((source, target))

    def partition(self, *groups: str) -> None:
        for link in links_between(*groups):
            self.cut(*link)

    def isolate(self, node_id: str) -> None:
        self.partition(node_id, "".join(other for other in self.cores if other != node_id))

    def join(self, a: str, b: str) -> None:
        self.cut_links -= {(a, b), (b, a)}

    def rejoin(self, node_id: str) -> None:
        self.cut_links = {link for link in self.cut_links if node_id not in link}

    def heal(self) -> None:
        self.cut_links.clear()

    # --- Raft -------------------------------------------------------------------------------------------

    def campaign(self, node_id: str) -> None:
        core = self.cores[node_id]
        core._SyncObj__raftElectionDeadline = 0
        core.doTick(0.0)
        core.stay_calm()

    def elect(self, node_id: str, votes_from: Iterable[str]) -> None:
        self.campaign(node_id)
        for voter in votes_from:
            self.deliver(node_id, voter)
            self.deliver(voter, node_id)
            self._see_leaders()
        assert self.cores[node_id]._isLeader(), f"{node_id} was not elected"

    def propose(self, node_id: str, payload: str | int) -> Write:
        write = Write(node_id, str(payload).encode())

        def answered(result: object, error: int) -> None:
            write.acknowledged = error == FAIL_REASON.SUCCESS

        self.cores[node_id].machine.add(str(payload), callback=answered)
        self.oracle.writes.append(write)
        return write

    def take_snapshot(self, node_id: str, keep: int = 0) -> None:
        self.cores[node_id].forceLogCompaction()
        self.tick(node_id, after_s=0.0)
        self.tick(node_id, after_s=0.0)

    def add_member(self, leader_id: str, node_id: str) -> None:
        self.cores[leader_id].addNodeToCluster(Node(node_id))

    # --- promises ---------------------------------------------------------------------------------------

    def must_agree(self, *ids: str) -> None:
        for node_id in ids or self.cores:
            for write in self.oracle.acknowledged:
                if write.payload.decode() not in self.cores[node_id].machine.values:
                    raise Violation(f"the acknowledged write {write.payload!r} is lost")

    def must_catch_up(self, node_id: str, within_heartbeats: int = 30) -> None:
        goal = self.oracle.highest_applied
        self.settle(rounds=within_heartbeats)
        if self.cores[node_id].raftLastApplied < goal:
            raise Violation(f"{node_id} did not catch up within {within_heartbeats} heartbeats")

    def _run(self, node_id: str) -> None:
        core = self.cores[node_id]
        core.stay_calm()
        core.doTick(0.0)
        self._see_leaders()

    def _see_leaders(self) -> None:
        for core in self.cores.values():
            if core._isLeader():
                first = self.oracle.leaders.setdefault(core.raftCurrentTerm, core.node_id)
                if first != core.node_id:
                    raise Violation(f"two leaders in term {core.raftCurrentTerm}: {first} and {core.node_id}")
