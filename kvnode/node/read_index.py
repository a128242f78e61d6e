"""Where linearizable reads get their index: from this node's own read rounds, or by asking the leader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvnode.node.questions import Questions
from kvnode.node.waiters import Future, Rounds
from kvnode.peers.network import Network
from kvnode.raft import messages
from kvnode.raft.replica import Replica

EVERY_ROUND: Final = 2**63
# Of the election timeout: a follower without reads asks as often, so that it knows of a way that has gone dead.
UNASKED_SHARE: Final = 0.5


class ReadIndex:
    """`leader` tells whom this node would turn to now; `schedule` asks for a step of the engine."""

    def __init__(
        self,
        replica: Replica,
        network: Network,
        questions: Questions,
        leader: Callable[[], str | None],
        schedule: Callable[[], None],
        answer_timeout_s: float,
    ) -> None:
        self._replica = replica
        self._network = network
        self._questions = questions
        self._leader = leader
        self._schedule = schedule
        self._answer_timeout_s = answer_timeout_s
        self._own: Rounds[int] = Rounds(replica.clock)
        self._asked: Rounds[int] = Rounds(replica.clock)
        self._applied: Rounds[bool] = Rounds(replica.clock)
        self._number = 0  # of the last question to the leader
        self._in_flight = False
        self._question = 0  # the one in flight
        self._answered_at = replica.clock()
        self._leader_seen: str | None = None
        self.unanswered_since: float | None = None  # since when the leader has not given this follower an index
        self.wanted = False  # somebody wants an index that the leader has not been asked for: `ask` it, in a step
        self._stopped = False

    def index(self, timeout_s: float) -> Future[int | None] | None:
        """An index that a read taking place now must have applied; its result is None where nobody confirmed it in
        time. None where there is nobody to ask.
        """
        if self._replica.is_leader:
            return self.confirm(timeout_s)
        if self._leader() is None:
            return None
        self.wanted = True
        if not self._in_flight:
            self._schedule()  # whoever else comes until then shares the question
        return self._asked.wait(self._number + 1, timeout_s)

    def confirm(self, timeout_s: float) -> Future[int | None]:
        """Only while this node claims to lead: the index of a round that begins after this call, once confirmed."""
        self._schedule()
        return self._own.wait(self._replica.rounds.request(), timeout_s)

    async def applied(self, index: int, timeout_s: float) -> bool:
        """This node's store holds everything up to `index`."""
        if index <= self._replica.applied_index:
            return True
        return await self._applied.wait(index, timeout_s) is not None

    # --- what the engine tells ------------------------------------------------------------------------

    def confirmed(self, read_round: int, index: int) -> None:
        self._own.settle(read_round, index)

    def failed(self, read_round: int) -> None:
        self._own.settle(read_round, None)

    def advanced(self, applied_index: int) -> None:
        if self._applied.waiting:
            self._applied.settle(applied_index, True)

    def expire(self) -> None:
        """By the clock: who has waited long enough is told so."""
        for rounds in (self._own, self._asked, self._applied):
            if rounds.waiting:
                rounds.expire()

    def draining(self) -> None:
        """Probes are to fail at once; reads that share their rounds ask again."""
        self._own.settle(EVERY_ROUND, None)

    def leader_unsure(self) -> None:
        """Who leads may have changed. The open question goes to the next leader; this node answers itself."""
        if self._replica.is_leader and self._in_flight:
            self._questions.give_up(self._question)
        elif self.wanted and not self._in_flight:
            self._schedule()

    def look(self) -> None:
        """By the clock: a follower without reads asks too, so that readiness knows whether one would be answered."""
        leader_id, now = self._leader(), self._replica.clock()
        if leader_id != self._leader_seen:
            self._leader_seen = leader_id
            self.unanswered_since = None
        if self._replica.is_leader or leader_id is None:
            self.unanswered_since = None
        elif not self._in_flight and now - self._answered_at >= UNASKED_SHARE * self._answer_timeout_s:
            self.wanted = True
            self.ask()

    def stop(self) -> None:
        self._stopped = True
        for rounds in (self._own, self._asked):
            rounds.settle(EVERY_ROUND, None)
        self._applied.settle(EVERY_ROUND, None)

    # --- between nodes ----------------------------------------------------------------------------------

    def asked(self, node_id: str, number: int) -> None:
        """A follower wants a read index of this leader."""

        def answer(confirmed: Future[int | None]) -> None:
            if not self._stopped:
                self._network.send(node_id, (messages.READ_ANSWER, number, confirmed.result()))

        if self._replica.is_leader:
            self.confirm(self._answer_timeout_s).add_done_callback(answer)
        else:
            self._network.send(node_id, (messages.READ_ANSWER, number, None))

    def ask(self) -> None:
        """Asks the leader, for everybody who wanted an index since the last question."""
        if self._in_flight or not self.wanted:
            return
        self.wanted = False
        self._number += 1
        if self._leader() is None or self._replica.is_leader:
            self._asked.settle(self._number, None)
            return
        self._in_flight, now = True, self._replica.clock()
        if self.unanswered_since is None:
            self.unanswered_since = now
        deadline = now + self._answer_timeout_s
        self._question = self._questions.ask(
            messages.READ_INDEX, then=self._answered, deadline=deadline, repeat="leader"
        )

    def _answered(self, fields: list[int | None] | None) -> None:
        """The index for all who share the question; None where none came in time, or no majority confirmed it."""
        self._in_flight = False
        index = None if fields is None else fields[0]
        if index is not None:
            self._answered_at, self.unanswered_since = self._replica.clock(), None
        self._asked.settle(self._number, index)
        if self.wanted:
            self._schedule()
