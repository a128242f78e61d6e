"""A cluster of one, made of a backup: offline, with a cluster id of its own, as `recover.py` makes one of a directory.

Revisions never go back. What the old cluster wrote after the backup had higher revisions than the backup knows of, and
clients may hold those; so the new cluster begins far above them. A watch from before is told that it is compacted, and
an `If-Match` of a lost write never fits.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kvnode.errors import StartupError
from kvnode.raft.founding import found, sync
from kvnode.raft.identity import Claim
from kvnode.raft.membership import Configuration, Member
from kvnode.raft.segments import CLUSTER_ID_BYTES
from kvnode.store import KeyValueStore

NEW: Final = ".restoring"
# What a cluster makes in half a day of nothing but writes; small against the 2**53 that JSON keeps exact.
LEAP: Final = 1_000_000_000
LEAP_MAX: Final = 2**50
INDEX: Final = 2  # every empty log begins with an entry 1 of term 0: who joins must see that it lacks something


def restore(path: Path, node_id: str, address: tuple[str, int], url: str, store: KeyValueStore, leap: int) -> bytes:
    """Writes the data directory `path`, which must not exist or be empty; the new cluster's id.

    `address` and `url` are where others reach the node. Raises StartupError, OSError; then `path` is as it was.
    """
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StartupError(f"{path} is there and not empty: restore into a new --data-dir, or move that one away.")
    new = path.with_name(path.name + NEW)
    if new.exists():
        raise StartupError(f"{new} is there already, of a restore that did not end: remove it, then try again.")
    store.revision += leap
    cluster_id = os.urandom(CLUSTER_ID_BYTES)
    alone = Configuration(INDEX, {node_id: Member(node_id, address, url, since=INDEX)})
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    found(new, Claim(node_id, cluster_id, [node_id], recovered=True), INDEX, 1, 2, alone, store)
    if path.exists():
        path.rmdir()
    os.rename(new, path)
    sync(path.parent)
    return cluster_id
