"""What became of each write that carried an idempotency key: the part of the replicated state that makes a retry safe.

The first outcome counts, whatever it was. A refused compare-and-set is kept like an applied one: were it forgotten,
a retry that met a store which has changed meanwhile could succeed, and one request would have had two answers.
What never reached the state machine (no leader, a full disk, a malformed request) has no outcome and is not here.

Bounded by count and by bytes, oldest out first in the order of the log. So every node forgets the same key at the same
entry, with no clock. No record of a plain write exceeds OUTCOME_BYTES_MAX, so that for those the count alone decides; a
transaction's has a few bytes for each of its operations. What a transaction read is not kept, only at which revisions:
a retry is given the values again as long as the keys have not changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgpack

from kvnode.state.commands import PUT
from kvnode.state.limits import (
    COUNTER_MAX,
    OUTCOME_FINGERPRINT_BYTES,
    OUTCOMES_BYTES_MAX,
    OUTCOMES_MAX,
    idempotency_key_fault,
)
from kvnode.state.results import Result, decode_result, encode_result
from kvnode.state.table import Table, TableView

CHUNK_OUTCOMES: Final = 512  # of plain writes, about 64 KiB at most …
CHUNK_BYTES: Final = 65_536  # … and of transactions not much more either
SHARDS: Final = 1_024  # of the tables: 128 records each when the window is full

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def fingerprint(request: list[Any]) -> bytes:
    """Tells a retry from another request under the same key: a hash of a valid command without its key.

    BLAKE2b, because it must be the same on every node (Python salts its own hashes) and because clients choose
    the values: with a checksum, one could be made to pass for another.
    """
    if request[0] == PUT:
        kind, key, value, *rest = request
        digest = blake2b(_pack((kind, key, rest)), digest_size=OUTCOME_FINGERPRINT_BYTES)
        digest.update(value)  # last and apart, so that a large one is not copied first
        return digest.digest()
    return blake2b(_pack(request), digest_size=OUTCOME_FINGERPRINT_BYTES).digest()


class Outcome(NamedTuple):
    """The fingerprint of the first request under a key, and what the state machine answered it."""

    fingerprint: bytes
    result: Result


class OutcomesView(NamedTuple):
    """The outcomes at one revision, immutable: safe to walk in any thread."""

    records: TableView[str, bytes]
    order: TableView[int, str]
    oldest: int

    def chunks(self) -> Iterator[bytes]:
        """`[idempotency key, fingerprint and result]` arrays, oldest first, CHUNK_OUTCOMES to a chunk.

        The order is all that is told of their numbers: a node that loaded a snapshot writes the same bytes as one
        that did not.
        """
        pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack  # a packer belongs to one thread
        batch: list[tuple[str, bytes]] = []
        batch_bytes = 0
        for number in range(self.oldest, self.oldest + len(self.order)):
            key = self.order[number]
            record = self.records[key]
            batch.append((key, record))
            batch_bytes += len(record)
            if len(batch) == CHUNK_OUTCOMES or batch_bytes >= CHUNK_BYTES:
                yield pack(batch)
                batch, batch_bytes = [], 0
        if batch:
            yield pack(batch)


class Outcomes:
    """Idempotency key -> first outcome, for the newest `limit` of them.

    Two tables, so that a snapshot takes them in O(1): the records by key, and the keys by number, which
    are consecutive. A record is kept packed: it is read on a retry alone, and as bytes it takes half the memory.
    """

    __slots__ = ("_bytes", "_bytes_max", "_limit", "_oldest", "_order", "_records")

    def __init__(self, limit: int = OUTCOMES_MAX, bytes_max: int = OUTCOMES_BYTES_MAX) -> None:
        self._limit = limit
        self._bytes_max = bytes_max
        self._bytes = 0
        self._records: Table[str, bytes] = Table(SHARDS)
        self._order: Table[int, str] = Table(SHARDS)
        self._oldest = 0

    def __len__(self) -> int:
        return len(self._order)

    def get(self, key: str) -> Outcome | None:
        """The first outcome under `key`, or None where there was none or it is forgotten."""
        record = self._records.get(key)
        if record is None:
            return None
        result = decode_result(record[OUTCOME_FINGERPRINT_BYTES:])
        assert result is not None  # `remember` and `load` take nothing else
        return Outcome(record[:OUTCOME_FINGERPRINT_BYTES], result)

    def remember(self, key: str, outcome: Outcome) -> None:
        """Keeps the outcome of a key that is not known, and forgets the oldest over the limit."""
        self._append(key, outcome.fingerprint + encode_result(outcome.result))

    def _append(self, key: str, record: bytes) -> None:
        self._records[key] = record
        self._order[self._oldest + len(self._order)] = key
        self._bytes += len(key) + len(record)
        while len(self._order) > self._limit or self._bytes > self._bytes_max:
            oldest = self._order.pop(self._oldest)
            self._bytes -= len(oldest) + len(self._records.pop(oldest))
            self._oldest += 1

    def view(self) -> OutcomesView:
        """The outcomes as they are now, immutable. O(1)."""
        return OutcomesView(self._records.view(), self._order.view(), self._oldest)

    @classmethod
    def load(cls, chunks: Iterator[list[Any]], count: int) -> Outcomes:
        """Takes as many unpacked chunks of `OutcomesView.chunks` as hold `count` outcomes. ValueError for bad ones."""
        if count > OUTCOMES_MAX:
            raise ValueError(f"a snapshot holds {OUTCOMES_MAX} outcomes at most")
        outcomes = cls()
        loaded = 0
        # Nothing may be taken from the source beyond the last outcome: the items follow.
        while loaded < count and (chunk := next(chunks, None)) is not None:
            for key, record in map(_checked, chunk):
                if key in outcomes._records:
                    raise ValueError("the snapshot holds an idempotency key twice")
                outcomes._append(key, record)
            loaded += len(chunk)
        if loaded != count:
            raise ValueError(f"the snapshot promises {count} outcomes and holds {loaded}")
        if len(outcomes) != count:
            raise ValueError(f"the outcomes of a snapshot are {OUTCOMES_BYTES_MAX} bytes at most")
        return outcomes


def _checked(entry: Any) -> tuple[str, bytes]:
    """One outcome of a snapshot. Only the very bytes that a node writes count: others would be another snapshot."""
    if type(entry) is not list or len(entry) != 2 or type(entry[1]) is not bytes:
        raise ValueError("an outcome in the snapshot is not a key and a record")
    key, record = entry
    if type(key) is not str or idempotency_key_fault(key) is not None:
        raise ValueError("an outcome in the snapshot has no sound idempotency key")
    encoded = record[OUTCOME_FINGERPRINT_BYTES:]
    result = decode_result(encoded, COUNTER_MAX)
    if result is None or encode_result(result) != encoded:
        raise ValueError("an outcome in the snapshot is not a fingerprint and a result whose numbers are in bounds")
    return key, record
