"""The pace of long work in a worker thread, so that the event loop beside it goes on as if alone.

Python runs one thread at a time: a loop that wakes beside a busy thread waits for the interpreter's switch interval
(5 ms) each time, and with it every request. So long work rests as long as it has worked, in slices far shorter than
anything that a client would notice; it takes twice the time, and nobody waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SLICE_S: Final = 0.002
REST_S_MAX: Final = 0.02  # a slice that a full machine has drawn out is no reason to rest for long


class Pace:
    """Work and rest in turns. `rest` is called by the thread that works, between steps of a millisecond or so."""

    __slots__ = ("_began_at", "_clock", "_sleep")

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._began_at = clock()

    def rest(self) -> None:
        """Returns at once within a slice; after one it sleeps for as long as the slice took."""
        worked_s = self._clock() - self._began_at
        if worked_s >= SLICE_S:
            self._sleep(min(worked_s, REST_S_MAX))
            self._began_at = self._clock()
