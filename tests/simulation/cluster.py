"""A simulated Raft group and the verbs that its tests are written in.

Nothing happens by itself: frames are delivered, time passes and nodes tick when the test says so. After every
verb the oracle has seen everything; a broken promise raises `Violation` from the verb that broke it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from kvnode.configuration import Configuration, Member
from kvnode.errors import StartupError
from kvnode.node import catchup
from kvnode.node.compaction import Bounds
from kvnode.peers import frames
from kvnode.raft import messages, progress
from kvnode.raft import replica as replicas
from kvnode.raft.replica import Replica
from tests.simulation.clock import Clock, patched, simulated
from tests.simulation.network import Network, links_between
from tests.simulation.node import Node
from tests.simulation.oracle import Oracle, Read, Violation, Write

HEARTBEAT_S = 0.1
FOREVER_S = 1e9  # an election timeout that never fires: who leads is the script's business


class Cluster:
    """`ids` is a string of one-letter node ids. `patient`: elections happen only by `elect` and `campaign`."""

    def __init__(
        self,
        ids: str = "ABC",
        *,
        clock: Clock,
        seed: int = 0,
        patient: bool = True,
        segment_bytes: int = 4_096,
        drift: float = 0.0,
        bounds: Bounds | None = None,
    ) -> None:
        self.clock = clock
        self.seed = seed
        self.bounds = bounds or Bounds()
        self.draw = random.Random(seed)
        self.network = Network()
        self.oracle = Oracle()
        self.heartbeat_s = HEARTBEAT_S
        self.election_timeout_min_s, self.election_timeout_max_s = (FOREVER_S, 2 * FOREVER_S) if patient else (0.6, 1.2)
        self.segment_bytes = segment_bytes
        self.nodes: dict[str, Node] = {}
        self.standing: set[tuple[str, str]] = set()  # the links on which both sides have agreed to talk
        for node_id in ids:
            rate = 1.0 + self.draw.uniform(-drift, drift)
            self.nodes[node_id] = Node(node_id, [peer for peer in ids if peer != node_id], self, rate)
        for link in sorted(links_between(*ids)):
            self.connect(*link)

    @classmethod
    @contextmanager
    def simulated(
        cls,
        ids: str = "ABC",
        *,
        seed: int = 0,
        frame_entries: int = progress.FRAME_ENTRIES,
        window_bytes: int = progress.WINDOW_BYTES,
        chunk_bytes: int = 300,
        apply_bytes: int = replicas.APPLY_BYTES,
        **options: object,
    ) -> Iterator[Cluster]:
        """A cluster on a clock of its own, with frames and a window of its own size."""
        clock = Clock()
        with (
            simulated(clock, seed),
            patched(progress, FRAME_ENTRIES=frame_entries, WINDOW_BYTES=window_bytes),
            patched(catchup, CHUNK_BYTES=chunk_bytes),
            patched(replicas, APPLY_BYTES=apply_bytes),
        ):
            yield cls(ids, clock=clock, seed=seed, **options)  # type: ignore[arg-type]

    def __getitem__(self, node_id: str) -> Replica:
        return self.nodes[node_id].running

    # --- time -------------------------------------------------------------------------------------------

    def tick(self, *ids: str, after_s: float = 0.11) -> None:
        """Time passes, by default a little more than a heartbeat; then these nodes tick."""
        self.clock.pass_s(after_s)
        for node_id in self._up_among(ids):
            self.nodes[node_id].tick()

    def settle(self, only: Iterable[str] | None = None, rounds: int = 12) -> None:
        """Heartbeat after heartbeat among these nodes (default: all that are up), with everything delivered."""
        ids = self.up if only is None else list(only)
        for _ in range(rounds):
            self.tick(*ids)
            self._deliver_among(ids)

    def run(self, seconds: float, step_s: float = 0.02) -> None:
        """All nodes that are up live on: time passes, frames arrive within a step, disks keep up."""
        for _ in range(round(seconds / step_s)):
            self.tick(*self.up, after_s=step_s)
            self._deliver_among(self.up)
            for node_id in self._up_among(self.up):
                self.nodes[node_id].get_on()

    def run_until_led(self, within_s: float = 10.0, among: str | None = None) -> str:
        """Lives on until one node leads in the highest term and serves; its id."""
        for _ in range(round(within_s / 0.02)):
            self.run(0.02)
            serving = [n for n in self.leaders if self[n].serving and (among is None or n in among)]
            if serving:
                newest = max(serving, key=lambda n: self[n].term)
                if self[newest].term == max(self[n].term for n in (among or self.up)):
                    return newest
        raise Violation(f"no leader within {within_s} s")

    # --- frames -----------------------------------------------------------------------------------------

    def deliver(self, source: str, target: str, count: int | None = None, at_once: bool = False) -> int:
        """The oldest `count` frames of a link arrive (default: all that are there now); how many there were.

        `at_once`: by one read from the socket, so that the receiver ticks behind the last of them only.
        """
        link = source, target
        flying = len(self.network.flying[link])
        count = flying if count is None else min(count, flying)
        if at_once:
            self.nodes[target].receive(source, *(self.network.take(link) for _ in range(count)))
        else:
            for _ in range(count):
                if self.nodes[target].replica is None or not self.network.flying[link]:
                    break  # its disk ended it at one of these frames, or it dropped the connection
                self.nodes[target].receive(source, self.network.take(link))
        return count

    def deliver_snapshot(self, source: str, target: str) -> None:
        """`source` sends and `target` asks for more until the snapshot is there; other frames of `target` wait."""
        answers = self.network.flying[target, source]
        while self.deliver(source, target):
            asked = [frame for frame in answers if frame[frames.LENGTH_BYTES + 1] == messages.WANT]
            for frame in asked:
                answers.remove(frame)
                self.nodes[source].receive(target, frames.decode(frame[frames.LENGTH_BYTES :]))

    def duplicate(self, source: str, target: str, position: int = 0) -> None:
        self.network.duplicate((source, target), position)

    def lose(self, source: str, target: str, count: int | None = None) -> None:
        """The oldest frames of a link vanish without a sign."""
        flying = self.network.flying[source, target]
        for _ in range(len(flying) if count is None else min(count, len(flying))):
            flying.popleft()

    def lose_snapshot(self, source: str, target: str) -> None:
        """The pieces of a snapshot that are on this link vanish."""
        flying = self.network.flying[source, target]
        for frame in [frame for frame in flying if frame[frames.LENGTH_BYTES + 1] == messages.CHUNK]:
            flying.remove(frame)

    def intercept(self, source: str, target: str) -> list[bytes]:
        """What is on a link now is held back, for `replay`."""
        flying = self.network.flying[source, target]
        held = list(flying)
        flying.clear()
        return held

    def replay(self, source: str, target: str, held: list[bytes]) -> None:
        self.network.flying[source, target].extend(held)

    # --- links ------------------------------------------------------------------------------------------

    def connect(self, source: str, target: str) -> None:
        """One direction of a link stands (again)."""
        link = source, target
        self.network.broken.discard(link)
        self.network.muted.discard(link)
        self.standing.discard(link)
        self._dial(source, target)

    def _dial(self, source: str, target: str) -> None:
        """As the handshake has it: who is no member is refused and told, who knows more than the other is let in."""
        dialer, acceptor = self.nodes.get(source), self.nodes.get(target)
        link = source, target
        if dialer is None or acceptor is None or dialer.replica is None or acceptor.replica is None:
            return
        if link in self.network.broken | self.standing or target not in dialer.replica.roster:
            return
        mine, other = dialer.replica.roster, acceptor.replica.roster
        if source not in other and mine.index <= other.index:
            dialer.running.roster.told(other.packed)
            dialer.look_around()
            return
        self.standing.add(link)
        if mine.index:
            dialer.send(target, (messages.MEMBERS, mine.packed))
        dialer.running.guard.connected(target)

    def meet(self, node_id: str) -> None:
        """Connections follow the roster of this node."""
        for other in list(self.nodes):
            if other == node_id or self.nodes[node_id].replica is None:
                continue
            if other not in self[node_id].roster:
                for link in ((node_id, other), (other, node_id)):
                    self._let_go(*link)
            else:
                self._dial(node_id, other)
            self._dial(other, node_id)

    def _let_go(self, source: str, target: str) -> None:
        if (source, target) in self.standing:
            self.standing.discard((source, target))
            self.network.flying[source, target].clear()
            if self.nodes[source].replica is not None:
                self.nodes[source].running.guard.disconnected(target)

    def dismissed(self, node_id: str) -> None:
        """The node has learned that it was removed, and stops."""
        self.nodes[node_id].crash(power=False)
        self._gone(node_id)

    def cut(self, source: str, target: str) -> None:
        """One direction of a link breaks: its frames are lost, and the sender knows."""
        self.network.break_link((source, target))
        self.standing.discard((source, target))
        if self.nodes[source].replica is not None:
            self.nodes[source].running.guard.disconnected(target)

    def mute(self, source: str, target: str) -> None:
        """One direction of a link swallows what is sent from now on; nobody knows."""
        self.network.muted.add((source, target))

    def partition(self, *groups: str) -> None:
        """Cuts every link between members of different groups."""
        for link in sorted(links_between(*groups)):
            self.cut(*link)

    def isolate(self, node_id: str) -> None:
        self.partition(node_id, "".join(other for other in self.nodes if other != node_id))

    def rejoin(self, node_id: str) -> None:
        """Every link of this node stands again."""
        for other in self.nodes:
            if other != node_id:
                self.join(node_id, other)

    def join(self, a: str, b: str) -> None:
        for link in ((a, b), (b, a)):
            if link in self.network.broken | self.network.muted:
                self.connect(*link)

    def heal(self) -> None:
        for link in sorted(self.network.broken | self.network.muted):
            self.connect(*link)

    # --- nodes ------------------------------------------------------------------------------------------

    def start_node(self, node_id: str, peers: str) -> None:
        """A node that was never there before, told who the others are."""
        self.nodes[node_id] = Node(node_id, peers, self)
        for peer in peers:
            if peer in self.nodes:
                self.connect(node_id, peer)
                self.connect(peer, node_id)

    def crash(self, node_id: str, power: bool = True) -> None:
        """The process is gone with all its connections; with the power goes what its disk had not finished, too."""
        self.nodes[node_id].crash(power)
        self._gone(node_id)

    def stop(self, node_id: str) -> None:
        """The process ends in good order."""
        self.nodes[node_id].stop()
        self._gone(node_id)

    def _gone(self, node_id: str) -> None:
        for other in self.nodes:
            if other != node_id:
                for source, target in ((node_id, other), (other, node_id)):
                    self.network.flying[source, target].clear()
                    self.standing.discard((source, target))
                if self.nodes[other].replica is not None:
                    self.nodes[other].running.guard.disconnected(node_id)

    def restart(self, node_id: str) -> None:
        """A crashed node starts from its disk; links that are not cut stand at once."""
        if self.nodes[node_id].replica is not None:
            self.crash(node_id)
        self.nodes[node_id].start()
        if self.nodes[node_id].replica is None:
            return  # its disk ended it again at once
        for other in self.nodes:
            for link in ((node_id, other), (other, node_id)):
                if other != node_id and link not in self.network.broken:
                    self.connect(*link)

    def rot(self, node_id: str, name: str, offset: int, bit: int) -> bool:
        """A bit of a file of a node that is down turns over. True where the node says so at its start.

        Then the operator does as it says, and leaves the node down: it is `lost`.
        """
        node = self.nodes[node_id]
        assert node.replica is None
        node.disk.mend()
        node.disk.damage(name, offset, bit)
        held = node.journal, node.snapshots
        try:
            self.restart(node_id)
        except StartupError as refusal:
            if name not in str(refusal):
                raise
            node.replica, node.lost = None, True
            node.journal, node.snapshots = held
            return True
        return False

    def take_snapshot(self, node_id: str, keep: int = 0) -> None:
        self.nodes[node_id].take_snapshot(keep)

    # --- Raft -------------------------------------------------------------------------------------------

    def campaign(self, node_id: str) -> None:
        """The node stands for election at once, as if its leader had asked it to: without anybody's leave."""

        def stand(replica: Replica) -> None:
            replica.election.transfer_to_self(replica.term)
            replica.hasten_election((0.0, 0.0))
            self.clock.pass_s(0.001)

        self.nodes[node_id].run(stand)

    def elect(self, node_id: str, votes_from: Iterable[str]) -> None:
        """The node campaigns and these others, in this order, get to hear of it and answer."""
        self.campaign(node_id)
        for voter in votes_from:
            self.deliver(node_id, voter)
            self.deliver(voter, node_id)
        assert self[node_id].is_leader, f"{node_id} was not elected"

    def propose(self, node_id: str, payload: str | int) -> Write:
        """A client's write on this leader; it is appended, and leaves with the next tick."""
        write = Write(node_id, str(payload).encode())
        write.index, write.term = self[node_id].propose(write.payload)
        self.oracle.proposed(write)
        return write

    def read(self, node_id: str) -> Read:
        return self.nodes[node_id].request_read()

    def add_member(self, leader_id: str, node_id: str, voter: bool = True) -> bool:
        """The leader appends a configuration that has this node as well; False where it may not change it now."""
        following = self._index_behind(leader_id)
        member = Member(node_id, ("", 0), voter=voter, since=following)
        return self._change(leader_id, self[leader_id].roster.current.having(member, following))

    def promote_member(self, leader_id: str, node_id: str) -> bool:
        current = self[leader_id].roster.current
        member = replace(current.members[node_id], voter=True)
        return self._change(leader_id, current.having(member, self._index_behind(leader_id)))

    def remove_member(self, leader_id: str, node_id: str) -> bool:
        return self._change(leader_id, self[leader_id].roster.current.lacking(node_id, self._index_behind(leader_id)))

    def _index_behind(self, leader_id: str) -> int:
        return self[leader_id].last[1] + 1

    def _change(self, leader_id: str, configuration: Configuration) -> bool:
        if not self[leader_id].may_change_members:
            return False
        self.nodes[leader_id].run(lambda replica: replica.change_members(configuration))
        return True

    def join_in(self, node_id: str, since: set[int]) -> bool:
        """A node with an empty disk is told who the members are, and starts; False until it is one by such an entry."""
        newest = max((self[other].roster.newest for other in self.up), key=lambda one: one.index, default=None)
        if newest is None or node_id not in newest.members or newest.members[node_id].since not in since:
            return False
        self.nodes[node_id] = Node(node_id, (), self, told=newest)
        for other in self.nodes:
            for link in ((node_id, other), (other, node_id)):
                if other != node_id and link not in self.network.broken:
                    self.connect(*link)
        return True

    @property
    def up(self) -> list[str]:
        return [node_id for node_id, node in self.nodes.items() if node.replica is not None]

    def _up_among(self, ids: Iterable[str]) -> Iterator[str]:
        """Those of them that are up when their turn comes."""
        return (node_id for node_id in list(ids) if self.nodes[node_id].replica is not None)

    @property
    def leaders(self) -> list[str]:
        return [node_id for node_id, node in self.nodes.items() if node.is_leader]

    # --- promises ---------------------------------------------------------------------------------------

    def must_agree(self, *ids: str) -> None:
        """These nodes (default: all) have applied the same, and all that was acknowledged is in it."""
        states = {node_id: self.nodes[node_id].payloads for node_id in ids or self.nodes}
        longest = max(states.values(), key=len)
        for node_id, state in states.items():
            if state != longest:
                raise Violation(f"{node_id} has applied {len(state)} entries of {len(longest)}")
        for write in self.oracle.acknowledged:
            if write.index - 2 >= len(longest) or longest[write.index - 2] != write.payload:
                raise Violation(f"the acknowledged write {write.payload!r} is lost")

    def must_catch_up(self, node_id: str, within_heartbeats: int = 30) -> None:
        """The node applies all that is committed now."""
        goal = self.oracle.highest_applied
        for _ in range(within_heartbeats):
            if self.nodes[node_id].applied_index >= goal:
                return
            self.settle(rounds=1)
        raise Violation(f"{node_id} did not catch up within {within_heartbeats} heartbeats")

    def _deliver_among(self, ids: Iterable[str]) -> None:
        members = set(ids)
        for link in self.network.busy():
            if set(link) <= members:
                self.deliver(*link)
