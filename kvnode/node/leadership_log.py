"""Who led before and who leads now, as one node sees it: one line in its log for each change, with the reason."""

from __future__ import annotations

import logging

from kvnode.configuration import Role
from kvnode.metrics.meters import RaftMeters
from kvnode.raft.replica import Replica

log = logging.getLogger("kvnode.raft")


class LeadershipLog:
    """Told by the engine whenever the role or the leader may have changed."""

    def __init__(self, replica: Replica, meters: RaftMeters) -> None:
        self._replica = replica
        self._meters = meters
        self._leader: str | None = None  # the last one that was known, with its term
        self._term = 0
        self._led = self._closed = False

    def role_changed(self, role: Role) -> None:
        replica = self._replica
        log.debug("%s is %s in term %d.", replica.node_id, role, replica.term)
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
            self._meters.leader_changes += 1
        elif self._leader not in (None, replica.node_id) and replica.election.leader_heard_age_s() is None:
            self._closed = True

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
