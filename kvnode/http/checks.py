"""What makes a node ready, live and started: pure functions of its RaftStatus, in the order they are reported.

A check answers None where all is well, otherwise one plain sentence. Readiness is about clients, liveness about
the process: a live check never looks at peers, quorum or disk space, so a partition restarts no healthy node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvnode.node.status import RaftStatus, applied_lag

Check = Callable[[RaftStatus], str | None]

# A follower that is further behind than this gives stale reads that are too old and makes linearizable ones
# wait. One entry is one group commit, of which a busy leader makes about a thousand a second: this is a second
# or so behind, far more than a healthy follower ever is, and far less than one that is catching up.
APPLIED_LAG_ENTRIES_MAX: Final = 1_000
# The tick runs every few milliseconds. Ten seconds without one is no pause of a collector or a slow disk any more.
TICK_AGE_S_MAX: Final = 10.0
STARTING: Final = (
    "Start-up is not finished: the node loads its journal and its snapshot, or with --join waits for a cluster to let "
    "it in"
)


def _startup(status: RaftStatus) -> str | None:
    return None if status.started else STARTING


def _storage(status: RaftStatus) -> str | None:
    return status.storage_error


def _leader(status: RaftStatus) -> str | None:
    if status.leader_id is None or status.leader_heard_age_s is None:
        return "No leader is known"
    if status.leader_heard_age_s > status.election_timeout_max_s:
        return f"Nothing was heard from the leader {status.leader_id} for {status.leader_heard_age_s:.1f} s"
    if status.read_unanswered_s > status.election_timeout_max_s:
        # The leader is heard, and does not hear this node, or cannot answer: a read here would wait for it.
        return f"The leader {status.leader_id} has not answered this node's reads for {status.read_unanswered_s:.1f} s"
    return None


def _applied_lag(status: RaftStatus) -> str | None:
    lag = applied_lag(status)
    return None if lag <= APPLIED_LAG_ENTRIES_MAX else f"This node is {lag} entries behind the leader"


def _session_key(status: RaftStatus) -> str | None:
    return status.session_error


def _membership(status: RaftStatus) -> str | None:
    return None if status.is_member else "This node is not a member of the cluster"


def _draining(status: RaftStatus) -> str | None:
    return "This node is draining" if status.draining else None


def _blocking_errors(status: RaftStatus) -> str | None:
    return "; ".join(status.blocking_errors) or None


def _event_loop(status: RaftStatus) -> str | None:
    # A stuck loop answers nothing, and the prober's own deadline sees that. Once it answers, the watchdog still knows.
    return status.loop_error


def _raft_tick(status: RaftStatus) -> str | None:
    # While the journal is loaded there is no tick yet, and a restart would only begin that work again.
    if status.started and status.tick_age_s > TICK_AGE_S_MAX:
        return f"The Raft core has not run for {status.tick_age_s:.1f} s"
    return None


STARTUP: Final[dict[str, Check]] = {"startup": _startup, "session_key": _session_key}

LIVE: Final[dict[str, Check]] = {"event_loop": _event_loop, "raft_tick": _raft_tick}

READY: Final[dict[str, Check]] = {
    "startup": _startup,
    "storage": _storage,
    "leader": _leader,
    "applied_lag": _applied_lag,
    "session_key": _session_key,
    "membership": _membership,
    "draining": _draining,
    "blocking_errors": _blocking_errors,
}


def is_ready(status: RaftStatus) -> bool:
    """Whether every check of READY passes."""
    return all(check(status) is None for check in READY.values())
