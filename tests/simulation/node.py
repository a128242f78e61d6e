"""One member: the real replica, guard, journal and segments, with a list for a state machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvnode.raft import wire
from kvnode.raft.journal import Flight, Journal
from kvnode.raft.replica import Replica
from kvnode.raft.segments import Segments
from kvnode.raft.status import Role
from tests.simulation.disk import MemoryDisk
from tests.simulation.oracle import Read, Violation

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

CLUSTER_ID = b"simulated-group!"
SPARE_FRAMES = 100  # to one peer, in answer to one event, beyond one for each entry of the log: held promises leave together


@dataclass(frozen=True)
class Snapshot:
    index: int = 0
    term: int = 0
    member_ids: tuple[str, ...] = ()
    payloads: tuple[bytes, ...] = ()  # what was applied at 2, 3, … index


class Node:
    """`Owner` of one replica. A crash takes everything but `disk` and `snapshot`, which is published at once."""

    def __init__(self, node_id: str, peer_ids: Iterable[str], cluster: Cluster, rate: float = 1.0) -> None:
        self.node_id = node_id
        self.cluster = cluster
        self.rate = rate
        self.disk = MemoryDisk()
        self.snapshot = Snapshot()
        self.payloads: list[bytes] = []
        self.reads: dict[int, list[Read]] = {}
        self.flushes_at_once = True
        self._initial_peers = list(peer_ids)
        self._flight: Flight | None = None
        self._frames: dict[str, int] = {}
        self.replica: Replica | None = None
        self.start()

    # --- life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """As a node starts: recover the segments, fit the log to the snapshot, build the replica on both."""
        cluster = self.cluster
        self.segments = Segments(self.disk, CLUSTER_ID, cluster.segment_bytes)
        self.journal = Journal(self.segments.recover())
        self.journal.reconcile(self.snapshot.index, self.snapshot.term, self.disk.where(""))
        self.payloads = list(self.snapshot.payloads)
        members = self.snapshot.member_ids or (self.node_id, *self._initial_peers)
        self._flight = None
        cluster.clock.rate = self.rate
        self.replica = Replica(
            self.node_id,
            [peer for peer in members if peer != self.node_id],
            self.journal,
            self,
            cluster.clock.read,
            election_timeout_min_s=cluster.election_timeout_min_s,
            election_timeout_max_s=cluster.election_timeout_max_s,
            heartbeat_s=cluster.heartbeat_s,
            draw=random.Random(cluster.draw.random()),
        )
        self.flush()

    def crash(self) -> None:
        self.disk.crash(self.cluster.draw)
        self.replica = None
        self.reads.clear()
        # What a start would find: the oracle counts it as held while the node is down.
        self.journal = Journal(Segments(self.disk, CLUSTER_ID, self.cluster.segment_bytes).recover())

    @property
    def running(self) -> Replica:
        """The replica, about to do something: by its own clock."""
        if self.replica is None:
            raise AssertionError(f"{self.node_id} is down")
        self.cluster.clock.rate = self.rate
        return self.replica

    # --- what drives it ---------------------------------------------------------------------------------

    def run(self, step: Callable[[Replica], object]) -> None:
        """One event, then what a node does after each: a tick, and a flush unless the disk is slow."""
        replica = self.running
        self._frames.clear()
        step(replica)
        replica.tick()
        if self.flushes_at_once:
            self.flush()

    def tick(self) -> None:
        self.run(lambda replica: None)

    def receive(self, source: str, message: wire.Message) -> None:
        self.run(lambda replica: replica.guard.receive(source, message))

    def begin_flight(self) -> None:
        """The disk starts to write what is there now; nothing of it is durable yet."""
        if self._flight is None:
            self._flight = self.journal.begin_flight()
            if self._flight is not None:
                self.segments.append(self._flight.buffers, self._flight.last_index, self._flight.state, sync=False)

    def end_flight(self) -> None:
        """The disk is done with what `begin_flight` handed to it."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._frames.clear()
            self.segments.sync()
            self.journal.end_flight(flight)
            if flight.drop_before:
                self.segments.drop_before(flight.drop_before)
            self.running.durable()
            self.running.tick()

    def flush(self) -> None:
        for _ in range(20):
            self.begin_flight()
            if self._flight is None:
                return
            self.end_flight()
        raise Violation(f"{self.node_id} dirties its journal without end")

    def take_snapshot(self, keep: int = 0) -> bool:
        """Publishes a snapshot of what is applied, then forgets the log below it but for `keep` entries."""
        replica = self.running
        index = int(replica.raftLastApplied)
        term = self.journal.term_at(index)
        if index <= max(1, self.snapshot.index) or term is None:
            return False
        self.snapshot = Snapshot(index, term, (self.node_id, *replica.peer_ids), tuple(self.payloads))
        self.journal.compact(max(self.first_index, index - keep))
        if self.flushes_at_once:
            self.flush()
        return True

    def install(self, snapshot: Snapshot) -> None:
        """A peer's snapshot has arrived whole."""
        replica = self.running
        if snapshot.index <= replica.committed_floor or self.journal.term_at(snapshot.index) == snapshot.term:
            return
        self.snapshot = snapshot
        self.payloads = list(snapshot.payloads)
        self.run(lambda replica: replica.install_snapshot(snapshot.index, snapshot.term, snapshot.member_ids))

    def request_read(self) -> Read:
        replica = self.running
        read = self.cluster.oracle.read_requested(self.node_id, replica.term)
        self.reads.setdefault(replica.request_read(), []).append(read)
        return read

    # --- what it knows ----------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        return self.replica is not None and self.replica.is_leader

    @property
    def first_index(self) -> int:
        return self.journal[0][1]

    @property
    def last_index(self) -> int:
        return self.journal[-1][1]

    @property
    def applied_index(self) -> int:
        return len(self.payloads) + 1

    def term_at(self, index: int) -> int | None:
        return self.journal.term_at(index)

    def holds_durably(self, index: int, term: int) -> bool:
        """Would a restart right now find entry `index`?"""
        if self.snapshot.index >= index:
            return True
        return len(self.journal) > 0 and self.journal.durable_index >= index and self.journal.term_at(index) == term

    # --- Owner ------------------------------------------------------------------------------------------

    def send(self, node_id: str, message: wire.Message) -> bool:
        count = self._frames[node_id] = self._frames.get(node_id, 0) + 1
        if count > len(self.journal) + SPARE_FRAMES:
            raise Violation(f"{self.node_id} sends {count} frames to {node_id} at once, of a log of {len(self.journal)}")
        return self.cluster.network.send(self.node_id, node_id, message)

    def applied(self, index: int, term: int, payload: bytes) -> None:
        if index != self.applied_index + 1:
            raise Violation(f"{self.node_id} applied entry {index} after entry {self.applied_index}")
        self.payloads.append(payload)
        oracle, needed = self.cluster.oracle, self.running.majority_of_others + 1
        holders = needed
        if index not in oracle.chosen:
            holders = sum(node.holds_durably(index, term) for node in self.cluster.nodes.values())
        oracle.applied(
            self.node_id, index, term, payload, node_term=self.running.term, holders=holders, needed=needed
        )

    def read_confirmed(self, read_round: int, index: int) -> None:
        for number in [number for number in self.reads if number <= read_round]:
            for read in self.reads.pop(number):
                self.cluster.oracle.read_confirmed(read, index)

    def reads_failed(self, read_round: int) -> None:
        for number in [number for number in self.reads if number <= read_round]:
            del self.reads[number]

    def role_changed(self, role: Role) -> None:
        if role == "leader":
            self.cluster.oracle.leads(self, self.running.term)

    def needs_snapshot(self, node_id: str) -> None:
        self.cluster.offer_snapshot(self.node_id, node_id)

    def member_added(self, node_id: str) -> None:
        self.cluster.connect(self.node_id, node_id)

    def member_dropped(self, node_id: str) -> None:
        pass
