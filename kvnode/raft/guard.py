"""What may reach the core and what may leave it.

PySyncObj's core runs unmodified; as its Transport, this guard sees every message on both sides and normalises
it so that only the core's sound code paths are reachable. Each rule is numbered G1..G10, with the hazard it
answers (R1..R19) and is held down by a test in `tests/simulation/`. In short: a follower acknowledges what a message
has *proved*, after it is on disk; truncates only at a real conflict and never what is committed; raises its
commit index only over what the same message verified; and a leader counts one vote and one voice per member
and term.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kvnode.errors import Fatal
from kvnode.raft import messages
from kvnode.raft.core import Node, Transport
from kvnode.raft.outbox import Outbox

if TYPE_CHECKING:
    from kvnode.raft.replica import Replica


class Guard(Transport):  # type: ignore[misc]  # the core is untyped
    """Between one `Replica` and the network. `receive`, `connected` and `disconnected` are the network's side."""

    def __init__(self, core: Replica, self_node: Node, other_nodes: Iterable[Node]) -> None:
        super().__init__(core, self_node, other_nodes)
        self._core = core
        self._journal = core.journal
        self._send = core.ready.send
        self._outbox = Outbox(core.journal, lambda: core.term, core.ready)
        self._reply: tuple[int, bool, bool] | None = None  # (next index, success, reset) for the append at hand
        self._round = 0  # the read round of the append at hand
        self._votes: set[tuple[int, str]] = set()
        self._conflict = (0, 0)  # (term, index): where this log must be repaired from
        self._said: tuple[int, str, int] = (0, "", 0)  # (term, leader, next index) that was last promised
        self._said_round = 0
        self._said_at = 0.0
        self._early: dict[str, int] = {}  # follower -> next index it acknowledged, beyond our own durable log
        self.leader_commit_index = 0

    # --- from the core outwards -------------------------------------------------------------------

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        kind = message["type"]
        if kind == "next_node_idx":
            self._acknowledge(node.id, message)
        elif kind == "request_vote":
            transfer = self._core.election.is_transfer(message["term"])
            vote = (messages.VOTE, message["term"], message["last_log_index"], message["last_log_term"], transfer)
            self._outbox.send(node.id, vote)  # G9: the vote for oneself is on disk before anybody hears of it
        elif kind == "response_vote":
            self._outbox.send(node.id, (messages.VOTED, message["term"]))
        elif kind == "timeout_now":
            self._send(node.id, (messages.TIMEOUT_NOW, message["term"]))
        # Everything else (apply_command…, append_entries of the core's own making) has no way out: G10.
        return True

    def _acknowledge(self, leader_id: str, message: dict[str, Any]) -> None:
        core = self._core
        next_index, success, reset = message["next_node_idx"], message["success"], message["reset"]
        if self._reply is not None:
            next_index, success, reset = self._reply
        state = (self._round, core.applied_index, core.is_fit)
        ack = (messages.ACK, core.term, success, reset, next_index, *state)
        now = core.clock()
        news = (core.term, leader_id, next_index)
        if reset or self._journal.clean:
            if news == self._said and self._round <= self._said_round and now - self._said_at < core.heartbeat_s / 2:
                return  # an announcement of the commit index alone: nothing that the leader does not know
            self._send(leader_id, ack)
        else:
            if news != self._said:
                self._outbox.send(leader_id, ack)
            if self._round > self._said_round or now - self._said_at >= core.heartbeat_s / 2:
                # The promise waits for the disk; that this node still follows in this term does not.
                self._send(leader_id, (messages.ACK, core.term, False, False, 0, *state))
        self._said = (0, "", 0) if reset else news
        self._said_round, self._said_at = self._round, now

    def durable(self) -> None:
        """The journal made progress: promises leave, early acknowledgements count as far as our own log is durable."""
        self._outbox.release()
        if self._core.majority_of_others == 0:
            self._core.due = True  # Q8: it waited for this
        if self._early:
            limit = self._journal.durable_index + 1
            for node_id, next_index in list(self._early.items()):
                if next_index <= limit:
                    del self._early[node_id]
                self._count(node_id, min(next_index, limit))

    def acknowledged_index(self, node_id: str) -> int:
        """The last index that a follower holds durably, also where this leader's own disk has not got so far (G9)."""
        return max(self._early.get(node_id, 0) - 1, self._core.match_index(node_id))

    # --- membership and connections ------------------------------------------------------------------

    def forget(self, node_id: str) -> None:
        """This member is none any more, or its name is another one's now."""
        self._early.pop(node_id, None)

    def connected(self, node_id: str) -> None:
        self._onNodeConnected(Node(node_id))
        self._said = (0, "", 0)
        self._core.doubt(node_id)
        self._core.replicator.reconnected(node_id, self._core.match_index(node_id))

    def disconnected(self, node_id: str) -> None:
        self._onNodeDisconnected(Node(node_id))

    # --- from the network inwards ---------------------------------------------------------------------

    def receive(self, node_id: str, message: messages.Message) -> None:
        """One message of the Raft protocol from an authenticated node. Raises Fatal where safety would end."""
        if node_id not in self._core.roster:
            return  # G2: only members have a voice; to this node's knowledge, which may be older than its log
        kind = message[0]
        if kind == messages.ACK:
            self._acknowledged(node_id, *message[1:])
        elif kind == messages.APPEND:
            self._append(Node(node_id), *message[1:])
            self._core.due |= self._core.raftCommitIndex > self._core.applied_index
        else:
            self._core.due = True
            self._election(Node(node_id), message)

    def _election(self, node: Node, message: messages.Message) -> None:
        node_id, kind = node.id, message[0]
        if kind == messages.VOTE:
            self._vote_asked(node, *message[1:])
        elif kind == messages.VOTED:
            self._voted(node, message[1])
        elif kind == messages.PRE_VOTE:
            self._core.election.answer(node_id, *message[1:])
        elif kind == messages.PRE_VOTED:
            _, term, proposed, granted = message
            self._core.election.answered(node_id, proposed, granted and self._core.is_member(node_id))
            self._notice(node, term)
        elif kind == messages.TERM_NOTICE:
            self._notice(node, message[1])
        elif kind == messages.TIMEOUT_NOW:
            asked_by_leader = message[1] == self._core.term and self._core.leader_id == node_id
            if asked_by_leader and self._core.is_fit:  # it may not know yet that this node drains, say
                self._core.election.transfer_to_self(message[1])
                self._onMessageReceived(node, {"type": "timeout_now", "term": message[1]})

    def _notice(self, node: Node, term: int) -> None:
        """G8: a peer is in a later term. A request for a vote that cannot be granted makes the core adopt it."""
        if term > self._core.term:
            request = {"type": "request_vote", "term": term, "last_log_index": 0, "last_log_term": -1}
            self._onMessageReceived(node, request)

    def _vote_asked(self, node: Node, term: int, last_index: int, last_term: int, transfer: bool) -> None:
        core = self._core
        if not core.can_vote:
            return  # what it promises would not last, or it does not know what it has promised (`promises.py`)
        if not transfer and term > core.term and (core.is_leader or core.election.leader_is_alive()):
            return  # stickiness (Raft dissertation §4.2.3): who hears a leader needs no other
        request = {
            "type": "request_vote", "term": term, "last_log_index": last_index, "last_log_term": last_term,
        }  # fmt: skip
        self._onMessageReceived(node, request)

    def _voted(self, node: Node, term: int) -> None:
        """G2: one vote per member and term, however often the frame arrives (R10)."""
        if term != self._core.term or (term, node.id) in self._votes or not self._core.is_member(node.id):
            return
        self._votes = {vote for vote in self._votes if vote[0] == term} | {(term, node.id)}
        self._onMessageReceived(node, {"type": "response_vote", "term": term})

    def _acknowledged(
        self,
        node_id: str,
        term: int,
        success: bool,
        reset: bool,
        next_index: int,
        read_round: int,
        applied: int,
        fit: bool,
    ) -> None:
        core = self._core
        if term > core.term:
            self._notice(Node(node_id), term)
        if term != core.term or not core.is_leader or not core.is_follower(node_id):
            return  # G1: an acknowledgement counts in its own term only (R3)
        if core.rounds.in_flight and core.is_member(node_id):
            core.rounds.echo(node_id, read_round, core.majority_of_others)
        if success and next_index > self._journal[-1][1] + 1:
            return
        if core.replicator.acknowledged(node_id, next_index, success, reset, applied, fit):
            core.send_soon()
        if success:
            limit = self._journal.durable_index + 1
            if next_index > limit:
                self._early[node_id] = max(next_index, self._early.get(node_id, 0))
                next_index = limit  # G9: the leader is part of every majority, so its own disk must have it too
            self._count(node_id, next_index)
        else:
            self._hear(node_id)

    def _count(self, node_id: str, next_index: int) -> None:
        ack = {"type": "next_node_idx", "next_node_idx": next_index, "reset": False, "success": True}
        self._onMessageReceived(node_id, ack)  # which is as good as its Node where the core knows it already
        if next_index > self._core.raftCommitIndex + 1:
            self._core.due = True  # it may be the one that makes a majority

    def _hear(self, node_id: str) -> None:
        """A follower is alive and in this term: that is what the leader's own fallback timer asks for."""
        ack = {"type": "next_node_idx", "next_node_idx": 1, "reset": False, "success": False}
        self._onMessageReceived(Node(node_id), ack)

    def leadership_changed(self) -> None:
        """What was noted of one term's followers says nothing in the next."""
        self._early.clear()

    # --- append_entries -------------------------------------------------------------------------------

    def _append(
        self, node: Node, term: int, prev: int, prev_term: int, commit: int, read_round: int, sent: list[Any]
    ) -> None:
        core = self._core
        if term < core.term:
            self._send(node.id, (messages.TERM_NOTICE, core.term))  # G8: a stale leader hears of it at once
            return
        if term == core.term and core.is_leader:
            raise Fatal(
                f"Node {node.id} leads in term {term}, and so does this one: a member has forgotten its vote. "
                "The node stops; a member whose data directory was lost must be replaced, not restarted."
            )
        core.election.leader_heard()
        self.leader_commit_index = max(self.leader_commit_index, commit)
        self._round = read_round
        entries = [(command, prev + 1 + n, entry_term) for n, (entry_term, command) in enumerate(sent)]
        try:
            message = self._normalise(node.id, term, prev, prev_term, entries)
            message.update(type="append_entries", term=term, commit_index=min(commit, message["commit_index"]))
            self._onMessageReceived(node, message)
        finally:
            self._reply = None

    def _normalise(
        self, leader_id: str, term: int, prev: int, prev_term: int, entries: list[tuple[bytes, int, int]]
    ) -> dict[str, Any]:
        """The same append in a form that the core handles soundly; sets what is to be answered."""
        journal = self._journal
        last = journal[-1][1]
        floor = self._core.committed_floor
        if prev <= floor:
            # G7: what is committed here is in every later leader's log (Leader Completeness, Raft §5.4.3), so
            # the message proves the log up to the floor whatever it brings of it again.
            self._check_committed(prev, prev_term, entries[: floor - prev])
            entries = entries[floor - prev :]
            prev, prev_term = floor, journal.term_at(floor) or 0
        if journal.term_at(prev) != prev_term:
            return self._mismatch(term, prev, last, floor)
        self._conflict = (0, 0)
        known = 0
        while known < len(entries) and journal.term_at(entries[known][1]) == entries[known][2]:
            known += 1
        verified = entries[-1][1] if entries else prev
        fresh = entries[known:]
        if fresh and fresh[0][1] <= last:
            prev = fresh[0][1] - 1  # G3: a real conflict; it is truncated here and nowhere else (R2)
            self._said = (0, "", 0)
        else:
            prev = last  # nothing conflicts: what is there already stays, and the new is added behind it
        self._reply = (verified + 1, True, False)  # G5: only what this message proved (R2, R4)
        return {
            "entries": fresh,
            "prevLogIdx": prev,
            "prevLogTerm": journal.term_at(prev),
            "commit_index": max(floor, verified),  # G4: commit no tail that nobody verified (R1)
        }

    def _mismatch(self, term: int, prev: int, last: int, floor: int) -> dict[str, Any]:
        """G6: names the first index of the conflicting term until it is repaired, also to what is pipelined (R16)."""
        journal = self._journal
        if floor < prev <= last:
            conflicting, index = journal.term_at(prev), prev
            while index - 1 > floor and journal.term_at(index - 1) == conflicting:
                index -= 1
            if self._conflict[0] == term:
                index = min(index, self._conflict[1])
            self._conflict = (term, index)
        repair_from = last + 1
        if self._conflict[0] == term and self._conflict[1] <= last:
            repair_from = self._conflict[1]
        self._reply = (repair_from, False, True)
        # An index behind the log: the core refuses it without touching anything.
        return {"entries": [], "prevLogIdx": last + 1, "prevLogTerm": -1, "commit_index": floor}

    def _check_committed(self, prev: int, prev_term: int, below: list[tuple[bytes, int, int]]) -> None:
        for index, term in [(prev, prev_term), *((entry[1], entry[2]) for entry in below)]:
            known = self._journal.term_at(index)
            if known is not None and known != term:
                raise Fatal(
                    f"The leader's log has term {term} at index {index}, where this node has committed term {known}: "
                    "their histories differ. The node stops; compare their clusters before starting it again."
                )
