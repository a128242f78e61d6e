"""What watches told, held against what was acknowledged: every change once, in order, none missing, none made up.

A change that was acknowledged must be told at its revision, to every watch alike. One that was told and never
acknowledged must be a write whose outcome nobody knows, and each of those can have happened once. So whatever order
tellings and acknowledgements come in, only what is open stays in memory, and a hash for each revision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

Change: TypeAlias = tuple[str, str, str]
"""(put, delete or expire; key; name of the value, empty where there is none)"""

SHOWN_MAX = 20  # of one kind: a broken watch breaks with every change that follows
# Clients of leases and locks are judged by their times and tokens; what became of each of their writes is not kept.
UNCLAIMED = ("lease/", "locks/")


class Chronicle:
    """Of one run. `acknowledgements` counts the writes that were."""

    def __init__(self) -> None:
        self.acknowledgements = 0
        self.newest = 0  # the highest revision that anybody was acknowledged
        self.findings: list[str] = []
        self._told: dict[int, int] = {}  # revision -> hash of what was told of it
        self._acknowledged: dict[int, tuple[tuple[Change, ...], int]] = {}  # and not told yet
        self._unclaimed: dict[int, tuple[tuple[Change, ...], int]] = {}  # told, and not acknowledged yet
        self._doubtful: Counter[tuple[Change, ...]] = Counter()

    def acknowledged(self, revision: int, changes: tuple[Change, ...], version: int) -> None:
        """A write of this revision was answered with 200; `version` is that of each key it put."""
        self.acknowledgements += 1
        self.newest = max(self.newest, revision)
        if revision in self._acknowledged:
            self._complain(f"revision {revision} was acknowledged twice: {self._acknowledged[revision]} and {changes}")
        elif (told := self._unclaimed.pop(revision, None)) is not None:
            if told != (changes, version):
                self._complain(f"revision {revision} was acknowledged as {changes} ({version}) and told as {told}")
        elif revision in self._told:
            if self._told[revision] != hash((changes, version)):
                self._complain(f"revision {revision} was acknowledged as {changes} ({version}) and told as another")
        else:
            self._acknowledged[revision] = (changes, version)

    def doubtful(self, changes: tuple[Change, ...]) -> None:
        """A write that may have been carried out, or may be later, once."""
        self._doubtful[changes] += 1

    def told(self, revision: int, changes: tuple[Change, ...], version: int) -> None:
        """By a watch, of all that the revision changed in the keys that it is of."""
        found = hash((changes, version))
        if (known := self._told.get(revision)) is not None:
            if known != found:
                self._complain(f"two watches were told differently of revision {revision}: the second {changes}")
            return
        self._told[revision] = found
        if (acknowledged := self._acknowledged.pop(revision, None)) is not None:
            if acknowledged != (changes, version):
                self._complain(f"revision {revision} was told as {changes} ({version}) and is {acknowledged}")
        else:
            self._unclaimed[revision] = (changes, version)

    def conclude(self, gaps: Iterable[tuple[int, int]]) -> list[str]:
        """Everything that is wrong. `gaps`: (first, last) revisions that no complete watch can have been told of."""
        spans = list(gaps)
        for revision, (changes, _) in sorted(self._acknowledged.items()):
            if not any(first <= revision <= last for first, last in spans):
                self._complain(f"revision {revision} was acknowledged and never told: {changes}")
        for revision, (changes, _) in sorted(self._unclaimed.items()):
            if all(key.startswith(UNCLAIMED) for _, key, _ in changes):
                continue
            if not self._doubtful[changes]:
                self._complain(
                    f"revision {revision} was told and nobody's: {changes} was refused, is done already, "
                    "or was never asked for"
                )
            self._doubtful[changes] -= 1
        return self.findings

    def _complain(self, finding: str) -> None:
        if len(self.findings) < SHOWN_MAX:
            self.findings.append(finding)
