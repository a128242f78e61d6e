"""The store as it was at one revision: what a snapshot writes, and what is read back from its bytes.

    snapshot = [format, revision, item count, outcome count, lease count, last lease id, {name: ...}]
             | outcomes ... | leases ... | items ... | staged leases ... | staged items ...

The map at the end of the first array holds what is small; without any of it, format 3 says the same without the map.
Staged is what has come of a backup that is being restored (`staged_restore.py`); the map says of what.

Each part comes in chunks: msgpack arrays of about 64 KiB; no reader takes one above CHUNK_BYTES_MAX.

Format 5 is what a node writes for itself and its followers, from feature level 1 on: its items are keys and packed
items, as the store has them, in no order. That takes a tenth of the time to write and a third to read; what leaves the
cluster (a backup) is in format 4 or 3, whose bytes say the same wherever they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

import msgpack

from kvnode.state.ended_sessions import Ended, EndedSessions
from kvnode.state.idempotency import Outcomes, OutcomesView
from kvnode.state.items import (
    Batch,
    Item,
    go_on,
    in_order,
    read_items,
    read_packed_items,
    unpacked,
)
from kvnode.state.leases import Leases, LeasesView
from kvnode.state.limits import (
    ARRAY_MAX,
    CHUNK_BYTES,
    CHUNK_BYTES_MAX,
    counter_fault,
    generation_fault,
    level_fault,
    renewals_fault,
)
from kvnode.state.session_keys import NONE, SessionKeys, read_session_keys
from kvnode.state.staged_restore import StagedView, Staging
from kvnode.state.table import TableView
from kvnode.state.tokens import Token, Tokens

SNAPSHOT_FORMAT_PACKED: Final = 5  # read from a node's own files and its peers' alone
SNAPSHOT_FORMAT: Final = 4
SNAPSHOT_FORMAT_WITHOUT_MAP: Final = 3  # still read, and written where the map would be empty: older nodes read it
SNAPSHOT_FORMAT_WITHOUT_LEASES: Final = 2  # still read
SNAPSHOT_FORMAT_WITHOUT_OUTCOMES: Final = 1  # still read
# Each item counts for so much more than it has, so that a chunk of the smallest items is an array below ARRAY_MAX.
_ITEM_BYTES: Final = 48


# Names in the header's map.
_SMALL: Final = {"tokens", "session", "level", "ended_sessions", "generation", "renewals", "staged", "times"}


class StoreView(NamedTuple):
    """The store at one revision, immutable: any thread may iterate it while the store changes."""

    revision: int
    items: TableView[str, bytes]
    outcomes: OutcomesView
    leases: LeasesView
    tokens: tuple[Token, ...] = ()
    session: SessionKeys = NONE
    level: int = 0
    ended_sessions: tuple[tuple[str, Ended], ...] = ()
    staged: StagedView | None = None

    def keys(self, rest: Callable[[], None] = go_on) -> Iterator[str]:
        """All keys in byte order. `rest` is called after each few milliseconds of sorting."""
        return in_order(self.items, rest)

    def item(self, key: str) -> Item:
        """One key's item; KeyError where it did not exist."""
        return unpacked(self.items[key])

    def chunks(self, rest: Callable[[], None] = go_on) -> Iterator[bytes]:
        """The snapshot's bytes: equal stores give equal bytes. In batches: 64 KiB at most, and one item.

        The module says in what order. The items are arrays of `[key, value, content_type, create_revision,
        mod_revision, version]`, with a seventh field for the lease of those that have one.
        `rest` is called after each few milliseconds of work at the most.
        """
        return self._chunks(rest, SNAPSHOT_FORMAT, _item_chunks)

    def snapshot_chunks(self, rest: Callable[[], None] = go_on) -> Iterator[bytes]:
        """The same for a snapshot file: packed items where every member can read them, which has to be the case, as
        a follower is sent the file as it is."""
        if self.level < 1:
            return self.chunks(rest)
        return self._chunks(rest, SNAPSHOT_FORMAT_PACKED, _packed_item_chunks)

    def _chunks(self, rest: Callable[[], None], format: int, item_chunks: _ItemChunks) -> Iterator[bytes]:
        # A packer of its own: this runs in a worker thread, and a msgpack.Packer must not be shared between threads.
        pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
        outcomes, leases = self.outcomes, self.leases
        counts = (len(self.items), len(outcomes.order), len(leases.granted))
        small: dict[str, Any] = {"tokens": [token.packed for token in self.tokens]} if self.tokens else {}
        if self.session.number:
            small["session"] = self.session.packed
        if self.level:
            small["level"] = self.level
        if self.ended_sessions:
            small["ended_sessions"] = self.ended_sessions
        if leases.generation:  # from feature level 1 on
            small["generation"] = leases.generation
        if any(outcomes.times):  # from feature level 1 on
            small["times"] = outcomes.times
        if leases.shared:
            small["renewals"] = leases.shared
        if self.staged is not None:
            small["staged"] = self.staged.packed
        if small:
            yield pack((format, self.revision, *counts, leases.last_id, small))
        else:
            yield pack((SNAPSHOT_FORMAT_WITHOUT_MAP, self.revision, *counts, leases.last_id))
        yield from outcomes.chunks()
        yield from leases.chunks(rest)
        yield from item_chunks(self.items, rest)
        if self.staged is not None:
            yield from self.staged.leases.chunks(rest)
            yield from _item_chunks(self.staged.items, rest)


_ItemChunks = Callable[[TableView[str, bytes], Callable[[], None]], Iterator[bytes]]


def _item_chunks(items: TableView[str, bytes], rest: Callable[[], None]) -> Iterator[bytes]:
    """In batches: see `StoreView.chunks`."""
    packer = msgpack.Packer(use_bin_type=True, autoreset=True)
    pack = packer.pack
    # Packed one by one: a batch of tuples would be young containers by the hundred, and so set off one garbage
    # collection after the other, in the middle of which the event loop stands still.
    batch: list[bytes] = []
    batch_bytes = 0
    for key in in_order(items, rest):
        item = unpacked(items[key])
        batch.append(pack((key, *(item if item.lease else item[:-1]))))
        batch_bytes += len(batch[-1]) + _ITEM_BYTES
        if batch_bytes >= CHUNK_BYTES:
            yield packer.pack_array_header(len(batch)) + b"".join(batch)
            batch, batch_bytes = [], 0
            rest()
    if batch:
        yield packer.pack_array_header(len(batch)) + b"".join(batch)


def _packed_item_chunks(items: TableView[str, bytes], rest: Callable[[], None]) -> Iterator[bytes]:
    """Shard by shard, without a step for each key: a snapshot is written beside the requests that wait for this."""
    pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
    keys: list[str] = []
    values: list[bytes] = []
    waiting_bytes = 0
    for shard in items.shards:
        keys += shard
        values += shard.values()
        waiting_bytes += sum(map(len, shard)) + sum(map(len, shard.values())) + _ITEM_BYTES * len(shard)
        if waiting_bytes >= CHUNK_BYTES:
            yield from _packed_chunks(pack, keys, values, waiting_bytes)
            keys, values, waiting_bytes = [], [], 0
            rest()
    if keys:
        yield from _packed_chunks(pack, keys, values, waiting_bytes)


def _packed_chunks(
    pack: Callable[[list[Any]], bytes], keys: list[str], values: list[bytes], size_bytes: int
) -> Iterator[bytes]:
    """Nearly always one: more where a single shard has many bytes, or many keys. A character counts for a byte, and may
    have four: that is well within what a reader takes."""
    if size_bytes <= 2 * CHUNK_BYTES and 2 * len(keys) <= ARRAY_MAX:
        yield pack([*keys, *values])
        return
    begin = waiting_bytes = 0
    for end, (key, value) in enumerate(zip(keys, values, strict=True), 1):
        waiting_bytes += len(key) + len(value) + _ITEM_BYTES
        if waiting_bytes >= CHUNK_BYTES or end == len(values):
            yield pack([*keys[begin:end], *values[begin:end]])
            begin, waiting_bytes = end, 0


class Contents(NamedTuple):
    """What a snapshot holds. The items are packed, and read one by one: the whole would be in memory twice."""

    revision: int
    item_count: int
    outcomes: Outcomes
    leases: Leases
    tokens: Tokens
    session: SessionKeys
    level: int
    ended_sessions: EndedSessions
    items: Iterator[Batch]
    # What is staged: to be called once the items are read, as it follows them.
    staged: Callable[[], Staging | None]


class Header(NamedTuple):
    """What the first chunk says, in whichever format."""

    revision: int
    item_count: int
    outcome_count: int
    lease_count: int
    last_lease_id: int
    small: dict[str, Any]


def read_header(header: list[Any]) -> Header:
    """ValueError where it is none of this version, or has a number out of bounds."""
    if header[:1] == [SNAPSHOT_FORMAT_WITHOUT_OUTCOMES]:
        header = [SNAPSHOT_FORMAT_WITHOUT_LEASES, *header[1:], 0]
    if header[:1] == [SNAPSHOT_FORMAT_WITHOUT_LEASES]:
        header = [SNAPSHOT_FORMAT_WITHOUT_MAP, *header[1:], 0, 0]
    if header[:1] == [SNAPSHOT_FORMAT_WITHOUT_MAP]:
        header = [SNAPSHOT_FORMAT, *header[1:], {}]
    if len(header) != 7 or header[0] != SNAPSHOT_FORMAT or type(header[6]) is not dict:
        raise ValueError("the snapshot is not in a format that this version reads")
    read = Header(*header[1:])
    if not read.small.keys() <= _SMALL:
        raise ValueError("the snapshot holds something that only a later version knows")
    for what, number in (
        *(("revision", read.revision), ("last lease id", read.last_lease_id), ("count of items", read.item_count)),
        *(("count of outcomes", read.outcome_count), ("count of leases", read.lease_count)),
    ):
        if (fault := counter_fault(what, number)) is not None:
            raise ValueError(f"the snapshot breaks a limit: {fault}")
    if "renewals" in read.small and (fault := renewals_fault(read.small["renewals"])) is not None:
        raise ValueError(f"the snapshot breaks a limit: {fault}")
    return read


def read_contents(chunks: Iterable[bytes], own: bool = False) -> Contents:
    """The inverse of `StoreView.chunks`, in any thread. ValueError says what is wrong, also while items are read.

    `own`: of a snapshot file, which may have packed items (`snapshot_chunks`).
    """
    source = map(unpack_chunk, chunks)
    first = next(source, [])
    packed = own and first[:1] == [SNAPSHOT_FORMAT_PACKED]
    if packed:
        first[0] = SNAPSHOT_FORMAT
    revision, item_count, outcome_count, lease_count, last_lease_id, small = read_header(first)
    level = small.get("level", 0)
    if "level" in small and (fault := level_fault(level)) is not None:
        raise ValueError(f"the snapshot breaks a limit: {fault}")
    outcomes = Outcomes.load(source, outcome_count, level >= 1, small.get("times", ()))
    leases = Leases()
    leases.load(source, lease_count, last_lease_id, small.get("renewals", 0))
    tokens = Tokens.load(small.get("tokens", []))
    session = read_session_keys(small["session"]) if "session" in small else NONE
    generation = small.get("generation", 0)
    if "generation" in small and (fault := generation_fault(generation, revision)) is not None:
        raise ValueError(f"the snapshot breaks a limit: {fault}")
    leases.generation = generation
    ended = EndedSessions.load(small.get("ended_sessions", []))
    staging = "staged" in small
    items = (read_packed_items if packed else read_items)(source, revision, item_count if staging else None)
    staged = partial(Staging.load, small["staged"], source) if staging else _nothing
    return Contents(revision, item_count, outcomes, leases, tokens, session, level, ended, items, staged)


def _nothing() -> None:
    return None


def unpack_chunk(chunk: bytes) -> list[Any]:
    """One chunk's elements. ValueError where it is no array, or could fill a node's memory."""
    if len(chunk) > CHUNK_BYTES_MAX:
        raise ValueError(f"a chunk of the snapshot is over {CHUNK_BYTES_MAX} bytes")
    try:
        decoded = msgpack.unpackb(
            chunk, use_list=True, max_array_len=ARRAY_MAX, max_map_len=len(_SMALL), max_ext_len=0, strict_map_key=True
        )
    except (ValueError, msgpack.exceptions.UnpackException):
        raise ValueError("a chunk of the snapshot is damaged") from None
    if type(decoded) is not list:
        raise ValueError("a chunk of the snapshot is not a list")
    return decoded
