"""Changing who the members are: asked of any node, done by the leader, one change at a time, confirmed or refused.

A new node begins as a learner: it is sent everything, and counts for nothing until it has caught up. Then the leader
makes it a voter by itself, unless it was asked for a learner that stays one until somebody promotes it. So a cluster
never waits for a node that is still empty (Raft dissertation §4.2.1).

A voter is removed only where those that stay could still agree without it: more than half of them answer now. The
leader hands over before it goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import msgpack

from kvnode import errors
from kvnode.configuration import (
    HTTP_URL_CHARS_MAX,
    MEMBERS_MAX,
    PACKED_BYTES_MAX,
    VOTERS_MAX,
    Configuration,
    Member,
    unpacked,
)
from kvnode.errors import BadRequest, Conflict, KvnodeError, NoLeader, NotFound, OutcomeUnknown, Unavailable
from kvnode.node.engine import Engine
from kvnode.node.questions import Unanswered
from kvnode.node.transfer import Transfer
from kvnode.peers.handshake import FORGETFUL
from kvnode.raft import messages

log = logging.getLogger("kvnode.raft")

DEADLINE_S: Final = 5.0
LOOK_S: Final = 0.1  # a learner that has all that was committed this long ago has caught up
REPLACE_AGAIN_S: Final = 1.0
_STEP_S: Final = 0.005
_ANSWER_S: Final = 0.5  # for the leader's answer, behind its own deadline

_BY_CODE: Final = {
    kind.code: kind
    for kind in (BadRequest, Conflict, NotFound, NoLeader, OutcomeUnknown, Unavailable, errors.NotLeader)
}


@dataclass(frozen=True, slots=True)
class Change:
    """What is asked for. `learner`: add it and leave it one. `moved`: it is a member, and has another address now.
    `force`: also where no majority would be left.
    """

    action: Literal["add", "remove", "promote", "replace"]
    node_id: str
    address: tuple[str, int] = ("", 0)
    http_url: str = ""
    learner: bool = False
    moved: bool = False
    force: bool = False

    @property
    def packed(self) -> bytes:
        fields = [self.action, self.node_id, *self.address, self.http_url, self.learner, self.moved, self.force]
        packed: bytes = msgpack.packb(fields, use_bin_type=True)
        return packed


class Reconfiguration:
    """Changes of one node: its own as leader, and those that it asks the leader for."""

    def __init__(self, engine: Engine, transfer: Transfer) -> None:
        self._engine = engine
        self._transfer = transfer
        self._me = engine.settings.node_id
        self._roster = engine.roster
        self._tasks: set[asyncio.Task[None]] = set()
        self._goal = 2**63  # what was committed at the last look; a learner that has it has caught up
        engine.on[messages.CHANGE] = self._received
        self._keep(self._promote_who_is_ready())

    async def change(self, change: Change, timeout_s: float = DEADLINE_S) -> Configuration:
        """The configuration that came of it, once it is committed. Raises Conflict, NotFound, BadRequest, NoLeader,
        Unavailable (all definite) or OutcomeUnknown.
        """
        engine = self._engine
        deadline = engine.clock() + timeout_s
        while engine.leader_id is None and (left_s := deadline - engine.clock()) > 0:
            await engine.leadership.wait(left_s)
        leader_id = engine.leader_id
        if leader_id is None:
            raise NoLeader("The cluster has no leader that could change its members: try again in a moment.")
        if leader_id == self._me:
            return await self._from_here(change, deadline)
        return await self._ask(leader_id, change, deadline)

    def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    # --- as the leader -----------------------------------------------------------------------------------

    async def _from_here(self, change: Change, deadline: float) -> Configuration:
        engine, replica = self._engine, self._engine.replica
        if change.action == "remove" and change.node_id == self._me:
            self._following(change)  # refused here, or there would be a change of leader for nothing
            leader_id, _ = await self._transfer.hand_over(None, deadline - engine.clock())
            return await self._ask(leader_id, change, deadline)
        while replica.is_leader and not replica.serving and engine.clock() < deadline:
            await engine.leadership.wait(_STEP_S)
        if not replica.serving or engine.writes.transferring:
            raise Unavailable("Leadership is just moving: try again in a moment.")
        following = self._following(change)
        if not replica.may_change_members:
            raise Conflict("A change of members is under way already: wait for it to end, then try again.")
        if following is None:
            return self._roster.current
        await self._carry_out(following, deadline)
        return following

    async def _carry_out(self, following: Configuration, deadline: float) -> None:
        """Appends the configuration and waits until it is committed."""
        engine, replica = self._engine, self._engine.replica
        index, term = replica.change_members(following)
        log.info("Entry %d changes the members to %s.", index, shown(following))
        engine.schedule()
        while (left_s := deadline - engine.clock()) > 0:
            if replica.applied_index >= index:
                agreed_term = replica.journal.term_at(index)
                if agreed_term == term or self._roster.newest == following:
                    return
                if agreed_term is None:  # a snapshot holds the entry by now, and does not say whose it was
                    break
                raise Unavailable("Leadership moved before the change was agreed on; it was not made: try again.")
            await engine.leadership.wait(min(left_s, _STEP_S))
        raise OutcomeUnknown(
            "The change was proposed, and this node cannot tell what became of it: 'kvnode member list' shows its fate."
        )

    def _following(self, change: Change) -> Configuration | None:
        """The configuration that the change makes of the current one; None where it is as asked already."""
        current, index = self._current(), self._engine.replica.last[1] + 1
        member = current.members.get(change.node_id)
        if change.action == "add":
            return self._adding(current, member, change, index)
        if member is None:
            raise NotFound(f"Node {change.node_id!r} is not a member: 'kvnode member list' shows who is.")
        if change.action == "remove":
            if member.voter:
                self._check_those_who_stay(current.voters - {change.node_id}, change)
            return current.lacking(change.node_id, index)
        if change.action == "replace":
            return self._replacing(current, member, index)
        if member.voter:
            return None
        self._check_ready(member)
        return current.having(replace(member, voter=True, wanted=False), index)

    def _replacing(self, current: Configuration, member: Member, index: int) -> Configuration | None:
        """A voter that has forgotten what it promised goes, and a learner of its name comes, by one entry.

        Of the voters one is missing afterwards and none is new, so the majorities before and after it meet.
        """
        if not member.voter:
            return None
        if member.node_id == self._me or self._engine.is_reachable(member.node_id):
            raise Conflict(
                f"Node {member.node_id} answers, and knows what it has promised: only one that has lost its data "
                "directory is replaced. Stop it and give it an empty --data-dir first."
            )
        if self._engine.store.level < 1:
            raise Conflict("Upgrade all members first: a node of an older version would not understand this change.")
        self._check_those_who_stay(current.voters - {member.node_id}, Change("replace", member.node_id))
        return current.having(replace(member, voter=False, wanted=True, since=index), index)

    def _adding(
        self, current: Configuration, member: Member | None, change: Change, index: int
    ) -> Configuration | None:
        for other in current.members.values():
            if other.address == change.address and other.node_id != change.node_id:
                raise Conflict(f"Node {other.node_id} is at {other.shown_address}: give each member its own address.")
        if member is None and change.moved:
            raise NotFound(f"Node {change.node_id!r} is not a member: 'kvnode member list' shows who is.")
        if member is None:
            if len(current.members) >= MEMBERS_MAX:
                raise Conflict(f"The cluster has {MEMBERS_MAX} members, its bound: remove one first.")
            coming = sum(each.voter or each.wanted for each in current.members.values())
            if coming >= VOTERS_MAX and not change.learner:
                raise Conflict(f"The cluster has {VOTERS_MAX} voters, its bound: remove one first, or add a learner.")
            added = Member(change.node_id, change.address, change.http_url, False, not change.learner, index)
        else:
            if member.address != change.address and not change.moved:
                raise Conflict(
                    f"Node {change.node_id} is a member at {member.shown_address} already: give the new node another "
                    "name, remove the old one first, or say that it has moved (--moved)."
                )
            if member.address == change.address:
                return None  # a learner that is to stay one does, also when it says so itself by joining
            added = replace(member, address=change.address)
        following = current.having(added, index)
        if len(following.packed) > PACKED_BYTES_MAX:
            raise BadRequest("The members' names and addresses are too long together: use shorter ones.")
        return following

    def _current(self) -> Configuration:
        """The one that counts, with the HTTP addresses that are known by now."""
        engine, current = self._engine, self._roster.current
        urls = engine.network.http_urls | {self._me: engine.settings.http_url}
        members = {
            node_id: replace(member, http_url=urls.get(node_id, member.http_url)[:HTTP_URL_CHARS_MAX])
            for node_id, member in current.members.items()
        }
        if not members[self._me].address[1]:  # one that has been recovered, or whose --peers named others alone
            members[self._me] = replace(members[self._me], address=engine.settings.peers[self._me])
        return Configuration(current.index, members)

    def _check_those_who_stay(self, staying: frozenset[str], change: Change) -> None:
        if not staying:
            raise Conflict(f"Node {change.node_id} is the last voter: a cluster cannot be without one.")
        answering = sum(node_id == self._me or self._engine.is_reachable(node_id) for node_id in staying)
        needed = len(staying) // 2 + 1
        if answering < needed and not change.force:
            raise Conflict(
                f"Without {change.node_id} the cluster would have {len(staying)} voters, of which {answering} answer "
                f"now and {needed} would be needed: bring others back first, or remove one that is down (or --force)."
            )

    # --- learners ------------------------------------------------------------------------------------------

    def _is_ready(self, member: Member) -> bool:
        held = self._engine.replica.guard.acknowledged_index(member.node_id)
        if not self._engine.audit.agrees(member.node_id):
            return False
        return self._engine.is_reachable(member.node_id) and held >= max(self._goal, member.since)

    def _check_ready(self, member: Member) -> None:
        if not self._engine.audit.agrees(member.node_id):
            raise Conflict(f"The data of node {member.node_id} differs from the others': give it an empty --data-dir.")
        if not self._is_ready(member):
            held = self._engine.replica.guard.acknowledged_index(member.node_id)
            behind = self._engine.replica.raftCommitIndex - held
            state = f"is {behind} entries behind" if self._engine.is_reachable(member.node_id) else "does not answer"
            raise Conflict(f"Node {member.node_id} {state}: it can vote once it has caught up; try again then.")

    async def _promote_who_is_ready(self) -> None:
        """The leader makes voters of the learners that are to be, one after the other."""
        engine, replica = self._engine, self._engine.replica
        while True:
            await asyncio.sleep(LOOK_S)
            if not replica.is_leader:
                self._goal = 2**63
                continue
            if replica.may_change_members and not engine.writes.transferring:
                await self._replace_one()
                await self._promote_one()
            self._goal = replica.raftCommitIndex

    async def _replace_one(self) -> None:
        """A voter at whose own address a node answers that has forgotten its promises (`promises.py`)."""
        for node_id, refused in list(self._engine.network.refusals.items()):
            if refused.code == FORGETFUL and not refused.heard and node_id in self._roster.current.voters:
                try:
                    await self._from_here(Change("replace", node_id), self._engine.clock() + DEADLINE_S)
                    log.warning("Node %s has lost its data: it is a learner now, until it has caught up.", node_id)
                except KvnodeError as error:
                    log.warning("Node %s has lost its data, and is not replaced yet: %s", node_id, error.message)
                    await asyncio.sleep(REPLACE_AGAIN_S)
                return

    async def _promote_one(self) -> None:
        waiting = [member for member in self._roster.current.members.values() if member.wanted and not member.voter]
        for member in waiting:
            if self._is_ready(member):
                log.info("Node %s has caught up and becomes a voter.", member.node_id)
                try:
                    await self._from_here(Change("promote", member.node_id), self._engine.clock() + DEADLINE_S)
                except KvnodeError as error:
                    log.warning("Node %s is not a voter yet: %s", member.node_id, error.message)
                return

    # --- between nodes -----------------------------------------------------------------------------------

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, leader_id: str, change: Change, deadline: float) -> Configuration:
        try:
            packed, code, message = await self._engine.questions.answer(
                messages.CHANGE, change.packed, deadline=deadline + _ANSWER_S, node_id=leader_id
            )
        except Unanswered as unanswered:
            if not unanswered.sent:
                raise NoLeader(f"The leader {leader_id} cannot be reached from this node: try again.") from None
            if change.action == "remove" and change.node_id == self._me and self._roster.dismissed is not None:
                return self._roster.newest
            raise OutcomeUnknown(
                "The leader did not say in time what became of the change: 'kvnode member list' shows its fate."
            ) from None
        if packed is None:
            raise _BY_CODE.get(code, OutcomeUnknown)(message)
        return unpacked(packed)

    def _received(self, node_id: str, message: messages.Message) -> None:
        self._engine.answers.answer(node_id, message, lambda: self._answer(message[1], message[2]))

    async def _answer(self, number: int, packed: bytes) -> messages.Message:
        engine = self._engine
        try:
            action, subject, host, port, http_url, learner, moved, force = msgpack.unpackb(packed, max_ext_len=0)
            change = Change(action, subject, (host, port), http_url, learner, moved, force)
            if not engine.replica.is_leader:
                raise Unavailable("Leadership has just moved: try again in a moment.")
            made = await self._from_here(change, engine.clock() + DEADLINE_S)
        except KvnodeError as error:
            return (messages.CHANGED, number, None, error.code, error.message)
        return (messages.CHANGED, number, made.packed, "", "")


def shown(configuration: Configuration) -> str:
    """For the log: voters by name, learners in brackets."""
    return " ".join(name if member.voter else f"({name})" for name, member in sorted(configuration.members.items()))
