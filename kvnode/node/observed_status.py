"""One node's `RaftStatus`, from its engine: what probes, the status page and operators are told."""

from __future__ import annotations

from kvnode.node.engine import Engine
from kvnode.node.session_key import MISSING, SessionKey
from kvnode.node.settings import RaftSettings
from kvnode.node.status import RaftStatus
from kvnode.peers.handshake import (
    DUPLICATE,
    FORGETFUL,
    OTHER_CLUSTER,
    STRANGER,
    TOO_OLD,
)


def unseen_status(settings: RaftSettings, cluster_id: bytes, draining: bool, loop_error: str | None) -> RaftStatus:
    """That of a node which has not finished starting."""
    return RaftStatus(
        node_id=settings.node_id,
        cluster_id=cluster_id.hex(),
        role="follower",
        leader_id=None,
        term=0,
        commit_index=0,
        applied_index=0,
        last_index=0,
        started=False,
        is_member=True,
        serving=False,
        draining=draining,
        transferring=False,
        leader_heard_age_s=None,
        tick_age_s=0.0,
        election_timeout_max_s=settings.election_timeout_max_s,
        leader_commit_index=0,
        storage_error=None,
        blocking_errors=(),
        session_error=MISSING,
        loop_error=loop_error,
    )


def seen_lag(engine: Engine) -> int:
    """`applied_lag` of the status of a running node, without all the rest of it."""
    committed = _leader_commit_index(engine)
    if engine.leader_id is None:
        committed = max(committed, engine.replica.last[1])
    return max(0, committed - engine.replica.applied_index)


def _leader_commit_index(engine: Engine) -> int:
    replica = engine.replica
    return int(replica.raftCommitIndex if replica.is_leader else replica.guard.leader_commit_index)


def seen_status(
    engine: Engine, cluster_id: bytes, started: bool, draining: bool, fatal: str | None, session: SessionKey
) -> RaftStatus:
    """That of a running node. `fatal`: why it is about to stop, where it is."""
    replica, settings = engine.replica, engine.settings
    leading = replica.is_leader
    unfit, odd = _refusals(engine)
    return RaftStatus(
        node_id=settings.node_id,
        cluster_id=cluster_id.hex(),
        role=replica.role if replica.is_voter and not engine.memory.lost else "learner",
        leader_id=engine.leader_id,
        term=replica.term,
        commit_index=replica.raftCommitIndex,
        applied_index=replica.applied_index,
        last_index=replica.last[1],
        started=started,
        is_member=engine.roster.is_member and engine.roster.dismissed is None,
        serving=replica.serving,
        draining=draining,
        transferring=engine.writes.transferring,
        leader_heard_age_s=0.0 if leading else replica.election.leader_heard_age_s(),
        tick_age_s=engine.clock() - engine.last_step_at,
        election_timeout_max_s=settings.election_timeout_max_s,
        leader_commit_index=_leader_commit_index(engine),
        storage_error=engine.storage.error,
        blocking_errors=tuple(each for each in (fatal, engine.audit.error, session.blocking, *unfit) if each),
        read_unanswered_s=engine.outstanding.age_s("read_question"),
        session_error=session.error,
        feature_level=engine.store.level,
        warnings=tuple(each for each in (session.warning, *odd, *engine.outstanding.overdue()) if each),
    )


def _refusals(engine: Engine) -> tuple[list[str], list[str]]:
    """What peers have against this node: what makes it unfit, and what is more likely a fault of theirs.

    Whose id another process has is told so by a peer that talks to that process. Of two clusters, the node that hears
    no leader is the one that is wrong here; one that is led by its own takes the peer for the stranger.
    """
    unfit, odd = [], []
    for peer_id, refused in sorted(engine.network.refusals.items()):
        sentence = f"Peer {peer_id} does not talk to this node: {refused}"
        if (refused.code in (DUPLICATE, FORGETFUL) and (refused.code == DUPLICATE or engine.memory.lost)) or (
            refused.code in (OTHER_CLUSTER, STRANGER, TOO_OLD) and engine.leader_id is None
        ):
            unfit.append(sentence)
        else:
            odd.append(sentence)
    return unfit, odd
