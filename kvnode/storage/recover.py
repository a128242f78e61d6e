"""A cluster of one, made of what one node of a lost cluster holds: the last resort, and offline.

The snapshot and the whole log behind it are applied, also entries that were not known to be committed: the majority
that could tell is gone, and keeping an unacknowledged write harms less than losing an acknowledged one.
The outcome is a new data directory with one snapshot, this node as the only member, a later term, and *another
cluster id*: every handshake compares it, so members of the lost cluster that come back can neither vote here nor
speak to this node, and this node not to them. What they held that this node did not is lost.

The directory as it was is kept beside it. Nothing is changed before the new one is whole: the last step renames.

It is also the way out of data that no node can apply: an entry that is poisoned (`replay.py`) may be left out, and of a
snapshot that breaks the limits what is sound is kept (`salvage.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvnode.configuration import Configuration, Member, first_cluster, of_entry
from kvnode.errors import StartupError
from kvnode.state.limits import COUNTER_MAX, LEAP
from kvnode.state.store import KeyValueStore
from kvnode.storage import identity
from kvnode.storage.bootstrap import found, refuse_mount_point, resolved, sync
from kvnode.storage.disk import Directory
from kvnode.storage.identity import Claim
from kvnode.storage.journal import Journal
from kvnode.storage.replay import Poisoned, replay
from kvnode.storage.salvage import Salvaged, salvage
from kvnode.storage.segments import CLUSTER_ID_BYTES, Segments
from kvnode.storage.snapshots import Snapshots

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
    skipped: Poisoned | None = None
    salvaged: Salvaged | None = None
    leap: int = LEAP  # so far above all that the directory held its revisions begin, as its lease ids do


def recover(path: Path, skip: int | None = None) -> Recovered:
    """`skip`: an entry to leave out, which must be poisoned.

    Raises StartupError where the directory is in use, damaged, or of no node; then nothing is changed.
    """
    path = resolved(path)
    new, old = path.with_name(path.name + NEW), path.with_name(path.name + OLD)
    if not (path / identity.FILE).is_file():
        raise StartupError(
            f"The directory {path} holds no data of a node: name a node's data directory with --data-dir."
        )
    refuse_mount_point(path)
    for other in (new, old):
        if other.exists():
            raise StartupError(f"{other} is there already, of an earlier recovery: move it away, then try again.")
    disk = Directory(path)  # and its lock: no node may run on it
    try:
        recovered = _write(disk, new, old, skip)
    finally:
        disk.close()
    os.rename(path, old)
    os.rename(new, path)
    sync(path.parent)
    return recovered


def _write(disk: Directory, new: Path, old: Path, skip: int | None) -> Recovered:
    claimed = identity.written(disk)
    snapshots = Snapshots(disk, claimed.cluster_id)
    store, salvaged = _load(snapshots)
    journal = Journal(Segments(disk, claimed.cluster_id).recover())
    newest = snapshots.newest
    journal.reconcile(newest.index if newest else 0, newest.term if newest else 0, disk.where(""))
    if len(journal) == 0:
        raise StartupError(f"{disk.where('')} holds no log: this node has nothing to recover a cluster from.")
    first = claimed.told or first_cluster(dict.fromkeys(claimed.members, ("", 0)))
    if newest is not None and newest.configuration.index:
        first = newest.configuration
    former = of_entry(*journal.configurations[-1]) if journal.configurations else first
    applied = newest.index if newest else 1
    poisoned = replay(store, journal, applied)
    skipped = None
    if skip is not None:
        skipped = _check_poisoned(skip, poisoned)
        store, salvaged = _load(snapshots)
        replay(store, journal, applied, skip)
    index, term = journal[-1][1], journal[-1][2]
    cluster_id = os.urandom(CLUSTER_ID_BYTES)
    mine = former.members.get(claimed.node_id, Member(claimed.node_id, ("", 0)))
    alone = Configuration(index, {mine.node_id: Member(mine.node_id, mine.address, mine.http_url, since=index)})
    claim = Claim(claimed.node_id, cluster_id, [claimed.node_id], recovered=True)
    store.staging = None  # a restore that had not come to its end
    # To the last number at most, which is above all that the lost nodes can have given: a recovery never fails at it.
    held = store.revision
    store.revision = min(held + LEAP, COUNTER_MAX)
    store.leases.last_id = min(store.leases.last_id + LEAP, COUNTER_MAX)
    found(new, claim, index, term, max(journal.getCurrentTerm(), term) + 1, alone, store, leap=0)
    others = tuple(sorted(former.members.keys() - {claimed.node_id}))
    made = (claimed.node_id, cluster_id, index, store.revision, len(store), others, old)
    return Recovered(*made, skipped, salvaged, store.revision - held)


def _load(snapshots: Snapshots) -> tuple[KeyValueStore, Salvaged | None]:
    """The newest snapshot; what is sound of it where it breaks the limits and its bytes are whole."""
    try:
        return snapshots.recover(), None
    except StartupError as damaged:
        done: list[Salvaged] = []

        def load(chunks: Iterable[bytes]) -> KeyValueStore:
            store, salvaged = salvage(chunks)
            done.append(salvaged)
            return store

        try:
            return snapshots.recover(load), done[0]
        except StartupError:
            raise damaged from None


def _check_poisoned(skip: int, poisoned: list[Poisoned]) -> Poisoned:
    for each in poisoned:
        if each.index == skip:
            return each
    found = f"poisoned here: {', '.join(str(each.index) for each in poisoned)}" if poisoned else "none here is poisoned"
    raise StartupError(
        f"Entry {skip} is not poisoned ({found}): every node can apply it, and to leave it out would lose what was "
        "written; nothing was changed."
    )
