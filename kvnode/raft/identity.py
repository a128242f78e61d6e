"""Who a data directory belongs to: one node of one cluster, written down at its first start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from kvnode.errors import StartupError
from kvnode.raft.disk import Disk

FILE: Final = "identity.json"
_ID_BYTES: Final = 16


def cluster_id_of(name: str | None, peers: Mapping[str, tuple[str, int]]) -> bytes:
    """16 bytes that all nodes of a first cluster derive alike: from its given name, or from its members' list.

    As in etcd, the derived id covers names and addresses, so that two clusters that merely use the same names
    are never taken for one. It is drawn once: later changes of address do not change it.
    """
    source = name if name is not None else "\n".join(f"{n}={h}:{p}" for n, (h, p) in sorted(peers.items()))
    return hashlib.blake2b(source.encode(), digest_size=_ID_BYTES, person=b"kvnode cluster").digest()


def claim(disk: Disk, node_id: str, name: str | None, peers: Mapping[str, tuple[str, int]]) -> bytes:
    """The cluster id of this data directory, written down if it is new. Raises StartupError if it is another's."""
    if FILE not in disk.names():
        if any(file.startswith(("journal-", "snapshot-")) for file in disk.names()):
            raise StartupError(
                f"{disk.where(FILE)} is missing, but a journal or snapshot is there: restore the file from a copy, "
                "or give this node an empty --data-dir."
            )
        cluster_id = cluster_id_of(name, peers)
        identity = {"cluster_id": cluster_id.hex(), "node_id": node_id, "members": sorted(peers)}
        part = f"{FILE}.part"
        if part in disk.names():
            disk.unlink(part)
        disk.append(part, [json.dumps(identity, indent=1).encode() + b"\n"])
        disk.sync(part)
        disk.rename(part, FILE)
        disk.sync_directory()
        return cluster_id
    known, cluster_id, members = written(disk)
    if known != node_id:
        raise StartupError(
            f"The data directory of {disk.where(FILE)} belongs to node {known!r}, not to {node_id!r}: "
            "give each node its own --data-dir."
        )
    if name is not None and cluster_id != cluster_id_of(name, peers):
        raise StartupError(
            f"The data directory of {disk.where(FILE)} belongs to another cluster than --cluster-id says: "
            "start the node with the id it was first started with, or with an empty --data-dir."
        )
    if set(members) != set(peers):
        raise StartupError(
            f"The data directory of {disk.where(FILE)} belongs to a cluster of {', '.join(sorted(members))}, "
            f"but --peers names {', '.join(sorted(peers))}: correct --peers, or give this node an empty --data-dir."
        )
    return cluster_id


def written(disk: Disk) -> tuple[str, bytes, list[str]]:
    """(node id, cluster id, members of the first cluster) as the directory says. Raises StartupError."""
    try:
        identity = json.loads(disk.read(FILE))
        node_id, cluster_id = identity["node_id"], bytes.fromhex(identity["cluster_id"])
        members = sorted(identity["members"])
        if not (type(node_id) is str and len(cluster_id) == _ID_BYTES and all(type(m) is str for m in members)):
            raise ValueError("a field is of the wrong kind")
    except (ValueError, KeyError, TypeError) as error:
        raise StartupError(f"{disk.where(FILE)} cannot be read: restore it from a copy.") from error
    return node_id, cluster_id, members
