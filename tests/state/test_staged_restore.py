"""A backup that is restored in pieces: what each step does to the state, and that nothing half is ever seen."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgpack
import pytest

from kvnode.state.changes import CHANGE_REPLACED
from kvnode.state.commands import (
    LEVEL,
    PUT,
    RESTORE_ABORT,
    RESTORE_BEGIN,
    RESTORE_COMMIT,
    RESTORE_PIECE,
    AbortRestore,
    BeginRestore,
    CommitRestore,
    RestorePiece,
)
from kvnode.state.entries import frees_space
from kvnode.state.limits import COUNTER_RESTORED_MAX
from kvnode.state.results import (
    Invalid,
    Replaced,
    RestoreMissing,
    Staged,
)
from kvnode.state.store import KeyValueStore
from kvnode.state.view import Header, read_header, unpack_chunk
from kvnode.storage import backup
from kvnode.storage.salvage import salvage
from tests.hostile.crafted import CRAFTED, chunks_of, file_of

ID, OTHER = b"i" * 16, b"o" * 16


def source() -> KeyValueStore:
    """300 keys in some chunks, ten with leases, and an outcome, which is not restored."""
    store = KeyValueStore()
    for number in range(300):
        store.apply([PUT, f"k{number:03}", bytes(1_000), "", None])
    for number in range(10):
        store.apply([PUT, f"l{number}", b"1", "text/plain", None, "key" if number == 0 else None, 0, 60])
    return store


def target() -> KeyValueStore:
    store = KeyValueStore()
    for number in range(400):
        store.apply([PUT, f"k{number:03}", b"old", "", None])
    store.apply([PUT, "leased", b"old", "", None, None, 0, 60])
    store.apply([LEVEL, 1])  # last: it lifts an empty store to revision 1
    return store


def begin(store: KeyValueStore, header: Header, restore_id: bytes = ID) -> Any:
    numbers = [header.revision, header.item_count, header.lease_count, header.last_lease_id]
    return store.apply([RESTORE_BEGIN, [restore_id, *numbers]])


def parts_of(store: KeyValueStore) -> tuple[Header, list[bytes]]:
    header, _, *chunks = store.view().chunks()  # without the chunk of outcomes
    return read_header(unpack_chunk(header)), chunks


def reloaded(store: KeyValueStore) -> KeyValueStore:
    chunks = list(store.view().chunks())
    again = KeyValueStore.load(chunks)
    assert list(again.view().chunks()) == chunks
    assert again.mark == store.mark
    return again


def test_it_is_seen_whole_at_the_end_and_not_before_also_by_nodes_that_began_anew_in_the_middle() -> None:
    old, new = target(), source()
    store, untouched = target(), list(old.walk("", None))
    header, chunks = parts_of(new)
    assert begin(store, header) == Staged(401, 0)
    assert len(chunks) > 4
    for number, chunk in enumerate(chunks):
        store = reloaded(store)
        assert store.apply([RESTORE_PIECE, [ID, number, chunk]]) == Staged(401, number + 1)
        assert store.apply([RESTORE_PIECE, [ID, number, chunk]]) == Staged(401, number + 1), "again, without effect"
        assert store.apply([RESTORE_PIECE, [ID, number + 2, chunk]]) == Staged(401, number + 1), "one is missing"
        assert begin(store, header) == Staged(401, number + 1), "asked for again"
        assert list(store.walk("", None)) == untouched
    store.changes = []
    assert store.apply([PUT, "between", b"1", "", None]).revision == 402  # type: ignore[union-attr]
    store = reloaded(store)
    store.changes = []
    assert store.apply([RESTORE_COMMIT, [ID, len(chunks), 0]]) == Replaced(403, 310)
    assert store.changes == [(CHANGE_REPLACED, "", 403, b"", b"")]
    assert list(store.walk("", None)) == list(new.walk("", None))
    assert store.leases.ids(0, 99) == new.leases.ids(0, 99)
    assert [store.leases.keys(lease) for lease in range(12)] == [new.leases.keys(lease) for lease in range(12)]
    assert (store.leases.last_id, store.level, store.staging) == (10, 1, None)
    assert store.former is not None
    assert len(store.former) == 402
    reloaded(store)
    assert store.apply([RESTORE_COMMIT, [ID, len(chunks), 0]]) == RestoreMissing(403)
    store.apply([PUT, "k000", b"2", "", None])
    assert store.leases.grant(60, private=False) == 11, "above the ids of both"


def test_its_numbers_are_above_those_of_both() -> None:
    store, new = target(), KeyValueStore()
    begin(store, Header(COUNTER_RESTORED_MAX, 0, 0, 0, 77, {}))
    assert store.apply([RESTORE_COMMIT, [ID, 0, 0]]) == Replaced(COUNTER_RESTORED_MAX + 1, 0)
    assert store.leases.last_id == 77
    assert store.leases.generation == store.revision
    begin(store, Header(5, 0, 0, 0, 0, {}))
    assert isinstance(store.apply([RESTORE_COMMIT, [ID, 0, 2**50]]), Replaced)
    assert (store.revision, store.leases.last_id) == (COUNTER_RESTORED_MAX + 2**50 + 2, 77 + 2**50)
    for _ in range(2):
        begin(store, Header(5, 0, 0, 0, 0, {}))
        last = store.apply([RESTORE_COMMIT, [ID, 0, 2**50]])
    begin(store, Header(5, 0, 0, 0, 0, {}))
    before = list(store.view().chunks())
    assert isinstance(last, Replaced)
    assert isinstance(store.apply([RESTORE_COMMIT, [ID, 0, 2**50]]), Invalid), "numbers would end"
    assert list(store.view().chunks()) == before
    assert len(new) == len(store) == 0


def test_one_that_is_not_whole_or_not_the_present_one_changes_nothing() -> None:
    store, (header, chunks) = target(), parts_of(source())
    for kind, argument in (
        (RESTORE_PIECE, [ID, 0, chunks[0]]),
        (RESTORE_COMMIT, [ID, 0, 0]),
        (RESTORE_ABORT, [ID, 0, 0]),
    ):
        assert store.apply([kind, argument]) == RestoreMissing(401)
    begin(store, header)
    for number, chunk in enumerate(chunks[:-1]):
        store.apply([RESTORE_PIECE, [ID, number, chunk]])
    before = list(store.view().chunks())
    for count in (len(chunks) - 1, len(chunks)):
        assert isinstance(store.apply([RESTORE_COMMIT, [ID, count, 0]]), Invalid)
    assert store.apply([RESTORE_ABORT, [OTHER, 0, 0]]) == RestoreMissing(401)
    assert list(store.view().chunks()) == before
    assert begin(store, header, OTHER) == Staged(401, 0)  # another one takes its place
    assert store.apply([RESTORE_PIECE, [ID, len(chunks) - 1, chunks[-1]]]) == RestoreMissing(401)
    for _ in range(5):
        assert store.apply([RESTORE_ABORT, [OTHER, 0, 0]]) == Staged(401, 0)
        begin(store, header, OTHER)
    store.apply([RESTORE_ABORT, [OTHER, 0, 0]])
    assert list(store.view().chunks()) == list(target().view().chunks())


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_stream_is_refused_by_the_piece_and_leaves_nothing(name: str) -> None:
    chunks = chunks_of(CRAFTED[name])
    file = file_of(chunks, CRAFTED[name][0][0], CRAFTED[name][0][1])
    store = target()

    async def parts() -> list[Any]:
        offset = 0

        async def take(size: int) -> bytes:
            nonlocal offset
            offset += size
            return file[offset - size : offset]

        return [part async for part in backup.parts(take)]

    try:
        _, header, *pieces = asyncio.run(parts())
    except backup.Damaged:
        return
    results = [begin(store, header)]
    for number, piece in enumerate(pieces):
        before = list(store.view().chunks())
        results.append(store.apply([RESTORE_PIECE, [ID, number, piece]]))
        if isinstance(results[-1], Invalid):
            assert list(store.view().chunks()) == before
    committed = store.apply([RESTORE_COMMIT, [ID, len(pieces), 0]])
    assert isinstance(committed, Invalid)
    assert all(isinstance(each, Staged | Invalid) for each in results)
    assert not store.failures
    store.apply([RESTORE_ABORT, [ID, 0, 0]])
    assert list(store.view().chunks()) == list(target().view().chunks())


def test_a_stream_that_is_cut_or_altered_anywhere_does_not_come_to_its_end() -> None:
    file = b"".join(backup.pieces(source().view(), "cluster"))

    async def read(data: bytes) -> int:
        offset = 0

        async def take(size: int) -> bytes:
            nonlocal offset
            offset += size
            return data[offset - size : offset]

        return len([part async for part in backup.parts(take)])

    assert asyncio.run(read(file)) > 4
    rng = random.Random(1)
    for place in [*range(60), *rng.choices(range(len(file)), k=100), *range(len(file) - 16, len(file))]:
        with pytest.raises(backup.Damaged):
            asyncio.run(read(file[:place]))
        with pytest.raises(backup.Damaged):
            asyncio.run(read(file[:place] + bytes([file[place] ^ 1]) + file[place + 1 :]))
    with pytest.raises(backup.Damaged):
        asyncio.run(read(file + b"x"))


@pytest.mark.parametrize(
    "argument",
    [
        *(None, [], b"i" * 16, [ID], [b"i" * 15, 1, 1, 1, 1], [ID, -1, 1, 1, 1], [ID, 1, True, 1, 1]),
        *([ID, COUNTER_RESTORED_MAX + 1, 0, 0, 0], [ID, 1, 1, 2**20 + 1, 1], [ID, 1, 1, 1, COUNTER_RESTORED_MAX + 1]),
        *([ID, 0, "text"], [ID, 0, bytes(2_000_000)], [ID, -1, b""], [ID, -1], [ID, 2**64], ["i" * 16, 0]),
    ],
)
def test_commands_out_of_bounds_are_invalid(argument: Any) -> None:
    store = target()
    for kind in (RESTORE_BEGIN, RESTORE_PIECE, RESTORE_COMMIT, RESTORE_ABORT):
        assert isinstance(store.apply([kind, argument]), Invalid)
        assert isinstance(store.apply([kind, [ID, 0], "key"]), Invalid)
    assert store.staging is None


def test_below_the_feature_level_no_node_knows_these_commands() -> None:
    store = KeyValueStore()
    for kind, argument in (
        (RESTORE_BEGIN, [ID, 0, 0, 0, 0]),
        (RESTORE_PIECE, [ID, 0, b"\x90"]),
        (RESTORE_COMMIT, [ID, 0, 0]),
        (RESTORE_ABORT, [ID, 0, 0]),
    ):
        assert store.apply([kind, argument]) == Invalid(0, "unknown command")
    assert (store.staging, store.mark) == (None, 0)


def test_their_bytes_in_the_log_and_what_a_full_disk_still_takes() -> None:
    expected = {
        BeginRestore(ID, 1, 2, 3, 4).encode(): [15, [ID, 1, 2, 3, 4]],
        RestorePiece(ID, 5, b"chunk").encode(): [16, [ID, 5, b"chunk"]],
        CommitRestore(ID, 6).encode(): [17, [ID, 6, 0]],
        AbortRestore(ID).encode(): [18, [ID, 0, 0]],
    }
    for encoded, command in expected.items():
        assert msgpack.unpackb(encoded) == command
        assert frees_space(encoded) is (command[0] == RESTORE_ABORT)


def test_backups_and_what_recover_keeps_have_nothing_of_it() -> None:
    store, (header, chunks) = target(), parts_of(source())
    begin(store, header)
    for number in range(3):
        store.apply([RESTORE_PIECE, [ID, number, chunks[number]]])
    kept = list(target().walk("", None))
    file = b"".join(backup.pieces(store.view(), "c"))
    assert list(KeyValueStore.load(backup.chunks_of(file)[1]).walk("", None)) == kept
    salvaged, done = salvage(store.view().chunks())
    assert (list(salvaged.walk("", None)), salvaged.staging) == (kept, None)
    assert (done.left_out, done.mended) == (0, 0)


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("value", [None, -1, True, "x", b"x", 2**64 - 1, [], 4])
def test_a_snapshot_with_another_staged_backup_is_refused(place: int, value: Any) -> None:
    store, (header, chunks) = target(), parts_of(source())
    begin(store, header)
    for number in range(3):
        store.apply([RESTORE_PIECE, [ID, number, chunks[number]]])
    first, *rest = store.view().chunks()
    fields = msgpack.unpackb(first)
    fields[6]["staged"][place] = value
    try:
        loaded = KeyValueStore.load([msgpack.packb(fields), *rest])
    except ValueError:
        return
    assert (place, value) == (5, 4), "how many pieces it had, its leases and items do not say"
    assert loaded.staging is not None


def test_what_is_given_up_is_freed_elsewhere() -> None:
    store, (header, _) = target(), parts_of(source())
    begin(store, Header(5, 0, 0, 0, 0, {}))
    view = store.view()
    store.apply([RESTORE_COMMIT, [ID, 0, 0]])
    assert store.former is not None
    store.former.release()
    assert (len(store.former), len(view.items)) == (0, 401), "a view stays as it was"
    assert header.item_count == 310
