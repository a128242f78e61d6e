"""PySyncObj's core as kvnode runs it, without sockets, files or a thread of its own.

`Replica` is the stock `SyncObj` with what is overridden below, each a numbered quirk with its test in
`tests/simulation/`. Everything that it needs from outside is handed in: the journal, a way to send, a clock,
what to do with an applied entry. It is driven by four calls, in any order, from one thread: `tick()`,
`propose()`, `guard.receive()` and `durable()`.

Q1  the core must be ticked by its owner: after every message, proposal and flush, and by a timer.
Q2  the core's own membership changes are off (R5, and see `membership`): who the others are is set from outside.
    Its `otherNodes` are the other voters, and its `readonlyNodes`, which it counts nowhere, are the learners.
Q3  apply goes straight to the state machine: no pickled function ids, no client callbacks in the core (R9).
Q4  `__connectedToAnyone` is asked exactly when an election timer has fired: the pre-vote gate.
Q5  `__sendAppendEntries` only notes that something is due; `replication` sends once at the end of a tick (R18).
Q6  the core never compacts, dumps or loads a dump by itself (R4, R6, R7, R11, R13).
Q7  the core applies all that is committed in one tick: a long log is applied in slices, between heartbeats.
Q8  a single node has no acknowledgement to hold back: it is not ticked until its log is durable.
Q9  a tick of the core costs as much as a write: it is ticked after events that it can make something of, and by time.
Q10 the core's queue of commands is looked into by a tick, at the price of an exception when it is empty: it always is.
Q11 an entry is not applied before its owner is ready for it, nor is any behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from kvnode.configuration import CONFIGURATION, Configuration, Role
from kvnode.raft.core import Node, SyncObjConf
from kvnode.raft.election import ElectionGate
from kvnode.raft.electorate import Electorate
from kvnode.raft.guard import Guard
from kvnode.raft.membership import Roster
from kvnode.raft.messages import FRAME_BYTES_MAX
from kvnode.raft.progress import WINDOW_BYTES, Replicator
from kvnode.raft.read_rounds import ReadRounds
from kvnode.raft.ready import Ready, RoleChanged
from kvnode.storage.journal import Journal
from kvnode.storage.records import REGULAR

APPLY_BYTES = 262_144  # some ten milliseconds of small commands; at least one entry is applied whatever its size
APPLY_ENTRIES = 4_096

_ROLES: tuple[Role, Role, Role] = ("follower", "candidate", "leader")
_REGULAR = bytes((REGULAR,))
_NEVER = 2**31


class Replica(Electorate):
    """One member of a Raft group. Times in seconds on `clock`, which must be the core's own."""

    def __init__(
        self,
        roster: Roster,
        journal: Journal,
        clock: Callable[[], float],
        draw: Callable[[float, float], float],
        *,
        election_timeout_min_s: float = 0.6,
        election_timeout_max_s: float = 1.2,
        heartbeat_s: float = 0.1,
    ) -> None:
        self.ready = Ready()
        self.roster = roster
        self.followed = {}
        self.journal = journal
        self.clock = clock
        self.heartbeat_s = heartbeat_s
        self.election_timeout_max_s = election_timeout_max_s
        self.is_fit = True  # to lead, where others could as well; as its member last said
        self.can_vote = True  # what this node promises becomes durable; as its member last said
        self.is_leader = False
        self.applied_index = journal.getRaftCommitIndex()
        self.held_up = False  # the next entry to apply is one that may not be applied yet
        self._draw = draw
        self._append_due = False
        self.untold = False  # the followers have not heard of all that is committed
        self.due = True  # something has happened that the core may make something of
        self.election = ElectionGate(self, clock, election_timeout_min_s, heartbeat_s, draw)
        self.rounds = ReadRounds(self.ready)
        self.replicator = Replicator(journal, self.ready)
        conf = SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=False,  # the default lets a lone write wait for the next heartbeat
            appendEntriesPeriod=heartbeat_s,
            appendEntriesBatchSizeBytes=FRAME_BYTES_MAX + WINDOW_BYTES,  # above any entry: never the chunked path
            raftMinTimeout=election_timeout_min_s,
            raftMaxTimeout=election_timeout_max_s,
            leaderFallbackTimeout=election_timeout_max_s,
            connectionTimeout=election_timeout_max_s,
            commandsWaitLeader=False,
            dynamicMembershipChange=False,
            journalFile=journal,
            onStateChanged=self._state_changed,
        )
        super().__init__(Node(roster.node_id), (), conf=conf, nodeClass=Node, transportClass=Guard)
        self.guard = cast(Guard, self._SyncObj__transport)
        # The core applies from 2 on (its own no-op is 1), or from behind the snapshot that the log starts with.
        self._SyncObj__raftLastApplied = self.applied_index
        self.follow()

    # --- what drives it ---------------------------------------------------------------------------------

    def time_passed(self) -> None:
        """What time alone may bring is looked for by the next `advance`."""
        self.due = True
        if self.election.tick():
            self._ask_from(self.clock())

    def advance(self) -> None:
        """Q1, Q9: one tick of the core, where something may come of it; call it after events, and by the clock behind
        `time_passed`, a few times in each heartbeat."""
        if self.due and not self._waits_for_its_disk:  # Q8
            self.due = False
            self.doTick(0.0)

    def committed(self) -> list[tuple[bytes, int, int]]:
        """What is committed and not applied yet, up to APPLY_BYTES (Q7): (command, index, term) of each entry.

        Its member applies each, in order, and says so by `applied`; at one that it cannot apply yet it stops, and says
        so by `held_up` (Q11).
        """
        applied, commit = self.applied_index, self._SyncObj__raftCommitIndex
        self.held_up = False
        if commit <= applied or self._waits_for_its_disk:
            return []  # Q8: elected, written and committed within one tick
        self.untold = True
        behind = applied + 1 - self.journal[0][1]
        entries, size = self.journal[behind : behind + min(commit - applied, APPLY_ENTRIES)], 0
        for count, entry in enumerate(entries, 1):
            size += len(entry[0])
            if size >= APPLY_BYTES:
                return entries[:count]
        return entries

    def applied(self, command: bytes, index: int) -> None:
        """The state machine has applied this entry of `committed`."""
        if command[0] == CONFIGURATION:
            self.roster.committed(index)
        self.applied_index = self._SyncObj__raftLastApplied = index

    def tell(self, patient: bool) -> None:
        """Sends the followers what they are to be told: entries, what is committed, a read round, a heartbeat.

        `patient`: that something was committed may wait for the next message; until then `untold` says so.
        """
        if not self.is_leader or self._waits_for_its_disk:
            return
        if self.rounds.wanted and self.serving and self.rounds.begin(self.raftCommitIndex, self.majority_of_others):
            self._append_due = True
        if self._append_due or (self.untold and not patient):
            self._append_due = self.untold = False
            connected = [node.id for node in self.followed.keys() & self._SyncObj__connectedNodes]
            self.replicator.replicate(connected, self.term, self.raftCommitIndex, self.rounds.number)

    def propose(self, payload: bytes) -> tuple[int, int]:
        """Appends one entry to the leader's log; (index, term). Only while `is_leader`."""
        assert self.is_leader
        self._append(_REGULAR + payload)
        _, index, term = self.journal[-1]
        return index, term

    def change_members(self, configuration: Configuration) -> tuple[int, int]:
        """Appends the next configuration, which counts at once; (index, term). Only while `may_change_members`."""
        assert self.may_change_members
        assert configuration.index == self.last[1] + 1
        assert self.node_id in configuration.voters  # who leads is part of each majority
        self._append(configuration.command)
        return self.last[1], self.last[0]

    def _append(self, command: bytes) -> None:
        self._applyCommand(command, None)
        super()._checkCommandsToApply()

    def durable(self) -> None:
        """The journal made progress on disk."""
        self.guard.durable()

    def request_read(self) -> int:
        """The number of a read round that begins after this moment, at the next tick. Only while `is_leader`."""
        return self.rounds.request()

    def send_soon(self) -> None:
        """The next tick sends to the followers, heartbeat due or not."""
        self._append_due = True

    def hasten_election(self, within_s: tuple[float, float]) -> None:
        """The leader's process is gone: ask for votes soon instead of at the end of the election timeout."""
        self.due = True
        self.election.leader_lost()
        self._ask_from(self.clock() + self._draw(*within_s))

    def _ask_from(self, soon: float) -> None:
        if soon < self._SyncObj__raftElectionDeadline:
            self._SyncObj__raftElectionDeadline: float = soon

    def transfer_to(self, node_id: str) -> bool:
        """Asks `node_id` to take over; False where its log is not yet level with this one.

        Not the core's own `transferLeadership`: that one goes by what counts for a commit, which is never ahead
        of this leader's disk, and a leader whose disk takes no more is the one that must be able to leave.
        """
        if self.guard.acknowledged_index(node_id) < self.last[1]:
            return False
        self.guard.send(Node(node_id), {"type": "timeout_now", "term": self.term})
        return True

    def fit_peers(self) -> list[str]:
        """Leader only: the other voters that answer and said that they are fit to lead; the furthest last."""
        followers = self.replicator.followers
        fit = [
            node_id
            for node_id in self.peer_ids
            if node_id in followers
            and followers[node_id].fit
            and self.answered_within(node_id, self.election_timeout_max_s)
        ]
        return sorted(fit, key=self.guard.acknowledged_index)

    def install_snapshot(self, index: int, term: int, configuration: Configuration) -> None:
        """The state machine now is what a snapshot says: the log starts behind it (Raft §7).

        Where the log has the snapshot's last entry, what follows it stays: this node may have acknowledged
        that without having heard yet that it is committed (R13).
        """
        if self.journal.term_at(index) == term:
            self.journal.compact(index)
        else:
            self.journal.rebase(index, term)
        self.applied_index = self._SyncObj__raftLastApplied = index
        self._SyncObj__raftCommitIndex = index
        self.roster.restored(index, configuration)

    # --- what it knows ----------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def role(self) -> Role:
        return _ROLES[self._SyncObj__raftState]

    @property
    def serving(self) -> bool:
        """A leader whose own term's no-op is applied: until then it does not know what is committed (Raft §8)."""
        noop = self._SyncObj__noopIDx
        return self.is_leader and noop is not None and self.applied_index >= noop

    @property
    def may_change_members(self) -> bool:
        """One change at a time, and none before an entry of the leader's own term is committed (dissertation §4.1)."""
        return self.serving and self.roster.current.index <= self.applied_index

    @property
    def _waits_for_its_disk(self) -> bool:
        return not self._SyncObj__otherNodes and not self.journal.clean

    @property
    def stirred(self) -> bool:
        """A step would do something now, and not only when time has passed."""
        rounds = self.rounds
        return self.due or self._append_due or (rounds.wanted and not rounds.in_flight)

    @property
    def has_more_to_apply(self) -> bool:
        """The last tick stopped at its bound: another one should follow soon."""
        behind: bool = self._SyncObj__raftCommitIndex > self.applied_index
        return behind and not self.held_up and not self._waits_for_its_disk

    @property
    def leader_id(self) -> str | None:
        leader = self._SyncObj__raftLeader
        return None if leader is None else str(leader.id)

    @property
    def committed_floor(self) -> int:
        """No entry up to this index will ever change. After a restart the applied index may lead."""
        return max(int(self.raftCommitIndex), self.applied_index)

    # --- what the core asks ------------------------------------------------------------------------------

    def _state_changed(self, old: int, new: int) -> None:
        self.is_leader = new == 2
        if 2 in (old, new):
            self.guard.leadership_changed()
        if new == 2:
            self.replicator.lead(self.follower_ids)
        elif old == 2:
            self.rounds.abandon()
        self.ready.events.append(RoleChanged(_ROLES[new]))

    def _SyncObj__connectedToAnyone(self) -> bool:
        return self.election.may_campaign()  # Q4

    def _SyncObj__sendAppendEntries(self) -> None:
        self._append_due = True  # Q5
        self._SyncObj__newAppendEntriesTime = self.clock() + self.heartbeat_s

    def _checkCommandsToApply(self) -> None:
        """Q10: nothing waits in the core's queue: what is proposed is appended at once."""

    def _SyncObj__tryLogCompaction(self) -> None:
        """Q6: the owner takes snapshots and calls `journal.compact`."""

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:
        raise AssertionError("the guard lets no snapshot frame through to the core")

    def _SyncObj__applyLogEntries(self) -> bool:
        """Q3, Q7: nothing is applied within a tick. That the followers should hear of it is left to `tell`."""
        return False
