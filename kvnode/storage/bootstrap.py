"""A new data directory that a cluster of one begins with: its state as a snapshot, its members, and a later term.

Numbers are given once. What the state was taken from (a backup, one node of a lost cluster) does not know what the old
cluster gave after that: revisions, which are fencing tokens of locks and what `If-Match` and watches go by, and ids of
leases, by which clients renew and revoke. So the new cluster begins far above them. Then a watch from before
gets `compacted`, an `If-Match` of a lost write never matches, and the id of a lost lease never names another's lease.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from kvnode.configuration import Configuration
from kvnode.errors import StartupError
from kvnode.state.limits import COUNTER_MAX, LEAP, LEAP_MAX
from kvnode.state.store import KeyValueStore
from kvnode.storage import identity
from kvnode.storage.disk import Directory
from kvnode.storage.identity import Claim
from kvnode.storage.journal import Journal
from kvnode.storage.segments import Segments
from kvnode.storage.snapshots import Snapshots

__all__ = ["LEAP", "LEAP_MAX", "found", "refuse_mount_point", "resolved", "sync"]

# What the digest of the divergence check goes on from (`divergence.py`). Any number will do: all later members get
# it with this snapshot. Without one, nodes that began with the snapshot would never compare anything.
DIGEST: Final = 0


def resolved(path: Path) -> Path:
    """The path without links. Raises StartupError where they lead in a circle."""
    try:
        path.stat()  # `resolve` alone says nothing of a circle from Python 3.13 on
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StartupError(f"The links of {path} lead in a circle: name the data directory itself.") from None
    return path.resolve()


def refuse_mount_point(path: Path) -> None:
    """Raises StartupError where nothing can be renamed to `path`. Asked first: what is written would stay."""
    if path.is_mount():
        raise StartupError(
            f"{path} is a mount point, and a new directory is to take its place: have the data in a folder in it, such "
            f"as {path / 'kvnode'}, and name that with --data-dir, here and for the node."
        )


def found(
    path: Path,
    claimed: Claim,
    index: int,
    term: int,
    vote_term: int,
    alone: Configuration,
    store: KeyValueStore,
    leap: int = LEAP,
) -> None:
    """Writes the directory: `store` as the state after entry `index` of `term`, no vote cast yet in `vote_term`.

    Revisions and ids of leases go on `leap` above those that `store` has given. Raises StartupError, before anything
    is written, where that is too far for a node to load.
    """
    store.revision += leap
    store.leases.last_id += leap
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
