"""What was begun on this node and has not ended yet: how old the oldest of each kind is, and whether that is too old.

Durations of what has finished say nothing about a disk that hangs: no sync ends, so no histogram moves, while no write
is acknowledged any more. So everything that waits for something outside the event loop is watched from its beginning.

    kind           what is outstanding               over its bound
    journal        a write or sync of the journal    `storage` fails, also on the leader probe; a leader hands over
    disk           a look at the free space          as above
    read_question  a read index asked of the leader  it is asked again, and `leader` fails
    transfer       a hand-over of leadership         one line in the log
    forwarded      a group sent to the leader        one line in the log; its clients are told at their own deadline
    snapshot       a snapshot being written          one line in the log, a warning of `/readyz`
    worker         any other job in a thread         as above
    log            log lines that stderr has to take as above, as far as there is somebody who reads the log
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

log = logging.getLogger("kvnode.raft")

# The owner looks every 25 ms. Where it was this late, the whole process stood still (SIGSTOP, a suspended guest), and
# what was outstanding meanwhile says nothing about a disk or a peer: its age counts from then on.
STANDSTILL_S: Final = 0.5


@dataclass(slots=True)
class _Kind:
    since: Callable[[], float | None]
    bound_s: float
    over: bool = False


class Outstanding:
    """One node's. `clock` is monotonic, in seconds; nothing here is paid for by what is watched."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}
        self._looked_at = self._from = clock()

    def watch(self, kind: str, bound_s: float, since: Callable[[], float | None]) -> None:
        """`since`: when the oldest of this kind was begun, None where nothing is outstanding."""
        self._kinds[kind] = _Kind(since, bound_s)

    def age_s(self, kind: str) -> float:
        """How long the oldest has been outstanding, 0.0 where nothing is."""
        since = self._kinds[kind].since()
        return 0.0 if since is None else max(0.0, self._clock() - max(since, self._from))

    def is_over(self, kind: str) -> bool:
        """It has been outstanding for longer than its bound."""
        return self.age_s(kind) > self._kinds[kind].bound_s

    def ages_s(self) -> dict[str, float]:
        return {kind: self.age_s(kind) for kind in self._kinds}

    def overdue(self) -> list[str]:
        """One sentence for each kind that is over its bound."""
        return [self._sentence(kind) for kind in self._kinds if self.is_over(kind)]

    def look(self) -> None:
        """By the clock: says once in the log that a kind is over its bound, and once that it is not any more."""
        now = self._clock()
        if now - self._looked_at > STANDSTILL_S:
            self._from = now
        self._looked_at = now
        for name, kind in self._kinds.items():
            over = self.is_over(name)
            if over != kind.over:
                kind.over = over
                if over:
                    log.warning("%s.", self._sentence(name))
                else:
                    log.info("Nothing of the kind '%s' is overdue any more.", name)

    def _sentence(self, kind: str) -> str:
        return f"Outstanding for {self.age_s(kind):.1f} s, over the bound of {self._kinds[kind].bound_s:g} s: {kind}"
