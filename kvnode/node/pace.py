"""The pace of long work in a worker thread, so that the event loop beside it goes on as if alone.

Python runs one thread at a time: a loop that wakes beside a busy thread waits for the interpreter's switch interval
(5 ms) each time, and with it every request. So long work rests at least as long as it has worked, in slices far shorter
than anything that a client would notice; it takes a few times as long, and nobody waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SLICE_S: Final = 0.002
# All nodes of a cluster are due for a snapshot at about the same time, and may share a machine: each takes a fifth of a
# core for it, so that requests have the rest.
SNAPSHOT_RESTS: Final = 4
REST_S_MAX: Final = 0.02  # a slice that a full machine has drawn out is no reason to rest for long


class Pace:
    """Work and rest in turns. `rest` is called by the thread that works, between steps of a millisecond or so."""

    __slots__ = ("_began_at", "_clock", "_rests", "_sleep")

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        rests: int = 1,
    ) -> None:
        """`rests`: how many times as long as it has worked."""
        self._rests = rests
        self._clock = clock
        self._sleep = sleep
        self._began_at = clock()

    def rest(self) -> None:
        """Returns at once within a slice; after one it sleeps for as long as the slice took, or a multiple of it."""
        worked_s = self._clock() - self._began_at
        if worked_s >= SLICE_S:
            self._sleep(min(self._rests * worked_s, REST_S_MAX))
            self._began_at = self._clock()
