"""Where linearizable reads get their index: from this node's own read rounds, or by asking the leader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from kvnode.raft import wire
from kvnode.raft.replica import Replica
from kvnode.raft.transport import Network
from kvnode.raft.waiters import Rounds

EVERY_ROUND: Final = 2**63


class ReadIndex:
    """`leader` tells whom this node would turn to now; `schedule` asks for a step of the engine."""

    def __init__(
        self,
        replica: Replica,
        network: Network,
        leader: Callable[[], str | None],
        schedule: Callable[[], None],
        answer_timeout_s: float,
    ) -> None:
        self._replica = replica
        self._network = network
        self._leader = leader
        self._schedule = schedule
        self._answer_timeout_s = answer_timeout_s
        self._loop = asyncio.get_running_loop()
        self._own: Rounds[int] = Rounds(replica.clock)
        self._asked: Rounds[int] = Rounds(replica.clock)
        self._applied: Rounds[bool] = Rounds(replica.clock)
        self._number = 0  # of the last question to the leader
        self._in_flight = False
        self._wanted = False
        self._answering: set[asyncio.Task[None]] = set()

    def index(self, timeout_s: float) -> asyncio.Future[int | None]:
        """An index that a read taking place now must have applied; None where nobody confirmed it in time."""
        if self._replica.is_leader:
            return self.confirm(timeout_s)
        self._wanted = True
        if not self._in_flight:
            self._loop.call_soon(self._ask)  # whoever else comes in this iteration of the loop shares the question
        return self._asked.wait(self._number + 1, timeout_s)

    def confirm(self, timeout_s: float) -> asyncio.Future[int | None]:
        """Only while this node claims to lead: the index of a round that begins after this call, once confirmed."""
        self._schedule()
        return self._own.wait(self._replica.request_read(), timeout_s)

    async def applied(self, index: int, timeout_s: float) -> bool:
        """This node's store holds everything up to `index`."""
        if index <= self._replica.raftLastApplied:
            return True
        return await self._applied.wait(index, timeout_s) is not None

    # --- what the engine tells ------------------------------------------------------------------------

    def confirmed(self, read_round: int, index: int) -> None:
        self._own.settle(read_round, index)

    def failed(self, read_round: int) -> None:
        self._own.settle(read_round, None)

    def advanced(self, applied_index: int) -> None:
        if self._applied:
            self._applied.settle(applied_index, True)

    def expire(self) -> None:
        """By the clock: who has waited long enough is told so."""
        for rounds in (self._own, self._asked, self._applied):
            if rounds:
                rounds.expire()

    def draining(self) -> None:
        """Probes are to fail at once; reads that share their rounds ask again."""
        self._own.settle(EVERY_ROUND, None)

    def leader_unsure(self) -> None:
        """Who leads may have changed: the open question to the old one is void."""
        self._in_flight = False
        self._asked.settle(self._number, None)
        if self._wanted:
            self._loop.call_soon(self._ask)

    def stop(self) -> None:
        for task in list(self._answering):
            task.cancel()
        for rounds in (self._own, self._asked):
            rounds.settle(EVERY_ROUND, None)
        self._applied.settle(EVERY_ROUND, None)

    # --- between nodes ----------------------------------------------------------------------------------

    def asked(self, node_id: str, number: int) -> None:
        """A follower wants a read index of this leader."""
        task = self._loop.create_task(self._answer(node_id, number))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def answered(self, number: int, index: int | None) -> None:
        if number == self._number:
            self._in_flight = False
            self._asked.settle(number, index)
            self._ask()

    async def _answer(self, node_id: str, number: int) -> None:
        index = await self.confirm(self._answer_timeout_s) if self._replica.is_leader else None
        self._network.send(node_id, (wire.READ_ANSWER, number, index))

    def _ask(self) -> None:
        """Asks the leader, for everybody who wanted an index since the last question."""
        if self._in_flight or not self._wanted:
            return
        self._wanted = False
        self._number += 1
        leader_id = self._leader()
        if leader_id is None or not self._network.send(leader_id, (wire.READ_INDEX, self._number)):
            self._asked.settle(self._number, None)
            return
        self._in_flight = True
