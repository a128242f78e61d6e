"""One schedule from one seed: a cluster, its clients, and what happens to its machines meanwhile.

A schedule has a *mix*: the faults that it draws from. Some faults end soon, some stay until they are mended; then a
majority that can still talk must have a leader and answer its clients, however long it lasts. At the end everything is
mended, and every node must be whole again, with every promise kept.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from kvnode import errors
from kvnode.node.compaction import Bounds
from kvnode.state.commands import FEATURE_LEVEL
from tests.simulation.disk import Fault
from tests.virtual.cluster import Cluster, simulated, swept
from tests.virtual.judge import Violation
from tests.virtual.network import Link
from tests.virtual.node import ELECTION_S, RAFT, Node
from tests.virtual.workload import Workload
from tests.virtual.world import Stuck

# Liveness. A majority that can talk has a leader within so many election timeouts (the longest: a candidate that
# collides, a pre-vote that is refused by who still hears the old leader, a connection that has to be dialled again).
TIMEOUTS_TO_LEADER = 10
LEADER_S = TIMEOUTS_TO_LEADER * ELECTION_S[1]
ANSWER_S = LEADER_S  # of one node, whose clients go on asking
MENDED_S = 20.0  # for nodes that start, and catch up with a snapshot maybe
LINK_S = 0.2  # a latency up to this is no fault
FAULTS = (3, 9)
PAUSE_S = (0.05, 2.0)


class Dead(Violation):
    """Something that must go on does not."""


@dataclass
class Outcome:
    seed: int
    mix: str = ""
    finding: str | None = None
    steps: list[str] = field(default_factory=list)
    fingerprint: str = ""
    seconds: float = 0.0  # virtual
    operations: int = 0
    answered: int = 0
    faults: int = 0
    logged: list[str] = field(default_factory=list)


class Schedule:
    def __init__(self, seed: int, cluster: Cluster, mix: str | None) -> None:
        self.cluster, self.world, self.network = cluster, cluster.world, cluster.network
        self.draw = random.Random(f"{seed} schedule")
        self.mix = mix if mix is not None else self.draw.choice(list(MIXES))
        self.faults = MIXES[self.mix]
        self.outcome = Outcome(seed, self.mix)
        self.workload = Workload(cluster)
        self.joined = 0
        self.wiped = False
        self.rotten: set[str] = set()  # nodes whose disks have altered what was written
        self.mended_at = 0.0

    def note(self, what: str) -> None:
        self.outcome.steps.append(f"{self.world.now:8.3f} {what}")
        self.world.trace("step", what)

    def run(self) -> None:
        cluster, draw = self.cluster, self.draw
        entries = draw.choice((20, 100, 10_000))
        cluster.log_bounds = Bounds(entries=entries, tail_entries=draw.choice((0, 5, entries // 2)))
        if "upgrade" in self.faults and draw.random() < 0.7:
            for node in draw.sample(list(cluster.nodes.values()), draw.randint(1, 2)):
                node.level = 0
                self.note(f"{node.name} is of an older version")
        cluster.start()
        cluster.await_leader(LEADER_S)
        self.workload.begin(draw.randint(1, 4), draw.choice((0.04, 0.1, 0.2)))
        for _ in range(draw.randint(*FAULTS)):
            self.world.pass_s(draw.uniform(*PAUSE_S))
            self.outcome.faults += 1
            getattr(self, draw.choice(self.faults))()
            self.check_started()
            if draw.random() < 0.15:
                self.check_alive()
        self.check_alive()
        self.mend()
        self.check_alive()
        self.workload.finish(60.0)
        self.check_whole()
        cluster.judge.check()

    # --- faults ---------------------------------------------------------------------------------------------------

    def _node(self, choose: Callable[[Node], bool] = lambda node: True) -> Node | None:
        """One that it may be, the leader more often than its share."""
        possible = [node for node in self.cluster.nodes.values() if choose(node)]
        leader = self.cluster.leader
        if leader in possible and self.draw.random() < 0.5:
            return leader
        return self.draw.choice(possible) if possible else None

    def _up(self) -> Node | None:
        return self._node(lambda node: node.up)

    def _others(self, node: Node) -> list[str]:
        return [name for name in self.cluster.nodes if name != node.name]

    def kill(self) -> None:
        if (node := self._up()) is not None:
            self.note(f"kill {node.name}")
            node.wanted = False
            node.kill()

    def power(self) -> None:
        if (node := self._up()) is not None:
            self.note(f"power off {node.name}")
            node.wanted = False
            node.power_off()

    def crash_soon(self) -> None:
        """At some effect from now on: any call to the disk."""
        if (node := self._up()) is not None:
            node.device.crash_at = self.draw.randint(1, 40)
            node.device.crashed = node.power_off if self.draw.random() < 0.5 else node.kill
            self.note(f"{node.name} ends at call {node.device.crash_at} to its disk")

    def stop(self) -> None:
        if (node := self._up()) is not None:
            self.note(f"stop {node.name}")
            node.wanted = False
            node.stop()

    def start(self) -> None:
        for node in self.cluster.nodes.values():
            if not node.up and not node.removed and self.draw.random() < 0.7:
                self.note(f"start {node.name}")
                node.start()

    def stall(self) -> None:
        if (node := self._up()) is not None and node.process is not None:
            seconds = self.draw.choice((0.3, 1.0, 2.5, 7.0))
            self.note(f"stall {node.name} for {seconds} s")
            node.process.stall(seconds)

    def step_clock(self) -> None:
        if (node := self._up()) is not None and node.process is not None:
            seconds = self.draw.choice((-3600.0, -5.0, 5.0, 86_400.0))
            self.note(f"the wall clock of {node.name} steps by {seconds} s")
            node.process.wall_offset_s += seconds

    def hang(self) -> None:
        if (node := self._up()) is not None:
            seconds = self.draw.choice((0.5, 1.5, 4.0, 1000.0))
            self.note(f"the disk of {node.name} hangs for {seconds} s")
            node.device.hang(self.world.now + seconds)

    def slow_disk(self) -> None:
        if (node := self._up()) is not None:
            node.device.slow = self.draw.choice((1.0, 10.0, 60.0))
            self.note(f"the disk of {node.name} takes {node.device.slow} times as long")

    def full(self) -> None:
        if (node := self._up()) is not None:
            node.device.directory.full = not node.device.directory.full
            self.note(f"the disk of {node.name} is {'full' if node.device.directory.full else 'not full any more'}")

    def disk_error(self) -> None:
        """One of the next calls to a disk fails, once: its node may not take what it wrote for durable any more."""
        if (node := self._up()) is not None:
            kind = self.draw.choice(("sync", "append", "rename", "sync_directory", "truncate"))
            fault = Fault(self.draw.randint(1, 6), errno.EIO, frozenset((kind,)))
            node.device.directory.faults.append(fault)
            self.note(f"the disk of {node.name} fails at the {fault.at}. {kind}")

    def rot(self) -> None:
        """A node is killed, and its disk alters what was durable there: the only such loss in a schedule."""
        if self.wiped or (node := self._node(lambda node: node.up and node.started and not node.removed)) is None:
            return
        durable = node.durable_bytes()
        node.kill()
        name = self.draw.choice(sorted(durable))
        self.wiped = True
        self.rotten.add(node.name)
        bits = self.draw.choice((1, 3))
        for _ in range(bits):
            node.device.directory.damage(name, self.draw.randrange(durable[name]), self.draw.randrange(8))
        self.note(f"{node.name} is killed, {bits} bits of its {name} turn over, and it is started")
        node.start()

    def unblock(self) -> None:
        self.note("all links are open, all disks answer")
        self.network.mend()
        for node in self.cluster.nodes.values():
            node.device.thaw()

    def isolate(self) -> None:
        if (node := self._up()) is not None:
            self.note(f"cut {node.name} off")
            for other in self._others(node):
                self.network.block(node.name, other)
                self.network.block(other, node.name)

    def one_way(self) -> None:
        """What one node sends arrives nowhere, or what it is sent does not."""
        if (node := self._up()) is not None:
            outwards = self.draw.random() < 0.5
            self.note(f"{node.name} is {'not heard' if outwards else 'deaf'}")
            for other in self._others(node):
                if self.draw.random() < 0.8:
                    self.network.block(*((node.name, other) if outwards else (other, node.name)))

    def cut(self) -> None:
        """Between two nodes, in one direction or in both."""
        one, other = self.draw.sample(list(self.cluster.nodes), 2)
        both = self.draw.random() < 0.5
        self.note(f"cut {one} {'<>' if both else '>'} {other}")
        self.network.block(one, other)
        if both:
            self.network.block(other, one)

    def slow_link(self) -> None:
        one, other = self.draw.sample(list(self.cluster.nodes), 2)
        latency_s = self.draw.choice(((0.01, 0.05), (0.05, 0.3), (0.3, 1.0), (1.0, 2.5)))
        self.note(f"{one} > {other} takes {latency_s} s")
        self.network.link(one, other).latency_s = latency_s

    def slow_net(self) -> None:
        """Every link has a latency of its own."""
        self.note("links of different latency")
        for one in self.cluster.nodes:
            for other in self._others(self.cluster.nodes[one]):
                low = self.draw.choice((0.0001, 0.005, 0.03, 0.08))
                self.network.link(one, other).latency_s = (low, low * 2)

    def fast_net(self) -> None:
        self.note("links are fast again")
        for one in self.cluster.nodes:
            for other in self.cluster.nodes:
                self.network.link(one, other).latency_s = Link().latency_s

    def reset(self) -> None:
        """One connection between nodes is lost, and with it what was on the way."""
        one, other = self.draw.sample(list(self.cluster.nodes), 2)
        for end in self.network.connections(one, other)[-1:]:
            self.note(f"the connection {one} > {other} is reset")
            self.network.reset(end)

    def swallow(self) -> None:
        """Something in between takes what one connection carries, acknowledges it, and breaks the connection later."""
        one, other = self.draw.sample(list(self.cluster.nodes), 2)
        for end in self.network.connections(one, other)[-1:]:
            seconds = self.draw.choice((0.1, 0.4, 1.0, 3.0))
            self.note(f"the connection {one} > {other} swallows everything for {seconds} s, and is reset")
            end.muted = True
            self.world.after(seconds, lambda end=end: self.network.reset(end))  # type: ignore[misc]

    def half(self) -> None:
        """One side of a connection between nodes breaks: what it sent is lost, the other side learns of it later."""
        one, other = self.draw.sample(list(self.cluster.nodes), 2)
        for end in self.network.connections(one, other)[-1:]:
            self.note(f"half of the connection {one} > {other} breaks")
            side = end if self.draw.random() < 0.5 else end.peer
            if side is not None:
                side.lost_soon(ConnectionResetError())

    def alter(self) -> None:
        """A bit of what one connection between nodes carries turns over."""
        one, other = self.draw.sample(list(self.cluster.nodes), 2)
        for end in self.network.connections(one, other)[-1:]:
            if end.get_extra_info("peername")[1] == RAFT and end.peer is not None:
                end.altered = self.draw.randint(1, 3)
                self.note(f"{end.altered} pieces of the connection {one} > {other} are altered on their way")

    # --- what operators do -----------------------------------------------------------------------------------------

    def _ask(self, work: Callable[[Any], Any]) -> None:
        async def ask() -> None:
            async with self.cluster.client(timeout_s=5.0) as client:
                with suppress(errors.KvnodeError):
                    await work(client)

        self.workload.tasks.append(self.workload.process.spawn(ask()))

    def transfer(self) -> None:
        if (node := self._up()) is not None:
            to = node.name if self.draw.random() < 0.6 else None
            self.note(f"transfer leadership to {to or 'any'}")
            self._ask(lambda client: client.transfer(to))

    def drain(self) -> None:
        """One node, or all at the same time, of which one at least refuses."""
        if (one := self._up()) is not None:
            nodes = list(self.cluster.nodes.values()) if self.draw.random() < 0.4 else [one]

            async def drain(client: Any, name: str) -> None:
                await client.drain(name)
                self.cluster.judge.drained(list(self.cluster.nodes.values()))

            for node in nodes:
                self.note(f"drain {node.name}")
                self._ask(lambda client, name=node.name: drain(client, name))

    def upgrade(self) -> None:
        """A node of an older version is stopped, and started with this one."""
        for node in self.cluster.nodes.values():
            if node.level < FEATURE_LEVEL and not node.leaving:
                self.note(f"{node.name} is upgraded")
                node.kill()
                node.level = FEATURE_LEVEL
                node.start()
                return

    def undrain(self) -> None:
        for node in self.cluster.nodes.values():
            self._ask(lambda client, node=node: client.undrain(node.name))
        self.note("undrain all")

    def add(self) -> None:
        """A new node joins. At most two in a schedule."""
        if self.joined < 2 and len(self.cluster.voters()) < 7:
            self.joined += 1
            node = self.cluster.join()
            self.note(f"{node.name} joins")
            node.start()

    def remove(self) -> None:
        """A member is removed, up or down; a few stay."""
        members = [node for node in self.cluster.nodes.values() if not node.removed]
        if len(members) > 3:
            node = self.draw.choice(members)
            self.note(f"remove {node.name}")

            async def remove(client: Any) -> None:
                try:
                    await client.change_members("DELETE", f"/{node.name}")
                except errors.Indefinite:
                    node.removed = True
                else:
                    node.removed = True

            self._ask(remove)

    def wipe(self) -> None:
        """A node loses its disk. Once in a schedule, while all others have theirs."""
        if not self.wiped and (node := self._node(lambda node: node.started and not node.removed)) is not None:
            self.wiped = True
            self.note(f"{node.name} loses its disk, and starts with an empty one")
            node.power_off()
            node.new_disk()
            self.cluster.judge.forget(node.name)
            node.start()

    # --- what must be ----------------------------------------------------------------------------------------------

    def check_started(self) -> None:
        """A disk without damage lets its node start. What it has altered is found; then the node gets an empty one."""
        for node in self.cluster.nodes.values():
            if node.refused_to_start and node.name in self.rotten and "damaged" in node.refused_to_start:
                self.note(f"{node.name} finds the damage, and starts with an empty disk")
                self.rotten.discard(node.name)
                node.new_disk()
                self.cluster.judge.forget(node.name)
                node.start()
            if node.refused_to_start and not node.removed and not self._may_refuse(node):
                raise Dead(f"{node.name} does not start: {node.refused_to_start}")

    def _may_refuse(self, node: Node) -> bool:
        """A node that was to join and was not let in: no leader answered, or it was a voter that lost its disk. Or a
        call to its disk has failed."""
        if "mend the disk" in node.refused_to_start and node.device.directory.strikes:
            return True
        reasons = ("joined now", "is a voting member of that cluster already")
        return node.join is not None and any(reason in node.refused_to_start for reason in reasons)

    def _well(self) -> list[Node]:
        return [
            node
            for node in self.cluster.nodes.values()
            if node.up
            and node.started
            and not node.has_forgotten
            and not node.leaving
            and not node.removed
            and node.process is not None
            and node.process.stalled_until <= self.world.now
            and node.device.hung_until <= self.world.now
            and node.device.slow < 50
            and not node.device.directory.full
        ]

    def _majority(self) -> list[Node]:
        """The largest set of nodes that are well and can all talk to each other, if it is a majority."""
        well, voters = self._well(), self.cluster.voters()
        for size in range(len(well), len(voters) // 2, -1):
            for group in combinations(well, size):
                if not all(self._talk(*pair) for pair in combinations(group, 2)):
                    continue
                if sum(node.name in voters for node in group) > len(voters) // 2:
                    return list(group)
        return []

    def check_alive(self) -> None:
        """While nothing changes: a majority that can talk has a leader, and its nodes answer their clients.

        Where that leader is another node, which some of them cannot talk to, these have no leader to turn to: they hear
        of none, and those that hear one give no votes (stickiness, Raft dissertation 4.2.3). The same holds for one
        whose messages are all late: they come as often as ever.
        """
        for node in self.cluster.nodes.values():
            node.device.crash_at = None
            node.device.directory.faults.clear()
        group = self._majority()
        if not group:
            return
        names = " ".join(node.name for node in group)
        self.note(f"{names} must be alive")
        try:
            self.world.run(self._leads, LEADER_S)
        except Stuck:
            raise Dead(f"no leader among {names} within {LEADER_S:g} s, {TIMEOUTS_TO_LEADER} timeouts") from None
        checks = [(node, self.workload.process.spawn(self._served_by(node))) for node in group]
        try:
            self.world.run(lambda: all(check.done() for _, check in checks), ANSWER_S)
        except Stuck:
            pass
        leader, served = self.cluster.leader, 0
        for node, check in checks:
            if check.done() and check.exception() is None:
                served += 1
            elif not node.removed and (leader is None or self._talk(node, leader)):
                why = str(check.exception()) if check.done() else "no answer"
                raise Dead(
                    f"{node.name} of {names} does not read and write within {ANSWER_S:g} s, "
                    f"leader {leader and leader.name} ({why})"
                )

        if not served and any(leader is None or self._talk(node, leader) for node in group if not node.removed):
            raise Dead(f"none of {names} reads and writes, for which {leader and leader.name} leads that none reaches")

    def _hear(self, one: Node, other: Node) -> bool:
        links = (self.network.link(one.name, other.name), self.network.link(other.name, one.name))
        return one is other or not any(link.blocked for link in links)

    def _talk(self, one: Node, other: Node) -> bool:
        """Whether they do, and soon enough for a connection that is dialled and a read that is confirmed."""
        links = (self.network.link(one.name, other.name), self.network.link(other.name, one.name))
        return one is other or all(not link.blocked and link.latency_s[1] <= LINK_S for link in links)

    def _leads(self) -> bool:
        """Whether somebody leads whom a majority hears, of this group or not, and however late."""
        leader, voters = self.cluster.leader, self.cluster.voters()
        if leader is None:
            return False
        return sum(node.name in voters and self._hear(node, leader) for node in self._well()) > len(voters) // 2

    async def _served_by(self, node: Node) -> None:
        """A write and a linearizable read through this node alone, tried again while they are refused."""
        async with self.cluster.client(node.name, timeout_s=3.0) as client:
            for _ in range(100):
                with suppress(errors.Unavailable, errors.OutcomeUnknown):
                    await client.put(f"alive/{node.name}", self.workload.value())
                    await client.get(f"alive/{node.name}")
                    return
                await asyncio.sleep(0.1)
        raise Dead("refused for ever")

    def mend(self) -> None:
        self.note("everything is mended")
        self.network.mend()
        for node in self.cluster.nodes.values():
            node.device.thaw()
            node.device.slow, node.device.crash_at = 1.0, None
            node.device.directory.mend()
        self.world.pass_s(3.0)
        for node in self.cluster.nodes.values():
            if not node.up and not node.removed:
                node.start()
            elif node.process is not None:
                node.process.go_on()
        for node in self.cluster.nodes.values():
            if node.level < FEATURE_LEVEL and not node.removed:
                node.kill()
                node.level = FEATURE_LEVEL
                node.start()
        self.undrain()
        self.world.pass_s(1.0)
        self.check_started()
        self.mended_at = self.world.now

    def check_whole(self) -> None:
        """Every node has everything, and nothing failed inside of any."""
        nodes = [node for node in self.cluster.nodes.values() if node.up and node.started and not node.removed]

        def alike() -> bool:
            return len({node.group.store.revision for node in nodes if node.group is not None}) == 1

        try:
            self.world.run(alike, MENDED_S)
        except Stuck:
            revisions = {node.name: node.group.store.revision for node in nodes if node.group is not None}
            raise Dead(f"nodes are at different revisions {MENDED_S:g} s after the end: {revisions}") from None
        stores = [node.group.store for node in nodes if node.group is not None and not node.has_forgotten]
        for store in stores:
            self.cluster.judge.check_ended(lambda key, store=store: store.get(key) is not None, self.mended_at)  # type: ignore[misc]
        sessions = [node.group.session for node in nodes if node.group is not None and not node.has_forgotten]
        try:
            self.world.run(lambda: all(session.keys for session in sessions), 1.0)  # each looks 20 times a second
        except Stuck:
            raise Dead("a node that is level with the others has not adopted the session key") from None
        if any(session.known.number != 1 for session in sessions):
            raise Violation("the session key was changed, and nobody asked for that")
        for process in (*(node.process for node in nodes), self.workload.process):
            if process is not None and process.failures:
                raise Violation(f"{process.name} has not caught {process.failures[0]}")


NETWORK = ("cut", "one_way", "isolate", "slow_link", "slow_net", "fast_net", "reset", "swallow", "half", "unblock")
BITS = ("alter", "alter", "rot", "disk_error")
PROCESSES = ("kill", "power", "crash_soon", "stop", "start", "start", "stall", "step_clock")
DISKS = ("hang", "slow_disk", "full", "power", "crash_soon", "start", "unblock", "disk_error")
MEMBERS = ("add", "add", "remove", "remove", "wipe", "kill", "start", "cut", "unblock", "transfer", "stall")
OPERATORS = ("transfer", "drain", "undrain")
MIXES: dict[str, tuple[str, ...]] = {
    "network": NETWORK,
    "connections": ("reset", "swallow", "half", "slow_net", "transfer"),
    "latency": ("slow_link", "slow_net", "one_way", "transfer", "unblock"),
    "processes": PROCESSES,
    "disks": DISKS,
    "operators": (*OPERATORS, "transfer", "kill", "start", "slow_net", "stop"),
    "members": MEMBERS,
    "bits": (*BITS, "power", "start", "reset"),
    "versions": ("upgrade", "transfer", "kill", "start", "stop", "cut", "unblock"),
    "everything": (*NETWORK, *PROCESSES, *DISKS, *BITS, *OPERATORS, *MEMBERS, "upgrade"),
}


class _Lines(logging.Handler):
    """What nodes log, with the virtual time and the node's name."""

    def __init__(self, world: Any, lines: list[str]) -> None:
        super().__init__()
        self._world, self._lines = world, lines

    def emit(self, record: logging.LogRecord) -> None:
        running = self._world.running
        where = running.name if running is not None else "-"
        self._lines.append(f"{self._world.now:8.3f} {where}: {record.levelname} {record.getMessage()}")
        if record.exc_info:
            self._lines.append(logging.Formatter().formatException(record.exc_info))


def run_schedule(seed: int, mix: str | None = None, logged: bool = False, size: int | None = None) -> Outcome:
    """What came of it. The same seed and mix give the same, to the message."""
    try:
        return _run(seed, mix, logged, size)
    finally:
        swept()


def _run(seed: int, mix: str | None, logged: bool, size: int | None) -> Outcome:
    size = size if size is not None else random.Random(f"{seed} size").choice((3, 3, 3, 5))
    with simulated(seed, size) as cluster:
        schedule = Schedule(seed, cluster, mix)
        outcome = schedule.outcome
        handler = _Lines(cluster.world, outcome.logged)
        log = logging.getLogger("kvnode")
        before, log.propagate = (log.level, log.propagate), False
        log.setLevel(logging.INFO if logged else logging.CRITICAL)
        log.addHandler(handler)
        try:
            schedule.run()
        except (Violation, Stuck) as error:
            outcome.finding = f"{type(error).__name__}: {error}"
        finally:
            log.removeHandler(handler)
            log.setLevel(before[0])
            log.propagate = before[1]
        outcome.fingerprint, outcome.seconds = cluster.world.fingerprint, cluster.world.now
        outcome.operations, outcome.answered = len(cluster.judge.operations), schedule.workload.answered
        cluster.world.found = None
        for node in cluster.nodes.values():
            node.kill()
        cluster.world.pass_s(0.01)
        return outcome
