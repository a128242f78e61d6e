"""A group of one, in memory: a real KeyValueStore that applies at once, and a RaftStatus that a test may force.

For what cannot be brought about on demand with real nodes: each row of the probe matrix, each error of the
table. What depends on Raft itself is tested with real processes elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgpack

from kvnode.errors import KvnodeError, NotFound
from kvnode.metrics.meters import RaftLevels, RaftMeters
from kvnode.node.status import (
    Drained,
    MemberRecord,
    Membership,
    MemberStatus,
    RaftStatus,
    applied_lag,
    leader_refusal,
)
from kvnode.state.results import Result
from kvnode.state.session_keys import SessionKeys, fingerprint_of
from kvnode.state.store import KeyValueStore
from kvnode.watch.hub import Hub

T = TypeVar("T")

LEADING = RaftStatus(
    node_id="n1",
    cluster_id="c",
    role="leader",
    leader_id="n1",
    term=3,
    commit_index=7,
    applied_index=7,
    last_index=7,
    started=True,
    is_member=True,
    serving=True,
    draining=False,
    transferring=False,
    leader_heard_age_s=0.0,
    tick_age_s=0.01,
    election_timeout_max_s=1.2,
    leader_commit_index=7,
    storage_error=None,
    blocking_errors=(),
)

MEMBERSHIP = Membership("c", 9, (MemberRecord("n1", "127.0.0.1:7001", None, "voter", False, 0),))


class SingleSigning:
    """Satisfies kvnode.http.group.Signing: one key, and another after each rotation."""

    def __init__(self) -> None:
        self.keys: tuple[bytes, ...] = (b"1" * 32,)
        self.known = SessionKeys().turned(self.keys[0], fingerprint_of(self.keys[0]), 0)
        self.error: str | None = None

    async def rotate(self, propose: object, grace_s: int) -> SessionKeys:
        new = b"%d" % (self.known.number + 1) * 32
        self.keys = (new, self.keys[0]) if grace_s else (new,)
        self.known = self.known.turned(new, fingerprint_of(new), grace_s)
        return self.known


def _known(value: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


class SingleGroup:
    """Satisfies kvnode.http.group.Group."""

    def __init__(self) -> None:
        self.own_reports: dict[str, Callable[[int], dict[str, Any]]] = {}
        self.store = KeyValueStore()
        self.session = SingleSigning()
        self.watches = Hub(self.store, lambda work: asyncio.get_running_loop().call_soon(work))
        self.present = LEADING
        self.confirms: asyncio.Future[bool] | bool = True
        self.raises: Exception | None = None
        self.verifications = 0
        self.asked = asyncio.Event()  # a verification has begun
        self.proposals = 0
        self.left_s: float | None = None
        self.drained_with_force = False
        self.changes: list[tuple[object, ...]] = []

    def becomes(self, **changes: Any) -> None:
        self.present = replace(self.present, **changes)

    @property
    def draining(self) -> bool:
        return self.present.draining

    def status(self) -> RaftStatus:
        return self.present

    def leader(self) -> tuple[str | None, int]:
        return self.present.leader_id, self.present.term

    def leader_refusal(self) -> str | None:
        return leader_refusal(self.present)

    def applied_lag(self) -> int | None:
        return applied_lag(self.present) if self.present.started else None

    def members(self) -> tuple[MemberStatus, ...]:
        return (
            MemberStatus("n1", "127.0.0.1:7001", "http://127.0.0.1:8001", "leader", 7, 7, 0, True),
            MemberStatus("n2", "127.0.0.1:7002", None, "unknown", None, None, None, False),
        )

    async def reports(self, what: str, since_ms: int = 0) -> dict[str, dict[str, Any]]:
        return {"n1": self.own_reports[what](since_ms)}

    def meters(self) -> RaftMeters:
        return RaftMeters()

    def levels(self) -> RaftLevels | None:
        return None

    def membership(self) -> Membership:
        return MEMBERSHIP

    async def add_member(
        self, node_id: str, address: tuple[str, int], http_url: str, learner: bool, moved: bool
    ) -> Membership:
        return self._change(("add", node_id, address, http_url, learner, moved))

    async def remove_member(self, node_id: str, force: bool) -> Membership:
        return self._change(("remove", node_id, force))

    async def promote_member(self, node_id: str) -> Membership:
        return self._change(("promote", node_id))

    async def replace_member(self, node_id: str) -> Membership:
        return self._change(("replace", node_id))

    def _change(self, change: tuple[object, ...]) -> Membership:
        self._fail()
        self.changes.append(change)
        return MEMBERSHIP

    def propose(self, command: bytes, deadline_s: float = 5.0) -> asyncio.Future[Result]:
        self.proposals += 1
        self._fail()
        result = self.store.apply(msgpack.unpackb(command))
        self.watches.publish()
        return _known(result)

    async def propose_each(self, commands: Sequence[bytes]) -> list[Result | KvnodeError]:
        outcomes: list[Result | KvnodeError] = []
        for command in commands:
            try:
                outcomes.append(await self.propose(command))
            except KvnodeError as error:
                outcomes.append(error)
        return outcomes

    def lease_left_s(self, lease_id: int) -> float | None:
        return self.left_s

    async def read_barrier(self, waited_s: float = 0.0) -> None:
        self._fail()

    def read_index(self) -> asyncio.Future[int | None] | None:
        self._fail()
        return _known(self.present.applied_index)

    def holds(self, index: int | None) -> bool:
        return index is not None and index <= self.present.applied_index

    def verify_leader(self, timeout_s: float) -> asyncio.Future[int | None]:
        self.verifications += 1
        self.asked.set()
        if isinstance(self.confirms, bool):
            return _known(self.present.commit_index if self.confirms else None)
        verdict: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

        def settle(confirmed: asyncio.Future[bool]) -> None:
            if not verdict.done():
                verdict.set_result(self.present.commit_index if confirmed.result() else None)

        self.confirms.add_done_callback(settle)
        return verdict

    async def transfer(self, to: str | None, timeout_s: float = 5.0) -> tuple[str, int]:
        self._fail()
        self.becomes(role="follower", leader_id=to or "n2", serving=False)
        return to or "n2", 4

    def begin_drain(self) -> None:
        self.becomes(draining=True)
        self.watches.close("shutting_down")

    async def drain(self, node_id: str | None, force: bool) -> Drained:
        """This node alone is there to be drained: n1."""
        if node_id not in (None, "n1"):
            raise NotFound("There is no such node.")
        self.drained_with_force = force
        self.begin_drain()
        try:
            await self.transfer(None)
        except KvnodeError as error:
            return Drained("n1", True, "n1", True, error.message)
        return Drained("n1", True, "n2", False, None)

    async def undrain(self, node_id: str | None) -> Drained:
        if node_id not in (None, "n1"):
            raise NotFound("There is no such node.")
        self.becomes(draining=False)
        self.watches.reopen()
        return Drained("n1", False, self.present.leader_id, False, None)

    def _fail(self) -> None:
        if self.raises is not None:
            raise self.raises
