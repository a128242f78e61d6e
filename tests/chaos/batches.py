"""Clients that write in batches, hundreds of keys at a time, each its own keys: what makes a million writes.

One client writes a key, one write at a time, so its `version` counts how often writes to it were carried out: those
that were acknowledged once each, those in doubt at most once, those refused never. That needs no search, and no memory
but some numbers for each key.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.chronicle import Chronicle
from tests.chaos.clients import (
    ANSWER_DEADLINE_S,
    JSON,
    PATIENCE_S,
    SETTLE_S,
    Connections,
    NotSent,
    Reply,
    Unanswered,
    encode,
)
from tests.cluster import Cluster

KEYS = 400  # in each batch
PADDING_BYTES = 64
SHOWN_MAX = 20


@dataclass
class Tally:
    """Of one key with one writer. `floor` is the store's revision that was known before a write was sent."""

    key: str
    acknowledged: int = 0
    doubtful: dict[str, None] = field(default_factory=dict)  # values of writes that may be carried out yet
    surplus: int = 0  # writes in doubt that are known to have been carried out
    version: int = 0
    revision: int = 0
    value: str | None = None
    findings: list[str] = field(default_factory=list)

    def done(self, value: str, version: int, revision: int, floor: int) -> None:
        """A write was acknowledged, as the key's version so and so."""
        self.acknowledged += 1
        surplus = version - self.acknowledged
        if surplus < self.surplus or surplus > len(self.doubtful):
            self._complain(f"{value} is version {version}, with {self}")
        if revision <= max(self.revision, floor):
            self._complain(f"{value} is of revision {revision}, and {floor} was known before it was sent, with {self}")
        self.surplus, self.version, self.revision, self.value = surplus, version, revision, value

    def in_doubt(self, value: str) -> None:
        self.doubtful[value] = None

    def found(self, value: str | None, version: int, where: str) -> None:
        """What the key holds once no write is under way any more."""
        if not self.acknowledged and value is None:
            return
        surplus = version - self.acknowledged
        if surplus < self.surplus or surplus > len(self.doubtful):
            self._complain(f"{where} has version {version} with {self}")
        elif value != self.value and value not in self.doubtful:
            self._complain(f"{where} has {value}, which is neither the last nor in doubt, with {self}")
        elif value == self.value and version != self.version:
            self._complain(f"{where} has the last value at version {version}, with {self}")
        elif value != self.value and version == self.version:
            self._complain(f"{where} has {value} where the last was acknowledged, with {self}")

    def _complain(self, finding: str) -> None:
        if len(self.findings) < SHOWN_MAX:
            self.findings.append(f"{self.key}: {finding}")

    def __str__(self) -> str:
        doubtful = f"{len(self.doubtful)} in doubt, {self.surplus} of them carried out"
        return f"{self.acknowledged} acknowledged, the last {self.value} as version {self.version}; {doubtful}"


class Batches:
    """The writers, with what they know of each key. `writes_per_s` is for all of them together."""

    def __init__(self, cluster: Cluster, chronicle: Chronicle, writers: int, writes_per_s: float, seed: int) -> None:
        self._addresses = {node.id: node.http for node in cluster.nodes.values()}
        self._chronicle = chronicle
        self._chance = random.Random(f"batches {seed}")
        self._pause_s = writers * KEYS / writes_per_s if writes_per_s else 0.0
        self.acknowledged = 0
        self.tallies: dict[str, Tally] = {}
        self.complaints: list[str] = []
        self._sent = [0] * writers
        self.stopping = False

    async def write(self, number: int) -> None:
        """One writer, until `stopping`; every other batch carries an idempotency key, and is sent until settled."""
        connections = Connections(self._addresses)
        names = list(self._addresses)
        tallies = [self._tally(f"batch/{number}/{each}") for each in range(KEYS)]
        turn = number
        try:
            while not self.stopping:
                self._sent[number] += 1
                count, began = self._sent[number], time.monotonic()
                batch = Batch(f"{number}.{count}", tallies, self._chronicle.newest)
                if not await self._send(connections, names, turn, batch, keyed=count % 2 == 0):
                    turn += 1
                self._settle(batch)
                left_s = began + self._pause_s * self._chance.uniform(0.5, 1.5) - time.monotonic()
                await asyncio.sleep(max(left_s, 0.0 if batch.open == 0 else 0.2))
        finally:
            connections.close()

    def _tally(self, key: str) -> Tally:
        return self.tallies.setdefault(key, Tally(key))

    async def _send(self, connections: Connections, names: list[str], turn: int, batch: Batch, keyed: bool) -> bool:
        """Whether the first try was answered in full."""
        headers = JSON + (f"Idempotency-Key: b{batch.name}\r\n" if keyed else "")
        until = time.monotonic() + SETTLE_S
        patience_s = self._chance.choice(PATIENCE_S) if keyed else ANSWER_DEADLINE_S
        for tries in range(1, 1_000):
            connection = connections[names[turn % len(names)]]
            try:
                batch.answered(await connection.request("POST", "/v1/batch", batch.body, headers, patience_s))
            except NotSent:
                pass
            except Unanswered:
                batch.unanswered()
            except (ValueError, KeyError) as error:
                batch.unanswered()
                self.complaints.append(f"batch {batch.name}: {error!r}")
            if not keyed or not batch.in_doubt or time.monotonic() > until:
                return tries == 1 and not batch.open
            turn, patience_s = turn + 1, ANSWER_DEADLINE_S
            await asyncio.sleep(0.1)
        return False

    def _settle(self, batch: Batch) -> None:
        for tally, result, doubt in zip(batch.tallies, batch.results, batch.doubts, strict=True):
            change = (("put", tally.key, batch.name),)
            if result is not None:
                tally.done(batch.name, *result, batch.floor)
                self._chronicle.acknowledged(result[1], change, result[0])
                self.acknowledged += 1
            elif doubt:
                tally.in_doubt(batch.name)
                self._chronicle.doubtful(change)

    def findings(self) -> list[str]:
        return self.complaints + [finding for tally in self.tallies.values() for finding in tally.findings]


class Batch:
    """One batch, however often it is sent. For each of its writes `results` has (version, revision) or None."""

    def __init__(self, name: str, tallies: list[Tally], floor: int) -> None:
        self.name, self.tallies, self.floor = name, tallies, floor
        value = b64encode(encode(name, PADDING_BYTES)).decode()
        operations = [{"put": {"key": tally.key, "value": value}} for tally in tallies]
        self.body = json.dumps({"operations": operations}).encode()
        self.results: list[tuple[int, int] | None] = [None] * len(tallies)
        self.doubts = [False] * len(tallies)

    @property
    def open(self) -> int:
        return self.results.count(None)

    @property
    def in_doubt(self) -> bool:
        """A write may have been carried out, and nobody said so."""
        return any(doubt and result is None for doubt, result in zip(self.doubts, self.results, strict=True))

    def unanswered(self) -> None:
        self.doubts = [True] * len(self.doubts)

    def answered(self, reply: Reply) -> None:
        """ValueError for an answer that no node may give, also one that is not what it was at the last try."""
        document: dict[str, Any] = json.loads(reply.body)
        if reply.status != 200:
            expected = reply.status >= 500 or reply.status == 429
            if not expected or document.get("outcome") not in ("not_applied", "unknown"):
                raise ValueError(f"status {reply.status}: {reply.body[:200]!r}")
            if document["outcome"] == "unknown":
                self.unanswered()
            return
        for number, (tally, told) in enumerate(zip(self.tallies, document["results"], strict=True)):
            if told["key"] != tally.key:
                raise ValueError(f"the outcome of {told['key']} in the place of {tally.key}")
            if "error" not in told:
                result = (told["version"], told["revision"])
                if self.results[number] not in (None, result):
                    raise ValueError(f"{tally.key} was {self.results[number]} and is {result}")
                self.results[number] = result
            elif told["outcome"] == "unknown":
                self.doubts[number] = True
            elif told["outcome"] != "not_applied":
                raise ValueError(f"the outcome of {tally.key} is {told}")
