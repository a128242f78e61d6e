"""One member: the real replica, guard, journal, segments, store, snapshots and catch-up, on simulated ground."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvnode.commands import PUT
from kvnode.raft import wire
from kvnode.raft.catchup import Catchup
from kvnode.raft.journal import Flight, Journal
from kvnode.raft.replica import Replica
from kvnode.raft.segments import Segments
from kvnode.raft.snapshot import Snapshot, Snapshots
from kvnode.raft.status import Role
from kvnode.store import KeyValueStore
from tests.simulation.disk import MemoryDisk
from tests.simulation.oracle import Read, Violation

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

CLUSTER_ID = b"simulated-group!"
SPARE_FRAMES = (
    100  # to one peer, in answer to one event, beyond one for each entry of the log: held promises leave together
)


@dataclass(eq=False)
class _Job:
    """A worker's task. It runs in one step, and its result is known to the node in another."""

    work: Callable[[], Any]
    then: Callable[[Any, Exception | None], None]
    done: bool = False
    result: Any = None
    error: Exception | None = None


class Node:
    """What owns one replica. A crash takes everything but what its disk has synced.

    The state machine is the real store, with one key for each index, so that the order of what was applied can
    be read from it, also after it went through a snapshot.
    """

    def __init__(self, node_id: str, peer_ids: Iterable[str], cluster: Cluster, rate: float = 1.0) -> None:
        self.node_id = node_id
        self.cluster = cluster
        self.rate = rate
        self.disk = MemoryDisk()
        self.reads: dict[int, list[Read]] = {}
        self.quick = True  # disk and workers are done at once; otherwise by `end_flight` and `work_on`
        self._initial_peers = list(peer_ids)
        self._flight: Flight | None = None
        self._frames: dict[str, int] = {}
        self.replica: Replica | None = None
        self.start()

    # --- life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """As a node starts: recover snapshot and segments, fit the log to the snapshot, build the replica on them."""
        cluster = self.cluster
        self._recover()
        newest = self.snapshots.newest
        if newest is not None:
            self.journal.reconcile(newest.index, newest.term, self.disk.where(""))
        else:
            self.journal.reconcile(0, 0, self.disk.where(""))
        members = newest.members if newest is not None else (self.node_id, *self._initial_peers)
        self.reads.clear()
        self._flight = None
        self._jobs: list[_Job] = []
        self._writing_snapshot = False
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
        self.catchup = Catchup(self.snapshots, self, self.send, self._work, cluster.clock.read)
        self.flush()

    def crash(self) -> None:
        self.disk.crash(self.cluster.draw)
        self.replica = None
        self._recover()  # what a start would find: the oracle counts it as held while the node is down

    def _recover(self) -> None:
        self.snapshots = Snapshots(self.disk, CLUSTER_ID)
        self._adopt(self.snapshots.recover(), self.snapshots.newest)
        self.segments = Segments(self.disk, CLUSTER_ID, self.cluster.segment_bytes)
        self.journal = Journal(self.segments.recover())

    def _adopt(self, store: KeyValueStore, snapshot: Snapshot | None) -> None:
        self.store = store
        self.payloads = [item.value for _, item in store.range("", None, 1_000_000)]
        if snapshot is not None and self.applied_index != snapshot.index:
            raise Violation(
                f"{self.node_id} has a snapshot at {snapshot.index} that holds {self.applied_index} entries"
            )

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
        if self.quick:
            self.flush()
            while self._jobs:
                self.work_on()
            while replica.has_more_to_apply:
                replica.tick()

    def tick(self) -> None:
        self.run(lambda replica: None)

    def receive(self, source: str, *messages: wire.Message) -> None:
        """Messages that one read from the socket has brought: the node ticks once, behind the last."""

        def dispatch(replica: Replica) -> None:
            for message in messages:
                self._dispatch(source, message)

        self.run(dispatch)

    def _dispatch(self, source: str, message: wire.Message) -> None:
        kind = message[0]
        if kind <= wire.TIMEOUT_NOW:
            self.running.guard.receive(source, message)
        elif kind == wire.OFFER and message[1] == self.running.term:
            self.catchup.offered(source, *message[2:])
        elif kind == wire.WANT:
            self.catchup.wanted(source, *message[1:])
        elif kind == wire.CHUNK:
            self.catchup.arrived(source, *message[1:])

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

    def get_on(self) -> None:
        """Disk and workers are done with all that they have."""
        self.end_flight()
        self.flush()
        while self._jobs:
            self.work_on()

    # --- snapshots --------------------------------------------------------------------------------------

    def take_snapshot(self, keep: int = 0) -> None:
        """Begins to write a snapshot of what is applied now; then the log below it goes, but for `keep` entries."""
        replica = self.running
        index, newest = self.applied_index, self.snapshots.newest
        term = self.journal.term_at(index)
        if self._writing_snapshot or index <= (newest.index if newest else 1) or term is None:
            return
        self._writing_snapshot = True
        members, view = (self.node_id, *replica.peer_ids), self.store.view()

        def written(snapshot: Snapshot | None, error: Exception | None) -> None:
            assert snapshot is not None, error
            self._writing_snapshot = False
            newest = self.snapshots.newest
            if newest is None or snapshot.index > newest.index:  # a peer's may have been installed meanwhile
                self.snapshots.published(snapshot)
            self.journal.compact(max(snapshot.index - keep, min(snapshot.index, self.first_index)))

        self._work(lambda: self.snapshots.write(index, term, members, view), written)
        self.tick()

    def snapshot_arrived(self, snapshot: Snapshot, store: KeyValueStore) -> None:
        self._adopt(store, snapshot)
        self.running.install_snapshot(snapshot.index, snapshot.term, snapshot.members)

    def _work(self, work: Callable[[], Any], then: Callable[[Any, Exception | None], None]) -> None:
        self._jobs.append(_Job(work, then))

    def work_on(self, position: int = 0) -> None:
        """A worker gets on with one of the jobs (the oldest by default): it is done, or its end is told."""
        if not self._jobs:
            return
        job = self._jobs[position]
        if job.done:
            self._jobs.remove(job)
            self.run(lambda replica: job.then(job.result, job.error))
            return
        job.done = True
        try:
            job.result = job.work()
        except Exception as error:
            job.error = error

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
    def jobs(self) -> int:
        """How many jobs its workers have not ended."""
        return len(self._jobs)

    @property
    def committed_floor(self) -> int:
        return self.running.committed_floor

    @property
    def applied_index(self) -> int:
        return len(self.payloads) + 1

    def term_at(self, index: int) -> int | None:
        return self.journal.term_at(index)

    def holds_durably(self, index: int, term: int) -> bool:
        """Would a restart right now find entry `index`?"""
        newest = self.snapshots.newest
        if newest is not None and newest.index >= index:
            return True
        return len(self.journal) > 0 and self.journal.durable_index >= index and self.journal.term_at(index) == term

    # --- Owner ------------------------------------------------------------------------------------------

    def send(self, node_id: str, message: wire.Message) -> bool:
        count = self._frames[node_id] = self._frames.get(node_id, 0) + 1
        if count > len(self.journal) + SPARE_FRAMES:
            raise Violation(
                f"{self.node_id} sends {count} frames to {node_id} at once, of a log of {len(self.journal)}"
            )
        return self.cluster.network.send(self.node_id, node_id, message)

    def applied(self, index: int, term: int, payload: bytes) -> None:
        if index != self.applied_index + 1:
            raise Violation(f"{self.node_id} applied entry {index} after entry {self.applied_index}")
        self.store.apply([PUT, f"{index:08}", payload, "", None])
        self.payloads.append(payload)
        oracle, needed = self.cluster.oracle, self.running.majority_of_others + 1
        holders = needed
        if index not in oracle.chosen:
            holders = sum(node.holds_durably(index, term) for node in self.cluster.nodes.values())
        oracle.applied(self.node_id, index, term, payload, node_term=self.running.term, holders=holders, needed=needed)

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
        self.catchup.offer(node_id, self.running.term)

    def member_added(self, node_id: str) -> None:
        self.cluster.connect(self.node_id, node_id)

    def member_dropped(self, node_id: str) -> None:
        pass
