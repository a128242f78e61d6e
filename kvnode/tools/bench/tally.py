"""What became of the requests, by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from kvnode.tools.bench.latencies import Latencies

CODES_MAX: Final = 64  # of different failures; what answers may be anything


@dataclass
class Outcomes:
    """Of requests of one kind. The latencies are those of the ones that succeeded."""

    succeeded: int = 0
    failed: int = 0
    unknown: int = 0  # of the failed ones: those that may have been carried out
    latencies: Latencies = field(default_factory=Latencies)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        return self.succeeded + self.failed

    def success(self, seconds: float) -> None:
        self.succeeded += 1
        self.latencies.record(seconds)

    def failure(self, code: str, is_unknown: bool) -> None:
        self.failed += 1
        self.unknown += is_unknown
        self.errors[code if code in self.errors or len(self.errors) < CODES_MAX else "other"] += 1

    def add(self, other: Outcomes) -> None:
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.unknown += other.unknown
        self.latencies.add(other.latencies)
        self.errors += other.errors

    def as_json(self, elapsed_s: float) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "outcome_unknown": self.unknown,
            "requests_per_s": round(self.succeeded / elapsed_s, 1) if elapsed_s > 0 else 0.0,
            "latency_ms": self.latencies.summary_ms(),
            "errors": dict(self.errors.most_common()),
        }


class Tally:
    """All kinds together, or each for itself."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.by_kind = {kind: Outcomes() for kind in kinds}

    @property
    def succeeded(self) -> int:
        return sum(each.succeeded for each in self.by_kind.values())

    @property
    def failed(self) -> int:
        return sum(each.failed for each in self.by_kind.values())

    @property
    def is_in_doubt(self) -> bool:
        return any(each.unknown for each in self.by_kind.values())

    def total(self) -> Outcomes:
        total = Outcomes()
        for each in self.by_kind.values():
            total.add(each)
        return total
