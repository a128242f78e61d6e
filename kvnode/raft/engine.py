"""One node's moving parts, and the step that turns them: core, journal, network, writes, reads, snapshots.

Everything happens in the event loop's thread, in steps. A step ticks the core, hands it what waits to be
proposed, lets it speak to its followers and starts the next journal flight. Steps follow every message,
proposal and flush at the end of the loop's iteration, however many of them it brought, and a timer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from kvnode.commands import ORIGIN_BYTES, encode_entry
from kvnode.errors import Fatal, KvnodeError, Overloaded, Unavailable
from kvnode.raft import wire
from kvnode.raft.catchup import Catchup
from kvnode.raft.flusher import Flusher
from kvnode.raft.handshake import Identity
from kvnode.raft.journal import Journal
from kvnode.raft.proposals import GROUP_BYTES, Proposals
from kvnode.raft.replica import Replica
from kvnode.raft.segments import Segments
from kvnode.raft.settings import RaftSettings
from kvnode.raft.snapshot import Snapshot, Snapshots
from kvnode.raft.status import Role
from kvnode.raft.transport import Network
from kvnode.raft.waiters import Rounds, Waiters
from kvnode.store import KeyValueStore

log = logging.getLogger("kvnode.raft")

TICK_S: Final = 0.025
ENTRIES_IN_FLIGHT: Final = 4  # proposals of the leader that are not applied yet; more of them only wait longer
GROUPS_IN_FLIGHT: Final = 8  # groups that a follower has forwarded and not seen again
FORWARDED_BYTES_MAX: Final = 64 * 1_048_576
REFUSED_PAUSE_S: Final = 0.05
LEADER_GONE_S: Final = (0.05, 0.15)  # a closed connection is news: see `Replica.hasten_election`
NO_LEADER_S: Final = (0.1, 0.3)
SNAPSHOT_BYTES: Final = 64 * 1_048_576  # the log is compacted when its commands hold this much, …
SNAPSHOT_ENTRIES: Final = 200_000  # … or at this many entries
TAIL_BYTES: Final = 16 * 1_048_576  # of which this much is kept for followers that are only a little behind
TAIL_ENTRIES: Final = 10_000


class Engine:
    """Owner of the replica and listener of the network. Built and started by `RaftGroup`."""

    def __init__(
        self,
        settings: RaftSettings,
        segments: Segments,
        journal: Journal,
        snapshots: Snapshots,
        store: KeyValueStore,
        cluster_id: bytes,
        fail: Callable[[Fatal], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._fail = fail
        self.settings = settings
        self.store = store
        self.journal = journal
        self.snapshots = snapshots
        self.clock = time.monotonic
        instance = os.urandom(ORIGIN_BYTES)
        me = Identity(settings.node_id, cluster_id, settings.http_url, instance, settings.secret)
        peers = {node_id: address for node_id, address in settings.peers.items() if node_id != settings.node_id}
        self.network = Network(me, peers, self)
        self.replica = Replica(
            settings.node_id,
            peers,
            journal,
            self,
            self.clock,
            election_timeout_min_s=settings.election_timeout_min_s,
            election_timeout_max_s=settings.election_timeout_max_s,
            heartbeat_s=settings.heartbeat_s,
        )
        self.proposals = Proposals(instance, store.apply, self.clock)
        self.catchup = Catchup(snapshots, self, self.network.send, self.work, self.clock)
        self.flusher = Flusher(journal, segments, settings.fsync, self._landed, self._write_failed)
        self.transferring = False
        self.last_step_at = self.clock()
        self.applied_term = 0
        self.leadership: Waiters[bool] = Waiters()  # resolved whenever who leads may have changed
        self.local_rounds: Rounds[int] = Rounds()  # read rounds of this node as leader
        self.asked_rounds: Rounds[int] = Rounds()  # read indexes asked of the leader
        self.applied_rounds: Rounds[bool] = Rounds()  # indexes to be applied here
        self.on_transfer_asked: Callable[[str, int, str | None], None] = lambda *_: None
        self.on_transfer_answer: Callable[[list[Any]], None] = lambda _: None
        self._forwarded: deque[tuple[str, int, bytes]] = deque()
        self._forwarded_bytes = 0
        self._unapplied: deque[int] = deque()  # indexes that this leader proposed in this term
        self._forward_after = 0.0
        self._ask_number = 0
        self._ask_in_flight = False
        self._ask_wanted = False
        self._step_due = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._snapshot_under_way = False
        self._snapshot_after = 0.0
        self._stopped = False
        journal.on_dirty = self.schedule

    # --- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        host, port = self.settings.listen
        await self.network.start(host, port)
        if not self.replica.peer_ids:
            self.replica.hasten_election((0.0, 0.0))  # there is nobody whose leadership could be disturbed
        self._on_timer()

    async def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await self.network.stop()
        self.proposals.abandon()
        self.local_rounds.settle(2**63, None)
        self.asked_rounds.settle(2**63, None)
        self.leadership.resolve(None)
        await self.flusher.stop(timeout_s=5.0)

    def work(self, job: Callable[[], Any], then: Callable[[Any, Exception | None], None]) -> None:
        """Runs `job` in a worker thread and `then` with its result or exception in the loop."""

        def done(future: asyncio.Future[Any]) -> None:
            if future.cancelled() or self._stopped:
                return
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            self._guarded(lambda: then(None if error else future.result(), error))

        self._loop.run_in_executor(None, job).add_done_callback(done)

    # --- the step ------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """A step at the end of this iteration of the loop; one, however often it is asked for."""
        if not self._step_due:
            self._step_due = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        self._step_due = False
        if not self._stopped:
            self._guarded(self._turn)

    def _turn(self) -> None:
        replica = self.replica
        replica.tick()
        if self._pump():
            replica.tick()
        self.last_step_at = self.clock()
        if len(self.applied_rounds):
            self.applied_rounds.settle(replica.raftLastApplied, True)
        self.flusher.kick()
        if replica.has_more_to_apply:
            self.schedule()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Whatever goes wrong inside ends the node: a core that raised half-way through is in no known state."""
        try:
            work()
        except Fatal as fatal:
            self._fail(fatal)
        except wire.BadFrame:
            raise
        except Exception:
            log.exception("The Raft core failed.")
            self._fail(Fatal("The Raft core failed in a way that it must not go on from; the log holds the details."))

    def _on_timer(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._on_timer)
        self._step()
        self.proposals.expire()
        self._maybe_snapshot()

    def _landed(self) -> None:
        """A journal flight is durable."""
        if not self._stopped:
            self._guarded(self.replica.durable)
            self.schedule()

    def _write_failed(self, error: OSError) -> None:
        self._fail(
            Fatal(
                f"The journal could not be written ({error.strerror or error}): what is on disk is not certain any "
                "more, so the node stops. Mend the disk, then start it again."
            )
        )

    # --- writes --------------------------------------------------------------------------------------

    @property
    def leader_id(self) -> str | None:
        """The leader that this node would turn to: itself, or one heard within an election timeout."""
        replica = self.replica
        if replica.is_leader:
            return self.settings.node_id
        age_s = replica.election.leader_heard_age_s()
        if age_s is None or age_s > self.settings.election_timeout_max_s:
            return None
        return replica.leader_id

    def _pump(self) -> bool:
        """Hands on what waits to be written. True: something was proposed."""
        replica, proposals = self.replica, self.proposals
        if not replica.is_leader:
            if proposals.waiting:
                self._forward()
            return False
        if not replica.serving or self.transferring:
            return False
        proposed = False
        while (proposals.waiting or self._forwarded) and len(self._unapplied) < ENTRIES_IN_FLIGHT:
            groups: list[bytes] = []
            size = 0
            if proposals.waiting:
                groups.append(proposals.take(replica.term)[1])
                size = len(groups[0])
            while self._forwarded and (not groups or size + len(self._forwarded[0][2]) <= 2 * GROUP_BYTES):
                group = self._forwarded.popleft()[2]
                groups.append(group)
                size += len(group)
                self._forwarded_bytes -= len(group)
            self._unapplied.append(replica.propose(encode_entry(groups))[0])
            proposed = True
        return proposed

    def _forward(self) -> None:
        leader_id = self.leader_id
        if leader_id is None or not self.network.is_up(leader_id) or self.clock() < self._forward_after:
            return
        while self.proposals.waiting and self.proposals.sent < GROUPS_IN_FLIGHT:
            term = self.replica.term
            sequence, group = self.proposals.take(term)
            if not self.network.send(leader_id, (wire.FORWARD, term, sequence, group)):
                self.proposals.taken_back(sequence)
                return

    def _forwarded_here(self, node_id: str, term: int, sequence: int, group: bytes) -> None:
        """A follower's group. It was sent in `term` and counts in that term only (see `proposals`)."""
        replica = self.replica
        if term != replica.term or not replica.serving or self.transferring:
            self.network.send(node_id, (wire.REFUSED, sequence, Unavailable.code, "This node does not lead now."))
        elif self._forwarded_bytes + len(group) > FORWARDED_BYTES_MAX:
            message = "Too many writes are waiting on the leader: send the request again in a moment."
            self.network.send(node_id, (wire.REFUSED, sequence, Overloaded.code, message))
        else:
            self._forwarded.append((node_id, sequence, group))
            self._forwarded_bytes += len(group)

    def _refused(self, sequence: int, code: str, message: str) -> None:
        if code == Unavailable.code:
            self._forward_after = self.clock() + REFUSED_PAUSE_S  # it knows better soon, or another one leads
            self.proposals.taken_back(sequence)
        else:
            self.proposals.refused(sequence, Overloaded(message, code))

    # --- reads ---------------------------------------------------------------------------------------

    async def read_index(self, timeout_s: float) -> int | None:
        """An index that a read taking place now must have applied; None where nobody confirmed it in time."""
        self.schedule()
        if self.replica.is_leader:
            return await self.local_rounds.wait(self.replica.request_read(), timeout_s)
        self._ask_wanted = True
        number = self._ask_number + 1
        if not self._ask_in_flight:
            self._loop.call_soon(self._ask)
        return await self.asked_rounds.wait(number, timeout_s)

    def _ask(self) -> None:
        """Asks the leader for a read index, for everybody who wanted one since the last question."""
        if self._ask_in_flight or not self._ask_wanted:
            return
        self._ask_wanted = False
        self._ask_number += 1
        leader_id = self.leader_id
        if leader_id is None or not self.network.send(leader_id, (wire.READ_INDEX, self._ask_number)):
            self.asked_rounds.settle(self._ask_number, None)
            return
        self._ask_in_flight = True

    def _answered(self, number: int, index: int | None) -> None:
        if number == self._ask_number:
            self._ask_in_flight = False
            self.asked_rounds.settle(number, index)
            self._ask()

    async def _answer_read(self, node_id: str, number: int) -> None:
        timeout_s = self.settings.election_timeout_max_s
        index = await self.read_index(timeout_s) if self.replica.is_leader else None
        self.network.send(node_id, (wire.READ_ANSWER, number, index))

    # --- what the replica tells (replica.Owner) -------------------------------------------------------

    def send(self, node_id: str, message: wire.Message) -> bool:
        return self.network.send(node_id, message)

    def applied(self, index: int, term: int, payload: bytes) -> None:
        if self._unapplied and self._unapplied[0] <= index:
            self._unapplied.popleft()
        self.applied_term = max(self.applied_term, term)
        self.proposals.applied(term, payload)

    def read_confirmed(self, read_round: int, index: int) -> None:
        self.local_rounds.settle(read_round, index)

    def reads_failed(self, read_round: int) -> None:
        self.local_rounds.settle(read_round, None)

    def role_changed(self, role: Role) -> None:
        log.info("%s is %s in term %d.", self.settings.node_id, role, self.replica.term)
        self._unapplied.clear()
        for node_id, sequence, _ in self._forwarded:
            self.network.send(node_id, (wire.REFUSED, sequence, Unavailable.code, "This node does not lead now."))
        self._forwarded.clear()
        self._forwarded_bytes = 0
        self._leader_unsure()

    def needs_snapshot(self, node_id: str) -> None:
        self.catchup.offer(node_id, self.replica.term)

    def member_added(self, node_id: str) -> None:
        """Membership is that of the first cluster; changing it while running is not offered yet."""

    def member_dropped(self, node_id: str) -> None:
        self.network.drop(node_id)

    # --- what the network tells (transport.Listener) ---------------------------------------------------

    def link_up(self, node_id: str) -> None:
        self.replica.guard.connected(node_id)
        if self.leader_id is None and self.network.up >= self.replica.majority_of_others:
            self.replica.hasten_election(NO_LEADER_S)  # a cluster that has just started need not sit out a timeout
        self.schedule()

    def link_down(self, node_id: str) -> None:
        self.replica.guard.disconnected(node_id)
        if node_id == self.replica.leader_id:
            self._leader_unsure()

    def peer_closed(self, node_id: str) -> None:
        if node_id == self.replica.leader_id and not self.replica.is_leader and not self._stopped:
            if self.replica.election.leader_heard_age_s() is not None:  # it has two connections to close
                log.info("The connection with the leader %s closed: asking whether another may lead.", node_id)
            self.replica.hasten_election(LEADER_GONE_S)
            self._leader_unsure()

    def received(self, node_id: str, bodies: list[bytes]) -> None:
        if not self._stopped:
            self._guarded(lambda: self._dispatch_all(node_id, bodies))
            self.schedule()

    def _dispatch_all(self, node_id: str, bodies: list[bytes]) -> None:
        for body in bodies:
            self._dispatch(node_id, wire.decode(body))

    def _dispatch(self, node_id: str, message: list[Any]) -> None:
        kind = message[0]
        if kind <= wire.TIMEOUT_NOW:
            leader_before = self.replica.leader_id
            self.replica.guard.receive(node_id, message)
            if self.replica.leader_id != leader_before:
                self._leader_unsure()
        elif kind == wire.FORWARD:
            self._forwarded_here(node_id, *message[1:])
        elif kind == wire.REFUSED:
            self._refused(*message[1:])
        elif kind == wire.READ_INDEX:
            task = self._loop.create_task(self._answer_read(node_id, message[1]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif kind == wire.READ_ANSWER:
            self._answered(*message[1:])
        elif kind == wire.TRANSFER:
            self.on_transfer_asked(node_id, *message[1:])
        elif kind == wire.TRANSFER_ANSWER:
            self.on_transfer_answer(message[1:])
        elif kind == wire.OFFER:
            if message[1] == self.replica.term:
                self.catchup.offered(node_id, *message[2:])
        elif kind == wire.WANT:
            self.catchup.wanted(node_id, *message[1:])
        elif kind == wire.CHUNK:
            self.catchup.arrived(node_id, *message[1:])

    def _leader_unsure(self) -> None:
        """Who leads may have changed: open questions to the old one are void, whoever waits looks again."""
        self._ask_in_flight = False
        self.asked_rounds.settle(self._ask_number, None)
        if self._ask_wanted:
            self._loop.call_soon(self._ask)
        self._forward_after = 0.0
        self.leadership.resolve(True)
        self.schedule()

    # --- snapshots -----------------------------------------------------------------------------------

    @property
    def committed_floor(self) -> int:
        return self.replica.committed_floor

    def snapshot_arrived(self, snapshot: Snapshot, store: KeyValueStore) -> None:
        """A verified snapshot that is ahead of this node takes the place of its state and its log."""
        self.store.adopt(store)
        self.replica.install_snapshot(snapshot.index, snapshot.term, snapshot.members)
        self.proposals.skipped()
        log.info("Installed the snapshot at index %d, revision %d.", snapshot.index, self.store.revision)
        self.schedule()

    def _maybe_snapshot(self) -> None:
        journal = self.journal
        grown = journal.command_bytes >= SNAPSHOT_BYTES or len(journal) >= SNAPSHOT_ENTRIES
        if not grown or self._snapshot_under_way or self._stopped or self.clock() < self._snapshot_after:
            return
        index = self.replica.raftLastApplied
        term = journal.term_at(index)
        if term is None or (self.snapshots.newest is not None and self.snapshots.newest.index >= index):
            return
        self._snapshot_under_way = True
        members = (self.settings.node_id, *self.replica.peer_ids)
        view = self.store.view()
        self.work(lambda: self.snapshots.write(index, term, members, view), self._snapshot_written)

    def _snapshot_written(self, snapshot: Snapshot | None, error: Exception | None) -> None:
        self._snapshot_under_way = False
        if snapshot is None:
            self._snapshot_after = self.clock() + 30.0
            log.warning("A snapshot could not be written (%s); trying again in 30 s.", error)
            return
        self.snapshots.published(snapshot)
        journal = self.journal
        first, kept = snapshot.index, 0
        while first > journal[0][1] and kept < TAIL_BYTES and snapshot.index - first < TAIL_ENTRIES:
            first -= 1
            kept += len(journal[first - journal[0][1]][0])
        journal.compact(first)
        log.info(
            "Snapshot at index %d (%d bytes); the log now starts at %d.", snapshot.index, snapshot.size_bytes, first
        )
        self.schedule()


def transfer_answer(number: int, leader_id: str | None, term: int, error: KvnodeError | None) -> wire.Message:
    """TRANSFER_ANSWER: who leads now, or why the leadership stayed where it was."""
    return (wire.TRANSFER_ANSWER, number, leader_id, term, error.code if error else "", error.message if error else "")
