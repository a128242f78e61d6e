"""What a node knows of its Raft group at one moment: frozen, and the pure predicates on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvnode.configuration import Role


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member as this node sees it.

    `match_index` and `applied_index` are known on the leader for all members, elsewhere only for the
    node itself (None otherwise). `lag` is the number of entries behind the leader's commit index.
    `raft` is HOST:PORT, `http` the advertised URL, or None until the member has been heard from.
    """

    id: str
    raft: str
    http: str | None
    role: Role | Literal["unknown"]
    match_index: int | None
    applied_index: int | None
    lag: int | None
    reachable: bool
    draining: bool = False  # as far as this node has heard


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """One member as the log has it. `wanted`: a learner that becomes a voter once it has caught up."""

    id: str
    raft: str
    http: str | None
    role: Literal["voter", "learner"]
    wanted: bool
    since: int


@dataclass(frozen=True, slots=True)
class Membership:
    """Who the members are by the configuration at entry `index` of the log; 0 is that of the first cluster."""

    cluster_id: str
    index: int
    members: tuple[MemberRecord, ...]


@dataclass(frozen=True, slots=True)
class Drained:
    """What came of draining a node, or of taking that back. `message`: why the node still leads, where it does."""

    node: str
    draining: bool
    leader_id: str | None
    leads: bool
    message: str | None


@dataclass(frozen=True, slots=True)
class RaftStatus:
    """One node's view of its group. Ages are in seconds on the monotonic clock."""

    node_id: str
    cluster_id: str
    role: Role
    leader_id: str | None
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    started: bool  # journal and snapshot are loaded, peers are being talked to
    is_member: bool
    serving: bool  # leader only: an entry of its own term is committed and applied
    draining: bool
    transferring: bool
    leader_heard_age_s: float | None  # 0.0 on the leader, None where no leader is known
    tick_age_s: float
    election_timeout_max_s: float
    leader_commit_index: int  # as last heard; the node's own on the leader
    storage_error: str | None
    blocking_errors: tuple[str, ...]
    read_unanswered_s: float = 0.0  # follower only: for how long the leader has not answered a question for a read
    session_error: str | None = None  # why this node has not adopted the cluster's session key
    loop_error: str | None = None  # the event loop hangs, or has only just stopped to
    feature_level: int = 0  # which all members have known at one time, as far as this node has applied
    warnings: tuple[str, ...] = ()  # what an operator should know of, and no client needs to


def is_leader(status: RaftStatus) -> bool:
    """Claims leadership. Another node may claim it too: only a majority's confirmation makes it true."""
    return status.role == "leader"


def leader_refusal(status: RaftStatus) -> str | None:
    """Why the leader probe says 503 from local state alone (a `Kvnode-Reason` value), or None if it must ask."""
    if not status.started:
        return "starting"
    if status.storage_error is not None:
        # Before the role: a leader hands over within milliseconds, and its disk is the reason that it follows since.
        return "storage"
    if status.role != "leader":
        return "no-leader" if status.leader_id is None else "follower"
    if status.draining:
        return "draining"
    if status.transferring:
        return "transferring"
    if not status.serving:
        return "starting"
    return None


def applied_lag(status: RaftStatus) -> int:
    """Entries that the leader has committed, as last heard, and this node has not applied.

    Without a leader, all that its own log holds counts as committed: a node that has just been started alone cannot
    tell, and has applied nothing of it.
    """
    committed = status.leader_commit_index
    if status.leader_id is None:
        committed = max(committed, status.last_index)
    return max(0, committed - status.applied_index)
