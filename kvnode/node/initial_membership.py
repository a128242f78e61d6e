"""Where a node's membership begins: whose its data directory is, and who the members were when it was first used."""

from __future__ import annotations

from kvnode.configuration import first_cluster
from kvnode.node.settings import RaftSettings
from kvnode.raft.membership import Roster
from kvnode.storage.disk import Disk
from kvnode.storage.identity import (
    DIRECTORY_ID_BYTES,
    Claim,
    check_peers,
    claim,
    is_claimed,
)
from kvnode.storage.journal import Journal
from kvnode.storage.snapshots import Snapshot


async def claimed_by(settings: RaftSettings, disk: Disk) -> Claim:
    """What the directory says, written down at the first start; a node that joins is invited then."""
    invitation = None
    if settings.join is not None and not is_claimed(disk):
        invitation = await settings.join()
    directory_id = settings.host.token_bytes(DIRECTORY_ID_BYTES)
    return claim(disk, settings.node_id, settings.cluster_id, settings.peers, invitation, directory_id)


def roster(settings: RaftSettings, disk: Disk, claimed: Claim, journal: Journal, newest: Snapshot | None) -> Roster:
    """The log's word counts, then the snapshot's, then that of the first start, with --peers for its addresses."""
    peers = settings.peers
    first = claimed.told or first_cluster({node_id: peers.get(node_id, ("", 0)) for node_id in claimed.members})
    if newest is not None and newest.configuration.index:
        first = newest.configuration
    known = Roster(settings.node_id, journal, first, claimed.told)
    if known.current.index == 0:
        check_peers(disk, claimed, peers)
    return known
