"""Read rounds: how a leader confirms that it still is one, for many waiters at a time and without a log entry.

ReadIndex (Raft dissertation §6.4): note the commit index, exchange one heartbeat with a majority in the same
term, and every read that arrived before the exchange began may be answered once that index is applied. The
round's number rides on append_entries and followers echo it in their acknowledgement. One round is in flight;
whoever arrives meanwhile shares the next. Never a lease: a clock has no say in it.
"""

from __future__ import annotations

from collections.abc import Container

from kvnode.raft.ready import ReadConfirmed, ReadsFailed, Ready


class ReadRounds:
    """The rounds of one leader. Numbers only rise, also across terms, so that a late echo confirms nothing newer.

    `ready` gets one ReadConfirmed for each round that a majority echoed, and ReadsFailed with the highest round that
    will never be, when leadership ends.
    """

    def __init__(self, ready: Ready) -> None:
        self._ready = ready
        self._index = 0
        self._echoes: set[str] = set()
        self.wanted = False  # a round that has not begun
        self.number = 0  # the newest round that has begun; rides on every append_entries
        self.in_flight = False

    def request(self) -> int:
        """The number of the next round to begin: it begins after this moment."""
        self.wanted = True
        return self.number + 1

    def begin(self, commit_index: int, majority_of_others: int) -> bool:
        """Begins the wanted round if none is in flight. True: there is a round to send."""
        if not self.wanted or self.in_flight:
            return False
        self.wanted = False
        self.number += 1
        self.in_flight = True
        self._index = commit_index
        self._echoes.clear()
        self._settle(majority_of_others)
        return True

    def echo(self, node_id: str, number: int, majority_of_others: int) -> None:
        """A member acknowledged an append_entries of this term that carried `number`."""
        if self.in_flight and number >= self.number:
            self._echoes.add(node_id)
            self._settle(majority_of_others)

    def recount(self, voter_ids: Container[str], majority_of_others: int) -> None:
        """Who counts has changed: those that do not any more take their echoes with them, and fewer may be enough."""
        if self.in_flight:
            self._echoes = {node_id for node_id in self._echoes if node_id in voter_ids}
            self._settle(majority_of_others)

    def abandon(self) -> None:
        """Leadership has ended: nothing that was wanted or in flight will be confirmed."""
        last = self.number + 1 if self.wanted else self.number
        self.number = last
        self.in_flight = self.wanted = False
        self._ready.events.append(ReadsFailed(last))

    def _settle(self, majority_of_others: int) -> None:
        if len(self._echoes) >= majority_of_others:
            self.in_flight = False
            self._ready.events.append(ReadConfirmed(self.number, self._index))
