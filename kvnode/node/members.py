"""The members as others are shown them: by the configuration, and as one node sees them at this moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from kvnode.configuration import Configuration, Member, Role, first_cluster
from kvnode.node.engine import Engine
from kvnode.node.status import MemberRecord, Membership, MemberStatus, RaftStatus


def membership(cluster_id: bytes, configuration: Configuration, urls: Mapping[str, str]) -> Membership:
    """Sorted by id. `urls`: where nodes say that they are, which the configuration learns with its next change."""

    def record(m: Member) -> MemberRecord:
        url = urls.get(m.node_id) or m.http_url or None
        return MemberRecord(m.node_id, m.shown_address, url, "voter" if m.voter else "learner", m.wanted, m.since)

    records = tuple(record(member) for _, member in sorted(configuration.members.items()))
    return Membership(cluster_id.hex(), configuration.index, records)


def seen_members(engine: Engine, status: RaftStatus, drains: Callable[[str], bool]) -> tuple[MemberStatus, ...]:
    """Every member as this node sees it, sorted by id. `drains`: whether another one has said that it drains."""
    members = (_member(engine, status, member) for _, member in sorted(engine.roster.current.members.items()))
    return tuple(replace(m, draining=status.draining if m.id == status.node_id else drains(m.id)) for m in members)


def unseen_members(peers: Mapping[str, tuple[str, int]]) -> tuple[MemberStatus, ...]:
    """While the journal is being loaded, all that is known is what --peers says."""
    return tuple(
        MemberStatus(member.node_id, member.shown_address, None, "unknown", None, None, None, False)
        for _, member in sorted(first_cluster(peers).members.items())
    )


def _member(engine: Engine, status: RaftStatus, member: Member) -> MemberStatus:
    node_id, raft, replica = member.node_id, member.shown_address, engine.replica
    if node_id == status.node_id:
        applied = replica.applied_index
        lag = max(0, status.leader_commit_index - applied)
        http = engine.settings.http_url
        return MemberStatus(node_id, raft, http, status.role, replica.last[1], applied, lag, True)
    reachable = engine.is_reachable(node_id)
    role: Role | Literal["unknown"] = "unknown"
    if reachable:
        role = "follower" if member.voter else "learner"
    if node_id == engine.leader_id:
        role = "leader"
    known = engine.network.http_urls.get(node_id) or member.http_url or None
    if not replica.is_leader:
        return MemberStatus(node_id, raft, known, role, None, None, None, reachable)
    progress = replica.replicator.followers.get(node_id)
    applied = progress.applied if progress is not None else 0
    lag = max(0, status.leader_commit_index - applied)
    return MemberStatus(node_id, raft, known, role, replica.match_index(node_id), applied, lag, reachable)
