"""The replicated clock: the seconds by which the state machine knows how old the outcomes of keyed writes are.

The leader keeps it by its own monotonic clock, from where the last leader's has been applied: between two leaders it
stands still, and so it is never ahead of real time, which would let an outcome be forgotten too early. A second costs a
few bytes in an entry that is proposed anyway, in front of its writes. While nothing is written nothing has to be
forgotten, so nothing is proposed for the clock's sake.
"""

from __future__ import annotations

from collections.abc import Callable

from kvnode.state.commands import AdvanceClock
from kvnode.state.entries import encode_unawaited
from kvnode.state.store import KeyValueStore


class ReplicatedClock:
    """One node's. `term` tells the present one; `clock` is monotonic, in seconds."""

    def __init__(self, term: Callable[[], int], store: KeyValueStore, clock: Callable[[], float]) -> None:
        self._term_now = term
        self._store = store
        self._clock = clock
        self._term = -1
        self._began_at = 0.0
        self._began_s = 0  # what the replicated clock showed then
        self._proposed_s = 0

    def due(self) -> bytes | None:
        """A group for the next entry, where another second is due. Only while this node leads and serves."""
        outcomes = self._store.outcomes
        if not outcomes.awaits_time:
            return None
        term = self._term_now()
        if term != self._term:
            # It serves, so all that leaders before it put into the log is applied.
            self._term = term
            self._began_at, self._began_s, self._proposed_s = self._clock(), outcomes.clock_s, outcomes.clock_s
        now_s = self._began_s + int(self._clock() - self._began_at)
        if now_s <= self._proposed_s:
            return None
        self._proposed_s = now_s
        return encode_unawaited(AdvanceClock(now_s).encode())
