"""What a node remembers of the last quarter of an hour, and of the last hour, for people who look at it.

Two bounded memories, each filled by one writer in the event loop: `Figures`, a ring of rates and times at steps of
STEP_S, and `Traffic`, how many requests there were for which keys. Monitoring has the same and more, from /metrics and
for as long as one likes; this is for a person who opens the console because something is wrong now.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic, time
from typing import Any, Final

STEP_S: Final = 5.0
SPAN_S: Final = 900.0  # 180 steps of seven numbers: 60 KB
MINUTES: Final = 60
# Of each minute: more beginnings of keys than a page can show rows, so that a busy one is not lost among rare ones
# (space-saving, Metwally, Agrawal and El Abbadi 2005: what has more than a 64th of a minute's requests is kept).
PREFIXES_MAX: Final = 64
PREFIX_CHARS_MAX: Final = 128  # 60 minutes of 64 beginnings of this length are 1 MB at most
DEPTH: Final = 2  # slashes that a beginning has: `app/users/` tells more than `app/`, the third level is mostly an id
# A sample costs 2 µs, or 8 where many rare beginnings push each other out. So many in a second are two thousandths of a
# core at most, and tell a rate to within 6 %.
SAMPLES_PER_S: Final = 256


class Traffic:
    """Requests by the beginning of their key, minute by minute; reads and writes apart.

    A handler counts `left` down, and calls `wrote` or `read` at zero: each request where there are few, one of many
    where there are many, at random distances so that no rhythm of the clients hides a key. A sample stands for all
    requests since the one before.
    """

    __slots__ = ("_clock", "_distance", "_mean", "_minutes", "_sampled", "_second", "_seen", "_wall", "left", "reads")

    def __init__(self, clock: Callable[[], float] = monotonic, wall: Callable[[], float] = time) -> None:
        self._clock, self._wall = clock, wall
        self.left = 1  # requests until the next sample: handlers count it down
        self.reads = 0  # since the node began, as far as samples tell
        self._distance = self._mean = 1
        self._second = self._seen = self._sampled = 0
        # (minute since 1970, beginning of keys -> [reads, writes, both and those of whose place it took])
        self._minutes: deque[tuple[int, dict[str, list[int]]]] = deque(maxlen=MINUTES)

    def read(self, key: str) -> None:
        weight = self._weigh()
        self.reads += weight
        self._counts(prefix_of(key), weight)[0] += weight

    def wrote(self, key: str) -> None:
        weight = self._weigh()
        self._counts(prefix_of(key), weight)[1] += weight

    def wrote_each(self, keys: Iterable[str]) -> None:
        """The same for what one request writes."""
        for key in keys:
            self.left -= 1
            if self.left <= 0:
                self.wrote(key)

    def settle(self) -> None:
        """To be called every few seconds: after a busy time a quiet one is looked at request by request at once."""
        if self.left > 1 and int(self._clock()) > self._second + 1:
            self._distance -= self.left - 1
            self._mean = self.left = 1

    def minutes(self) -> list[list[Any]]:
        """[minute since 1970, [[beginning, reads, writes], ...]], oldest first; minutes without requests are left out.

        The counts are lower bounds: what is inherited of a beginning that had to go is not among them.
        """
        oldest = int(self._wall() // 60) - MINUTES
        return [
            [minute, [[prefix, reads, writes] for prefix, (reads, writes, _) in counts.items()]]
            for minute, counts in self._minutes
            if minute > oldest
        ]

    def _weigh(self) -> int:
        """What the sample stands for; sets the distance to the next."""
        weight = self._distance
        second = int(self._clock())
        if second != self._second:
            seen = self._seen if second == self._second + 1 else 0
            self._mean = max(1, seen // SAMPLES_PER_S)
            self._second, self._seen, self._sampled = second, 0, 0
        self._seen += weight
        self._sampled += 1
        if self._sampled >= SAMPLES_PER_S:  # busier than the second before
            self._mean, self._sampled = self._mean * 2, 0
        self._distance = self.left = 1 if self._mean == 1 else random.randint(1, 2 * self._mean - 1)
        return weight

    def _counts(self, prefix: str, weight: int) -> list[int]:
        minute, minutes = int(self._wall() // 60), self._minutes
        if not minutes or minutes[-1][0] != minute:
            minutes.append((minute, {}))
        counts = minutes[-1][1]
        found = counts.get(prefix)
        if found is None:
            inherited = 0
            if len(counts) >= PREFIXES_MAX:
                rarest = min(counts, key=lambda each: counts[each][2])
                inherited = counts.pop(rarest)[2]
            found = counts[prefix] = [0, 0, inherited]
        found[2] += weight
        return found


def prefix_of(key: str) -> str:
    """The beginning of a key that stands for its kind: up to its second slash, or to the last one before that."""
    end = -1
    for _ in range(DEPTH):
        following = key.find("/", end + 1)
        if following < 0:
            break
        end = following
    return key[: min(end + 1, PREFIX_CHARS_MAX)]


class Figures:
    """Rates and times of one node, a sample for each STEP_S of the last SPAN_S."""

    __slots__ = ("_before", "_bounds", "_ring")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: those of the histograms that `take` is given."""
        self._bounds = bounds
        self._ring: deque[dict[str, Any]] = deque(maxlen=int(SPAN_S / STEP_S))
        self._before: tuple[float, int, int, list[int], list[int]] | None = None

    def take(
        self, at_ms: int, now_s: float, writes: int, reads: int, commit: Sequence[int], fsync: Sequence[int]
    ) -> None:
        """All that was counted until now; what is kept is the difference to the time before. `now_s` is monotonic."""
        before, self._before = self._before, (now_s, writes, reads, list(commit), list(fsync))
        if before is None or now_s <= before[0]:
            return
        passed_s = now_s - before[0]
        commits, syncs = _difference(commit, before[3]), _difference(fsync, before[4])
        self._ring.append(
            {
                "at_ms": at_ms,
                "writes_per_s": round(max(0, writes - before[1]) / passed_s, 2),
                "reads_per_s": round(max(0, reads - before[2]) / passed_s, 2),
                **{f"write_p{part}_ms": self._quantile_ms(commits, part / 100) for part in (50, 99)},
                **{f"fsync_p{part}_ms": self._quantile_ms(syncs, part / 100) for part in (50, 99)},
            }
        )

    def since(self, at_ms: int) -> list[dict[str, Any]]:
        """The samples after that time, oldest first."""
        return [sample for sample in self._ring if sample["at_ms"] > at_ms]

    def _quantile_ms(self, counts: Sequence[int], part: float) -> float | None:
        """Where that part of what was counted lies, between two bounds in proportion; None where nothing was."""
        total = sum(counts)
        if not total:
            return None
        rank, below = part * total, 0
        for number, count in enumerate(counts):
            if count and below + count >= rank:
                low = self._bounds[number - 1] if number else 0.0
                high = self._bounds[number] if number < len(self._bounds) else low
                return round(1000 * (low + (high - low) * (rank - below) / count), 3)
            below += count
        return None


def _difference(now: Sequence[int], before: Sequence[int]) -> list[int]:
    if len(now) != len(before) or sum(now) < sum(before):
        return list(now)  # a histogram that began since
    return [later - earlier for later, earlier in zip(now, before, strict=True)]
