"""Log lines that anybody on the network can cause: rare, short, printable, and counted where they are left out.

A line costs a stranger one packet and the node's disk a few hundred bytes for ever. So one kind of line is written
once a minute about one address, all kinds about all addresses together LINES_MAX times a minute, and a stranger's own
text is cut and made printable before it stands in one. What is left out is counted, and one line says how much it was.
The kind is a word of this program's: were it the sentence, a stranger's text in it would make each line a new one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

TEXT_CHARS_MAX: Final = 64  # of a stranger's own: enough to recognise a path or a name by
AGAIN_S: Final = 60.0  # until the same kind of line is written about the same address again
# In a minute, about all addresses: more than an operator reads, and with 400 bytes a line 35 MB a day at most.
LINES_MAX: Final = 60
KEYS_MAX: Final = 1_024  # (address, kind) that are remembered; the one that was written first is forgotten first
REPORT_S: Final = 5.0  # from the first line that is left out until their number is said; then once in AGAIN_S

KINDS_MAX: Final = 64  # that are counted apart; there are about 30
KINDS_NAMED_MAX: Final = 8  # in the line that says how many were left out

log = logging.getLogger("kvnode.log")


def printable(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """`text` without what would end a line, move a terminal's cursor or turn the direction of reading; cut."""
    shown = text[:chars_max]
    if not shown.isprintable():
        shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in shown)
    return shown if len(text) <= chars_max else shown + "…"


class RateLimitedLog:
    """`lines_max` in a minute. `LINES` is the process's own. Any thread may use it."""

    def __init__(self, lines_max: int = LINES_MAX, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines_max = lines_max
        self._clock = clock
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self._written: dict[tuple[str, str], float] = {}
        self._window_began = -AGAIN_S
        self._lines = 0
        self._left_out: Counter[str] = Counter()
        self._reported_at = -AGAIN_S
        self._timer: asyncio.TimerHandle | None = None

    def write(
        self,
        logger: logging.Logger,
        level: int,
        address: str,
        kind: str,
        sentence: str,
        *args: Any,
        extra: dict[str, Any] | None = None,
        capped: bool = True,
    ) -> None:
        """As `logger.log(level, sentence, *args)`, where `admits` says so. What is foreign in `args` is cut already."""
        if logger.isEnabledFor(level) and self.admits(address, kind, capped):
            logger.log(level, sentence, *args, extra=extra)

    def admits(self, address: str, kind: str, capped: bool = True) -> bool:
        """Whether a line of this kind about this address may be written now; it is counted, written or not.

        `capped` False is for what a few known ones can cause, such as members: strangers must not drown it.
        """
        now = self._clock()
        key = (address, kind)
        with self._lock:
            if now - self._written.get(key, -AGAIN_S) < AGAIN_S or (capped and not self._within_cap(now)):
                self._leave_out(kind, now)
                return False
            self._written.pop(key, None)  # so that it stands last, as the newest
            if len(self._written) >= KEYS_MAX:
                del self._written[next(iter(self._written))]
            self._written[key] = now
            return True

    def admits_one_of_many(self, kind: str) -> bool:
        """The same where each line says something of its own, such as a fault's traceback: under the cap alone."""
        now = self._clock()
        with self._lock:
            if self._within_cap(now):
                return True
            self._leave_out(kind, now)
            return False

    def _within_cap(self, now: float) -> bool:
        if now - self._window_began >= AGAIN_S:
            self._window_began, self._lines = now, 0
        if self._lines >= self._lines_max:
            return False
        self._lines += 1
        return True

    def _leave_out(self, kind: str, now: float) -> None:
        self._left_out[kind if kind in self._left_out or len(self._left_out) < KINDS_MAX else "others"] += 1
        if self._timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # from a thread: the next one that is left out by the loop says it
            at_s = max(REPORT_S, self._reported_at + AGAIN_S - now)
            self._timer = loop.call_later(at_s, self.report)

    def report(self) -> None:
        """Says how many lines were left out since it was last said."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            left_out, self._left_out = self._left_out, Counter()
            self._reported_at = self._clock()
        if left_out:
            count = left_out.total()
            most = left_out.most_common(KINDS_NAMED_MAX)
            kinds = ", ".join(f"{kind}: {number}" for kind, number in most)
            fields = {"event": "left_out", "lines": count, "kinds": dict(most)}
            log.warning("%d lines were left out of this log (%s).", count, kinds, extra={"fields": fields})


LINES: Final = RateLimitedLog()
# What carries a traceback of some 3 KB, in this program and in the libraries under it: 60 KB a minute.
FAULTS: Final = RateLimitedLog(20)
