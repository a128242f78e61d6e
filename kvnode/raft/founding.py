"""A new data directory that a cluster of one begins with: its state as a snapshot, its members, and a later term."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kvnode.errors import StartupError
from kvnode.limits import COUNTER_MAX
from kvnode.raft import identity
from kvnode.raft.disk import Directory
from kvnode.raft.identity import Claim
from kvnode.raft.journal import Journal
from kvnode.raft.membership import Configuration
from kvnode.raft.segments import Segments
from kvnode.raft.snapshot import Snapshots
from kvnode.store import KeyValueStore

# What the digest of the divergence check goes on from (`audit.py`). Any number will do: all later members get
# it with this snapshot. Without one, nodes that began with the snapshot would never compare anything.
DIGEST: Final = 0


def found(
    path: Path, claimed: Claim, index: int, term: int, vote_term: int, alone: Configuration, store: KeyValueStore
) -> None:
    """Writes the directory: `store` as the state after entry `index` of `term`, no vote cast yet in `vote_term`.

    Raises StartupError, before anything is written, where a leap took a counter too far for a node to load.
    """
    if max(store.revision, store.leases.last_id) > COUNTER_MAX:
        raise StartupError(f"Revisions and lease ids end at {COUNTER_MAX}: leap over fewer of them.")
    target = Directory(path)
    try:
        identity.write(target, claimed)
        segments = Segments(target, claimed.cluster_id)
        journal = Journal(segments.recover())
        journal.rebase(index, term)
        journal.setCurrentTerm(vote_term, None)
        flight = journal.begin_flight()
        assert flight is not None
        segments.append(flight.buffers, flight.last_index, flight.state, sync=True)
        segments.note_durable()
        Snapshots(target, claimed.cluster_id).write(index, term, alone, store.view(), DIGEST)
    finally:
        target.close()


def sync(directory: Path) -> None:
    """What was renamed in it stays renamed."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
