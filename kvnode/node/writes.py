"""Where writes meet Raft: what the leader proposes, what a follower forwards, what is not let in at all."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from kvnode.errors import DiskFull, Overloaded, Unavailable
from kvnode.node.disk_health import DiskHealth
from kvnode.node.proposals import GROUP_BYTES, Proposals, Waiter
from kvnode.peers.network import Network
from kvnode.raft import messages
from kvnode.raft.messages import Message
from kvnode.raft.replica import Replica
from kvnode.state.entries import ORIGIN_AT, ORIGIN_BYTES, encode_entry, frees_space, group_frees_space

# An entry costs the nodes of a cluster as much processor time as some fifty writes in it: a sync, two wake-ups and a
# promise on each. So one that is not applied yet is followed by another at once only where that is worth it, and else
# with what has come by the time that it is applied, or ENTRY_GAP_S after it. On a slow disk or a long way between nodes
# that keeps several in flight; on fast ones each has twice as many writes, in less time (measured with 4 to 256
# clients, and with 5 ms added to each sync).
ENTRY_GAP_S: Final = 0.002
GROUP_WORTHWHILE: Final = 128  # commands for which another entry, or a group for the leader, does not wait
ENTRIES_IN_FLIGHT_MAX: Final = 4  # proposals of the leader that are not applied yet
GROUPS_IN_FLIGHT_MAX: Final = 8  # groups that a follower has forwarded and not seen again
VERDICTS_KEPT: Final = 4 * GROUPS_IN_FLIGHT_MAX  # of each node, which repeats no more than those that are on their way
FORWARDED_BYTES_MAX: Final = 64 * 1_048_576
REFUSED_PAUSE_S: Final = 0.05
FULL_S: Final = 1.0  # how long a follower takes a leader's word for its disk being full

_NOT_LEADING: Final = "This node does not lead now."


# By the sequence of a group: the refusal that was sent, None for one that was taken.
_Verdicts = OrderedDict[int, Message | None]


class Writes:
    """One node's writes, its own and those forwarded to it. `leader` tells whom this node would turn to now, and
    `second_due` what the replicated clock puts in front of an entry."""

    def __init__(
        self,
        replica: Replica,
        proposals: Proposals,
        storage: DiskHealth,
        network: Network,
        leader: Callable[[], str | None],
        second_due: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        self._second_due = second_due
        self._replica = replica
        self._proposals = proposals
        self._storage = storage
        self._network = network
        self._leader = leader
        self._clock = replica.clock
        self._forwarded: deque[bytes] = deque()
        self._forwarded_bytes = 0
        self._forwarders: deque[tuple[str, int, _Verdicts]] = deque()  # whose each group in `_forwarded` is
        # By node: the process that forwards, and what became of the last groups that it forwarded.
        self._verdicts: dict[str, tuple[bytes, _Verdicts]] = {}
        self._asked: tuple[int, bytes | None] = (0, None)  # the process that this node forwarded to first in a term
        self._unapplied: deque[int] = deque()  # indexes that this leader proposed in this term
        self._foreign: deque[int] = deque()  # those of them that hold groups of other nodes
        self._handed_on_at = 0.0  # when the last entry was proposed, or the last group forwarded
        self.awaited = False  # something was committed whose clients wait on another node
        self._forward_after = 0.0
        self._leader_full: tuple[float, str] = (0.0, "")  # until when, in the leader's words
        self.transferring = False  # nothing is proposed, so that the next leader can draw level

    def submit(self, command: bytes, waiter: Waiter, deadline: float, request_id: str | None) -> bool:
        """Queues one encoded command. True: a step would hand it on. While a leader has all entries in flight, what
        comes only waits: the step in which one of them is applied takes it.

        Raises DiskFull where the leader's disk has no room for this command, Unavailable where its own hangs (a
        follower learns from its own log what became of a write, and its log does not go on while its disk hangs), or
        Overloaded.
        """
        leading, storage = self._replica.is_leader, self._storage
        if storage.hangs or (storage.full is not None if leading else self._leader_full[0] > 0.0):
            self._admit(command)
        self._proposals.submit(command, waiter, deadline, request_id)
        return not leading or not self._unapplied or self._another()

    def _admit(self, command: bytes) -> None:
        if self._storage.hangs:
            self._proposals.meters.refused += 1
            raise Unavailable("This node's disk does not answer: send the request to another node.")
        if self._replica.is_leader:
            full = self._storage.full
        else:
            until, message = self._leader_full
            full = message if self._clock() < until else None
        if full is not None and not frees_space(command):
            self._proposals.meters.refused += 1
            raise DiskFull(full)

    def pump(self) -> bool:
        """Hands on what waits to be written. True: something was proposed."""
        replica, proposals = self._replica, self._proposals
        if not replica.is_leader:
            if proposals.waiting:
                self._forward()
            return False
        if not replica.serving or self.transferring or self._storage.hangs:
            return False  # what a disk that hangs would hold up may go to another leader, or fail for certain
        proposed = False
        while (proposals.waiting or self._forwarded) and self._another():
            second = self._second_due()
            groups: list[bytes] = [] if second is None else [second]
            size = 0
            foreign = bool(self._forwarded)
            if proposals.waiting:
                groups.append(proposals.take(replica.term)[1])
                size = len(groups[-1])
            while self._forwarded and (not size or size + len(self._forwarded[0]) <= 2 * GROUP_BYTES):
                self._forwarders.popleft()
                group = self._forwarded.popleft()
                groups.append(group)
                size += len(group)
                self._forwarded_bytes -= len(group)
            self._handed_on_at = self._clock()
            self._unapplied.append(replica.propose(encode_entry(groups))[0])
            if foreign:
                self._foreign.append(self._unapplied[-1])
            proposed = True
        return proposed

    def _another(self) -> bool:
        """Whether another entry may be proposed beside those that are not applied yet."""
        in_flight = len(self._unapplied)
        return not in_flight or (
            in_flight < ENTRIES_IN_FLIGHT_MAX and (self._forwarded_bytes >= GROUP_BYTES or self._is_due())
        )

    def _is_due(self) -> bool:
        """Whether what waits here need not wait for what is in flight."""
        return self._clock() - self._handed_on_at >= ENTRY_GAP_S or len(self._proposals.waiting) >= GROUP_WORTHWHILE

    def applied(self, index: int) -> None:
        """The entry at `index` is applied: there is room for another."""
        while self._unapplied and self._unapplied[0] <= index:
            self._unapplied.popleft()
        while self._foreign and self._foreign[0] <= index:
            self._foreign.popleft()
            self.awaited = True

    def role_changed(self) -> None:
        """What was forwarded here and not proposed goes back to who sent it."""
        self._unapplied.clear()
        self._foreign.clear()
        for node_id, sequence, verdicts in self._forwarders:
            self._refuse(node_id, sequence, verdicts, Unavailable.code, _NOT_LEADING)
        self._forwarders.clear()
        self._forwarded.clear()
        self._forwarded_bytes = 0

    def leader_unsure(self) -> None:
        """Who leads may have changed: what the last one refused may be asked of the next."""
        self._forward_after = 0.0

    def connected(self, node_id: str) -> None:
        """A connection with this node has begun, to it or from it. On the one before, a group may be lost that was on
        its way to the leader, or the leader's refusal of it: its writes would wait until their deadline.

        So those on their way are sent again, to the process that was asked first and to no other: a leader that has
        restarted does not know what it took. Nor does one of 0.1. Whether that process still leads is not asked: where
        its connection closed a moment ago, this node takes the leader for gone until it hears it again.
        """
        term = self._replica.term
        if self._replica.is_leader or self._network.level_of(node_id) < 1:
            return
        if self._asked != (term, self._network.process_at(node_id)):
            return
        for sequence, group in self._proposals.in_doubt(term):
            if not self._network.send(node_id, (messages.FORWARD, term, sequence, group)):
                return

    def forwarded_here(self, node_id: str, term: int, sequence: int, group: bytes) -> None:
        """A follower's group. It was sent in `term` and counts in that term only (see `proposals`).

        It is taken once, or refused once, however often it comes. What was taken is in the log, or waits for it: to
        refuse it later, in whatever role and term, would let its node send it to the next leader as well.
        """
        self._proposals.meters.forwarded_here += 1
        origin = group[ORIGIN_AT : ORIGIN_AT + ORIGIN_BYTES]
        if node_id not in self._verdicts or self._verdicts[node_id][0] != origin:
            self._verdicts[node_id] = origin, OrderedDict()
        verdicts = self._verdicts[node_id][1]
        if sequence in verdicts:
            if (refusal := verdicts[sequence]) is not None:
                self._network.send(node_id, refusal)
        elif len(verdicts) == VERDICTS_KEPT and sequence < min(verdicts):
            pass  # a process counts upwards: what became of this one is not known any more
        elif (why := self._refusal(term, group)) is not None:
            self._refuse(node_id, sequence, verdicts, *why)
        else:
            _note(verdicts, sequence, None)
            self._forwarders.append((node_id, sequence, verdicts))
            self._forwarded.append(group)
            self._forwarded_bytes += len(group)

    def _refusal(self, term: int, group: bytes) -> tuple[str, str] | None:
        """Why this node does not take a group, as a code and a sentence.

        A leader that does not serve yet keeps it until it does, one commit from now: to refuse it would cost the
        follower's clients REFUSED_PAUSE_S more in every change of leader.
        """
        replica, full = self._replica, self._storage.full
        if term != replica.term or not replica.is_leader or self.transferring:
            return Unavailable.code, _NOT_LEADING
        if self._forwarded_bytes + len(group) > FORWARDED_BYTES_MAX:
            return Overloaded.code, "Too many writes are waiting on the leader: send the request again in a moment."
        return (DiskFull.code, full) if full is not None and not group_frees_space(group) else None

    def _refuse(self, node_id: str, sequence: int, verdicts: _Verdicts, code: str, message: str) -> None:
        refusal = (messages.REFUSED, sequence, code, message)
        _note(verdicts, sequence, refusal)
        if self._verdicts[node_id][1] is verdicts:  # otherwise the process has ended, and another has its numbers now
            self._network.send(node_id, refusal)

    def refused(self, sequence: int, code: str, message: str) -> None:
        """The leader did not take a group that this node had forwarded."""
        self._proposals.meters.forwarded_refused += 1
        if code == Unavailable.code:
            self._forward_after = self._clock() + REFUSED_PAUSE_S  # it knows better soon, or another one leads
            self._proposals.taken_back(sequence)
        elif code == DiskFull.code:
            self._leader_full = (self._clock() + FULL_S, message)
            self._proposals.refused(sequence, DiskFull(message))
        else:
            self._proposals.refused(sequence, Overloaded(message, code))

    def _forward(self) -> None:
        leader_id = self._leader()
        if leader_id is None or not self._network.is_up(leader_id) or self._clock() < self._forward_after:
            return
        while self._proposals.waiting:
            sent = self._proposals.sent
            if sent and (sent >= GROUPS_IN_FLIGHT_MAX or not self._is_due()):
                return
            term, self._handed_on_at = self._replica.term, self._clock()
            if self._asked[0] != term:
                self._asked = term, self._network.process_at(leader_id)
            sequence, group = self._proposals.take(term)
            if not self._network.send(leader_id, (messages.FORWARD, term, sequence, group)):
                self._proposals.taken_back(sequence)
                return
            self._proposals.meters.forwarded += 1
            if self._proposals.traced and (request_ids := self._proposals.request_ids(sequence)):
                self._network.send(leader_id, (messages.REQUESTS, request_ids))


def _note(verdicts: _Verdicts, sequence: int, refusal: Message | None) -> None:
    verdicts[sequence] = refusal
    if len(verdicts) > VERDICTS_KEPT:
        verdicts.popitem(last=False)
