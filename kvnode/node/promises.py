"""Forgotten promises: a voter whose data directory was lost must not vote as if it still had it.

A voter promises two things: its vote in a term, and that it holds an entry. An empty directory has forgotten both. If
that voter votes again, it and one other can form a majority that lacks an acknowledged entry (Raft assumes that
neither promise is ever lost, §5.2 and §5.4).

An empty node cannot tell its first start from a loss. The members that have met it can: a cluster reaches feature
level 1 only once every member has been met (`feature_level.py`), and a voter that came later was met as a learner.

- A `fresh` node was started with an empty directory as a voter of a first cluster, and its log shows no level yet. It
  says so in each handshake.
- A `settled` node knows of a committed level; its directory says so from then on. It does not talk to a fresh node
  that is a voter in its configuration: neither a vote nor an acknowledgement passes, in either direction.
- A fresh node that a settled one has refused votes for no candidate.
- The leader finds such a node at the voter's own address and replaces it, in one entry of the log: the voter goes,
  and a learner of its name comes (`Change.replace`). The learner is admitted, catches up, and is promoted like any
  other.

Why that is safe. The voters before and after that entry differ by one, so their majorities meet (dissertation §4.1),
and the entry needs a majority of the others alone. Every later leader has the entry in its log, and so every entry
that was acknowledged with the help of the voter that forgot. A node without the entry does not count the new learner's
voice: it is settled, the learner is still a voter in its configuration, and so it does not talk to it. The new node
votes once the entry that promotes it is in its log, and so only for candidates that have it too. If the old directory
turns up again, its node learns that its name was given to another one, and stops.

A level that is only in the log settles no node. Its leader can end before any other member has it: a leader that
came back settled would refuse all the others, which remember everything, for ever. Once the level is committed, a
majority has it in its logs; none of those is fresh, and together they can always elect. What is left is the moment
between the commitment and the note in the directory: a node that is killed in it does not know yet which to refuse.

No member is settled before the first level, nor is one that was away when the cluster reached it. For them a
directory has an id, which is drawn at its first use. Each member notes the ids of the others when it meets them. It
refuses a fresh voter that comes with another id than before, whether it is settled or not. A directory without an id is
one of kvnode 0.1, and is not taken for another one. The leader counts a voter that it refuses among those that know the
next level, because a voter can be replaced only at a level.

A node that was refused notes that, and does not vote after a restart either. Two voters that have both lost their
directories would otherwise make a majority once the member that refused them is down.

Two cases are left, in which no member that could object is up. A voter loses its directory before the others have met
it, or within a tick of that, and forms a majority with one that has not met it. Or a majority loses its directories and
starts while those that know it are away: that cannot be told from a first start.

A settled node admits a fresh learner only while it knows a leader. A node that was away for long may have an earlier
stay of that name as a learner in its configuration; it hears of the later ones before it hears the leader.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from kvnode.configuration import Member
from kvnode.errors import StartupError
from kvnode.node.catchup import Work
from kvnode.peers.handshake import FORGETFUL, PeerRefused
from kvnode.raft.membership import Roster
from kvnode.state.commands import LEVEL
from kvnode.state.entries import decode_entry
from kvnode.state.store import KeyValueStore
from kvnode.storage.identity import Claim, Identity
from kvnode.storage.journal import Journal
from kvnode.storage.records import REGULAR

log = logging.getLogger("kvnode.raft")


class Promises:
    """One node's. `claimed`: what its directory says, `identity` changes that. `leader`: whom it would turn to now."""

    def __init__(
        self,
        claimed: Claim,
        identity: Identity,
        journal: Journal,
        store: KeyValueStore,
        roster: Roster,
        leader: Callable[[], str | None],
    ) -> None:
        self._identity = identity
        self._store = store
        self._roster = roster
        self._leader = leader
        self._noted = claimed.settled
        self._refused = self._refusal_noted = claimed.forgetful
        self._met = self._met_noted = dict(claimed.met)  # whose directory is which
        self._noting = False
        self._journal = journal
        self._may_be_fresh = claimed.began_empty
        self._read_to: tuple[int, int] | None = None  # index and term of the entry up to which there is no level
        roster.is_fresh = lambda: self.fresh

    @property
    def settled(self) -> bool:
        return self._noted or self._store.level >= 1

    @property
    def fresh(self) -> bool:
        # The log is read for nodes of a first cluster alone, and until a level is noted: it may be long.
        if self._may_be_fresh and (self.settled or self._has_a_level_in_its_log()):
            self._may_be_fresh = False
        return self._may_be_fresh

    def _has_a_level_in_its_log(self) -> bool:
        """A level is there, committed or not: a node that has it has not forgotten what came before it.

        Asked with each handshake. An entry of the same index and term has the same entries before it (Raft §5.3), so
        what was read up to there is not read again.
        """
        journal, read_to = self._journal, self._read_to
        if not len(journal):
            return False
        known = read_to is not None and journal.term_at(read_to[0]) == read_to[1]
        first = read_to[0] + 1 - journal[0][1] if read_to is not None and known else 0
        if any(map(_is_a_level, journal[first:])):
            return True
        _, index, term = journal[-1]
        self._read_to = (index, term)
        return False

    def look(self, work: Work) -> None:
        """Notes in the directory whom this node has met, that a level is committed, and that it does not vote.

        In a worker: it waits for the disk, and a node goes by what it knows before that is noted. A full disk is tried
        again.
        """
        if self._noting or self._roster.dismissed is not None:
            return
        if self._refused and not self._refusal_noted:
            self._noting = True
            work(self._identity.forget, self._refusal_was_noted)
        elif not self._noted and self._store.level >= 1:
            self._noting = True
            work(self._identity.settle, self._settled)
        elif self._met is not self._met_noted:
            self._noting, met = True, self._met
            work(partial(self._identity.meet, met), partial(self._meeting_noted, met))

    def _refusal_was_noted(self, _: None, error: Exception | None) -> None:
        self._refusal_noted = self._was_noted(error)

    def _settled(self, _: None, error: Exception | None) -> None:
        self._noted = self._was_noted(error)

    def _meeting_noted(self, met: dict[str, bytes], _: None, error: Exception | None) -> None:
        if self._was_noted(error):
            self._met_noted = met

    def _was_noted(self, error: Exception | None) -> bool:
        self._noting = False
        if error is None:
            return True
        if not isinstance(error, OSError | StartupError):
            raise error  # a full disk is tried again, and of a file that was altered the next start speaks
        return False

    @property
    def lost(self) -> bool:
        """This node has forgotten what it promised: it must not vote, also after a restart, until it is admitted as a
        learner."""
        return self._refused and self.fresh and self._roster.current.index == 0

    def refused(self, code: str) -> None:
        """A peer, which has proved itself, does not talk to this node."""
        if code == FORGETFUL and self.fresh and not self._refused:
            self._refused = True
            log.error("This node's data directory is empty, and the cluster has met it before: it does not vote.")

    def meet(self, node_id: str, directory_id: bytes, fresh: bool) -> None:
        """Raises PeerRefused for a fresh node of that name, where the cluster has met that one before."""
        members = self._roster.newest.members
        member = members.get(node_id)
        if member is None:
            return
        known_id = self._met.get(node_id)
        is_another = known_id is not None and known_id != directory_id
        if fresh and (self.settled or is_another):
            self._refuse(member)
        if directory_id and known_id != directory_id:
            self._met = {name: each for name, each in self._met.items() if name in members} | {node_id: directory_id}

    def _refuse(self, member: Member) -> None:
        node_id = member.node_id
        if member.voter:
            raise PeerRefused(
                f"the data directory of node {node_id} is empty, and it has acknowledged writes: it must not vote; "
                f"the leader makes a learner of it, or 'kvnode member replace {node_id}'",
                code=FORGETFUL,
            )
        if self.settled and self._leader() is None:
            raise PeerRefused(f"the data directory of node {node_id} is empty: it is let in once there is a leader")


def _is_a_level(entry: tuple[bytes, int, int]) -> bool:
    payload = entry[0]
    return (
        payload[0] == REGULAR
        and bool(payload[1:])
        and any(
            type(fields) is list and fields[:1] == [LEVEL]
            for _, _, commands in decode_entry(payload[1:])
            for fields in commands
        )
    )
