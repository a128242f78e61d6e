"""Latencies in buckets that grow with them: any number of them in 40 KiB, each known to within 1 in 128.

After HdrHistogram: a value in microseconds is kept with its eight leading bits.
"""

from __future__ import annotations

from math import ceil
from typing import Final

_BITS: Final = 8
_HALF: Final = 1 << (_BITS - 1)
MICROSECONDS_MAX: Final = (1 << 40) - 1  # twelve days
PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


class Latencies:
    """Recorded in seconds, read in milliseconds."""

    def __init__(self) -> None:
        self._buckets = [0] * (_bucket(MICROSECONDS_MAX) + 1)
        self.count = 0
        self.max_us = 0
        self._sum_us = 0

    def record(self, seconds: float) -> None:
        microseconds = min(max(int(seconds * 1_000_000), 0), MICROSECONDS_MAX)
        self._buckets[_bucket(microseconds)] += 1
        self.count += 1
        self._sum_us += microseconds
        if microseconds > self.max_us:
            self.max_us = microseconds

    def add(self, other: Latencies) -> None:
        self._buckets = [mine + theirs for mine, theirs in zip(self._buckets, other._buckets, strict=True)]
        self.count += other.count
        self._sum_us += other._sum_us
        self.max_us = max(self.max_us, other.max_us)

    def percentile_ms(self, share: float) -> float:
        """The least latency that `share` of all (0 to 1) do not exceed, rounded up to its bucket's end; 0 of none."""
        wanted, seen = max(1, ceil(share * self.count)), 0
        for bucket, count in enumerate(self._buckets):
            seen += count
            if seen >= wanted:
                return min(_end(bucket), self.max_us) / 1000
        return 0.0

    def summary_ms(self) -> dict[str, float]:
        """p50, p90, p99, p99.9, max and mean; {} where nothing was measured."""
        if not self.count:
            return {}
        found = {name: self.percentile_ms(share) for name, share in PERCENTILES.items()}
        return found | {"max": self.max_us / 1000, "mean": round(self._sum_us / self.count / 1000, 3)}


def _bucket(microseconds: int) -> int:
    shift = max(0, microseconds.bit_length() - _BITS)
    return shift * _HALF + (microseconds >> shift)


def _end(bucket: int) -> int:
    shift = max(0, bucket // _HALF - 1)
    return ((bucket - shift * _HALF + 1) << shift) - 1
