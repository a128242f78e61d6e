"""Who a data directory belongs to: one node of one cluster, written down at its first start."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from kvnode.configuration import Configuration, unpacked
from kvnode.errors import StartupError
from kvnode.storage.disk import Disk

FILE: Final = "identity.json"
_ID_BYTES: Final = 16
DIRECTORY_ID_BYTES: Final = 16


def cluster_id_of(name: str | None, peers: Mapping[str, tuple[str, int]]) -> bytes:
    """16 bytes that all nodes of a first cluster derive alike: from its given name, or from its members' list.

    As in etcd, the derived id covers names and addresses, so that two clusters that merely use the same names
    are never taken for one. It is drawn once: later changes of address do not change it.
    """
    source = name if name is not None else "\n".join(f"{n}={h}:{p}" for n, (h, p) in sorted(peers.items()))
    return hashlib.blake2b(source.encode(), digest_size=_ID_BYTES, person=b"kvnode cluster").digest()


@dataclass(frozen=True, slots=True)
class Claim:
    """What a data directory says: whose it is, and who the members were when it was first used.

    `told`: those of the cluster that the node was let into, None for one of a first cluster.
    `recovered`: the cluster was made of one that had lost its majority, and has an id of its own since.
    """

    node_id: str
    cluster_id: bytes
    members: list[str]
    told: Configuration | None = None
    recovered: bool = False
    dismissed: str | None = None
    began_empty: bool = False  # as one of a first cluster: the directory was empty then (`promises.py`)
    forgetful: bool = False  # a member said so: what this node promised went with an earlier directory (`promises.py`)
    settled: bool = False  # the cluster had reached a feature level, by a committed entry (`promises.py`)
    directory_id: bytes = b""  # drawn for this directory; empty: it is of a version that drew none
    met: Mapping[str, bytes] = field(default_factory=dict)  # the directories of the other members (`promises.py`)


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a running cluster says to a node that is to join it."""

    cluster_id: bytes
    configuration: Configuration


def is_claimed(disk: Disk) -> bool:
    """False for a directory that no node has used. Raises StartupError where one has, and the file is missing."""
    if FILE in disk.names():
        return True
    if any(file.startswith(("journal-", "snapshot-")) for file in disk.names()):
        raise StartupError(
            f"{disk.where(FILE)} is missing, but a journal or snapshot is there: restore the file from a copy, "
            "or give this node an empty --data-dir."
        )
    return False


def claim(
    disk: Disk,
    node_id: str,
    name: str | None,
    peers: Mapping[str, tuple[str, int]],
    invitation: Invitation | None = None,
    directory_id: bytes = b"",
) -> Claim:
    """Whose directory this is, written down if it is new. Raises StartupError if it is another's."""
    if not is_claimed(disk):
        if invitation is None:
            claimed = Claim(
                node_id, cluster_id_of(name, peers), sorted(peers), began_empty=True, directory_id=directory_id
            )
        else:
            told = invitation.configuration
            claimed = Claim(node_id, invitation.cluster_id, sorted(told.members), told, directory_id=directory_id)
        write(disk, claimed)
        return claimed
    known = written(disk)
    if known.node_id != node_id:
        raise StartupError(
            f"The data directory of {disk.where(FILE)} belongs to node {known.node_id!r}, not to {node_id!r}: "
            "give each node its own --data-dir."
        )
    if known.dismissed is not None:
        raise StartupError(known.dismissed)
    given_once = known.told is None and not known.recovered  # any other cluster's id was not given by its name
    if name is not None and given_once and known.cluster_id != cluster_id_of(name, peers):
        raise StartupError(
            f"The data directory of {disk.where(FILE)} belongs to another cluster than --cluster-id says: "
            "start the node with the id it was first started with, or with an empty --data-dir."
        )
    return known


def check_peers(disk: Disk, claimed: Claim, peers: Mapping[str, tuple[str, int]]) -> None:
    """Where neither the log nor a snapshot says who the members are, --peers counts, and must be what it was."""
    if set(claimed.members) != set(peers):
        raise StartupError(
            f"The data directory of {disk.where(FILE)} belongs to a cluster of {', '.join(claimed.members)}, "
            f"but --peers names {', '.join(sorted(peers))}: correct --peers, or give this node an empty --data-dir "
            "('kvnode member add' adds a node)."
        )


class Identity:
    """What a running node changes in its directory's file, each a few times in its life, from any thread.

    `lock` keeps one change from being lost to another that has read the file before it. All raise StartupError where
    the file was altered, and OSError.
    """

    def __init__(self, disk: Disk, lock: threading.Lock) -> None:
        self._disk = disk
        self._lock = lock

    def admit(self, configuration: Configuration) -> None:
        """The node lost its directory and was let in again: this one says so from now on, as if it had joined."""
        self._change(told=configuration, members=sorted(configuration.members))

    def settle(self) -> None:
        """The cluster has committed a feature level: a node that knows refuses members that forgot their promises."""
        self._change(settled=True)

    def forget(self) -> None:
        """A member said that the cluster has met this node with another directory: it does not vote from this one."""
        self._change(forgetful=True)

    def meet(self, met: Mapping[str, bytes]) -> None:
        """Which directories the other members had when this node met them last."""
        self._change(met=met)

    def dismiss(self, sentence: str) -> None:
        """The node was removed: its directory says so from now on, with the sentence that a start is refused with."""
        self._change(dismissed=sentence)

    def _change(self, **fields: Any) -> None:
        with self._lock:
            write(self._disk, replace(written(self._disk), **fields))


def write(disk: Disk, claimed: Claim) -> None:
    identity: dict[str, Any] = {
        "cluster_id": claimed.cluster_id.hex(), "node_id": claimed.node_id, "members": claimed.members,
    }  # fmt: skip
    if claimed.told is not None:
        identity["told"] = claimed.told.packed.hex()
    if claimed.recovered:
        identity["recovered"] = True
    if claimed.began_empty:
        identity["began_empty"] = True
    if claimed.settled:
        identity["settled"] = True
    if claimed.forgetful:
        identity["forgetful"] = True
    if claimed.directory_id:
        identity["directory_id"] = claimed.directory_id.hex()
    if claimed.met:
        identity["met"] = {name: directory_id.hex() for name, directory_id in sorted(claimed.met.items())}
    if claimed.dismissed is not None:
        identity["dismissed"] = claimed.dismissed
    part = f"{FILE}.part"
    if part in disk.names():
        disk.unlink(part)
    disk.append(part, [json.dumps(identity, indent=1).encode() + b"\n"])
    disk.sync(part)
    disk.rename(part, FILE)
    disk.sync_directory()


def written(disk: Disk) -> Claim:
    """What the directory says. Raises StartupError."""
    try:
        identity = json.loads(disk.read(FILE))
        node_id, cluster_id = identity["node_id"], bytes.fromhex(identity["cluster_id"])
        members, dismissed = sorted(identity["members"]), identity.get("dismissed")
        if not (type(node_id) is str and len(cluster_id) == _ID_BYTES and all(type(m) is str for m in members)):
            raise ValueError("a field is of the wrong kind")
        directory_id = bytes.fromhex(identity.get("directory_id", ""))
        met = {name: bytes.fromhex(its_id) for name, its_id in identity.get("met", {}).items()}
        told = unpacked(bytes.fromhex(identity["told"])) if "told" in identity else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartupError(f"{disk.where(FILE)} cannot be read: restore it from a copy.") from error
    flags = {name: identity.get(name) is True for name in ("recovered", "began_empty", "forgetful", "settled")}
    return Claim(node_id, cluster_id, members, told, dismissed=dismissed, directory_id=directory_id, met=met, **flags)
