"""What became of each write that carried an idempotency key: the part of the replicated state that makes a retry safe.

The first outcome counts. A refused compare-and-set is kept like an applied one: if it were forgotten, a retry could
succeed on a store that has changed meanwhile, and one request would have two answers.
What never reached the state machine (no leader, a full disk, a malformed request) has no outcome and is not here.

Bounded by count and by bytes, oldest out first in the order of the log. So every node forgets the same key at the same
entry. No record of a plain write exceeds OUTCOME_BYTES_MAX, so that for those the count alone decides; a transaction's
has a few bytes for each of its operations. What a transaction read is not kept, only at which revisions: a retry is
given the values again as long as the keys have not changed.

From feature level 1 on an outcome is kept for REPEAT_WINDOW_S at least, as long as a client may repeat its write. A
new keyed write that has no room beside the young outcomes is refused, and changes nothing. Time comes through the log:
the leader puts its clock into it (ADVANCE_CLOCK), in whole seconds that never go back. What was noted since the last
second counts as noted at the next one, so that an outcome is younger than it seems, never older.

One client must not fill the window for all others. Each keyed write says whose it is, by a number that the node which
took it made of the token or the address. A client may fill SHARE times what would be left free (dynamic thresholds,
Choudhury and Hahne 1998): alone three quarters of the window, and there is always room for one that comes anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgpack

from kvnode.state.commands import PUT
from kvnode.state.limits import (
    COUNTER_MAX,
    OUTCOME_FINGERPRINT_BYTES,
    OUTCOME_LARGEST_BYTES,
    OUTCOMES_BYTES_MAX,
    OUTCOMES_MAX,
    OUTCOMES_YOUNG_BYTES_MAX,
    OUTCOMES_YOUNG_MAX,
    REPEAT_WINDOW_S,
    SOURCE_MAX,
    idempotency_key_fault,
    outcome_times_fault,
)
from kvnode.state.results import Result, decode_result, encode_result
from kvnode.state.table import Table, TableView

CHUNK_OUTCOMES: Final = 512  # of plain writes, about 64 KiB at most …
CHUNK_BYTES: Final = 65_536  # … and of transactions not much more either
SHARDS: Final = 1_024  # of the tables: 128 records each when the window is full
SHARE: Final = 3  # times what is free: what one client's young outcomes may take
COST_MIN: Final = OUTCOMES_YOUNG_BYTES_MAX // OUTCOMES_YOUNG_MAX  # so the bound in bytes is one in number as well
FORGOTTEN_AT_ONCE: Final = 4_096  # by one command: some milliseconds, on every node at the same time
_SOURCE_BYTES: Final = 2
_FINGERPRINT_END: Final = _SOURCE_BYTES + OUTCOME_FINGERPRINT_BYTES

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


class Times(NamedTuple):
    """How old the outcomes are, the oldest first: `counts` of them were noted by that second, `open_count` since."""

    clock_s: int = 0
    counts: tuple[tuple[int, int], ...] = ()
    open_count: int = 0

    @property
    def young(self) -> int:
        return self.open_count + sum(count for _, count in self.counts)


class OutcomesView(NamedTuple):
    """The outcomes at one revision, immutable: safe to walk in any thread."""

    records: TableView[str, bytes]
    order: TableView[int, str]
    oldest: int
    times: Times = Times()
    plain: bool = False  # without whose they are: a cluster that is made of a backup begins its time anew

    def chunks(self) -> Iterator[bytes]:
        """`[idempotency key, fingerprint and result, source?]` arrays, oldest first, CHUNK_OUTCOMES to a chunk.

        Only the order is written, not the sequence numbers, so that a node that loaded a snapshot writes the same
        bytes as one that did not. A source of 0 is left out.
        """
        pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack  # a packer belongs to one thread
        batch: list[tuple[str, bytes] | tuple[str, bytes, int]] = []
        batch_bytes = 0
        for number in range(self.oldest, self.oldest + len(self.order)):
            key = self.order[number]
            record = self.records[key]
            source = 0 if self.plain else _source_of(record)
            record = record[_SOURCE_BYTES:]
            batch.append((key, record, source) if source else (key, record))
            batch_bytes += len(record)
            if len(batch) == CHUNK_OUTCOMES or batch_bytes >= CHUNK_BYTES:
                yield pack(batch)
                batch, batch_bytes = [], 0
        if batch:
            yield pack(batch)


class _Young:
    """Outcomes that were noted by one second: up to which number, and what those of each source cost."""

    __slots__ = ("costs", "end", "second")

    def __init__(self) -> None:
        self.second = self.end = 0
        self.costs: dict[int, int] = {}


class Outcomes:
    """Idempotency key -> first outcome, for the newest `limit` of them, and from feature level 1 on all young ones.

    Two tables, so that a snapshot takes them in O(1): the records by key, and the keys by number, which
    are consecutive. A record is kept packed: it is read on a retry alone, and as bytes it takes half the memory.
    """

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_costs",
        "_limit",
        "_oldest",
        "_open",
        "_order",
        "_records",
        "_seconds",
        "_timed",
        "_young_cost",
        "_young_from",
        "clock_s",
    )

    def __init__(self, limit: int = OUTCOMES_MAX, bytes_max: int = OUTCOMES_BYTES_MAX) -> None:
        self._limit = limit
        self._bytes_max = bytes_max
        self._bytes = 0
        self._records: Table[str, bytes] = Table(SHARDS)
        self._order: Table[int, str] = Table(SHARDS)
        self._oldest = 0
        self.clock_s = 0  # the replicated clock
        self._timed = False
        self._young_from = 0  # the first number of those that may not be forgotten; what is below may
        self._seconds: deque[_Young] = deque()  # REPEAT_WINDOW_S + 1 of them at most
        self._open = _Young()  # noted since the last second
        self._costs: dict[int, int] = {}  # what all young ones of each source cost, …
        self._young_cost = 0  # … and all together

    def __len__(self) -> int:
        return len(self._order)

    def get(self, key: str) -> Outcome | None:
        """The first outcome under `key`, or None where there was none or it is forgotten."""
        record = self._records.get(key)
        if record is None:
            return None
        result = decode_result(record[_FINGERPRINT_END:])
        assert result is not None  # `remember` and `load` take nothing else
        return Outcome(record[_SOURCE_BYTES:_FINGERPRINT_END], result)

    def has_room(self, source: int) -> bool:
        """Whether another outcome of this source can be kept for as long as its client may repeat the write."""
        if not self._timed:
            return True
        free = OUTCOMES_YOUNG_BYTES_MAX - OUTCOME_LARGEST_BYTES - self._young_cost
        return free >= 0 and self._costs.get(source, 0) <= SHARE * free

    @property
    def used(self) -> float:
        """What the young ones take of the window: from 0.0 to 1.0, where new keyed writes are refused."""
        return min(1.0, self._young_cost / (OUTCOMES_YOUNG_BYTES_MAX - OUTCOME_LARGEST_BYTES))

    def remember(self, key: str, outcome: Outcome, source: int = 0) -> None:
        """Keeps the outcome of a key that is not known, and forgets the oldest over the limit."""
        self._append(key, outcome.fingerprint + encode_result(outcome.result), source)

    def _append(self, key: str, record: bytes, source: int) -> None:
        self._add(key, record, source)
        self._forget()

    def _add(self, key: str, record: bytes, source: int) -> None:
        self._records[key] = source.to_bytes(_SOURCE_BYTES, "big") + record
        self._order[self._oldest + len(self._order)] = key
        self._bytes += len(key) + len(record)
        if self._timed:
            cost = max(COST_MIN, len(key) + len(record))
            self._young_cost += cost
            self._open.costs[source] = self._open.costs.get(source, 0) + cost
            self._costs[source] = self._costs.get(source, 0) + cost

    def _forget(self) -> None:
        """Those over the limit; where there is time, only what is old, and not too many at once."""
        end = self._young_from if self._timed else self._oldest + len(self._order)
        end = min(end, self._oldest + FORGOTTEN_AT_ONCE)
        while (len(self._order) > self._limit or self._bytes > self._bytes_max) and self._oldest < end:
            oldest = self._order.pop(self._oldest)
            self._bytes -= len(oldest) + len(self._records.pop(oldest)) - _SOURCE_BYTES
            self._oldest += 1

    # --- time ------------------------------------------------------------------------------------------

    @property
    def awaits_time(self) -> bool:
        """Whether something becomes old, or is forgotten, as time goes on."""
        return self._timed and (self._young_cost > 0 or len(self._order) > self._limit or self._bytes > self._bytes_max)

    def begin_time(self) -> None:
        """From here on outcomes have an age; those that there are may be forgotten at once, as before."""
        if not self._timed:
            self._timed = True
            self._young_from = self._oldest + len(self._order)

    def advance(self, clock_s: int) -> None:
        """The replicated clock shows this second, if it did not before. O(sources that become old)."""
        if not self._timed or clock_s <= self.clock_s:
            return
        self.clock_s = clock_s
        self._close(clock_s)
        while self._seconds and clock_s - self._seconds[0].second > REPEAT_WINDOW_S:
            old = self._seconds.popleft()
            self._young_from = old.end
            for source, cost in old.costs.items():
                self._young_cost -= cost
                left = self._costs[source] - cost
                if left:
                    self._costs[source] = left
                else:
                    del self._costs[source]
        self._forget()

    def _close(self, second: int) -> None:
        """What is open was noted by this second."""
        if self._open.costs:
            self._open.second, self._open.end = second, self._oldest + len(self._order)
            self._seconds.append(self._open)
            self._open = _Young()

    # --- snapshots -------------------------------------------------------------------------------------

    def view(self) -> OutcomesView:
        """The outcomes as they are now, immutable. O(1)."""
        counts, before = [], self._young_from
        for each in self._seconds:
            counts.append((each.second, each.end - before))
            before = each.end
        open_count = self._oldest + len(self._order) - before if self._timed else 0
        return OutcomesView(
            self._records.view(), self._order.view(), self._oldest, Times(self.clock_s, tuple(counts), open_count)
        )

    @classmethod
    def load(cls, chunks: Iterator[list[Any]], count: int, timed: bool = False, times: Any = ()) -> Outcomes:
        """Takes as many unpacked chunks of `OutcomesView.chunks` as hold `count` outcomes. ValueError for bad ones.

        `timed`: from feature level 1 on; `times`: `Times` as a list, () where all are old.
        """
        if count > OUTCOMES_YOUNG_MAX:
            raise ValueError(f"a snapshot holds {OUTCOMES_YOUNG_MAX} outcomes at most")
        if times != () and (fault := outcome_times_fault(times, timed, count)) is not None:
            raise ValueError(f"the snapshot breaks a limit: {fault}")
        known = Times(times[0], tuple((second, n) for second, n in times[1]), times[2]) if times else Times()
        outcomes = cls()
        ends, at = deque[tuple[int, int]](), count - known.young  # a second closes once so many are loaded
        for second, n in known.counts:
            at += n
            ends.append((second, at))
        loaded = 0
        # Nothing may be taken from the source beyond the last outcome: the items follow.
        while loaded < count and (chunk := next(chunks, None)) is not None:
            for key, record, source in map(_checked, chunk):
                if key in outcomes._records:
                    raise ValueError("the snapshot holds an idempotency key twice")
                if timed and len(outcomes) == count - known.young:
                    outcomes.begin_time()
                outcomes._add(key, record, source)
                if ends and len(outcomes) == ends[0][1]:
                    outcomes._close(ends.popleft()[0])
            loaded += len(chunk)
        if loaded != count:
            raise ValueError(f"the snapshot promises {count} outcomes and holds {loaded}")
        if outcomes._bytes > OUTCOMES_YOUNG_BYTES_MAX:
            raise ValueError(f"the outcomes of a snapshot are {OUTCOMES_YOUNG_BYTES_MAX} bytes at most")
        if timed:
            outcomes.begin_time()
        outcomes.clock_s = known.clock_s
        return outcomes


def _source_of(record: bytes) -> int:
    return int.from_bytes(record[:_SOURCE_BYTES], "big")


def _checked(entry: Any) -> tuple[str, bytes, int]:
    """One outcome of a snapshot. Only the very bytes that a node writes count: others would be another snapshot."""
    if type(entry) is not list or not 2 <= len(entry) <= 3 or type(entry[1]) is not bytes:
        raise ValueError("an outcome in the snapshot is not a key and a record")
    key, record, *sources = entry
    if sources and (type(sources[0]) is not int or not 1 <= sources[0] <= SOURCE_MAX):
        raise ValueError(f"the source of an outcome in the snapshot is a number from 1 to {SOURCE_MAX}")
    if type(key) is not str or idempotency_key_fault(key) is not None:
        raise ValueError("an outcome in the snapshot has no sound idempotency key")
    encoded = record[OUTCOME_FINGERPRINT_BYTES:]
    result = decode_result(encoded, COUNTER_MAX)
    if result is None or encode_result(result) != encoded:
        raise ValueError("an outcome in the snapshot is not a fingerprint and a result whose numbers are in bounds")
    return key, record, sources[0] if sources else 0
