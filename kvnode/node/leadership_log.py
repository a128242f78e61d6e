"""Who led before and who leads now, as one node sees it: one line in its log for each change, with the reason."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import time
from typing import Any, Final

from kvnode.configuration import Role
from kvnode.metrics.meters import RaftMeters
from kvnode.raft.replica import Replica

log = logging.getLogger("kvnode.raft")

# For people who ask what has happened: months of a healthy cluster, an hour of one that changes its mind each minute.
CHANGES_MAX: Final = 128


class LeadershipLog:
    """Told by the engine whenever the role or the leader may have changed."""

    def __init__(self, replica: Replica, meters: RaftMeters, clock: Callable[[], float]) -> None:
        self._replica = replica
        self._meters = meters
        self._clock = clock
        self._lost_at: float | None = None  # when the last leader was heard last, once it is thought to be gone
        # Each change as this node has seen it, oldest first; JSON as /admin/api/v1/timeline gives it.
        self.changes: deque[dict[str, Any]] = deque(maxlen=CHANGES_MAX)
        self._leader: str | None = None  # the last one that was known, with its term
        self._term = 0
        self._led = self._closed = False

    def role_changed(self, role: Role) -> None:
        replica = self._replica
        log.debug("%s is %s in term %d.", replica.node_id, role, replica.term)
        if role != "leader":
            self._note_lost()
        if self._led and role != "leader":
            self._led = False
            later = replica.term > self._term
            reason = f"the term {replica.term} has begun" if later else "no majority answered it in time"
            self._say(f"{replica.node_id} does not lead any more", None, reason)

    def look(self) -> None:
        replica = self._replica
        leader, term, led = replica.leader_id, replica.term, replica.is_leader
        if led:
            leader = replica.node_id
        elif leader == replica.node_id:
            leader = None
        if leader is not None and (leader, term) != (self._leader, self._term):
            self._say(f"{leader} leads in term {term}", leader, self._why(led, term))
            self._leader, self._term, self._led, self._closed = leader, term, led, False
            self._lost_at = None
            self._meters.leader_changes += 1
        elif self._leader not in (None, replica.node_id) and replica.election.leader_heard_age_s() is None:
            self._closed = True
            self._note_lost()

    def _note_lost(self) -> None:
        """Since when there has been no leader, as far as this node knows: since it was last heard."""
        if self._leader is not None and self._lost_at is None:
            heard_age_s = 0.0 if self._led else self._replica.election.leader_heard_age_s()
            self._lost_at = self._clock() - (heard_age_s or 0.0)

    def _why(self, led: bool, term: int) -> str:
        replica, before = self._replica, self._leader
        if led and replica.election.is_transfer(term):
            return f"{before} handed over"
        if led and not replica.peer_ids:
            return "there is nobody else"
        if before is None:
            return "it is the first leader since this node began"
        if self._closed:
            return f"the connection with {before} closed"
        if before == replica.node_id:
            return f"{before} had stopped leading" if led else "the others elected it"
        return f"{before} was not heard in time" if led else "a majority elected it"

    def _say(self, sentence: str, leader: str | None, reason: str) -> None:
        fields = {"event": "leadership", "leader": leader, "previous": self._leader, "reason": reason}
        log.info("%s: %s.", sentence, reason, extra={"fields": fields | {"term": self._replica.term}})
        known_s = None if leader is None or self._lost_at is None else max(0.0, self._clock() - self._lost_at)
        self.changes.append(
            {
                "at_ms": int(time() * 1000),
                "term": self._replica.term,
                "leader_id": leader,
                "previous_id": self._leader,
                "reason": reason,
                "leaderless_s": None if known_s is None else round(known_s, 3),
            }
        )
