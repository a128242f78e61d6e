"""What stands where in a running node, for its metrics."""

from __future__ import annotations

from kvnode.metrics.meters import RaftLevels
from kvnode.node.engine import Engine
from kvnode.storage.segments import Segments


def levels(engine: Engine, segments: Segments) -> RaftLevels:
    snapshots, newest = engine.snapshots, engine.snapshots.newest
    return RaftLevels(
        proposals_waiting=len(engine.proposals.waiting),
        groups_in_flight=engine.proposals.sent,
        journal_entries=len(engine.replica.journal),
        journal_bytes=segments.disk_bytes,
        snapshot_index=newest.index if newest is not None else 0,
        snapshot_bytes=newest.size_bytes if newest is not None else 0,
        snapshots_written=snapshots.written,
        snapshots_failed=snapshots.failed,
        snapshots_installed=snapshots.installed,
        disk_free_bytes=engine.storage.free_bytes,
        disk_total_bytes=engine.storage.total_bytes,
        fsync_s=segments.sync_s,
        outstanding_s=engine.outstanding.ages_s(),
        outcomes=len(engine.store.outcomes),
        outcomes_used=engine.store.outcomes.used,
        differing=engine.audit.differing,
    )
