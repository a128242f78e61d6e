"""Whether the disk can take more: refuse early where it is full, notice where it hangs, recover by itself.

A journal that runs into a full disk can only wait. So writes are refused a little before that, while there is
room for what must go on: deletes, elections, no-ops. Two marks keep the answer from flapping: refused below the
low one, accepted again above the high one, without anybody's hand (etcd's NOSPACE alarm needs one, etcd #9992).

A disk that hangs refuses nothing and finishes nothing. It shows by the age of what it was asked and has not answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvnode.node.catchup import Work
from kvnode.node.outstanding import Outstanding

RESERVE_BYTES_MAX: Final = 64 * 1_048_576
RESERVE_SHARE: Final = 8  # on a small disk, one part in eight
HYSTERESIS: Final = 1.5
LOOK_S: Final = 1.0
# A look at the free space takes microseconds; on a network's file system it may wait for a server, and a node that
# takes every such pause for a broken disk would change leaders for nothing.
LOOK_S_MAX: Final = 10.0


class DiskHealth:
    """The state of one node's disk, as observed. `hangs_after_s`: how long a write of the journal may take."""

    def __init__(
        self, outstanding: Outstanding, journal_since: Callable[[], float | None], hangs_after_s: float
    ) -> None:
        self.full: str | None = None  # one sentence; None while writes are welcome
        self.hangs = False  # the disk has not answered for too long; looked at 40 times a second, asked far more often
        self.free_bytes = self.total_bytes = 0  # at the last look
        self._outstanding = outstanding
        self._blocked = False
        self._look_at = 0.0
        self._looking_since: float | None = None
        outstanding.watch("journal", hangs_after_s, journal_since)
        outstanding.watch("disk", LOOK_S_MAX, lambda: self._looking_since)

    @property
    def error(self) -> str | None:
        """What is wrong with the disk, in one sentence; None while this node can make writes durable."""
        if self.full is None and self.hangs:
            age_s = max(self._outstanding.age_s("journal"), self._outstanding.age_s("disk"))
            return (
                f"The disk has not answered for {age_s:.1f} s, so nothing becomes durable on this node: look at its "
                "device and the kernel's log; the node goes on by itself once the disk answers."
            )
        return self.full

    def look(self, now: float, work: Work, space: Callable[[], tuple[int, int]]) -> None:
        """By the clock: whether the disk hangs, and once in a while, in a worker, how much space is free."""
        outstanding = self._outstanding
        # On a full disk the journal waits as well, and is expected to.
        self.hangs = not self._blocked and (outstanding.is_over("journal") or outstanding.is_over("disk"))
        if now >= self._look_at and self._looking_since is None:
            self._look_at, self._looking_since = now + LOOK_S, now
            work(space, self.looked)

    def observed(self, free_bytes: int, total_bytes: int) -> None:
        """Free and total bytes of the file system that holds the data directory."""
        self.free_bytes, self.total_bytes = free_bytes, total_bytes
        low = min(RESERVE_BYTES_MAX, total_bytes // RESERVE_SHARE)
        if free_bytes < low or self._blocked:
            self.full = (
                f"The disk is full: {_mib(free_bytes)} MiB are free and {_mib(low)} MiB are kept in reserve; free some "
                "space (deletes and reads go on), and writes are accepted again by themselves."
            )
        elif free_bytes >= low * HYSTERESIS:
            self.full = None

    def looked(self, space: tuple[int, int] | None, error: Exception | None) -> None:
        """The outcome of a look at the disk; where it cannot be told, a write will tell."""
        self._looking_since = None
        if space is not None:
            self.observed(*space)

    def waits(self, blocked: bool) -> None:
        """A write to the journal found no space and is tried again until there is some; or it has got it."""
        self._blocked = blocked
        if blocked:  # once it is not: the marks decide about new writes, at the next look
            self.observed(0, self.total_bytes)
            self._look_at = 0.0


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1_048_576:.1f}"
