"""Whom a node talks to, as its roster says: connections follow the configurations, and news of them is passed on.

A node that was away may know none of the present members. So everybody tells a peer, first thing on each new
connection, of the latest configuration that it knows to be committed; and who is dismissed by one stops.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from kvnode.errors import Fatal
from kvnode.peers.network import Network
from kvnode.raft import messages
from kvnode.raft.membership import Roster
from kvnode.storage.identity import Identity

log = logging.getLogger("kvnode.raft")

LET_GO_S: Final = 1.0  # connections with one that was removed stay this long: it may wait for an answer, or lead others


class KnownPeers:
    """One node's. `changed` is to be called when the roster has changed; `later(seconds, what)` does it then."""

    def __init__(
        self,
        roster: Roster,
        network: Network,
        identity: Identity,
        fail: Callable[[Fatal], None],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._roster = roster
        self._network = network
        self._identity = identity
        self._fail = fail
        self._later = later
        self._dismissed = self._admitted = False

    def changed(self) -> None:
        network, peers = self._network, self._peers()
        leaving = {node_id: at for node_id, at in network.addresses.items() if node_id not in peers}
        network.meet(leaving | peers)
        if leaving:
            self._later(LET_GO_S, lambda: network.meet(self._peers()))
        if self._roster.admitted is not None and not self._admitted:
            # Before anything of the log arrives: without this, the node would then take itself for its old one.
            self._admitted = True
            self._identity.admit(self._roster.admitted)
        sentence = self._roster.dismissed
        if sentence is not None and not self._dismissed:
            self._dismissed = True
            self._identity.dismiss(sentence)
            self._fail(Fatal(sentence))

    def _peers(self) -> dict[str, tuple[str, int]]:
        roster = self._roster
        return {m.node_id: m.address for m in roster.known.values() if m.node_id != roster.node_id and m.address[1]}

    def introduce(self, node_id: str) -> None:
        """A connection with this peer has begun."""
        if self._roster.index:
            self._network.send(node_id, (messages.MEMBERS, self._roster.packed))

    def heard(self, packed: bytes) -> None:
        """A peer's news."""
        try:
            self._roster.told(packed)
        except ValueError as error:
            log.error("%s", error)
