"""Whether all nodes have applied the same, and say so loudly where they have not.

Every node keeps a digest of its history: with each applied entry

    digest = digest * MULTIPLIER + checksum of the entry      mod 2^64

and with every EVERY-th entry the store's `mark` (revision, number of items and of leases) is worked in. The checksum
is the CRC-32 of index, term and command that the journal has made for its own record, so an entry costs about
half a microsecond whatever its size: 0.4 % of applying a group of 64 small puts. The multiplier is odd: once
two digests differ, the same entries never make them equal again, so only the latest ones need comparing, and
a node that is restarted arrives at the same verdict.

What it finds: a log that differs, a command that was altered on its way between nodes, and a store that answered
the same commands otherwise or lost or gained items, in memory or by way of a snapshot. What it does not find: a
value that rots in memory behind an unchanged revision. A hash of all items would, and was not taken: kept up to
date at each put, two hashes of an item cost a fifth of the put itself; and at rest every byte is under a CRC.

Every few seconds the leader tells its followers its digest at one index that all of them have applied (CHECKPOINT);
each follower tells all its own digest there, and each node counts. Who differs from a majority is wrong, be
it the leader. Where no majority can be heard, a follower that differs from its leader takes itself for wrong.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kvnode.raft.messages import CHECKPOINT, Message
from kvnode.state.store import KeyValueStore
from kvnode.storage.journal import Journal
from kvnode.storage.snapshots import Snapshot

if TYPE_CHECKING:
    from kvnode.raft.replica import Replica

log = logging.getLogger("kvnode.raft")

EVERY: Final = 64  # entries; digests at multiples of this are remembered, …
REMEMBERED: Final = 1_024  # … so many of them: half a minute of the busiest leader
ROUND_S: Final = 2.0
SETTLE_S: Final = 1.0  # what has not been answered by then will not be
ROUNDS_MAX: Final = 8
MULTIPLIER: Final = 0x9E37_79B9_7F4A_7C15  # 2^64 / golden ratio, odd

_MASK: Final = 2**64 - 1


class History:
    """The digest of what one node has applied, now and at the latest multiples of EVERY.

    `value` is None where the node was restored from a snapshot that did not say: it neither asks nor answers then.
    """

    def __init__(self, journal: Journal, store: KeyValueStore) -> None:
        self._journal = journal
        self._store = store
        self._marks: deque[int] = deque(maxlen=REMEMBERED)
        self.index = 1  # the core applies from 2 on
        self.value: int | None = 0

    def restored(self, index: int, value: int | None) -> None:
        """State and log are those of a snapshot at `index`."""
        self._marks.clear()
        self.index, self.value = index, value

    def applied(self, index: int) -> None:
        """The store has applied entry `index`, the one behind `self.index`."""
        self.index = index
        if self.value is not None:
            value = (self.value * MULTIPLIER + self._journal.sum_at(index)) & _MASK
            if index % EVERY == 0:
                value = self._with_state(value)
                self._marks.append(value)
            self.value = value

    def at(self, index: int) -> int | None:
        """What to compare at `index`: a remembered multiple of EVERY or the present; None where it is not known."""
        if index % EVERY:
            return self._with_state(self.value) if index == self.index and self.value is not None else None
        position = (self.index - index) // EVERY
        return self._marks[-1 - position] if 0 <= position < len(self._marks) else None

    @property
    def oldest(self) -> int:
        """The first index that can still be compared."""
        return self.index // EVERY * EVERY - (len(self._marks) - 1) * EVERY if self._marks else self.index

    def _with_state(self, value: int) -> int:
        return (value * MULTIPLIER + self._store.mark) & _MASK


@dataclass(slots=True)
class _Round:
    """Who said what of one index."""

    votes: dict[str, int] = field(default_factory=dict)
    settles_at: float | None = None


class DivergenceCheck:
    """One node's part in comparing. `error` is the sentence that makes this node unfit, or None."""

    def __init__(
        self, replica: Replica, store: KeyValueStore, send: Callable[[str, Message], bool], newest: Snapshot | None
    ) -> None:
        self.error: str | None = None
        self.history = History(replica.journal, store)
        if newest is not None:
            self.history.restored(newest.index, newest.digest)
        self._replica = replica
        self._send = send
        self._rounds: dict[int, _Round] = {}
        self._next_round_at = 0.0
        self._differing: set[str] = set()

    def look(self) -> None:
        """Called every few milliseconds: begins a round where this node leads, and closes those that have waited."""
        replica, now = self._replica, self._replica.clock()
        for index, waiting in self._rounds.items():
            if waiting.settles_at is not None and now >= waiting.settles_at:
                waiting.settles_at = None
                self._follow_the_leader(index, waiting)
        if replica.is_leader and now >= self._next_round_at:
            self._next_round_at = now + ROUND_S
            common = self._common_index()
            if common is not None:
                self._tell(common)

    def heard(self, node_id: str, term: int, index: int, digest: int) -> None:
        """CHECKPOINT of a peer."""
        replica = self._replica
        if term != replica.term or not replica.is_follower(node_id):
            return
        self._round(index).votes[node_id] = digest
        if node_id == replica.leader_id:
            self._tell(index)
        self._count(index)

    def restored(self, snapshot: Snapshot) -> None:
        """A snapshot took the place of this node's state: whatever was wrong with that is gone."""
        self.history.restored(snapshot.index, snapshot.digest)
        self._rounds.clear()
        self._differing.discard(self._replica.node_id)
        self.error = None

    @property
    def differing(self) -> frozenset[str]:
        """The members whose data was found to differ, as far as this node has heard."""
        return frozenset(self._differing)

    def agrees(self, node_id: str) -> bool:
        """False for a node whose data was found to differ."""
        return node_id not in self._differing

    def _common_index(self) -> int | None:
        """The latest index that the followers within reach can answer for; one that is far behind is not waited for."""
        history, replica = self.history, self._replica
        applied = [
            progress.applied
            for node_id, progress in replica.replicator.followers.items()
            if progress.applied >= history.oldest and replica.answered_within(node_id, SETTLE_S)
        ]
        if not applied:
            return None
        index = min(history.index, *applied)
        if index < history.index:
            index -= index % EVERY
        return index if history.at(index) is not None else None

    def _tell(self, index: int) -> None:
        replica, digest = self._replica, self.history.at(index)
        if digest is not None:
            self._round(index).votes[replica.node_id] = digest
            for peer_id in replica.follower_ids:
                self._send(peer_id, (CHECKPOINT, replica.term, index, digest))

    def _round(self, index: int) -> _Round:
        if index not in self._rounds:
            while len(self._rounds) >= ROUNDS_MAX:
                del self._rounds[next(iter(self._rounds))]
            self._rounds[index] = _Round()
        return self._rounds[index]

    def _count(self, index: int) -> None:
        """The verdict, as soon as a majority of all voters says the same; learners are judged and do not judge."""
        replica, votes = self._replica, self._rounds[index].votes
        voters = {*replica.peer_ids, replica.node_id} if replica.is_voter else {*replica.peer_ids}
        said = Counter(vote for node_id, vote in votes.items() if node_id in voters)
        digest, count = said.most_common(1)[0] if said else (0, 0)
        if count <= len(voters) // 2:
            self._rounds[index].settles_at = replica.clock() + SETTLE_S
            return
        self._rounds[index].settles_at = None
        for node_id, vote in votes.items():
            if vote == digest:
                self._differing.discard(node_id)
                if node_id == replica.node_id and self.error is not None:
                    log.warning("This node's data is that of the majority again, at entry %d.", index)
                    self.error = None
            elif node_id == replica.node_id:
                self._fail(index, "the majority's")
            elif node_id not in self._differing:
                self._differing.add(node_id)
                log.error("The data of node %s differs from the majority's at entry %d.", node_id, index)

    def _follow_the_leader(self, index: int, waiting: _Round) -> None:
        """No majority could be heard: a follower that differs takes itself for wrong. Nobody is acquitted."""
        replica, leader_id = self._replica, self._replica.leader_id
        mine = waiting.votes.get(replica.node_id)
        if leader_id is None or leader_id not in waiting.votes or mine is None or not self.agrees(leader_id):
            return
        if mine != waiting.votes[leader_id]:
            self._fail(index, "the leader's")

    def _fail(self, index: int, whose: str) -> None:
        self._differing.add(self._replica.node_id)
        if self.error is None:
            self.error = (
                f"This node's data differs from {whose} at entry {index}: what it serves cannot be trusted; stop it, "
                "move its data directory away and let it catch up from its peers as a new node."
            )
            log.error(self.error)
