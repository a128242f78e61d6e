"""What a run says in the end: the figures, and how long the cluster took no write."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from tests.chaos.diary import Diary
from tests.chaos.history import Operation


@dataclass(frozen=True)
class Gap:
    """A time between two acknowledged writes of anybody, and what was being broken then."""

    began: float
    ended: float
    faults: tuple[str, ...]
    majority: bool  # a majority was up and connected all the while, and in the second before

    @property
    def length_s(self) -> float:
        return self.ended - self.began

    def __str__(self) -> str:
        return f"{self.length_s:.2f} s" + (f" ({'; '.join(self.faults)})" if self.faults else "")


def gaps(operations: Iterable[Operation], diary: Diary, began: float, ended: float) -> list[Gap]:
    """Every time without an acknowledged write between `began` and `ended`, the longest first."""
    writes = sorted(operation.ended for operation in operations if operation.outcome == "ok" and operation.writes)
    marks = [began, *(at for at in writes if began < at < ended), ended]
    # A lost majority that has just come back has an election, or a whole start, before it.
    outages = [(lost, back + 1.0) for lost, back in diary.outages]
    found = []
    for left, right in pairwise(marks):
        if right - left < 0.1:
            continue
        faults = tuple(fault.what or fault.kind for fault in diary.faults if fault.began < right and fault.ended > left)
        majority = not any(lost < right and back > left for lost, back in outages)
        found.append(Gap(left, right, faults, majority))
    return sorted(found, key=lambda gap: -gap.length_s)


def returns_s(operations: Iterable[Operation], diary: Diary) -> list[float]:
    """For each majority that was lost and came back, and stayed until then: the time to the next acknowledged write."""
    writes = sorted(operation.ended for operation in operations if operation.outcome == "ok" and operation.writes)
    found = []
    for number, (_, back) in enumerate(diary.outages):
        lost_again = diary.outages[number + 1][0] if number + 1 < len(diary.outages) else inf
        at = bisect_left(writes, back)
        if at < len(writes) and writes[at] < lost_again:
            found.append(writes[at] - back)
    return sorted(found, reverse=True)


@dataclass
class Report:
    """A run's result. `findings` is what is wrong, one text each; empty is the verdict "nothing lost"."""

    seed: int
    where: str
    load_s: float = 0.0
    operations: Sequence[Operation] = ()
    diary: Diary = field(default_factory=Diary)
    gaps: list[Gap] = field(default_factory=list)
    returns_s: list[float] = field(default_factory=list)
    acknowledged: int = 0  # writes of every kind
    batch_writes: int = 0
    leases: int = 0
    holdings: int = 0
    watches: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # name: (told, moves, gaps)
    probe_writes: Counter[str] = field(default_factory=Counter)
    probes: int = 0
    claims: int = 0
    terms: int = 0
    restores: list[str] = field(default_factory=list)
    snapshots: Counter[str] = field(default_factory=Counter)
    keys: int = 0
    revision: int = 0
    recovered_s: float = 0.0
    checked_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        outcomes = Counter[str](operation.outcome for operation in self.operations)
        kinds = Counter[str](
            "compare-and-set" if operation.expect is not None and operation.kind == "put" else operation.kind
            for operation in self.operations
        )
        faults = Counter(fault.kind for fault in self.diary.faults)
        with_majority = [gap for gap in self.gaps if gap.majority]
        lines = [
            f"chaos        seed {self.seed}, {self.load_s:.0f} s of load on {self.where}",
            f"requests     {_counts(outcomes)} of {len(self.operations)}: {_counts(kinds)}",
            f"acknowledged {self.acknowledged} writes, {self.batch_writes} of them in batches",
            f"faults       {sum(faults.values())}: {_counts(faults)}",
            f"unavailable  at the longest {self.gaps[0] if self.gaps else 'under 0.10 s'}",
            f"             while a majority was there {with_majority[0] if with_majority else 'under 0.10 s'}",
            f"             after a majority was back {max(self.returns_s, default=0.0):.2f} s",
            f"leader probe {self.claims} confirmations in {self.terms} terms, of {self.probes} answers",
            f"             believed by writes: {_counts(self.probe_writes)}",
            f"leases       {self.leases}; locks were held {self.holdings} times",
            *(
                f"watch        {name}: {told} revisions, on {moves} streams, {gaps} gaps"
                for name, (told, moves, gaps) in self.watches.items()
            ),
            *(f"restore      {each}: the content is what it was, no number is given twice" for each in self.restores),
            f"snapshots    {_counts(self.snapshots) or 'none'}",
            f"nodes        ready {self.recovered_s:.1f} s after the last fault; "
            f"{self.keys} keys, the same on all, at revision {self.revision}",
            f"history      {self.keys} keys checked in {self.checked_s:.1f} s",
            *(f"note         {note}" for note in self.notes),
            *(f"FINDING      {finding}" for finding in self.findings),
            f"verdict      {self.verdict}",
        ]
        return "\n".join(lines)

    @property
    def verdict(self) -> str:
        return "NOT ALL IS WELL" if self.findings else "linearizable, nothing lost, nothing done twice"

    def details(self) -> str:
        """For whoever looks into a run: what was broken when, by the clock of the history, and the longest gaps."""
        diary = self.diary
        return "\n".join(
            [
                str(self),
                "",
                *(f"{fault.began:.3f} to {fault.ended:.3f}  {fault.kind}: {fault.what}" for fault in diary.faults),
                *(f"{lost:.3f} to {back:.3f}  no majority" for lost, back in diary.outages),
                *(f"{gap.began:.3f} to {gap.ended:.3f}  no acknowledged write: {gap}" for gap in self.gaps[:20]),
                "",
            ]
        )


def _counts(counter: Counter[str]) -> str:
    return ", ".join(
        f"{count} {name}" for name, count in sorted((+counter).items(), key=lambda item: (-item[1], item[0]))
    )
