"""What drives one member: builds its parts, calls its step, and carries out what a step leaves to be done.

Everything happens in the event loop's thread, in steps (`member.py`). One follows every message, proposal and flush at
the end of the loop's iteration, however many of them it brought, and a timer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any, Final

from kvnode.errors import Fatal
from kvnode.logs import writer
from kvnode.node.catchup import Catchup
from kvnode.node.compaction import Compaction
from kvnode.node.disk_health import DiskHealth
from kvnode.node.divergence import DivergenceCheck
from kvnode.node.feature_level import FeatureLevel
from kvnode.node.known_peers import KnownPeers
from kvnode.node.leadership_log import LeadershipLog
from kvnode.node.member import RunningMember
from kvnode.node.outstanding import Outstanding
from kvnode.node.promises import Promises
from kvnode.node.proposals import Proposals
from kvnode.node.questions import Answers, Questions
from kvnode.node.read_index import ReadIndex
from kvnode.node.replicated_clock import ReplicatedClock
from kvnode.node.restore_contents import Contents
from kvnode.node.settings import RaftSettings
from kvnode.node.waiters import Waiters
from kvnode.node.writes import Writes
from kvnode.peers import frames
from kvnode.peers.handshake import LocalPeer, PeerRefused
from kvnode.peers.network import Network
from kvnode.raft import messages
from kvnode.raft.membership import Roster
from kvnode.raft.ready import MembersChanged, RoleChanged, SnapshotNeeded
from kvnode.raft.replica import Replica
from kvnode.state.entries import ORIGIN_BYTES
from kvnode.state.store import KeyValueStore
from kvnode.storage.flusher import Flusher
from kvnode.storage.identity import Claim, Identity
from kvnode.storage.journal import Journal
from kvnode.storage.segments import Segments
from kvnode.storage.snapshots import Snapshot, Snapshots
from kvnode.watch.hub import Hub

log = logging.getLogger("kvnode.raft")

TICK_S: Final = 0.025
LEADER_GONE_S: Final = (0.05, 0.15)  # a closed connection is news: see `Replica.hasten_election`
# A message of its own for each commit would be a third of all messages, and cost each follower as much as the entries
# themselves: under load the next entry follows at once and brings the news along. It is not held back at all where
# clients wait for it on another node (`Writes.awaited`); a follower's stale reads and watchers are behind by so much.
NOTICE_S: Final = 0.002
NO_LEADER_S: Final = (0.02, 0.06)  # so that the connection is there both ways, and seldom two ask together
# A snapshot of some gigabytes on a slow disk takes minutes; longer than this, no job in a thread is getting anywhere.
JOB_S_MAX: Final = 600.0
# A reader that is alive takes lines in milliseconds. Below 4 MiB nothing is lost meanwhile, and nothing waits for it.
LOG_S_MAX: Final = 10.0
FORWARDED_S_MAX: Final = 6.0  # behind the deadline of a write, at which its client was told that the outcome is unknown


class Engine:
    """The member's driver, and listener of the network. Built and started by `RaftGroup`."""

    def __init__(
        self,
        settings: RaftSettings,
        segments: Segments,
        journal: Journal,
        snapshots: Snapshots,
        store: KeyValueStore,
        watches: Hub,
        cluster_id: bytes,
        roster: Roster,
        claimed: Claim,
        fail: Callable[[Fatal], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._fail, self.snapshots, self.roster = fail, snapshots, roster
        self.settings, self.store, self._watches = settings, store, watches
        self.clock = settings.host.clock
        self.last_step_at = self.clock()
        self.leadership: Waiters[bool] = Waiters()  # resolved whenever who leads may have changed
        self._step_due = self._stopped = False
        self.draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._notice: asyncio.TimerHandle | None = None
        instance = settings.host.token_bytes(ORIGIN_BYTES)
        me = LocalPeer(
            node_id=settings.node_id,
            cluster_id=cluster_id,
            http_url=settings.http_url,
            instance=instance,
            secret=settings.secret,
            level=settings.feature_level,
            cluster_level=lambda: self.store.level,
            fresh=lambda: self.memory.fresh,
            directory_id=claimed.directory_id,
            meet=self._meet,
            peers_0_1=settings.peers_0_1,
            token_bytes=settings.host.token_bytes,
        )
        identity = Identity(snapshots.disk, settings.host.lock())
        self.memory = Promises(claimed, identity, journal, store, roster, lambda: self.leader_id)
        self.network = Network(me, roster, self, settings.certificate, settings.host.draw)
        self._acquaintance = KnownPeers(roster, self.network, identity, fail, self._loop.call_later)
        timeout_s = settings.election_timeout_max_s
        self.outstanding = Outstanding(self.clock)
        self.storage = DiskHealth(self.outstanding, lambda: self._flusher.outstanding_since, timeout_s)
        self._jobs: dict[int, float] = {}  # when each job was begun that a worker thread has not ended, oldest first
        self._job_numbers = itertools.count()
        self.outstanding.watch("worker", JOB_S_MAX, lambda: next(iter(self._jobs.values()), None))
        self.outstanding.watch("log", LOG_S_MAX, writer.writing_since)
        self.replica = Replica(
            roster,
            journal,
            self.clock,
            settings.host.draw.uniform,
            election_timeout_min_s=settings.election_timeout_min_s,
            election_timeout_max_s=settings.election_timeout_max_s,
            heartbeat_s=settings.heartbeat_s,
        )
        self.proposals = Proposals(instance, store.apply, self.clock)
        seconds = ReplicatedClock(lambda: self.replica.term, store, self.clock)
        self.writes = Writes(
            self.replica, self.proposals, self.storage, self.network, lambda: self.leader_id, seconds.due
        )
        self.leadership_log = LeadershipLog(self.replica, self.proposals.meters, self.clock)
        self._feature_level = FeatureLevel(self, store, self.network, roster)
        self.questions = Questions(self.network, lambda: self.leader_id, settings.host)
        self.answers = Answers(self.network)
        self.reads = ReadIndex(
            self.replica, self.network, self.questions, lambda: self.leader_id, self.schedule, timeout_s
        )
        self.outstanding.watch("read_question", timeout_s, lambda: self.reads.unanswered_since)
        self.outstanding.watch("forwarded", FORWARDED_S_MAX, lambda: self.proposals.sent_since)
        self._catchup = Catchup(snapshots, self, self.network.send, self._work, self.clock)
        self.audit = DivergenceCheck(self.replica, store, self.network.send, snapshots.newest)
        self.member = RunningMember(
            self.replica,
            store,
            self.proposals,
            self.writes,
            self.reads,
            Contents(store, self._work, self.schedule),
            watches,
            self.audit.history,
            self.leadership_log,
            self._feature_level,
            self.clock,
        )
        self._compaction = Compaction(self.replica, snapshots, store, self.audit.history, self._work, self._kept)
        self.outstanding.watch("snapshot", JOB_S_MAX, lambda: self._compaction.under_way_since)
        self._flusher = Flusher(
            journal, segments, settings.fsync, self._landed, fail, self.storage.waits, settings.host
        )
        journal.on_dirty = self.schedule
        # What does not reach the guard, by kind; other rooms add theirs.
        self.on: dict[int, Callable[[str, list[Any]], None]] = {
            messages.FORWARD: lambda node_id, message: self.writes.forwarded_here(node_id, *message[1:]),
            messages.REFUSED: lambda _, message: self.writes.refused(*message[1:]),
            messages.READ_INDEX: lambda node_id, message: self.reads.asked(node_id, message[1]),
            **dict.fromkeys(
                (
                    messages.READ_ANSWER,
                    messages.TRANSFER_ANSWER,
                    messages.CHANGED,
                    messages.DRAIN_ANSWER,
                    messages.REPORT_ANSWER,
                ),
                self._answered,
            ),
            messages.CHECKPOINT: lambda node_id, message: self.audit.heard(node_id, *message[1:]),
            **dict.fromkeys((messages.OFFER, messages.WANT, messages.CHUNK), self._catch_up),
        }

    # --- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._say_what_it_may()
        self._acquaintance.changed()
        await self.network.start(*self.settings.listen)
        if not self.replica.peer_ids:
            self.replica.hasten_election((0.0, 0.0))  # there is nobody whose leadership could be disturbed
        self._on_timer()

    async def stop(self) -> None:
        self._stopped = True
        for timer in (self._timer, self._notice):
            if timer is not None:
                timer.cancel()
        await self.network.stop()
        self.proposals.abandon()
        self.reads.stop()
        self.questions.stop()
        self.answers.stop()
        self.leadership.resolve(None)
        await self._flusher.stop(timeout_s=5.0)

    def drain(self, draining: bool) -> None:
        """Whether this node is to go: then it leads where no other one can, and is given no leadership."""
        self.draining = draining
        self._say_what_it_may()
        if draining:
            self.reads.draining()

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
        self._step_due = True  # what a part of the step asks for, those behind it do in this very step
        self.member.step()
        self._step_due = False
        self._carry_out()
        self.last_step_at = self.clock()
        if replica.untold and self._notice is None:
            self._notice = self._loop.call_later(NOTICE_S, self._guarded, self._tell_at_last)
        # Last: the thread that writes gets the interpreter only when this one waits for the network. Woken earlier it
        # would wait for that, and be woken once more. What speaks of these bytes waits for them in the outbox.
        self._flusher.kick()
        if replica.has_more_to_apply:
            self.schedule()

    def _carry_out(self) -> None:
        """What a step, a message or a flight that landed has left to be done."""
        ready = self.replica.ready
        if ready.events or self.member.news:
            self._take_events()
        for node_id, message in ready.messages:
            if not self.network.send(node_id, message) and message[0] == messages.APPEND:
                self.replica.replicator.unsent(node_id, message)
        ready.messages.clear()

    def _take_events(self) -> None:
        news = self.member.news
        self.member.take_events()
        for event in news:
            match event:
                case RoleChanged():
                    self._leader_unsure()
                case MembersChanged():
                    self._acquaintance.changed()
                    self._say_what_it_may()
                case SnapshotNeeded(node_id):
                    self._catchup.offer(node_id, self.replica.term, self.replica.journal[0][1])
        news.clear()

    def _tell_at_last(self) -> None:
        self._notice = None
        if self.replica.untold:
            self.replica.tell(patient=False)
            self._carry_out()

    def _say_what_it_may(self) -> None:
        """Whether this node is to lead, and to vote: told to the replica by the clock, as the disk is looked at,
        and whenever something else changes it."""
        hangs = self.storage.hangs
        self.replica.is_fit = not (hangs or self.draining) and self.storage.full is None
        self.replica.can_vote = not (hangs or self.memory.lost)

    def _on_timer(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._on_timer)
        self.replica.time_passed()
        self._step()
        self.proposals.expire()
        self.questions.look()
        self.reads.look()
        self.reads.expire()
        if self.leadership and self.leader_id is not None:
            # One that was not heard for a while is heard again: nothing has changed in the core, and all who wait for a
            # leader may go on. To look here costs less than at each of its messages.
            self.leadership.resolve(True)
        self._compaction.look()
        self.audit.look()
        self._guarded(self._feature_level.look)
        self._guarded(lambda: self.memory.look(self._work))
        self.storage.look(self.clock(), self._work, self.snapshots.disk.space)
        self._say_what_it_may()
        self.outstanding.look()

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """Whatever goes wrong inside ends the node: a core that raised half-way through is in no known state."""
        try:
            work(*arguments)
        except Fatal as fatal:
            self._fail(fatal)
        except frames.BadFrame:
            raise
        except MemoryError:
            log.exception("There is no memory left.")
            self._fail(
                Fatal("This node has no memory left and must not go on from half a step: give it more, restart it.")
            )
        except Exception:
            log.exception("The Raft core failed.")
            self._fail(Fatal("The Raft core failed in a way that it must not go on from; the log holds the details."))

    def _work(self, job: Callable[[], Any], then: Callable[[Any, Exception | None], None]) -> None:
        """Runs `job` in a worker thread and `then` with its result or exception in the loop."""
        number = next(self._job_numbers)
        self._jobs[number] = self.clock()

        def done(future: asyncio.Future[Any]) -> None:
            del self._jobs[number]
            if future.cancelled() or self._stopped:
                return
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            self._guarded(lambda: then(None if error else future.result(), error))

        self._loop.run_in_executor(None, job).add_done_callback(done)

    def _kept(self, first_index: int) -> frozenset[int]:
        """The snapshots that followers fetch or go on from, who have not got to `first_index` yet."""
        return self._catchup.kept(first_index, self.replica.guard.acknowledged_index)

    # --- the disk ------------------------------------------------------------------------------------

    def _landed(self) -> None:
        """A journal flight is durable."""
        if not self._stopped:
            self._guarded(self._durable)

    def _durable(self) -> None:
        self.replica.durable()
        self._carry_out()
        if self.replica.stirred:
            self.schedule()

    # --- what the network tells (transport.Listener) ---------------------------------------------------

    def link_up(self, node_id: str) -> None:
        self._acquaintance.introduce(node_id)
        self.replica.guard.connected(node_id)
        self.questions.connected(node_id)
        self.writes.connected(node_id)
        if self.leader_id is None and self.network.up >= self.replica.majority_of_others:
            self.replica.hasten_election(NO_LEADER_S)  # a cluster that has just started need not sit out a timeout
        self.schedule()

    def heard_from(self, node_id: str) -> None:
        self.writes.connected(node_id)

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

    def told(self, packed: bytes) -> None:
        self._guarded(lambda: self._heard(packed))

    def _heard(self, packed: bytes) -> None:
        self._acquaintance.heard(packed)
        self._take_events()  # what comes next may be of a group that this node is in, or is not, from now on

    def _meet(self, node_id: str, directory_id: bytes, fresh: bool) -> None:
        """Raises PeerRefused. While the node of that name answers at its address, a fresh one is another process:
        `Network.check_single` refuses it in its own words.
        """
        if not self.network.is_up(node_id):
            self.memory.meet(node_id, directory_id, fresh)

    def refused(self, refused: PeerRefused) -> None:
        if refused.heard:
            self.memory.refused(refused.code)
            self._say_what_it_may()

    def received(self, node_id: str, bodies: list[bytes]) -> None:
        if not self._stopped:
            self._guarded(self._dispatch_all, node_id, bodies)

    def _dispatch_all(self, node_id: str, bodies: list[bytes]) -> None:
        try:
            for body in bodies:
                self._dispatch(node_id, frames.decode(body))
        finally:
            self._carry_out()

    def _dispatch(self, node_id: str, message: list[Any]) -> None:
        kind = message[0]
        if kind <= messages.TIMEOUT_NOW:
            # That a leader does not lead any more comes as an event: most messages need no other look.
            looks = not self.replica.is_leader
            leader_before = self.replica.leader_id if looks else None
            self.replica.guard.receive(node_id, message)
            if self.replica.ready.events:
                self._take_events()
            if looks and self.replica.leader_id != leader_before:
                self._leader_unsure()
            if not self.replica.stirred:
                return
        elif kind == messages.MEMBERS:
            self._heard(message[1])
        elif node_id in self.roster and kind in self.on:
            self.on[kind](node_id, message)
        self.schedule()

    def _answered(self, _: str, message: list[Any]) -> None:
        self.questions.answered(message[1], message[2:])

    def _catch_up(self, node_id: str, message: list[Any]) -> None:
        self._catchup.receive(node_id, message, self.replica.term)

    # --- who leads ---------------------------------------------------------------------------------------

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

    def is_reachable(self, node_id: str) -> bool:
        """Connected, and on the leader: answering."""
        replica, silence_s = self.replica, self.settings.election_timeout_min_s
        return self.network.is_up(node_id) and (not replica.is_leader or replica.answered_within(node_id, silence_s))

    def _leader_unsure(self) -> None:
        """Who leads may have changed: whoever waits for the old one looks again."""
        self.leadership_log.look()
        self.reads.leader_unsure()
        self.questions.leader_changed()
        self.writes.leader_unsure()
        self.leadership.resolve(True)
        self.schedule()

    # --- what it proposes by itself (lease_clock.Leader) ---------------------------------------------------

    def serving_term(self) -> int | None:
        replica = self.replica
        return replica.term if replica.serving and not self.writes.transferring else None

    def propose(self, payload: bytes) -> int:
        index, _ = self.replica.propose(payload)
        self.schedule()
        return index

    def applied_index(self) -> int:
        return self.replica.applied_index

    @property
    def applied_term(self) -> int:
        return self.member.applied_term

    def is_current(self) -> bool:
        return 0 < self.applied_term == self.replica.term

    # --- what a snapshot replaces ----------------------------------------------------------------------------

    @property
    def committed_floor(self) -> int:
        return self.replica.committed_floor

    def snapshot_arrived(self, snapshot: Snapshot, store: KeyValueStore) -> None:
        """A verified snapshot that is ahead of this node takes the place of its state and its log."""
        self.store.adopt(store)
        self._watches.skipped()
        self._work(store.release, lambda *_: None)  # what was here before: freeing a big store takes time
        self.replica.install_snapshot(snapshot.index, snapshot.term, snapshot.configuration)
        self.audit.restored(snapshot)
        self.proposals.skipped()
        log.info("Installed the snapshot at index %d, revision %d.", snapshot.index, self.store.revision)
        self.schedule()
