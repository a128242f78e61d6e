"""Draining a node by its name: asked of any node, done by the one that is to go, and not where nobody would stay ready.

The node that is to go asks every other member whether it is ready now. While it asks, it says itself that it is about
to drain, which is not ready: of two nodes that ask each other at once neither counts on the other, both step back, and
try again after a pause of random length, so that one of them wins. No leader is needed, which may be the one to go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from kvnode.errors import (
    Conflict,
    KvnodeError,
    LastReadyNode,
    NotFound,
    OutcomeUnknown,
    ShuttingDown,
    Unavailable,
)
from kvnode.node.engine import Engine
from kvnode.node.questions import Unanswered
from kvnode.node.status import Drained
from kvnode.node.transfer import Transfer
from kvnode.raft import messages

log = logging.getLogger("kvnode.raft")

TRANSFER_S: Final = 5.0  # for a leader that drains to hand over
ASK_S: Final = 1.0  # a member that does not say within this that it is ready is not
RACE_S: Final = 3.0  # how long a node tries where others are about to drain as well, or not ready yet (an election)
PAUSE_S: Final = (0.02, 0.25)  # from a round trip to several: who steps back is quiet while another one asks
ANSWER_S: Final = TRANSFER_S + RACE_S + ASK_S + 0.5  # for the node that another one was asked to drain
ANNOUNCE_S: Final = 0.5  # how often a draining node tells the others
FORGET_S: Final = 2.0  # a node that has not said so for this long drains no more: it was started again
LEVEL: Final = 1  # the feature level from which nodes know these messages

_ASK, _BEGIN, _END = 0, 1, 2
_READY, _ABOUT_TO_DRAIN, _DRAINING, _NOT_READY = "ready", "about to drain", "draining", "not ready"
_BY_CODE: Final = {kind.code: kind for kind in (Conflict, LastReadyNode, ShuttingDown, Unavailable)}


class Drains:
    """Drains of one node: its own, and those that it asks others for.

    `is_ready`: whether this node is ready now. `set_draining`: begins or ends its drain; raises ShuttingDown where it
    stops anyway. `is_draining`: whether it drains.
    """

    def __init__(
        self,
        engine: Engine,
        transfer: Transfer,
        is_ready: Callable[[], bool],
        is_draining: Callable[[], bool],
        set_draining: Callable[[bool], None],
    ) -> None:
        self._engine, self._transfer = engine, transfer
        self._me = engine.settings.node_id
        self._is_ready, self._is_draining, self._set_draining = is_ready, is_draining, set_draining
        self._about_to_drain = False
        self._one_at_a_time = asyncio.Lock()
        self._heard: dict[str, float] = {}  # when each node last said that it drains
        engine.on |= {messages.DRAIN: self._received, messages.DRAINING: self._announced}
        self._announcing = asyncio.get_running_loop().create_task(self._announce_again())

    def stop(self) -> None:
        self._announcing.cancel()

    def drains(self, node_id: str) -> bool:
        """Whether that member drains, as far as this node has heard."""
        return self._engine.clock() - self._heard.get(node_id, float("-inf")) < FORGET_S

    async def begin(self, node_id: str | None, force: bool) -> Drained:
        """Drains that node, None for this one. `force`: also where no ready node is left.

        Raises NotFound, LastReadyNode, Unavailable (all definite) or OutcomeUnknown.
        """
        return await self._change(node_id, _BEGIN, force)

    async def end(self, node_id: str | None) -> Drained:
        """Takes the drain of that node back. Raises as `begin`, and ShuttingDown where the node stops."""
        return await self._change(node_id, _END, False)

    async def _change(self, node_id: str | None, action: int, force: bool) -> Drained:
        if node_id in (None, self._me):
            return await self._here(action, force)
        if node_id not in self._engine.roster.current.members:
            raise NotFound(f"Node {node_id!r} is not a member: 'kvnode member list' shows who is.")
        if not self._engine.network.is_up(node_id):
            raise Unavailable(f"Node {node_id} cannot be reached from this node: nothing has changed; ask it itself.")
        if self._engine.network.level_of(node_id) < LEVEL:
            raise Unavailable(f"Node {node_id} runs a version that is drained only by asking it itself: do that.")
        try:
            answer = await self._ask(node_id, action, force, ANSWER_S)
        except Unanswered as unanswered:
            if not unanswered.sent:
                raise Unavailable(f"Node {node_id} cannot be reached from this node: nothing has changed.") from None
            sentence = f"Node {node_id} did not answer in time: 'kvnode status' shows whether it drains."
            raise OutcomeUnknown(sentence) from None
        draining, leader_id, code, message = answer
        if code:
            raise _BY_CODE.get(code, Unavailable)(message)
        return Drained(node_id, draining == "draining", leader_id, leader_id == node_id, message or None)

    # --- this node ---------------------------------------------------------------------------------------

    async def _here(self, action: int, force: bool) -> Drained:
        kept: str | None = None
        async with self._one_at_a_time:
            if action == _END:
                self._switch(False)
            elif not self._is_draining():
                await self._leave(force)
        if action == _BEGIN and self._engine.replica.is_leader:
            try:
                await self._transfer.hand_over(None, TRANSFER_S)
            except KvnodeError as error:
                kept = error.message
        leads = self._engine.replica.is_leader
        leader_id = self._me if leads else self._engine.leader_id
        return Drained(self._me, self._is_draining(), leader_id, leads, kept if leads else None)

    async def _leave(self, force: bool) -> None:
        """Begins to drain, unless nobody else is ready. Raises LastReadyNode."""
        deadline = self._engine.clock() + RACE_S
        while True:
            self._about_to_drain = True
            try:
                others = [] if force else await self._standings()
                if force or _READY in others:
                    self._switch(True)  # before it stops saying that it is about to
                    return
            finally:
                self._about_to_drain = False
            hopeless = _ABOUT_TO_DRAIN not in others and _NOT_READY not in others
            if hopeless or self._engine.clock() >= deadline:
                raise LastReadyNode(
                    f"No node but {self._me} would be ready: it is not drained; wait for another one, or force it."
                )
            await asyncio.sleep(self._engine.settings.host.draw.uniform(*PAUSE_S))

    async def _standings(self) -> list[str]:
        """What every other member says of itself now."""
        others = [node_id for node_id in self._engine.roster.current.members if node_id != self._me]
        return [each for each in await asyncio.gather(*map(self._standing, others)) if each is not None]

    async def _standing(self, node_id: str) -> str | None:
        """None of a node that does not say in time, or cannot be asked."""
        if self._engine.network.level_of(node_id) < LEVEL:
            return None
        try:
            standing: str = (await self._ask(node_id, _ASK, False, ASK_S))[0]
        except Unanswered:
            return None
        return standing

    def _switch(self, draining: bool) -> None:
        if draining == self._is_draining():
            return
        self._set_draining(draining)
        log.info("This node %s.", "drains from now on" if draining else "drains no more")
        self._announce()

    # --- between nodes -----------------------------------------------------------------------------------

    async def _ask(self, node_id: str, action: int, force: bool, timeout_s: float) -> list[Any]:
        """What the node answers. Raises Unanswered."""
        deadline = self._engine.clock() + timeout_s
        return await self._engine.questions.answer(messages.DRAIN, action, force, deadline=deadline, node_id=node_id)

    def _received(self, node_id: str, message: messages.Message) -> None:
        _, number, action, force = message
        if action == _ASK:
            self._engine.network.send(node_id, (messages.DRAIN_ANSWER, number, self._own_standing(), None, "", ""))
        else:
            self._engine.answers.answer(node_id, message, lambda: self._answer(number, action, force))

    def _own_standing(self) -> str:
        if self._about_to_drain:
            return _ABOUT_TO_DRAIN
        if self._is_draining():
            return _DRAINING
        return _READY if self._is_ready() else _NOT_READY

    async def _answer(self, number: int, action: int, force: bool) -> messages.Message:
        try:
            done = await self._here(_END if action == _END else _BEGIN, force)
        except KvnodeError as error:
            return (messages.DRAIN_ANSWER, number, "", None, error.code, error.message)
        said = "draining" if done.draining else "serving"
        return (messages.DRAIN_ANSWER, number, said, done.leader_id, "", done.message or "")

    def _announced(self, node_id: str, message: list[Any]) -> None:
        if message[1]:
            self._heard[node_id] = self._engine.clock()
        else:
            self._heard.pop(node_id, None)

    def _announce(self) -> None:
        network, message = self._engine.network, (messages.DRAINING, self._is_draining())
        for node_id in self._engine.roster.current.members:
            if node_id != self._me and network.level_of(node_id) >= LEVEL:
                network.send(node_id, message)

    async def _announce_again(self) -> None:
        """What one message tells is lost with its connection, and a node that starts has heard nothing yet."""
        while True:
            await asyncio.sleep(ANNOUNCE_S)
            if self._is_draining():
                self._announce()
