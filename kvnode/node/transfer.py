"""Handing leadership over (Raft dissertation §3.10): asked of any node, done by the leader, confirmed or refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from kvnode.errors import Conflict, KvnodeError, NoLeader, Unavailable
from kvnode.node.engine import Engine
from kvnode.node.questions import Unanswered
from kvnode.raft import messages

log = logging.getLogger("kvnode.raft")

DEADLINE_S: Final = 5.0
ANSWER_S: Final = 0.5  # for the leader's answer, behind its own deadline
UNFIT_LOOK_S: Final = 0.1
UNFIT_AGAIN_S: Final = 1.0  # between two attempts of an unfit leader to hand over
_LOOK_S: Final = 0.005  # whether the target has drawn level; a transfer takes a few of these


class Transfer:
    """Transfers of one node: its own as leader, and those that it asks the leader for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._me = engine.settings.node_id
        self._tasks: set[asyncio.Task[None]] = set()
        self._began_at: float | None = None
        engine.outstanding.watch("transfer", DEADLINE_S + 1.0, lambda: self._began_at)
        engine.on[messages.TRANSFER] = self._asked
        self._keep(self._leave_when_unfit())

    async def hand_over(self, to: str | None, timeout_s: float) -> tuple[str, int]:
        """See `RaftGroup.transfer`."""
        engine = self._engine
        if to is not None and to not in engine.roster.current.voters:
            raise Conflict(f"Node {to!r} is not a voting member of this cluster: name one that is, or none.")
        deadline = engine.clock() + timeout_s
        while engine.leader_id is None and (left_s := deadline - engine.clock()) > 0:
            await engine.leadership.wait(left_s)
        leader_id = engine.leader_id
        if leader_id is None:
            raise NoLeader("The cluster has no leader that could hand over: try again in a moment.")
        if leader_id == self._me:
            return await self._from_here(to, deadline)
        return await self._ask(leader_id, to, deadline)

    async def _leave_when_unfit(self) -> None:
        """A leader that is not fit to lead hands over to a node that is, without an operator."""
        engine, replica = self._engine, self._engine.replica
        failed: str | None = None  # the last attempt came to nothing: the next one goes elsewhere, where there is one
        while True:
            await asyncio.sleep(UNFIT_LOOK_S)
            reason = self._unfitness() if replica.is_leader and not engine.writes.transferring else None
            if reason is None:
                continue
            better = [node_id for node_id in self._fit() if engine.audit.agrees(node_id)]
            better.sort(key=lambda node_id: (node_id != failed, replica.guard.acknowledged_index(node_id)))
            if not better:
                continue  # no other node is better off
            log.warning("%s: handing leadership over to %s.", reason, better[-1])
            try:
                await self._from_here(better[-1], engine.clock() + DEADLINE_S)
            except KvnodeError as error:
                log.warning("Leadership stays here: %s", error.message)
                failed = better[-1]
                await asyncio.sleep(UNFIT_AGAIN_S)

    def _unfitness(self) -> str | None:
        """Why this node should not lead where another one can, in the words of the log."""
        engine = self._engine
        if engine.audit.error is not None:
            return "This node's data differs"
        if engine.storage.full is not None:
            return "The disk is full"
        if engine.storage.hangs:
            return f"The disk has not answered for {engine.outstanding.age_s('journal'):.1f} s"
        return "This node is draining" if engine.draining else None

    def _fit(self) -> list[str]:
        """The other voters that this leader could hand over to, the furthest last."""
        return [node_id for node_id in self._engine.replica.fit_peers() if self._engine.is_reachable(node_id)]

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    # --- as the leader -----------------------------------------------------------------------------------

    async def _from_here(self, to: str | None, deadline: float) -> tuple[str, int]:
        engine, replica = self._engine, self._engine.replica
        if to == self._me:
            return to, replica.term
        if not replica.peer_ids:
            raise Conflict("This cluster has one node: there is nobody to hand leadership to.")
        if engine.writes.transferring:
            if to is not None:
                raise Conflict("A transfer of leadership is under way already: wait for it to end.")
            while engine.writes.transferring and (left_s := deadline - engine.clock()) > 0:
                await engine.leadership.wait(min(left_s, _LOOK_S))
            if not replica.is_leader and engine.leader_id is not None:
                return engine.leader_id, replica.term
        tried: set[str] = set()
        while True:
            target = to or self._most_caught_up(tried)
            if target is None:
                raise Conflict(f"No other node is fit to lead now: {self._me} goes on leading.")
            if not engine.is_reachable(target):
                raise Conflict(f"Node {target} does not answer: {self._me} goes on leading.")
            if target not in self._fit():
                raise Conflict(f"Node {target} drains, or its disk is not well: {self._me} goes on leading.")
            engine.writes.transferring, self._began_at = True, engine.clock()
            try:
                leader = await self._until_it_leads(target, deadline)
            finally:
                engine.writes.transferring, self._began_at = False, None
                engine.schedule()
            if leader is not None:
                return leader, replica.term
            tried.add(target)
            if to is not None and replica.is_leader and target not in self._fit():
                continue
            if to is not None or not replica.is_leader or engine.clock() >= deadline:
                raise Unavailable(f"Node {target} did not take over in time; 'kvnode leader' shows who leads.")
            # It may have stopped a moment ago, which shows after a while: whoever asked for anybody gets the next one.

    async def _until_it_leads(self, target: str, deadline: float) -> str | None:
        """Who leads in a later term, once an entry of that term is applied here; None where nobody does in time."""
        engine, replica = self._engine, self._engine.replica
        old_term, asked_at = replica.term, None
        while (left_s := deadline - engine.clock()) > 0:
            leader_id = engine.leader_id
            if replica.term > old_term and leader_id is not None and engine.applied_term == replica.term:
                return leader_id
            if replica.is_leader and replica.term == old_term:
                if asked_at is not None and engine.clock() - asked_at > engine.settings.election_timeout_max_s:
                    return None
                if target not in self._fit():
                    return None  # it says so just now; where it was asked already, it did not take over
                if asked_at is None and replica.transfer_to(target):
                    asked_at = engine.clock()
            engine.schedule()
            await engine.leadership.wait(min(left_s, _LOOK_S))
        return None

    def _most_caught_up(self, tried: set[str]) -> str | None:
        replica = self._engine.replica
        fit = [node_id for node_id in self._fit() if node_id not in tried]
        return max(fit, key=lambda node_id: (replica.guard.acknowledged_index(node_id), node_id), default=None)

    # --- between nodes -----------------------------------------------------------------------------------

    async def _ask(self, leader_id: str, to: str | None, deadline: float) -> tuple[str, int]:
        try:
            answer = await self._engine.questions.answer(
                messages.TRANSFER, to, deadline=deadline + ANSWER_S, node_id=leader_id
            )
        except Unanswered as unanswered:
            if not unanswered.sent:
                raise NoLeader(f"The leader {leader_id} cannot be reached from this node: try again.") from None
            raise Unavailable("The transfer was not confirmed in time; 'kvnode leader' shows who leads.") from None
        new_leader, term, code, message = answer
        if new_leader is None:
            raise Conflict(message) if code == Conflict.code else Unavailable(message, code)
        return new_leader, term

    def _asked(self, node_id: str, message: messages.Message) -> None:
        self._engine.answers.answer(node_id, message, lambda: self._answer(message[1], message[2]))

    async def _answer(self, number: int, to: str | None) -> messages.Message:
        engine = self._engine
        try:
            if not engine.replica.is_leader:
                raise Unavailable("Leadership has just moved: try again in a moment.")
            leader_id, term = await self._from_here(to, engine.clock() + DEADLINE_S)
        except KvnodeError as error:
            return (messages.TRANSFER_ANSWER, number, None, 0, error.code, error.message)
        return (messages.TRANSFER_ANSWER, number, leader_id, term, "", "")
