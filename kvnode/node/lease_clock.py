"""The clock of leases: kept by the node that leads, which proposes the end of those whose time is over.

Never early. A lease's time begins when its grant or renewal is applied here, and again in full when this node begins
to lead: what passed under another leader does not count. The clock stands still while this process does (SIGSTOP, a
machine without a core to spare): a renewal that waits in a socket meanwhile is heard before the time goes on. What is
proposed is one entry of this node's own term, and never sent again by a later leader; it names how often each lease had
been renewed, and after which restore, so that a renewal or a restore which stands before it in the log wins
(`leases.py`).

Leases are filed under the tick at which they end, each in one place, so a look costs what ends in it and nothing for
those that do not, be they a million. A node that begins to lead files those that it finds in slices.

The same clock ends a restore that was begun and is not gone on with.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from kvnode.state.commands import AbortRestore, Expire
from kvnode.state.entries import encode_entry, encode_unawaited
from kvnode.state.limits import EXPIRED_MAX
from kvnode.state.table import Table

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from kvnode.state.store import KeyValueStore

log = logging.getLogger("kvnode.raft")

LOOK_S: Final = 0.05
STALL_S: Final = 0.5  # so long without a look: the process stood still, and so does the clock
TICK_S: Final = 0.1
SLICE: Final = 2_048  # leases that are filed in one look: some milliseconds, and a million in 25 s
TOUCHED_AT_ONCE: Final = 8_192  # that were granted, renewed or ended: some ten milliseconds of a look
AGAIN_TICKS: Final = 20  # an expiry that came to nothing is proposed again
# A restore whose next piece does not come for so long has been abandoned: its sender gives up a piece after 20 s
# (`http/restore.py`), and the node that took it may be gone. What has come takes as much memory as the keys it brings.
STAGED_S: Final = 60.0
KEYS_AT_ONCE: Final = 4_096  # keys that leave with one entry, but for a lease that has more


class Leader(Protocol):
    """What this clock, the session key and the feature level ask of the node: to propose something by itself."""

    def serving_term(self) -> int | None:
        """The term in which this node leads and may propose, None where it does not."""

    def propose(self, payload: bytes) -> int:
        """Appends an entry; its index."""

    def applied_index(self) -> int: ...
    def is_current(self) -> bool:
        """An entry of the present term has been applied: the store knows all that earlier terms agreed on."""


class LeaseClock:
    """One node's clock. `look` is called every LOOK_S; `visited` counts leases touched, for the tests."""

    def __init__(self, leader: Leader, store: KeyValueStore, clock: Callable[[], float]) -> None:
        self._leader = leader
        self._store = store
        self._clock = clock
        self._looked_at = clock()
        self._now_s = 0.0  # lease time: stands still when the process does
        self._term: int | None = None
        self._proposed = 0
        self._filed_to = 0  # ids up to here were found or granted
        self._ticks: Table[int, int] = Table()  # lease -> the tick that it is filed under
        self._ends: Table[int, float] = Table()  # lease -> when it ends
        self._due: dict[int, dict[int, None]] = {}  # tick -> leases
        self._tick = 0
        self._staged: tuple[bytes, int] | None = None  # a restore that has begun, and how many of its pieces have come
        self._staged_ends = 0.0
        self.visited = 0
        self._timer: asyncio.TimerHandle | None = None

    def run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks from now on, until `stop`."""
        self._timer = loop.call_later(LOOK_S, self.run, loop)
        self.look()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def left_s(self, lease_id: int) -> float | None:
        """What is left of a lease, None where this node does not keep its time."""
        if not self._follow():
            return None
        ends = self._ends.get(lease_id)
        return None if ends is None else max(0.0, ends - self._now_s)

    def look(self) -> None:
        """Files what it finds, and proposes the end of what is over."""
        if not self._follow():
            return
        for lease_id in self._store.leases.ids(self._filed_to, SLICE):
            self._filed_to = lease_id
            if lease_id not in self._ticks:
                self._file(lease_id)
        # Not while one is left that may have been renewed.
        if self._leader.applied_index() >= self._proposed and not self._store.leases.touched:
            self._end_those_due()
            self._end_abandoned_restore()

    def _follow(self) -> bool:
        """Moves the clock, and files what was granted or renewed; False where this node does not keep the time."""
        now = self._clock()
        if now - self._looked_at < STALL_S:
            self._now_s += now - self._looked_at
        self._looked_at = now
        term = self._leader.serving_term()
        if term != self._term:
            self._begin(term)
        if term is None:
            return False
        leases = self._store.leases
        if leases.touched is None:  # it is not the one that was looked at before
            self._begin(term)
        elif leases.touched:
            # In slices as well: a prefix that is deleted ends a hundred thousand leases in one entry.
            touched = leases.touched[:TOUCHED_AT_ONCE]
            del leases.touched[:TOUCHED_AT_ONCE]
            for lease_id in touched:
                self._file(lease_id)
        return True

    def _begin(self, term: int | None) -> None:
        """Another term, or none: all that was known of time is void."""
        self._term = term
        self._ticks, self._ends, self._due = Table(), Table(), {}
        self._tick, self._filed_to, self._proposed = int(self._now_s / TICK_S), 0, 0
        self._staged = None
        self._store.leases.touched = None if term is None else []

    def _file(self, lease_id: int) -> None:
        """Granted, renewed, found or gone."""
        lease = self._store.leases.get(lease_id)
        if lease is None:
            self._forget(lease_id)
            self._ends.discard(lease_id)
            return
        ends = self._now_s + lease.ttl_s
        self._ends[lease_id] = ends
        self._file_at(lease_id, int(ends / TICK_S) + 1)  # the first tick that is not before it

    def _file_at(self, lease_id: int, tick: int) -> None:
        self.visited += 1
        self._forget(lease_id)
        self._ticks[lease_id] = tick
        self._due.setdefault(tick, {})[lease_id] = None

    def _forget(self, lease_id: int) -> None:
        tick = self._ticks.discard(lease_id)
        if tick is not None:
            leases = self._due[tick]
            del leases[lease_id]
            if not leases:
                del self._due[tick]

    def _end_those_due(self) -> None:
        """One entry at a time, bounded in leases and in keys."""
        leases, keys = self._store.leases, 0
        over: list[tuple[int, int]] = []
        tick_now = int(self._now_s / TICK_S)
        while self._tick <= tick_now:
            for lease_id in list(self._due.get(self._tick, ())):
                lease = leases.get(lease_id)
                if lease is not None:
                    if over and (len(over) >= EXPIRED_MAX or keys >= KEYS_AT_ONCE):
                        self._propose(over)
                        return  # the rest of this tick comes with the next entry
                    over.append((lease_id, lease.renewals))
                    keys += leases.key_count(lease_id)
                self._file_at(lease_id, tick_now + AGAIN_TICKS)
            self._tick += 1
        if over:
            self._propose(over)

    def _end_abandoned_restore(self) -> None:
        """Its time begins anew with each piece, and with each leader."""
        staging = self._store.staging
        staged = None if staging is None else (staging.id, staging.pieces)
        if staged is None or staged != self._staged:
            self._staged, self._staged_ends = staged, self._now_s + STAGED_S
        elif self._now_s >= self._staged_ends:
            self._staged = None  # should this come to nothing, it is tried again
            log.warning("A restore was abandoned after %d pieces: what has come of it is dropped.", staged[1])
            self._proposed = self._leader.propose(encode_entry([encode_unawaited(AbortRestore(staged[0]).encode())]))

    def _propose(self, over: list[tuple[int, int]]) -> None:
        group = encode_unawaited(Expire(tuple(over), self._store.leases.generation).encode())
        self._proposed = self._leader.propose(encode_entry([group]))
