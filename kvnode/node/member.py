"""One member of the group: the step that takes what has come in to what is to go out, in one place and in one order.

Nothing here waits, and nothing here reads a clock of its own, draws, opens a file or a socket. What is to be done
outside of it is left in `Replica.ready` and in `news`, and the driver (`engine.py`) carries it out after each step.

One entry meets the four parts of a step in several steps, always in this order:

    persist   `propose` has appended it, and the journal's thread writes and syncs it
    send      followers get it at once; nothing that this node promises leaves before it is on disk (`raft/outbox.py`)
    apply     a majority has it on disk: the state machine takes it, the same on every node
    answer    the writes in it have their results, and reads that waited for it may go
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from kvnode.node.divergence import History
from kvnode.node.feature_level import FeatureLevel
from kvnode.node.leadership_log import LeadershipLog
from kvnode.node.proposals import Proposals
from kvnode.node.read_index import ReadIndex
from kvnode.node.restore_contents import LARGE_BYTES, Contents
from kvnode.node.writes import Writes
from kvnode.raft.ready import Event, ReadConfirmed, ReadsFailed, RoleChanged
from kvnode.raft.replica import Replica
from kvnode.state.commands import FEATURE_LEVEL
from kvnode.state.store import KeyValueStore
from kvnode.storage.records import REGULAR
from kvnode.watch.hub import Hub

log = logging.getLogger("kvnode.raft")

FAILURE_EVERY_S: Final = 1.0  # between two lines about commands that the state machine failed at; a metric counts all


class RunningMember:
    """One node's. `contents`: of the restores in its log; `history`: what the divergence check compares."""

    def __init__(
        self,
        replica: Replica,
        store: KeyValueStore,
        proposals: Proposals,
        writes: Writes,
        reads: ReadIndex,
        contents: Contents,
        watches: Hub,
        history: History,
        leadership_log: LeadershipLog,
        feature_level: FeatureLevel,
        clock: Callable[[], float],
    ) -> None:
        self.replica, self.store = replica, store
        self.proposals, self.writes, self.reads = proposals, writes, reads
        self.history = history
        self._contents, self._watches, self._clock = contents, watches, clock
        self._leadership_log, self._feature_level = leadership_log, feature_level
        self.applied_term = 0
        self.news: list[Event] = []  # for the driver: the members or the leader changed, a follower needs a snapshot
        self._failures_seen: frozenset[str] = frozenset()
        self._failure_told_at = -FAILURE_EVERY_S

    # --- the step ---------------------------------------------------------------------------------------

    def step(self) -> None:
        """Afterwards the driver sends `replica.ready.messages` and hands to the journal's thread what was appended."""
        replica = self.replica
        replica.advance()  # the core: who leads, and what is committed by now
        if replica.ready.events:
            self.take_events()
        for command, index, term in replica.committed():  # apply, and answer its writes
            if not self._apply(command, index, term):
                replica.held_up = True
                break
        if self.store.level < FEATURE_LEVEL:
            self._feature_level.look()  # before the first write, where all members are there: it has revision 2 then
        self.writes.pump()  # append what waits, or forward it to who leads
        if self.reads.wanted:
            self.reads.ask()
        replica.tell(patient=not self.writes.awaited)  # what followers are to be sent
        if not replica.untold:
            self.writes.awaited = False
        if replica.ready.events:
            self.take_events()
        self.reads.advanced(replica.applied_index)  # answer the reads that waited for this

    def take_events(self) -> None:
        """What came of a tick, a message or a flight that landed: deals with what is of this member alone."""
        events = self.replica.ready.events
        for event in events:
            match event:
                case ReadConfirmed(read_round, index):
                    self.reads.confirmed(read_round, index)
                case ReadsFailed(read_round):
                    self.reads.failed(read_round)
                case RoleChanged(role):
                    self._leadership_log.role_changed(role)
                    self.writes.role_changed()
                    self.news.append(event)
                case _:
                    self.news.append(event)
        events.clear()

    # --- what is committed ------------------------------------------------------------------------------

    def _apply(self, command: bytes, index: int, term: int) -> bool:
        """False where it cannot be applied yet; a step follows as soon as it can."""
        payload = command[1:] if command[0] == REGULAR else b""
        if len(payload) >= LARGE_BYTES and not self._contents.are_read(index, payload):
            return False
        self.writes.applied(index)
        self.applied_term = max(self.applied_term, term)
        self.proposals.applied(term, payload)
        if self.store.former is not None or self.store.replacement is not None:
            self._contents.applied()
        if self.store.failures:
            self._apply_failed(index)
        self._watches.publish()
        self.history.applied(index)
        self.replica.applied(command, index)
        return True

    def _apply_failed(self, index: int) -> None:
        """The state machine has failed at commands of this entry, as it does on every node: loud, and no reason to
        stop. The exception is shown once for each kind of it; a client could repeat what it met by the thousand."""
        failures = self.store.failures
        self.proposals.meters.apply_errors += len(failures)
        for failure in failures:
            kind = type(failure).__name__
            known, self._failures_seen = kind in self._failures_seen, self._failures_seen | {kind}
            if not known or self._clock() - self._failure_told_at >= FAILURE_EVERY_S:
                self._failure_told_at = self._clock()
                log.error(
                    "The state machine failed at a command in entry %d (%s): the command is answered as invalid on "
                    "every node and has changed nothing; please report this with the lines below.",
                    index,
                    kind,
                    exc_info=None if known else failure,
                )
        failures.clear()
