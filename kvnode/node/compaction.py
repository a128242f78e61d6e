"""When the log is long enough: a snapshot in a worker, then the entries that it covers go, but for a tail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvnode.node.catchup import Work
from kvnode.node.divergence import History
from kvnode.raft.replica import Replica
from kvnode.state.store import KeyValueStore
from kvnode.storage.snapshots import Snapshot, Snapshots

log = logging.getLogger("kvnode.raft")

AGAIN_S: Final = 30.0  # after a failure, a full disk mostly
# What a follower that fetches a snapshot needs of the log is kept, up to so many times the bounds of a log that is due.
KEPT_TIMES_MAX: Final = 4


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
        kept: Callable[[int], frozenset[int]] = lambda first_index: frozenset(),
        bounds: Bounds | None = None,
    ) -> None:
        """`kept`: the snapshots that followers still use who have not got to `first_index` (`Catchup.kept`)."""
        self.bounds = bounds or Bounds()
        self._replica = replica
        self._snapshots = snapshots
        self._store = store
        self._history = history
        self._work = work
        self._kept = kept
        self._under_way_since: float | None = None
        self._not_before = 0.0
        self._first = 0  # where the log may begin, …
        self._extra_bytes = self._extra_entries = 0  # … and how much it holds beyond that, for a follower

    def look(self) -> None:
        """Begins a snapshot if the log has grown enough and none is under way. The view is taken in O(1)."""
        replica, journal = self._replica, self._replica.journal
        wanted = self._kept(self._first)
        retired = self._snapshots.retire(wanted)
        if retired is not None:
            self._work(retired, _retired)
        if self._extra_entries and (not wanted or self._is_over(KEPT_TIMES_MAX)):
            self._extra_bytes = self._extra_entries = 0
            journal.compact(self._first)
        if not self._is_over(1) or self._under_way_since is not None or replica.clock() < self._not_before:
            return
        index = replica.applied_index
        term = journal.term_at(index)
        newest = self._snapshots.newest
        if term is None or (newest is not None and newest.index >= index):
            return
        self._under_way_since = replica.clock()
        members = replica.roster.at(index)
        view, digest = self._store.view(), self._history.value
        self._work(lambda: self._snapshots.write(index, term, members, view, digest), self._written)

    @property
    def under_way_since(self) -> float | None:
        """When the snapshot was begun that is being written; None where none is."""
        return self._under_way_since

    def _is_over(self, times: int) -> bool:
        """The log has grown to so many times its bounds, on top of what is kept in it for a follower."""
        journal, bounds = self._replica.journal, self.bounds
        extra_bytes, extra_entries = (self._extra_bytes, self._extra_entries) if times == 1 else (0, 0)
        return (
            journal.command_bytes - extra_bytes >= times * bounds.bytes
            or len(journal) - extra_entries >= times * bounds.entries
        )

    def _written(self, snapshot: Snapshot | None, error: Exception | None) -> None:
        self._under_way_since = None
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
        self._first = first
        # A follower that will have installed one of these goes on from where it ends.
        wanted = [index for index in self._kept(first) if journal[0][1] <= index < first]
        if wanted and not self._is_over(KEPT_TIMES_MAX):
            journal.compact(min(wanted))
            extra = journal[: first - journal[0][1]]
            self._extra_entries, self._extra_bytes = len(extra), sum(len(entry[0]) for entry in extra)
        else:
            journal.compact(first)
            self._extra_entries = self._extra_bytes = 0
        at = journal[0][1]
        log.info("Snapshot at index %d (%d bytes); the log begins at %d.", snapshot.index, snapshot.size_bytes, at)


def _retired(_: None, error: Exception | None) -> None:
    if error is not None:
        log.warning("An old snapshot could not be removed (%s).", error)
