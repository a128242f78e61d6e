"""Who counts: the half of the replica that keeps PySyncObj's sets of nodes as the roster has them (quirk Q2).

The core's own membership changes are off (R5, and see `membership`). Its `otherNodes` are the other voters, over
whom alone it counts votes, commits and whom its leader hears; its `readonlyNodes`, which it counts nowhere, are the
learners. Both are set anew from the configuration that counts, at the moment that one is appended or truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kvnode.raft.core import Node, SyncObj
from kvnode.raft.membership import Roster
from kvnode.raft.progress import Replicator
from kvnode.raft.read_rounds import ReadRounds
from kvnode.raft.ready import MembersChanged, Ready
from kvnode.storage.journal import Journal

if TYPE_CHECKING:
    from kvnode.raft.guard import Guard


class Electorate(SyncObj):  # type: ignore[misc]  # the core is untyped
    """`Replica` builds on it and calls `follow` once the core stands."""

    ready: Ready

    roster: Roster
    followed: dict[Node, int]  # voters and learners but for this node, with their `since`
    journal: Journal
    guard: Guard
    replicator: Replicator
    rounds: ReadRounds
    clock: Callable[[], float]
    majority_of_others = 0  # how many of the others make a majority together with this node

    def follow(self) -> None:
        """From now on the core's members are the roster's."""
        self._members_changed()
        self.ready.events.clear()  # of those that it begins with nobody has to hear
        self.roster.on_change = self._members_changed

    def _members_changed(self) -> None:
        """Q2: the roster's current configuration is the core's, from this moment on."""
        current = self.roster.current
        followed = {Node(m.node_id): m.since for m in current.members.values() if m.node_id != self.node_id}
        for node, since in self.followed.items():
            if followed.get(node) != since:
                for table in (
                    self._SyncObj__raftNextIndex, self._SyncObj__raftMatchIndex, self._SyncObj__lastResponseTime,
                ):  # fmt: skip
                    table.pop(node, None)
                self.guard.forget(node.id)
                self.replicator.followers.pop(node.id, None)
        for node, since in followed.items():
            if self.followed.get(node) != since:
                self._SyncObj__raftNextIndex[node] = self.last[1] + 1
                self._SyncObj__raftMatchIndex[node] = 0
                self._SyncObj__lastResponseTime[node] = self.clock() if current.members[node.id].voter else 0.0
        self.followed = followed
        self._SyncObj__otherNodes = {node for node in followed if node.id in current.voters}
        self._SyncObj__readonlyNodes = followed.keys() - self._SyncObj__otherNodes
        self.majority_of_others = (len(self._SyncObj__otherNodes) + 1) // 2
        self.rounds.recount(current.voters, self.majority_of_others)
        self.ready.events.append(MembersChanged())

    @property
    def node_id(self) -> str:
        return str(self._SyncObj__selfNode.id)

    @property
    def last(self) -> tuple[int, int]:
        _, index, term = self.journal[-1]
        return term, index

    @property
    def is_voter(self) -> bool:
        return self.node_id in self.roster.current.voters

    @property
    def peer_ids(self) -> list[str]:
        """The other voters."""
        return sorted(node.id for node in self._SyncObj__otherNodes)

    @property
    def follower_ids(self) -> Iterable[str]:
        """The other voters and the learners."""
        return [node.id for node in self.followed]

    def is_member(self, node_id: str) -> bool:
        """Another voter."""
        return node_id in self._SyncObj__otherNodes

    def is_follower(self, node_id: str) -> bool:
        """Another voter, or a learner."""
        return node_id in self.followed

    def match_index(self, node_id: str) -> int:
        return int(self._SyncObj__raftMatchIndex.get(node_id, 0))

    def answered_within(self, node_id: str, age_s: float) -> bool:
        """Leader only: this follower has acknowledged something not longer ago than that."""
        answered_at: float | None = self._SyncObj__lastResponseTime.get(node_id)
        return answered_at is not None and self.clock() - answered_at <= age_s

    def doubt(self, node_id: str) -> None:
        """A learner was away: whether it still holds what it acknowledged matters once it is to vote, so ask again."""
        if node_id in self.roster.current.learners:
            self._SyncObj__raftMatchIndex[node_id] = 0
