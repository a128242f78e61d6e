"""RaftGroup: the asyncio face of one node's Raft group. Everything outside `raft/` talks to this."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from kvnode.configuration import Configuration
from kvnode.deadline import LEAST_S, deadline, remaining_s
from kvnode.errors import (
    Fatal,
    KvnodeError,
    NoLeader,
    ShuttingDown,
    Starting,
    StartupError,
    Unavailable,
)
from kvnode.logs import request_ids
from kvnode.metrics.meters import RaftLevels, RaftMeters
from kvnode.node.drain import Drains
from kvnode.node.engine import Engine
from kvnode.node.feature_level import too_new
from kvnode.node.gauges import levels
from kvnode.node.initial_membership import claimed_by, roster
from kvnode.node.lease_clock import LeaseClock
from kvnode.node.members import membership, seen_members, unseen_members
from kvnode.node.observed_status import seen_lag, seen_status, unseen_status
from kvnode.node.pace import SNAPSHOT_RESTS, Pace
from kvnode.node.read_barrier import read_barrier
from kvnode.node.reconfiguration import Change, Reconfiguration
from kvnode.node.reports import Report, Reports
from kvnode.node.request_log import forwarded_requests
from kvnode.node.session_key import SessionKey
from kvnode.node.settings import RaftSettings
from kvnode.node.status import (
    Drained,
    Membership,
    MemberStatus,
    RaftStatus,
    leader_refusal,
)
from kvnode.node.transfer import Transfer
from kvnode.node.watchdog import Watchdog
from kvnode.node.write_batch import Share, WriteBatch
from kvnode.raft import messages
from kvnode.raft.core import check_release
from kvnode.state.commands import FEATURE_LEVEL
from kvnode.state.results import Result
from kvnode.state.store import KeyValueStore
from kvnode.storage.disk import Disk
from kvnode.storage.journal import Journal
from kvnode.storage.segments import Segments
from kvnode.storage.snapshots import Snapshots
from kvnode.watch.hub import Hub

log = logging.getLogger("kvnode.raft")

WRITE_DEADLINE_S: Final = 5.0  # several elections long: a write that meets one waits instead of failing
READ_DEADLINE_S: Final = 3.0
TRANSFER_DEADLINE_S: Final = 5.0
CHANGE_DEADLINE_S: Final = 5.0  # of members


class RaftGroup:
    """One member of a replicated store. `store` is for reading only; `fatal` resolves when the node must stop."""

    def __init__(self, settings: RaftSettings) -> None:
        self._settings = settings
        self._engine: Engine | None = None
        self._disk: Disk | None = None
        self._segments: Segments | None = None
        self._cluster_id = b""
        self.draining = False  # Read-only outside this class.
        self._leaving = False  # it drains because it is about to stop
        self._stopping = False
        self._transfer: Transfer | None = None
        self._expiry: LeaseClock | None = None
        self._reconfiguration: Reconfiguration | None = None
        self._drains: Drains | None = None
        self._reports = Reports(settings.node_id)
        self.own_reports = self._reports.own  # what this node says of itself when another one asks
        self.is_ready: Callable[[RaftStatus], bool] = lambda status: status.started  # by the checks of /readyz
        self.store = KeyValueStore()
        self.watchdog = Watchdog(settings.host)
        self.session = SessionKey(self.store, settings.session_keys, settings.secret, settings.host)
        self._loop = asyncio.get_running_loop()
        self.watches = Hub(self.store, self._loop.call_soon)
        self.fatal: asyncio.Future[Fatal] = self._loop.create_future()

    # --- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads what is on disk and joins the group. Raises StartupError; then nothing is left behind."""
        check_release()
        self.watchdog.start()
        loop = self._loop
        settings = self._settings
        self._disk = disk = settings.disk(settings.data_dir)
        try:
            claimed = await claimed_by(settings, disk)
            self._cluster_id = claimed.cluster_id
            self._segments = segments = Segments(disk, self._cluster_id)
            snapshots = Snapshots(
                disk, self._cluster_id, Pace(settings.host.clock, settings.host.sleep, SNAPSHOT_RESTS).rest
            )
            # In a worker: the HTTP server answers its probes while a big store is being read.
            store = await loop.run_in_executor(None, snapshots.recover)
            if store.level > FEATURE_LEVEL:
                raise StartupError(too_new(store.level))
            recovered = await loop.run_in_executor(None, segments.recover)
            if recovered.cut_bytes:
                log.warning(
                    "The journal ended in %d bytes of an unfinished write, as a crash leaves them: they are cut off.",
                    recovered.cut_bytes,
                )
            journal = Journal(recovered)
            newest = snapshots.newest
            if newest is not None and segments.disk_bytes == 0:
                raise StartupError(
                    f"The data directory {settings.data_dir} holds a snapshot and no journal: without its votes this "
                    "node is not safe to start; restore the journal from a copy, or give the node an empty --data-dir."
                )
            where = str(settings.data_dir)
            journal.reconcile(newest.index if newest else 0, newest.term if newest else 0, where)
            self.store.adopt(store)
            self.watches.restart()
            members = roster(settings, disk, claimed, journal, newest)
            at = self._cluster_id
            engine = Engine(
                settings,
                segments,
                journal,
                snapshots,
                self.store,
                self.watches,
                at,
                members,
                claimed,
                self._failed,
            )
            engine.on[messages.REQUESTS] = forwarded_requests
            self._reports.start(engine)
            self.own_reports["timeline"] = lambda since_ms: {"changes": list(engine.leadership_log.changes)}
            self._transfer = Transfer(engine)
            self._reconfiguration = Reconfiguration(engine, self._transfer)
            self._drains = Drains(
                engine,
                self._transfer,
                lambda: self.is_ready(self.status()),
                lambda: self.draining,
                self._set_draining,
            )
            try:
                await engine.start()
            except BaseException:
                await engine.stop()
                raise
            self._engine = engine
            self._expiry = LeaseClock(engine, self.store, engine.clock)
            self._expiry.run(loop)
            self.session.run(engine, engine.clock, disk)
        except OSError as error:
            raise StartupError(
                f"The data directory {settings.data_dir} cannot be used ({error.strerror or error}): "
                "mend the disk or free some space, then start the node again."
            ) from error
        finally:
            if self._engine is None:
                disk.close()
                self._disk = None

    async def stop(self) -> None:
        """Ends everything; what was acknowledged is on disk. Idempotent."""
        self._stopping = True
        self.session.stop()
        self.watchdog.stop()
        if self._transfer is not None:
            self._transfer.stop()
        if self._expiry is not None:
            self._expiry.stop()
        if self._reconfiguration is not None:
            self._reconfiguration.stop()
        if self._drains is not None:
            self._drains.stop()
        if self._engine is not None:
            await self._engine.stop()
        if self._disk is not None:
            self._disk.close()
            self._disk = None

    def begin_drain(self) -> None:
        """This node is about to stop, and wants no new work: probes fail, watches end, it leads where no other can, it
        serves. There is no way back.
        """
        self._leaving = True
        self._set_draining(True)

    async def drain(self, node_id: str | None, force: bool) -> Drained:
        """The same for any node (None: this one), until `undrain`, and not for the last that is ready unless forced.

        Raises NotFound, LastReadyNode, Starting, Unavailable or OutcomeUnknown.
        """
        self._running()
        assert self._drains is not None
        return await self._drains.begin(node_id, force)

    async def undrain(self, node_id: str | None) -> Drained:
        """That node takes new work again. Raises as `drain`, and ShuttingDown where it is about to stop."""
        self._running()
        assert self._drains is not None
        return await self._drains.end(node_id)

    def _set_draining(self, draining: bool) -> None:
        if self._leaving and not draining:
            raise ShuttingDown("This node is about to stop: its drain cannot be taken back.")
        self.draining = draining
        if draining:
            self.watches.close("shutting_down")
        else:
            self.watches.reopen()
        if self._engine is not None:
            self._engine.drain(draining)

    def _failed(self, fatal: Fatal) -> None:
        if not self.fatal.done():
            self.fatal.set_result(fatal)

    # --- writes and reads --------------------------------------------------------------------------------

    def propose(self, command: bytes, deadline_s: float = WRITE_DEADLINE_S) -> asyncio.Future[Result]:
        """Replicates one encoded command and gives its result, within `deadline_s`.

        Raises Starting, ShuttingDown, DiskFull, Overloaded or (no time left) Unavailable at once, NoLeader or
        OutcomeUnknown from the future.
        """
        engine = self._engine
        if engine is None or self._stopping:
            engine = self._running()
        left_s = deadline_s if deadline.get() is None else _time_for_answer_s(deadline_s)
        future: asyncio.Future[Result] = self._loop.create_future()
        if engine.writes.submit(command, future, engine.clock() + left_s, request_ids.request_id.get()):
            engine.schedule()
        return future

    def propose_each(self, commands: Sequence[bytes]) -> asyncio.Future[list[Result | KvnodeError]]:
        """Replicates independent commands and gives the result or the error of each, in their order.

        Raises Starting, ShuttingDown or (no time left) Unavailable at once.
        """
        engine = self._running()
        bulk = WriteBatch(len(commands))
        ends_at = engine.clock() + _time_for_answer_s(WRITE_DEADLINE_S)
        for number, command in enumerate(commands):
            share = Share(bulk, number)
            try:
                engine.writes.submit(command, share, ends_at, request_ids.request_id.get())
            except KvnodeError as error:
                share.set_exception(error)
        engine.schedule()
        return bulk.done

    def lease_left_s(self, lease_id: int) -> float | None:
        """What is left of a lease, None on a node that does not keep its time."""
        return self._expiry.left_s(lease_id) if self._expiry is not None else None

    async def read_barrier(self, waited_s: float = 0.0) -> None:
        """Afterwards the local store holds every write that was acknowledged before the call, by any node.

        `waited_s`: how much of the deadline was spent on a `read_index` that came to nothing.
        """
        engine = self._running()
        left_s = READ_DEADLINE_S - waited_s
        left_s = remaining_s(left_s) if waited_s else _time_for_answer_s(left_s)
        if not await read_barrier(
            engine, left_s + waited_s, waited_s, self._settings.heartbeat_s, lambda: self._stopping
        ):
            self._running()
            raise NoLeader("The cluster has no leader that this node can reach: send the request again in a moment.")

    def read_index(self) -> asyncio.Future[int | None] | None:
        """One try of `read_barrier`: an index that the store must hold (`holds`). None without a leader to ask."""
        engine = self._engine
        if engine is None or self._stopping:
            engine = self._running()
        return engine.reads.index(READ_DEADLINE_S if deadline.get() is None else _time_for_answer_s(READ_DEADLINE_S))

    def holds(self, index: int | None) -> bool:
        """Whether the store has applied `index`."""
        return index is not None and self._engine is not None and index <= self._engine.replica.applied_index

    def verify_leader(self, timeout_s: float) -> asyncio.Future[int | None]:
        """Not None once a majority confirmed, in a round that began after this call, that this node leads."""
        engine = self._engine
        if engine is None or not engine.replica.is_leader:
            refused: asyncio.Future[int | None] = self._loop.create_future()
            refused.set_result(None)
            return refused
        return engine.reads.confirm(timeout_s)

    async def transfer(self, to: str | None, timeout_s: float = TRANSFER_DEADLINE_S) -> tuple[str, int]:
        """Hands leadership to `to`, or to the follower that is furthest: (leader id, term) once it leads.

        Raises Conflict where that cannot be, NoLeader, or Unavailable when it did not happen in time.
        """
        self._running()
        assert self._transfer is not None
        return await self._transfer.hand_over(to, _time_for_answer_s(timeout_s))

    # --- members -----------------------------------------------------------------------------------------

    async def add_member(
        self, node_id: str, address: tuple[str, int], http_url: str, learner: bool, moved: bool
    ) -> Membership:
        """Adds a learner, which becomes a voter once it has caught up unless it is to stay one; or `moved`.

        This and the two below raise Conflict, NotFound, BadRequest, NoLeader, Unavailable or OutcomeUnknown.
        """
        return await self._change(Change("add", node_id, address, http_url, learner, moved))

    async def remove_member(self, node_id: str, force: bool) -> Membership:
        """`force`: also where those that stay would have no majority among them now."""
        return await self._change(Change("remove", node_id, force=force))

    async def promote_member(self, node_id: str) -> Membership:
        return await self._change(Change("promote", node_id))

    async def replace_member(self, node_id: str) -> Membership:
        """A voter that has lost its data directory becomes a learner of its name, and a voter once it has caught up."""
        return await self._change(Change("replace", node_id))

    async def _change(self, change: Change) -> Membership:
        self._running()
        assert self._reconfiguration is not None
        return self._shown(await self._reconfiguration.change(change, _time_for_answer_s(CHANGE_DEADLINE_S)))

    async def reports(self, what: str, since_ms: int = 0) -> dict[str, Report]:
        """By node: the report of each member that answers in time; {} of one whose version knows no reports."""
        return await self._reports.ask(what, since_ms)

    def membership(self) -> Membership:
        """The configuration that counts on this node now. Raises Starting."""
        return self._shown(self._running().roster.current)

    def _shown(self, configuration: Configuration) -> Membership:
        urls = self._running().network.http_urls | {self._settings.node_id: self._settings.http_url}
        return membership(self._cluster_id, configuration, urls)

    # --- what is known -----------------------------------------------------------------------------------

    def status(self) -> RaftStatus:
        """This node's view at this moment."""
        if self._engine is None:
            return unseen_status(self._settings, self._cluster_id, self.draining, self.watchdog.error)
        fatal = self.fatal.result().message if self.fatal.done() else None
        seen = seen_status(self._engine, self._cluster_id, not self._stopping, self.draining, fatal, self.session)
        return replace(seen, loop_error=self.watchdog.error) if self.watchdog.error is not None else seen

    def leader_refusal(self) -> str | None:
        """Why a leader probe is refused from local state alone, None where a majority must be asked."""
        engine = self._engine
        if (
            engine is not None
            and engine.replica.serving
            and not (self._stopping or self.draining or engine.writes.transferring)
            and engine.storage.full is None
            and not engine.storage.hangs
        ):
            return None  # what `leader_refusal` says of such a status, without all the rest of it
        return leader_refusal(self.status())

    def leader(self) -> tuple[str | None, int]:
        """(the leader that this node would turn to, this node's term), as `status()` has them and much cheaper."""
        engine = self._engine
        return (None, 0) if engine is None else (engine.leader_id, engine.replica.term)

    def applied_lag(self) -> int | None:
        """That of the status, None before this node has started: cheap as well."""
        return None if self._engine is None or self._stopping else seen_lag(self._engine)

    def members(self) -> tuple[MemberStatus, ...]:
        """Every member as this node sees it, sorted by id."""
        engine, settings = self._engine, self._settings
        if engine is not None:
            drains = self._drains.drains if self._drains is not None else lambda node_id: False
            return seen_members(engine, self.status(), drains)
        return unseen_members(settings.peers)

    def meters(self) -> RaftMeters:
        """What this node counted since it began."""
        return RaftMeters() if self._engine is None else self._engine.proposals.meters

    def levels(self) -> RaftLevels | None:
        """What stands where now; None until the node has started."""
        return None if self._engine is None or self._segments is None else levels(self._engine, self._segments)

    def _running(self) -> Engine:
        if self._stopping:
            raise ShuttingDown("This node is shutting down: send the request to another one.")
        if self._engine is None:
            raise Starting("This node has not finished starting: send the request again in a moment.")
        return self._engine


def _time_for_answer_s(standard_s: float) -> float:
    """`standard_s`, or what the request's sender still waits. Unavailable where that is no time for an answer."""
    left_s = remaining_s(standard_s)
    if left_s < LEAST_S < standard_s:
        raise Unavailable("The request's Kvnode-Timeout leaves no time to do it: send it again, and wait longer.")
    return left_s
