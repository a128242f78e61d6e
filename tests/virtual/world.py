"""Virtual time: a queue of what happens when, and the processes whose loops run in between.

Time stands still while anything has something to do now, and jumps to what comes next when nothing has. Whatever
is drawn, is drawn from one seed, in an order that only the seed decides: a seed repeats a run to the message.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.virtual.process import Process

STEPS_MAX = 3_000_000  # of processes, in one run: a loop that never rests would be taken for work otherwise


class Stuck(AssertionError):
    """Something goes on for ever without time passing, or did not happen in the time that it had."""


class World:
    """`now` is in seconds and no process's clock; `draw` decides everything that nothing else decides."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.draw = random.Random(f"world {seed}")
        self.processes: dict[str, Process] = {}
        self.running: Process | None = None  # whose code runs now
        self.steps = 0
        self.found: Exception | None = None  # by a judge who was asked inside of a process, which would swallow it
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._trace = hashlib.blake2b(digest_size=16)
        self.events = 0
        self.recorded: list[str] | None = None  # the whole trace, where somebody wants to compare two

    # --- what happens ---------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(when, self.now), next(self._numbers), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.at(self.now + seconds, what)

    def trace(self, kind: str, *fields: object) -> None:
        """One more event in the history that two runs of a seed have in common."""
        self.events += 1
        line = f"{self.now:.9f} {kind} {' '.join(map(str, fields))}"
        self._trace.update(line.encode())
        if self.recorded is not None:
            self.recorded.append(line)

    @property
    def fingerprint(self) -> str:
        """Of everything that has happened so far."""
        return self._trace.hexdigest()

    def number(self) -> int:
        """The next of a series, for hashes and names that must not depend on addresses in memory."""
        return next(self._numbers)

    # --- running ----------------------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], for_s: float) -> None:
        """Lets time pass until the condition holds. Raises Stuck when it does not within `for_s` virtual seconds."""
        ends_at = self.now + for_s
        while not until():
            if not self._step(ends_at):
                raise Stuck(f"after {for_s:g} virtual seconds")

    def pass_s(self, seconds: float) -> None:
        """Lets so much time pass, whatever happens in it."""
        ends_at = self.now + seconds
        while self._step(ends_at):
            pass

    def _step(self, ends_at: float) -> bool:
        """One event, or one turn of a process's loop; False where nothing happens up to `ends_at`, which it is then."""
        if self.found is not None:
            raise self.found
        when, process, now = ends_at, None, self.now
        for each in self.processes.values():
            due = each.due_at(now)
            if due < when:
                when, process = due, each
        if self._queue and self._queue[0][0] <= when:
            self.now, _, what = heapq.heappop(self._queue)
            what()
            return True
        if process is None:
            self.now = ends_at
            return False
        self.now = max(self.now, when)
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise Stuck(f"{STEPS_MAX} turns of loops, the last one of {process.name}")
        self.running = process
        try:
            process.turn()
        finally:
            self.running = None
        return True
