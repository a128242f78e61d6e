"""Backup files: the same store comes back, and a file that is not whole gives none."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode.errors import TooLarge
from kvnode.http.restore import _command, _Restore
from kvnode.state.admin_commands import packed_contents, read_replacement
from kvnode.state.changes import CHANGE_REPLACED
from kvnode.state.commands import (
    EXPIRE,
    GRANT,
    LEVEL,
    RENEW,
    REPLACE,
    Expire,
    Replace,
)
from kvnode.state.entries import encode_entry, encode_group, replacement_in
from kvnode.state.idempotency import Outcomes
from kvnode.state.limits import COUNTER_MAX, LEAP, LEAP_MAX
from kvnode.state.results import (
    Deleted,
    Granted,
    Invalid,
    Replaced,
    Written,
)
from kvnode.state.store import KeyValueStore
from kvnode.storage import backup
from tests.http.single import SingleGroup


def store_of(keys: int) -> KeyValueStore:
    store = KeyValueStore()
    for number in range(keys):
        store.apply([1, f"k{number:05}", b"v" * (number % 700), "text/plain", None])
    store.apply([1, "leased", b"1", "", None, None, 0, 60])
    store.apply([1, "once", b"1", "", None, "request-1"])
    return store


def written(path: Path, store: KeyValueStore) -> bytes:
    data = b"".join(backup.pieces(store.view(), "c1"))
    path.write_bytes(data)
    return data


def test_what_is_read_back_is_what_was_there(tmp_path: Path) -> None:
    store = store_of(3_000)  # several pieces
    pieces = list(backup.pieces(store.view(), "c1"))
    assert len(pieces) > 2
    assert all(len(piece) < 2 * backup.PIECE_BYTES for piece in pieces)
    path = tmp_path / "file"
    path.write_bytes(b"".join(pieces))
    head, loaded = backup.load(path)
    assert head == backup.check(path) == (store.revision, len(store), "c1")
    assert list(loaded.view().chunks()) == list(store.view().chunks())


def test_an_empty_store_is_a_backup_too(tmp_path: Path) -> None:
    written(tmp_path / "file", KeyValueStore())
    assert len(backup.load(tmp_path / "file")[1]) == 0


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_cut_or_altered_file_is_refused_whole(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "altered"
    whole = written(path, store_of(40))
    place = data.draw(st.integers(0, len(whole) - 1))
    altered = data.draw(
        st.sampled_from(
            [
                whole[:place],
                whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :],
                whole[:place] + b"x" + whole[place:],
                whole + whole[place:],
            ]
        )
    )
    if altered == whole:
        return
    path.write_bytes(altered)
    with pytest.raises(backup.Damaged):
        backup.check(path)
    with pytest.raises(backup.Damaged):
        backup.load(path)


def test_contents_are_replaced_in_one_revision_above_both_and_what_belongs_to_the_cluster_stays() -> None:
    backed_up, store = store_of(50), store_of(5)
    head, chunks = backup.chunks_of(b"".join(backup.pieces(backed_up.view(), "c1")))
    store.apply([1, "mine", b"1", "", None, "request-2"])
    store.changes = []
    assert store.apply([REPLACE, packed_contents(chunks)]) == Replaced(head.revision + 1, 52)
    assert [change[0] for change in store.changes] == [CHANGE_REPLACED]
    assert (store.get("mine"), store.get("k00049") == backed_up.get("k00049")) == (None, True)
    again = store.apply([1, "mine", b"1", "", None, "request-2"])
    assert (again, store.get("mine")) == (Written(8, 1), None)  # carried out once, before
    assert store.apply([1, "k00000", b"", "", None]) == Written(head.revision + 2, 2)
    assert list(KeyValueStore.load(store.view().chunks()).view().chunks()) == list(store.view().chunks())


@pytest.mark.parametrize("packed", [b"", b"x", zlib.compress(b"x"), packed_contents([b"x"]), packed_contents([])])
def test_what_is_no_contents_changes_nothing(packed: bytes) -> None:
    store = store_of(5)
    before = list(store.view().chunks())
    for command in ([REPLACE, packed], [REPLACE, packed[:-1]], [REPLACE, None], [REPLACE], [REPLACE, packed, "key"]):
        assert isinstance(store.apply(command), Invalid)
    assert list(store.view().chunks()) == before


def test_more_keys_than_a_loop_can_load_between_two_elections_are_for_a_new_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = b"".join(backup.pieces(store_of(48).view(), "c1"))
    monkeypatch.setattr("kvnode.http.restore.ITEMS_MAX", 50)
    assert _command(data)[1] == 50
    monkeypatch.setattr("kvnode.http.restore.ITEMS_MAX", 49)
    with pytest.raises(TooLarge, match="up to 49 keys"):
        _command(data)
    store = store_of(0)
    for _ in range(60):
        store.apply([5, 60])  # a lease takes a node as long as a key
    with pytest.raises(TooLarge, match="49 keys, as many leases"):
        _command(b"".join(backup.pieces(store.view(), "c1")))


def test_what_a_running_cluster_does_not_take_over_is_not_sent_to_its_nodes() -> None:
    store = store_of(20)
    for number in range(1_500):  # three chunks
        store.apply([1, "once", b"1", "", None, f"request-{number}"])
    command, revision = _command(b"".join(backup.pieces(store.view(), "c1")))
    contents = KeyValueStore()
    assert contents.apply(msgpack.unpackb(command)) == Replaced(revision + 1, len(store))
    assert list(contents.walk("", None)) == list(store.walk("", None))
    assert contents.leases.ids(0, 9) == store.leases.ids(0, 9)
    store.outcomes = Outcomes()
    assert len(command) == len(_command(b"".join(backup.pieces(store.view(), "c1")))[0])


def test_contents_that_were_read_ahead_are_applied_as_those_that_were_not() -> None:
    _, chunks = backup.chunks_of(b"".join(backup.pieces(store_of(50).view(), "c1")))
    other = packed_contents(backup.chunks_of(b"".join(backup.pieces(store_of(3).view(), "c1")))[1])
    packed = packed_contents(chunks)
    for ahead in (packed, other, None):
        store, alone = store_of(5), store_of(5)
        if ahead is not None:
            store.replacement = (ahead, read_replacement(KeyValueStore.load, ahead))
        assert store.apply([REPLACE, packed]) == alone.apply([REPLACE, packed])
        assert list(store.view().chunks()) == list(alone.view().chunks())
        assert store.replacement is None
        if ahead is packed:
            assert store.former is not None
            assert len(store.former) == 7  # what was there before, to be released
            store.former.release()
        else:
            assert store.former is None
        assert store.apply([1, "k00000", b"", "", None]) == alone.apply([1, "k00000", b"", "", None])
        assert list(store.view().chunks()) == list(alone.view().chunks())
    store.replacement = (b"x", read_replacement(KeyValueStore.load, b"x"))
    assert store.apply([REPLACE, b"x"]) == alone.apply([REPLACE, b"x"])
    assert isinstance(alone.apply([REPLACE, b"x"]), Invalid)


def test_the_same_backup_twice_in_an_entry_brings_nothing_former_back() -> None:
    """A client that repeats a restore, or two that restore the same file, may have their writes in one entry."""
    packed = packed_contents(backup.chunks_of(b"".join(backup.pieces(store_of(3).view(), "c1")))[1])
    store, alone = store_of(50), store_of(50)
    store.replacement = (packed, read_replacement(KeyValueStore.load, packed))
    for _ in range(2):
        assert store.apply([REPLACE, packed]) == alone.apply([REPLACE, packed])
        assert list(store.view().chunks()) == list(alone.view().chunks())


@pytest.mark.parametrize("size", [0, 300, 70_000])
def test_an_entry_says_which_contents_it_brings(size: int) -> None:
    packed = bytes(size)
    put = msgpack.packb([1, "k", b"\x92\x0c\xc4", "", None])
    replacing = msgpack.packb([REPLACE, packed])
    assert replacement_in(encode_entry([encode_group(b"o" * 8, 1, [put, replacing])])) == packed
    assert replacement_in(encode_entry([encode_group(b"o" * 8, 1, [put, put])])) is None
    full = msgpack.packb([1, "k", bytes([REPLACE]) * 70_000, "", None])
    assert replacement_in(encode_entry([encode_group(b"o" * 8, 1, [full, replacing])])) == packed
    assert replacement_in(encode_entry([encode_group(b"o" * 8, 1, [full, full])])) is None
    assert replacement_in(replacing) is None
    assert replacement_in(b"\x91\x93" + replacing) is None


def at_level_1(store: KeyValueStore) -> KeyValueStore:
    store.apply([LEVEL, 1])
    return store


def test_a_replacement_leaps_over_numbers_from_level_1_on() -> None:
    packed = packed_contents(list(store_of(20).view().chunks()))
    before, store = store_of(5), at_level_1(store_of(5))
    leaping = msgpack.unpackb(Replace(packed, LEAP).encode())
    assert isinstance(before.apply(leaping), Invalid), "as nodes of 0.1 answer"
    assert list(before.view().chunks()) == list(store_of(5).view().chunks())
    assert store.apply(leaping) == Replaced(22 + LEAP + 1, 22)
    assert store.apply([GRANT, 60]) == Granted(1 + LEAP + 1, 60)
    assert list(KeyValueStore.load(store.view().chunks()).view().chunks()) == list(store.view().chunks())


@pytest.mark.parametrize("leap", [0, -1, LEAP_MAX + 1, 2**70, True, None, "1", 1.0])
def test_what_is_no_leap_or_leads_past_the_last_number_changes_nothing(leap: object) -> None:
    packed = packed_contents(list(store_of(1).view().chunks()))
    store = at_level_1(store_of(5))
    before = list(store.view().chunks())
    assert isinstance(store.apply([REPLACE, packed, None, leap]), Invalid)
    assert isinstance(store.apply([REPLACE, packed, "key", 1]), Invalid)
    assert list(store.view().chunks()) == before
    store.leases.last_id = COUNTER_MAX - LEAP_MAX + 1
    assert isinstance(store.apply([REPLACE, packed, None, LEAP_MAX]), Invalid)
    assert store.revision < LEAP_MAX


async def test_only_a_backup_of_another_cluster_or_of_a_later_state_needs_a_leap() -> None:
    store = store_of(20)
    data = b"".join(backup.pieces(store.view(), "c1"))
    head = backup.chunks_of(data)[0]
    for own, revision, leap in (
        ("c1", store.revision, 0),
        ("c1", store.revision - 1, LEAP),
        ("c2", 2**40, LEAP),
    ):
        group = SingleGroup()
        group.becomes(cluster_id=own)
        group.store.revision = revision
        assert await _Restore(group)._leap(head) == leap, own
    assert len(msgpack.unpackb(_command(data)[0])) == 2, "below level 1, where some member knows no leap"


def test_an_expiry_that_crosses_a_replacement_meets_no_lease_of_the_backup() -> None:
    store = at_level_1(store_of(5))
    file = b"".join(backup.pieces(store.view(), "c1"))
    replace = [REPLACE, packed_contents(backup.chunks_of(file)[1])]
    assert store.leases.get(1) is not None
    for _ in range(3):  # the same lease, renewed as often, of each restore
        on_its_way = msgpack.unpackb(Expire(((1, 0),), store.leases.generation).encode())
        store.apply(replace)
        assert store.apply(on_its_way) == Deleted(0, store.revision)
        assert store.apply([EXPIRE, [[1, 0]]]) == Deleted(0, store.revision)
        assert store.get("leased") is not None
    assert b"".join(backup.pieces(store.view(), "c1")) != file, "its revision is another one …"
    assert backup.chunks_of(b"".join(backup.pieces(store.view(), "c1"))), "… and it is a backup as any other"
    loaded = KeyValueStore.load(store.view().chunks())
    assert loaded.leases.generation == store.leases.generation == store.revision
    for each in (store, loaded):
        assert each.apply([EXPIRE, [[1, 0]], None, each.revision]) == Deleted(1, each.revision)
        assert each.get("leased") is None


def test_before_level_1_leases_have_no_generation() -> None:
    store = store_of(5)
    store.apply([REPLACE, packed_contents(list(store_of(2).view().chunks()))])
    assert store.leases.generation == 0
    assert len(Expire(((1, 0),)).encode()) == len(msgpack.packb([EXPIRE, [[1, 0]]]))
    for generation in (store.revision, 1, 0, -1, None, "1", 2**70):
        assert isinstance(store.apply([EXPIRE, [[1, 0]], None, generation]), Invalid)
    assert store.apply([RENEW, 1]) == Granted(1, 60)
    assert store.apply([EXPIRE, [[1, 1]]]) == Deleted(1, store.revision)


@pytest.mark.parametrize("generation", [0, 7, 99, -1, None, "1", True])
def test_a_snapshot_whose_generation_is_above_its_revision_is_refused(generation: object) -> None:
    with pytest.raises(ValueError, match="generation"):
        KeyValueStore.load([msgpack.packb([4, 6, 0, 0, 0, 0, {"generation": generation}])])


def test_a_backup_with_a_generation_is_refused() -> None:
    store = KeyValueStore.load([msgpack.packb([4, 6, 0, 0, 0, 0, {"generation": 6}])])
    assert store.leases.generation == 6
    with pytest.raises(backup.Damaged, match="generation"):
        backup._check_border(backup.BackupHead(6, 0, "c"), store)


@pytest.mark.parametrize("leap", [0, LEAP])
def test_contents_with_a_leap_are_read_ahead_too(leap: int) -> None:
    packed = packed_contents(list(store_of(50).view().chunks()))
    command = Replace(packed, leap).encode()
    assert replacement_in(encode_entry([encode_group(bytes(8), 1, [command])])) == packed
    ahead, alone = at_level_1(store_of(5)), at_level_1(store_of(5))
    ahead.replacement = (packed, read_replacement(KeyValueStore.load, packed))
    assert ahead.apply(msgpack.unpackb(command)) == alone.apply(msgpack.unpackb(command))
    assert ahead.former is not None
    assert list(ahead.view().chunks()) == list(alone.view().chunks())
