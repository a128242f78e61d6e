"""The cluster's feature level: raised by the leader once every member has announced that it knows the next one.

Members announce the highest level that they know in the handshake (`handshake.py`). What counts is what those said that
this node is connected with now, or refuses because they have forgotten their promises; voters and learners by the
configuration that counts. So a member that is away holds the level where it is until it comes back or is removed. One
that has forgotten cannot be replaced before the level is there. Levels never fall, and a node that knows less than the
cluster has reached is refused from then on (etcd's cluster version is raised in the same way).
"""

from __future__ import annotations

import logging

from kvnode.errors import Fatal
from kvnode.node.lease_clock import Leader
from kvnode.peers.network import Network
from kvnode.raft.membership import Roster
from kvnode.state.commands import FEATURE_LEVEL, RaiseLevel
from kvnode.state.entries import encode_entry, encode_unawaited
from kvnode.state.store import KeyValueStore

log = logging.getLogger("kvnode.raft")


class FeatureLevel:
    """One node's part. `look` is called with each tick of the clock; it costs two comparisons once all is done."""

    def __init__(self, leader: Leader, store: KeyValueStore, network: Network, roster: Roster) -> None:
        self._leader = leader
        self._store = store
        self._network = network
        self._roster = roster
        self._seen = 0  # the level at the last look
        self._proposed = (0, 0)  # term and level of the last proposal: one in each term, should it come to nothing

    def look(self) -> None:
        """Raises Fatal where the cluster has reached a level that this node does not know."""
        level = self._store.level
        if level != self._seen:
            self._reached(level)
        if level < FEATURE_LEVEL and (term := self._leader.serving_term()) is not None:
            self._propose(level, term)

    def _reached(self, level: int) -> None:
        self._seen = level
        if level > FEATURE_LEVEL:
            raise Fatal(too_new(level))
        log.info("The cluster is at feature level %d.", level)
        self._network.part_below(level)

    def _propose(self, level: int, term: int) -> None:
        others = self._roster.current.members.keys() - {self._roster.node_id}
        known = min([self._network.me.level, *(self._network.announced_level(node_id) for node_id in others)])
        if known > level and self._proposed != (term, known):
            self._proposed = (term, known)
            self._leader.propose(encode_entry([encode_unawaited(RaiseLevel(known).encode())]))


def too_new(level: int) -> str:
    return (
        f"The cluster has reached feature level {level}, and this version of kvnode knows {FEATURE_LEVEL}: "
        "start this node with the version that the other members run."
    )
