"""Whether the disk can take more: refuse early, recover by itself.

A journal that runs into a full disk can only wait. So writes are refused a little before that, while there is
room for what must go on: deletes, elections, no-ops. Two marks keep the answer from flapping: refused below the
low one, accepted again above the high one, without anybody's hand (etcd's NOSPACE alarm needs one, etcd #9992).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvnode.raft.catchup import Work

RESERVE_BYTES_MAX: Final = 64 * 1_048_576
RESERVE_SHARE: Final = 8  # on a small disk, one part in eight
HYSTERESIS: Final = 1.5
LOOK_S: Final = 1.0


class Storage:
    """The state of one node's disk, as observed. `error` is one sentence, or None while writes are welcome."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.free_bytes = self.total_bytes = 0  # at the last look
        self._blocked = False
        self._look_at = 0.0

    def look(self, now: float, work: Work, space: Callable[[], tuple[int, int]]) -> None:
        """By the clock: asks for the free space in a worker, once in a while (a file system may take its time)."""
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            work(space, self.looked)

    def observed(self, free_bytes: int, total_bytes: int) -> None:
        """Free and total bytes of the file system that holds the data directory."""
        self.free_bytes, self.total_bytes = free_bytes, total_bytes
        low = min(RESERVE_BYTES_MAX, total_bytes // RESERVE_SHARE)
        if free_bytes < low or self._blocked:
            self.error = (
                f"The disk is full: {_mib(free_bytes)} MiB are free and {_mib(low)} MiB are kept in reserve; free some "
                "space (deletes and reads go on), and writes are accepted again by themselves."
            )
        elif free_bytes >= low * HYSTERESIS:
            self.error = None

    def looked(self, space: tuple[int, int] | None, error: Exception | None) -> None:
        """The outcome of a look at the disk; where it cannot be told, a write will tell."""
        if space is not None:
            self.observed(*space)

    def waits(self, blocked: bool, space: Callable[[], tuple[int, int]]) -> None:
        """A write to the journal found no space and is tried again until there is some; or it has got it."""
        self._blocked = blocked
        if blocked:  # once it has not: the marks decide about new writes
            self.observed(*space())


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1_048_576:.1f}"
