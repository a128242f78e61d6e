"""Every family on the page of metrics: its name, its meaning, and where its numbers come from.

Names and units as Prometheus wants them: base units, `_total` on what only grows. A family is always there, and its
labels with it, also while it is 0; what only a node that has started can tell is missing until then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kvnode.configuration import Role
from kvnode.metrics.meters import (
    Histogram,
    HttpMeters,
    RaftLevels,
    RaftMeters,
)
from kvnode.node.status import MemberStatus, RaftStatus, applied_lag

ROLES: Final = get_args(Role)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one page is made of. `ready`: each readiness check, and whether it passes."""

    status: RaftStatus
    members: tuple[MemberStatus, ...]
    ready: Mapping[str, bool]
    raft: RaftMeters
    http: HttpMeters
    levels: RaftLevels | None
    keys: int | None  # None here and below if the caller may not see all keys
    revision: int
    leases: int | None
    budgets: Mapping[str, tuple[int, int]]
    over_budget: Mapping[tuple[str, str], int]
    watchers: int
    watch_changes: int
    watches_ended: Mapping[str, int]
    log_lines_dropped: int


def families(reading: Reading, build: Mapping[str, str]) -> Iterator[Metric]:
    labels = {**build, "node": reading.status.node_id, "cluster": reading.status.cluster_id}
    yield _labelled(
        "kvnode_build_info", "Always 1; the labels say what runs here.", tuple(labels), {tuple(labels.values()): 1}
    )
    yield from _raft(reading.status)
    yield from _peers(reading)
    yield from _writes(reading.raft)
    yield from _store(reading)
    yield from _http(reading)
    if reading.levels is not None:
        yield from _disk(reading.levels)


def _raft(status: RaftStatus) -> Iterator[Metric]:
    states = {(role,): float(status.role == role) for role in ROLES}
    yield _labelled("kvnode_raft_state", "1 for the role that this node has now.", ("state",), states)
    yield _gauge("kvnode_raft_term", "The node's current term.", status.term)
    yield _gauge("kvnode_raft_feature_level", "The feature level that the cluster has reached.", status.feature_level)
    yield _gauge(
        "kvnode_raft_commit_index", "The last entry that this node knows to be committed.", status.commit_index
    )
    yield _gauge("kvnode_raft_applied_index", "The last entry that this node has applied.", status.applied_index)
    yield _gauge("kvnode_raft_last_index", "The last entry of this node's log.", status.last_index)
    yield _gauge(
        "kvnode_raft_applied_lag",
        "Entries that the leader has committed and this node has not applied.",
        applied_lag(status),
    )
    yield _gauge("kvnode_raft_has_leader", "1 where this node knows a leader.", status.leader_id is not None)
    if status.leader_heard_age_s is not None:
        yield _gauge(
            "kvnode_raft_leader_heard_age_seconds",
            "Since the leader was last heard; 0 on the leader.",
            status.leader_heard_age_s,
        )
    yield _gauge("kvnode_raft_draining", "1 where this node takes no new work.", status.draining)


def _peers(reading: Reading) -> Iterator[Metric]:
    me = reading.status.node_id
    peers = [member for member in reading.members if member.id != me]
    yield _gauge("kvnode_raft_members", "Members of the cluster, learners included.", len(reading.members))
    reachable = {(peer.id,): float(peer.reachable) for peer in peers}
    yield _labelled(
        "kvnode_raft_peer_reachable",
        "1 where this peer is connected, and on the leader: answers.",
        ("peer",),
        reachable,
    )
    lags = {(peer.id,): float(peer.lag) for peer in peers if peer.lag is not None}
    yield _labelled(
        "kvnode_raft_peer_lag", "Entries that the peer has not applied; known on the leader alone.", ("peer",), lags
    )
    if reading.levels is not None:
        differ = {(member.id,): float(member.id in reading.levels.differing) for member in reading.members}
        yield _labelled(
            "kvnode_raft_digest_mismatch", "1 for a member whose data differs from the majority's.", ("member",), differ
        )


def _writes(raft: RaftMeters) -> Iterator[Metric]:
    yield _counter(
        "kvnode_raft_leader_changes",
        "Leaders that this node has followed or been, one after the other.",
        raft.leader_changes,
    )
    outcomes = {("applied",): raft.applied, ("refused",): raft.refused, ("unknown",): raft.unknown}
    yield _counters(
        "kvnode_raft_proposals", "Writes of this node's clients, by what they were told.", ("outcome",), outcomes
    )
    yield _counter(
        "kvnode_apply_errors",
        "Commands that the state machine failed at and answered as invalid: a fault in kvnode, please report it.",
        raft.apply_errors,
    )
    yield _histogram("kvnode_raft_batch_commands", "Writes that travel as one group.", raft.batch_commands)
    yield _histogram(
        "kvnode_raft_commit_seconds",
        "From when a group of writes leaves this node's queue until it is applied here.",
        raft.commit_s,
    )
    ways = {("sent",): raft.forwarded, ("received",): raft.forwarded_here, ("refused",): raft.forwarded_refused}
    yield _counters("kvnode_raft_forwarded_groups", "Groups of writes between followers and leader.", ("way",), ways)


def _store(reading: Reading) -> Iterator[Metric]:
    if reading.keys is not None:
        yield _gauge("kvnode_store_keys", "Keys in the store.", reading.keys)
    yield _gauge("kvnode_store_revision", "The store's revision.", reading.revision)
    if reading.leases is not None:
        yield _gauge("kvnode_store_leases", "Leases in the store.", reading.leases)
    yield _gauge("kvnode_watch_watchers", "Watches that are open on this node.", reading.watchers)
    yield _gauge(
        "kvnode_watch_history_changes", "Changes that a watch can go back to on this node.", reading.watch_changes
    )
    reasons = ("slow", "compacted", "shutting_down", "no_leader", "revoked")
    ended = {(reason,): reading.watches_ended.get(reason, 0) for reason in reasons}
    yield _counters("kvnode_watch_ended", "Watches that this node ended, by reason.", ("reason",), ended)


def _http(reading: Reading) -> Iterator[Metric]:
    yield _gauge("kvnode_warnings", "What /readyz warns of; it makes no node unready.", len(reading.status.warnings))
    yield _counter(
        "kvnode_log_lines_dropped",
        "Log lines that were left out because stderr did not take them.",
        reading.log_lines_dropped,
    )
    http = reading.http
    ready = {(check,): float(passes) for check, passes in reading.ready.items()}
    yield _labelled(
        "kvnode_ready", "1 for each readiness check that passes; all of them: the node is ready.", ("check",), ready
    )
    in_use = {(name,): float(used) for name, (used, _) in reading.budgets.items()}
    yield _labelled(
        "kvnode_http_budget_bytes", "Bytes that clients hold of each budget of this node.", ("budget",), in_use
    )
    limits = {(name,): float(limit) for name, (_, limit) in reading.budgets.items()}
    yield _labelled("kvnode_http_budget_limit_bytes", "How much each budget has.", ("budget",), limits)
    yield _counters(
        "kvnode_http_over_budget",
        "Requests that were refused and connections that were cut because a budget was spent.",
        ("budget", "what"),
        reading.over_budget,
    )
    codes = {(str(code),): count for code, count in enumerate(http.codes) if count}
    yield _counters("kvnode_http_answers", "Answers of the HTTP server, by status.", ("code",), codes)
    calls = {(call,): count for call, count in http.etcd_calls.items()}
    yield _counters("kvnode_etcd_requests", "Requests of etcd's API that were let in, by call.", ("call",), calls)
    yield _gauge("kvnode_http_connections", "Connections of clients that are open.", http.connections)
    closed = {(reason,): http.connections_closed[reason] for reason in ("made_room", "refused")}
    yield _counters(
        "kvnode_http_connections_closed",
        "Connections over a limit: the longest idle that made room, and newcomers that were refused.",
        ("reason",),
        closed,
    )
    yield _counters("kvnode_probe_results", "Answers of the probes.", ("probe", "result"), dict(http.probes))
    yield _histogram("kvnode_probe_seconds", "How long the leader probe took.", http.probe_s)
    yield _histogram(
        "kvnode_event_loop_lag_seconds",
        "How much later than asked for the event loop came to a timer.",
        http.loop_lag_s,
    )


def _disk(levels: RaftLevels) -> Iterator[Metric]:
    yield _gauge("kvnode_raft_proposals_waiting", "Writes in this node's queue.", levels.proposals_waiting)
    yield _gauge(
        "kvnode_raft_groups_in_flight",
        "Groups of writes that left the queue and are not applied.",
        levels.groups_in_flight,
    )
    yield _histogram(
        "kvnode_journal_fsync_seconds",
        "How long the disk took to make a flight of the journal durable.",
        levels.fsync_s,
    )
    yield _labelled(
        "kvnode_outstanding_oldest_seconds",
        "How long the oldest of what was begun and has not ended has been outstanding; 0 where nothing is.",
        ("kind",),
        {(kind,): age_s for kind, age_s in levels.outstanding_s.items()},
    )
    yield _gauge(
        "kvnode_idempotency_outcomes", "Outcomes of writes with an Idempotency-Key that are kept.", levels.outcomes
    )
    yield _gauge(
        "kvnode_idempotency_window_used_ratio",
        "What the outcomes that may not be forgotten yet take of their room; at 1 new keyed writes are refused.",
        levels.outcomes_used,
    )
    yield _gauge("kvnode_journal_entries", "Entries of the log that are kept.", levels.journal_entries)
    yield _gauge("kvnode_journal_bytes", "Bytes of the journal's files.", levels.journal_bytes)
    yield _gauge(
        "kvnode_snapshot_index", "The last entry that the newest snapshot covers; 0 without one.", levels.snapshot_index
    )
    yield _gauge("kvnode_snapshot_bytes", "Bytes of the newest snapshot.", levels.snapshot_bytes)
    done = {
        ("written",): levels.snapshots_written,
        ("failed",): levels.snapshots_failed,
        ("installed",): levels.snapshots_installed,
    }
    yield _counters("kvnode_snapshots", "Snapshots: written here, failed here, installed from a peer.", ("what",), done)
    yield _gauge(
        "kvnode_disk_free_bytes",
        "Free on the file system of the data directory, as last looked at.",
        levels.disk_free_bytes,
    )
    yield _gauge("kvnode_disk_size_bytes", "Size of that file system.", levels.disk_total_bytes)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(name, meaning, value)


def _labelled(name: str, meaning: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _counters(name: str, meaning: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _histogram(name: str, meaning: str, histogram: Histogram) -> Metric:
    total, buckets = 0, []
    for bound, count in zip((*map(str, map(float, histogram.bounds)), "+Inf"), list(histogram.counts), strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(name, meaning, buckets, histogram.sum)
