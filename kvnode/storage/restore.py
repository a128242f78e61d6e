"""A cluster of one, made of a backup: offline, with a cluster id of its own, as `recover.py` makes one of a directory.

What the old cluster wrote after the backup, the backup does not know: hence the leap (`bootstrap.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kvnode.configuration import Configuration, Member
from kvnode.errors import StartupError
from kvnode.state.store import KeyValueStore
from kvnode.storage.bootstrap import (
    LEAP,
    LEAP_MAX,
    found,
    refuse_mount_point,
    resolved,
    sync,
)
from kvnode.storage.identity import Claim
from kvnode.storage.segments import CLUSTER_ID_BYTES

__all__ = ["LEAP", "LEAP_MAX", "restore"]

NEW: Final = ".restoring"
INDEX: Final = 2  # every empty log begins with an entry 1 of term 0: who joins must see that it lacks something


def restore(path: Path, node_id: str, address: tuple[str, int], url: str, store: KeyValueStore, leap: int) -> bytes:
    """Writes the data directory `path`, which must not exist or be empty; the new cluster's id.

    `address` and `url` are where others reach the node. Raises StartupError, OSError; then `path` is as it was.
    """
    path = resolved(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StartupError(f"{path} is there and not empty: restore into a new --data-dir, or move that one away.")
    refuse_mount_point(path)
    new = path.with_name(path.name + NEW)
    if new.exists():
        raise StartupError(f"{new} is there already, of a restore that did not end: remove it, then try again.")
    cluster_id = os.urandom(CLUSTER_ID_BYTES)
    alone = Configuration(INDEX, {node_id: Member(node_id, address, url, since=INDEX)})
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    found(new, Claim(node_id, cluster_id, [node_id], recovered=True), INDEX, 1, 2, alone, store, leap)
    if path.exists():
        path.rmdir()
    os.rename(new, path)
    sync(path.parent)
    return cluster_id
