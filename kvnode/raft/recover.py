"""A cluster of one, made of what one node of a lost cluster holds: the last resort, and offline.

The snapshot and all of the log that follows it are applied, also what was not known to be committed: the majority
that could say is gone, and to keep an entry that nobody was promised harms less than to lose one that somebody was.
The outcome is a new data directory with one snapshot, this node as the only member, a later term, and *another
cluster id*: every handshake compares it, so members of the lost cluster that come back can neither vote here nor
speak to this node, and this node not to them. What they held that this node did not is lost.

The directory as it was is kept beside it. Nothing is changed before the new one is whole: the last step renames.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvnode.entries import decode_entry
from kvnode.errors import StartupError
from kvnode.raft import identity
from kvnode.raft.core import REGULAR
from kvnode.raft.disk import Directory
from kvnode.raft.founding import found, sync
from kvnode.raft.identity import Claim
from kvnode.raft.journal import Journal
from kvnode.raft.membership import Configuration, Member, Roster, first_cluster
from kvnode.raft.segments import CLUSTER_ID_BYTES, Segments
from kvnode.raft.snapshot import Snapshots
from kvnode.store import KeyValueStore

NEW: Final = ".recovering"
OLD: Final = ".before-recovery"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the new cluster begins with. `kept` is where the old directory is now."""

    node_id: str
    cluster_id: bytes
    index: int
    revision: int
    keys: int
    former: tuple[str, ...]
    kept: Path


def recover(path: Path) -> Recovered:
    """Raises StartupError where the directory is in use, damaged, or of no node; then nothing is changed."""
    path = path.resolve()
    new, old = path.with_name(path.name + NEW), path.with_name(path.name + OLD)
    if not (path / identity.FILE).is_file():
        raise StartupError(
            f"The directory {path} holds no data of a node: name a node's data directory with --data-dir."
        )
    for other in (new, old):
        if other.exists():
            raise StartupError(f"{other} is there already, of an earlier recovery: move it away, then try again.")
    disk = Directory(path)  # and its lock: no node may run on it
    try:
        recovered = _write(disk, new, old)
    finally:
        disk.close()
    os.rename(path, old)
    os.rename(new, path)
    sync(path.parent)
    return recovered


def _write(disk: Directory, new: Path, old: Path) -> Recovered:
    claimed = identity.written(disk)
    snapshots = Snapshots(disk, claimed.cluster_id)
    store = snapshots.recover()
    journal = Journal(Segments(disk, claimed.cluster_id).recover())
    newest = snapshots.newest
    journal.reconcile(newest.index if newest else 0, newest.term if newest else 0, disk.where(""))
    if len(journal) == 0:
        raise StartupError(f"{disk.where('')} holds no log: this node has nothing to recover a cluster from.")
    first = claimed.told or first_cluster(dict.fromkeys(claimed.members, ("", 0)))
    if newest is not None and newest.configuration.index:
        first = newest.configuration
    former = Roster(claimed.node_id, journal, first).current
    index, term = _apply(store, journal, newest.index if newest else 1), journal[-1][2]
    cluster_id = os.urandom(CLUSTER_ID_BYTES)
    mine = former.members.get(claimed.node_id, Member(claimed.node_id, ("", 0)))
    alone = Configuration(index, {mine.node_id: Member(mine.node_id, mine.address, mine.http_url, since=index)})
    claim = Claim(claimed.node_id, cluster_id, [claimed.node_id], recovered=True)
    found(new, claim, index, term, max(journal.getCurrentTerm(), term) + 1, alone, store)
    others = tuple(sorted(former.members.keys() - {claimed.node_id}))
    return Recovered(claimed.node_id, cluster_id, index, store.revision, len(store), others, old)


def _apply(store: KeyValueStore, journal: Journal, applied: int) -> int:
    """Everything behind `applied`; the last index."""
    for command, index, _ in journal[applied + 1 - journal[0][1] :]:
        if command[0] == REGULAR and index > applied:
            for _, _, commands in decode_entry(command[1:]):
                for each in commands:
                    store.apply(each)
    return journal[-1][1]
