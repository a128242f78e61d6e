"""One member: the real replica, guard, journal, segments, store, snapshots and catch-up, on simulated ground."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvnode.configuration import Configuration, named
from kvnode.node.catchup import Catchup
from kvnode.node.compaction import Bounds, Compaction
from kvnode.node.disk_health import DiskHealth
from kvnode.node.divergence import History
from kvnode.node.outstanding import Outstanding
from kvnode.raft import messages
from kvnode.raft.membership import Roster
from kvnode.raft.ready import MembersChanged, ReadConfirmed, ReadsFailed, RoleChanged, SnapshotNeeded
from kvnode.raft.replica import Replica
from kvnode.state.commands import PUT
from kvnode.state.store import KeyValueStore
from kvnode.storage.journal import Flight, Journal
from kvnode.storage.records import REGULAR
from kvnode.storage.segments import OutOfSpace, Segments
from kvnode.storage.snapshots import Snapshot, Snapshots
from tests.simulation.disk import Crash, MemoryDisk
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

    def __init__(
        self,
        node_id: str,
        peer_ids: Iterable[str],
        cluster: Cluster,
        rate: float = 1.0,
        told: Configuration | None = None,
    ) -> None:
        self.node_id = node_id
        self.cluster = cluster
        self.rate = rate
        self.disk = MemoryDisk()
        self.disk.draw = random.Random(f"{cluster.seed} {node_id}")
        self.reads: dict[int, list[Read]] = {}
        self._inside = False
        # Its disk was damaged, and it said so: an operator leaves it down. What it had promised when it was last up
        # is in `journal` and `snapshots`: those who counted on that were right to, a minority being lost.
        self.lost = False
        self.quick = True  # disk and workers are done at once; otherwise by `end_flight` and `work_on`
        self._first = told or named(node_id, *peer_ids)
        self._told = told
        self.dismissed = False  # it was removed, knows it, and has stopped
        self.hung = False  # its disk takes what it is given and answers nothing
        self._flight_since: float | None = None
        self.meets = False  # its roster has changed: who is connected is to be looked at
        self._flight: Flight | None = None
        self._frames: dict[str, int] = {}
        self.replica: Replica | None = None
        self.start()

    # --- life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """As a node starts: recover snapshot and segments, fit the log to the snapshot, build the replica on them."""
        with self._process():
            self._recover()
            self._begin()

    def _begin(self) -> None:
        cluster = self.cluster
        newest = self.snapshots.newest
        if newest is not None:
            self.journal.reconcile(newest.index, newest.term, self.disk.where(""))
        else:
            self.journal.reconcile(0, 0, self.disk.where(""))
        first = newest.configuration if newest is not None and newest.configuration.index else self._first
        roster = Roster(self.node_id, self.journal, first, self._told)
        self.reads.clear()
        self._flight = None
        self._written = False
        self._jobs: list[_Job] = []
        cluster.clock.rate = self.rate
        outstanding = Outstanding(cluster.clock.read)
        self.storage = DiskHealth(outstanding, lambda: self._flight_since, cluster.election_timeout_max_s)
        self.replica = Replica(
            roster,
            self.journal,
            cluster.clock.read,
            random.Random(cluster.draw.random()).uniform,
            election_timeout_min_s=cluster.election_timeout_min_s,
            election_timeout_max_s=cluster.election_timeout_max_s,
            heartbeat_s=cluster.heartbeat_s,
        )
        self.history = History(self.journal, self.store)
        if newest is not None:
            self.history.restored(newest.index, newest.digest)
        self.catchup = Catchup(self.snapshots, self, self.send, self._work, cluster.clock.read)
        acknowledged = self.replica.guard.acknowledged_index
        self.compaction = Compaction(
            self.replica,
            self.snapshots,
            self.store,
            self.history,
            self._work,
            lambda first_index: self.catchup.kept(first_index, acknowledged),
            cluster.bounds,
        )
        self.flush()

    def stop(self) -> None:
        """As SIGTERM does it: what is left is written and noted, then the process ends."""
        self.get_on()
        if self.replica is not None:
            with self._process():
                self.segments.sync()
                self.segments.note_durable()
            self.crash(power=False)

    def crash(self, power: bool = True) -> None:
        """Of the machine with all that it had not synced, or of the process alone."""
        if power:
            self.disk.crash(self.cluster.draw)
        else:
            self.disk.kill()
        self.replica, self._jobs = None, []
        self._recover()  # what a start would find: the oracle counts it as held while the node is down

    @contextmanager
    def _process(self) -> Iterator[None]:
        """Where the disk ends the process, and the schedule goes on: power is lost, or an error is not to be mended."""
        if self._inside:
            yield
            return
        self._inside = True
        try:
            yield
        except Crash:
            self.cluster.crash(self.node_id)
        except OSError:
            self.cluster.crash(self.node_id, power=False)
        finally:
            self._inside = False

    def _recover(self) -> None:
        self.snapshots = Snapshots(self.disk, CLUSTER_ID)
        self.store = KeyValueStore()
        self._adopt(self.snapshots.recover(), self.snapshots.newest)
        self.segments = Segments(self.disk, CLUSTER_ID, self.cluster.segment_bytes)
        self.journal = Journal(self.segments.recover())

    def _adopt(self, store: KeyValueStore, snapshot: Snapshot | None) -> None:
        self.store.adopt(store)
        self.payloads = [item.value for _, item in self.store.range("", None, 1_000_000)]
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
        self.replica.is_fit = not self.storage.hangs and (self._flight is None or self._written)
        self.replica.can_vote = not self.storage.hangs
        return self.replica

    # --- what drives it ---------------------------------------------------------------------------------

    def run(self, step: Callable[[Replica], object]) -> None:
        """One event, then what a node does after each: a tick, and a flush unless the disk is slow."""
        replica = self.running
        self._frames.clear()
        with self._process():
            step(replica)
            self._carry_out()
            self._step(replica)
            self.compaction.look()
            if self.quick:
                self._flush()
                while self._jobs:
                    self._work_on(0)
                while replica.has_more_to_apply:
                    self._step(replica)
        self.look_around()

    def _step(self, replica: Replica) -> None:
        """As the engine does it."""
        replica.advance()
        self._carry_out()
        for command, index, term in replica.committed():
            self._applied(index, term, command[1:] if command[0] == REGULAR else b"")
            replica.applied(command, index)
        replica.tell(patient=False)
        self._carry_out()

    def _carry_out(self) -> None:
        ready = self.running.ready
        for event in ready.events:
            match event:
                case ReadConfirmed(read_round, index):
                    self._read_confirmed(read_round, index)
                case ReadsFailed(read_round):
                    for number in [number for number in self.reads if number <= read_round]:
                        del self.reads[number]
                case RoleChanged("leader"):
                    self.cluster.oracle.leads(self, self.running.term)
                case MembersChanged():
                    self.meets = True
                case SnapshotNeeded(node_id):
                    self.catchup.offer(node_id, self.running.term, self.first_index)
        ready.events.clear()
        for node_id, message in ready.messages:
            if not self.send(node_id, message) and message[0] == messages.APPEND:
                self.running.replicator.unsent(node_id, message)
        ready.messages.clear()

    def look_around(self) -> None:
        """As the running node does when its roster has changed: it stops, or connections follow."""
        if self.replica is not None:
            self._carry_out()
        if self.replica is not None and self.replica.roster.dismissed is not None:
            self.dismissed = True
            self.cluster.dismissed(self.node_id)
        elif self.meets:
            self.meets = False
            self.cluster.meet(self.node_id)

    def tick(self) -> None:
        self.run(self._timer)

    def _timer(self, replica: Replica) -> None:
        self.storage.look(self.cluster.clock.read(), lambda job, then: then(job(), None), self.disk.space)
        replica.time_passed()
        if replica.is_leader and self.storage.hangs and replica.fit_peers():
            replica.transfer_to(replica.fit_peers()[-1])

    def receive(self, source: str, *received: messages.Message) -> None:
        """Messages that one read from the socket has brought: the node ticks once, behind the last."""

        def dispatch(replica: Replica) -> None:
            for message in received:
                self._dispatch(source, message)

        self.run(dispatch)

    def _dispatch(self, source: str, message: messages.Message) -> None:
        kind = message[0]
        if kind <= messages.TIMEOUT_NOW:
            self.running.guard.receive(source, message)
            self._carry_out()
        elif kind == messages.MEMBERS:
            self.running.roster.told(message[1])
        elif kind == messages.OFFER and message[1] == self.running.term:
            self.catchup.offered(source, *message[2:])
        elif kind == messages.WANT:
            self.catchup.wanted(source, *message[1:])
        elif kind == messages.CHUNK:
            self.catchup.arrived(source, *message[1:])

    def begin_flight(self) -> None:
        """The disk starts to write what is there now; nothing of it is durable yet."""
        with self._process():
            self._begin_flight()

    def end_flight(self) -> None:
        """The disk is done with what `begin_flight` handed to it."""
        with self._process():
            self._end_flight()

    def flush(self) -> None:
        with self._process():
            self._flush()

    def get_on(self) -> None:
        """Disk and workers are done with all that they have."""
        with self._process():
            self._end_flight()
            self._flush()
            while self._jobs:
                self._work_on(0)

    def note(self) -> None:
        """The journal has been quiet for a moment."""
        with self._process():
            if self._flight is None:
                self.segments.note_durable()

    def _begin_flight(self) -> None:
        """Also once more with a flight that found the disk full."""
        if self._flight is None:
            self._flight = self.journal.begin_flight()
            self._written = False
            self._flight_since = None if self._flight is None else self.running.clock()
        flight = self._flight
        if flight is not None and not self._written:
            try:
                self.segments.append(flight.buffers, flight.last_index, flight.state, sync=False)
            except OutOfSpace:
                return
            self._written = True

    def _end_flight(self) -> None:
        if self._flight is not None and self._written and not self.hung:
            flight, self._flight, self._flight_since = self._flight, None, None
            self._frames.clear()
            self.segments.sync()
            if flight.drop_before:
                self.segments.drop_before(flight.drop_before)
            self.journal.end_flight(flight)
            self.running.durable()
            self._carry_out()
            self._step(self.running)

    def _flush(self) -> None:
        for _ in range(20):
            self._begin_flight()
            if self._flight is None or not self._written or self.hung:
                return
            self._end_flight()
        raise Violation(f"{self.node_id} dirties its journal without end")

    # --- snapshots --------------------------------------------------------------------------------------

    def take_snapshot(self, keep: int = 0) -> None:
        """Begins to write a snapshot of what is applied now; then the log below it goes, but for `keep` entries."""
        self.compaction.bounds = Bounds(0, 0, tail_entries=keep)
        self.run(lambda replica: self.compaction.look())
        self.compaction.bounds = self.cluster.bounds

    def snapshot_arrived(self, snapshot: Snapshot, store: KeyValueStore) -> None:
        self._adopt(store, snapshot)
        self.running.install_snapshot(snapshot.index, snapshot.term, snapshot.configuration)
        self.history.restored(snapshot.index, snapshot.digest)

    def _work(self, work: Callable[[], Any], then: Callable[[Any, Exception | None], None]) -> None:
        self._jobs.append(_Job(work, then))

    def work_on(self, position: int = 0) -> None:
        """A worker gets on with one of the jobs (the oldest by default): it is done, or its end is told."""
        with self._process():
            self._work_on(position)

    def _work_on(self, position: int) -> None:
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

    # --- what it does for its replica -------------------------------------------------------------------

    def send(self, node_id: str, message: messages.Message) -> bool:
        count = self._frames[node_id] = self._frames.get(node_id, 0) + 1
        if count > len(self.journal) + SPARE_FRAMES:
            raise Violation(
                f"{self.node_id} sends {count} frames to {node_id} at once, of a log of {len(self.journal)}"
            )
        return self.cluster.network.send(self.node_id, node_id, message)

    def _applied(self, index: int, term: int, payload: bytes) -> None:
        if index != self.applied_index + 1:
            raise Violation(f"{self.node_id} applied entry {index} after entry {self.applied_index}")
        self.store.apply([PUT, f"{index:08}", payload, "", None])
        self.payloads.append(payload)
        self.history.applied(index)
        oracle, holders, needed = self.cluster.oracle, 0, 0
        if index not in oracle.chosen:
            holders, needed = self._majority(index, term)
        oracle.applied(self.node_id, index, term, payload, node_term=self.running.term, holders=holders, needed=needed)
        oracle.digested(self.node_id, index, self.history.value)

    def _majority(self, index: int, term: int) -> tuple[int, int]:
        """(how many voters hold the entry, how many must), by the present configuration.

        Or by the one before: what was agreed on by that may be applied behind the entry that ended it.
        """
        roster, nodes = self.running.roster, self.cluster.nodes
        for configuration in (roster.current, roster.at(roster.current.index - 1)):
            voters = configuration.voters
            holders = sum(node_id in nodes and nodes[node_id].holds_durably(index, term) for node_id in voters)
            if holders > len(voters) // 2:
                break
        return holders, len(voters) // 2 + 1

    def _read_confirmed(self, read_round: int, index: int) -> None:
        for number in [number for number in self.reads if number <= read_round]:
            for read in self.reads.pop(number):
                self.cluster.oracle.read_confirmed(read, index)
