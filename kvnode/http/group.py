"""What the HTTP rooms ask of a Raft group, and nothing more; `node/group.py` is the one that runs in production."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from kvnode.errors import KvnodeError
from kvnode.metrics.meters import RaftLevels, RaftMeters
from kvnode.node.status import (
    Drained,
    Membership,
    MemberStatus,
    RaftStatus,
)
from kvnode.state.results import Result
from kvnode.state.session_keys import SessionKeys
from kvnode.state.store import KeyValueStore
from kvnode.watch.hub import Hub


class Signing(Protocol):
    """`node.session_key.SessionKey`: the keys that this node may use, the one that signs first."""

    keys: tuple[bytes, ...]
    known: SessionKeys
    error: str | None

    async def rotate(self, propose: Callable[[bytes], Awaitable[Result]], grace_s: int) -> SessionKeys: ...


class Group(Protocol):
    """Errors are `kvnode.errors`, each saying whether it is definite."""

    @property
    def draining(self) -> bool:
        """Whether this node wants no new work: it is being drained, or it stops."""

    @property
    def store(self) -> KeyValueStore:
        """The local replica. HTTP reads it and never changes it."""

    @property
    def watches(self) -> Hub:
        """Who watches the local replica."""

    @property
    def session(self) -> Signing:
        """The cluster's session key."""

    @property
    def own_reports(self) -> dict[str, Callable[[int], dict[str, Any]]]:
        """What makes each report of this node, of what has happened since a time in milliseconds."""

    async def reports(self, what: str, since_ms: int = 0) -> dict[str, dict[str, Any]]:
        """By node: the report of each member that answers in time; {} of one whose version knows no reports."""

    def status(self) -> RaftStatus:
        """Local state; sends nothing and waits for nothing."""

    def leader(self) -> tuple[str | None, int]:
        """(the leader that this node would turn to, its own term): what every answer says, and so cheap."""

    def leader_refusal(self) -> str | None:
        """`status.leader_refusal` of the status now."""

    def applied_lag(self) -> int | None:
        """`status.applied_lag` of the status now, None before the node has started."""

    def members(self) -> tuple[MemberStatus, ...]: ...

    def meters(self) -> RaftMeters:
        """What the node counted since it began."""

    def levels(self) -> RaftLevels | None:
        """What stands where now; None until the node has started."""

    def propose(self, command: bytes, deadline_s: float = ...) -> asyncio.Future[Result]:
        """The state machine's own answer, from whichever node leads; in a write's usual time or this."""

    def propose_each(self, commands: Sequence[bytes]) -> Awaitable[list[Result | KvnodeError]]:
        """The outcome of each of these independent writes, in their order."""

    def lease_left_s(self, lease_id: int) -> float | None:
        """What is left of a lease, None on a node that does not keep its time."""

    async def read_barrier(self, waited_s: float = 0.0) -> None:
        """Returns once the local store may be read linearizably. `waited_s` for it already counts."""

    def read_index(self) -> asyncio.Future[int | None] | None:
        """One try of the barrier's: the store may be read once it `holds` what this gives. Raises as the barrier."""

    def holds(self, index: int | None) -> bool:
        """Whether the local store has applied `index`; not where that is None."""

    def verify_leader(self, timeout_s: float) -> asyncio.Future[int | None]:
        """None unless a majority confirmed this node's leadership in a round that began after the call."""

    async def transfer(self, to: str | None, timeout_s: float = 5.0) -> tuple[str, int]:
        """The new leader and its term, once confirmed."""

    def membership(self) -> Membership:
        """The configuration that counts on this node now."""

    async def add_member(
        self, node_id: str, address: tuple[str, int], http_url: str, learner: bool, moved: bool
    ) -> Membership:
        """The configuration that came of it, once committed; the same for the two below."""

    async def remove_member(self, node_id: str, force: bool) -> Membership: ...
    async def promote_member(self, node_id: str) -> Membership: ...
    async def replace_member(self, node_id: str) -> Membership: ...

    async def drain(self, node_id: str | None, force: bool) -> Drained:
        """Takes a node (None: this one) out of rotation; not the last one that is ready, unless forced."""

    async def undrain(self, node_id: str | None) -> Drained: ...
