"""What clients asked and what they were told, with the times of both: the only evidence that the checker accepts.

One operation is two lines of JSON on disk: `invoke`, written before a byte leaves the client, and its end. A
write whose end is `unknown` may have been applied, may be applied at any later time, or never; one without an
end at all, because the run was cut short, is the same. A read that failed proves nothing and is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

ABSENT = 0  # as an expectation and as an observation: the key does not exist

Kind = Literal["put", "delete", "get"]
Outcome = Literal["ok", "refused", "failed", "unknown"]
# `keyed`: sent again, through other nodes, under one Idempotency-Key, for as long as it is in doubt. `txn`: the key is
# three, which a transaction writes, compares and reads together; so their history is that of one.
Way = Literal["plain", "keyed", "txn", "keyed txn"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One request. Times are the client's monotonic clock, in seconds; `ended` is infinite while nobody was told.

    `expect`: None, ABSENT (If-None-Match: *) or the `mod_revision` that the write demands (If-Match).
    `outcome`: `refused` is a write that the state machine answered with "the key is not in that state" (412, or 404
    for a delete): not applied, and an observation all the same. `failed` was not applied and observed nothing.
    `found`: what a get found, None for no key. `revision`: what an ok write was given, or the `mod_revision` that a
    get or a refusal saw (ABSENT for no key). `store_revision`: the store's counter where a get was answered.
    `version`: of an ok put, how many times the key was written since it was created.
    """

    number: int
    client: int
    node: str
    kind: Kind
    key: str
    began: float
    value: str | None = None
    expect: int | None = None
    ended: float = math.inf
    outcome: Outcome = "unknown"
    found: str | None = None
    revision: int | None = None
    store_revision: int | None = None
    version: int | None = None
    way: Way = "plain"

    @property
    def writes(self) -> bool:
        """It changed the key, or may have."""
        return self.kind != "get" and self.outcome in ("ok", "unknown")

    @property
    def certain(self) -> bool:
        """It took effect between its two times, and is known to have."""
        return self.outcome in ("ok", "refused")

    def __str__(self) -> str:
        asked = (
            ("" if self.way == "plain" else f"{self.way} ")
            + f"{self.kind} {self.key}"
            + (f"={self.value}" if self.kind == "put" else "")
        )
        if self.expect is not None:
            asked += " if absent" if self.expect == ABSENT else f" if at {self.expect}"
        told: str = self.outcome
        if self.kind == "get" and self.outcome == "ok":
            told = "no key" if self.revision == ABSENT else f"{self.found} at {self.revision}"
        elif self.certain:
            told += " (no key)" if self.revision == ABSENT else f" at {self.revision}"
        return (
            f"#{self.number} client {self.client} on {self.node} [{self.began:.4f}, {self.ended:.4f}] {asked}: {told}"
        )


class Recorder:
    """Keeps a run's history in memory and, line by line, on disk. Used from one thread."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1 << 16)
        self._operations: dict[int, Operation] = {}
        self._next = 0

    def invoke(self, operation: Operation) -> Operation:
        """Numbers the operation and writes it down; to be called before anything is sent."""
        operation = replace(operation, number=self._next)
        self._next += 1
        self._operations[operation.number] = operation
        asked = ("number", "client", "node", "kind", "key", "value", "expect", "way")
        fields = {name: getattr(operation, name) for name in asked}
        self._write({"event": "invoke", "time": operation.began, **fields})
        return operation

    def end(self, operation: Operation) -> None:
        """The operation with its outcome, `ended` taken after the answer was read."""
        self._operations[operation.number] = operation
        fields = ("number", "found", "revision", "store_revision", "version")
        told = {name: getattr(operation, name) for name in fields}
        time = None if math.isinf(operation.ended) else operation.ended
        self._write({"event": operation.outcome, "time": time, **told})

    def close(self) -> list[Operation]:
        """Every operation of the run; afterwards the file is whole."""
        self._file.close()
        return list(self._operations.values())

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event, separators=(",", ":")) + "\n")


def load(path: Path) -> list[Operation]:
    """A history as `Recorder` wrote it; a last line that was cut short is left out."""
    operations: dict[int, Operation] = {}
    for event in _events(path):
        outcome, time = event.pop("event"), event.pop("time")
        if outcome == "invoke":
            operations[event["number"]] = Operation(began=time, **event)
        else:
            ended = math.inf if time is None else time
            operations[event["number"]] = replace(operations[event["number"]], outcome=outcome, ended=ended, **event)
    return list(operations.values())


def _events(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """What proves something, for each key: a failed operation and an unanswered read do not."""
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        if operation.certain or operation.writes:
            keys.setdefault(operation.key, []).append(operation)
    return keys
