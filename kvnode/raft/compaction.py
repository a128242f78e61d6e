"""When the log is long enough: a snapshot in a worker, then the entries that it covers go, but for a tail."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from kvnode.raft.audit import History
from kvnode.raft.catchup import Work
from kvnode.raft.replica import Replica
from kvnode.raft.snapshot import Snapshot, Snapshots
from kvnode.store import KeyValueStore

log = logging.getLogger("kvnode.raft")

AGAIN_S: Final = 30.0  # after a failure, a full disk mostly


@dataclass(frozen=True, slots=True)
class Bounds:
    """A snapshot is due when the log's commands hold so many bytes, or at so many entries; of these a tail is kept.

    The tail is for followers that are only a little behind.
    """

    bytes: int = 64 * 1_048_576
    entries: int = 200_000
    tail_bytes: int = 16 * 1_048_576
    tail_entries: int = 10_000


class Compaction:
    """Looks after the length of one node's log."""

    def __init__(
        self,
        replica: Replica,
        snapshots: Snapshots,
        store: KeyValueStore,
        history: History,
        work: Work,
        bounds: Bounds | None = None,
    ) -> None:
        self.bounds = bounds or Bounds()
        self._replica = replica
        self._snapshots = snapshots
        self._store = store
        self._history = history
        self._work = work
        self._under_way = False
        self._not_before = 0.0

    def look(self) -> None:
        """Begins a snapshot if the log has grown enough and none is under way. The view is taken in O(1)."""
        replica, journal = self._replica, self._replica.journal
        grown = journal.command_bytes >= self.bounds.bytes or len(journal) >= self.bounds.entries
        if not grown or self._under_way or replica.clock() < self._not_before:
            return
        index = replica.raftLastApplied
        term = journal.term_at(index)
        newest = self._snapshots.newest
        if term is None or (newest is not None and newest.index >= index):
            return
        self._under_way = True
        members = replica.roster.at(index)
        view, digest = self._store.view(), self._history.value
        self._work(lambda: self._snapshots.write(index, term, members, view, digest), self._written)

    def _written(self, snapshot: Snapshot | None, error: Exception | None) -> None:
        self._under_way = False
        if snapshot is None:
            self._not_before = self._replica.clock() + AGAIN_S
            log.warning("A snapshot could not be written (%s); trying again in %g s.", error, AGAIN_S)
            return
        self._snapshots.published(snapshot)
        self._replica.roster.compacted(snapshot.index)
        journal = self._replica.journal
        first, kept, bounds = snapshot.index, 0, self.bounds
        while first > journal[0][1] and kept < bounds.tail_bytes and snapshot.index - first < bounds.tail_entries:
            first -= 1
            kept += len(journal[first - journal[0][1]][0])
        journal.compact(first)
        log.info("Snapshot at index %d (%d bytes); the log begins at %d.", snapshot.index, snapshot.size_bytes, first)
