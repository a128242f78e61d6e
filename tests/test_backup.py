"""Backup files: the same store comes back, and a file that is not whole gives none."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnode import backup
from kvnode.beside import packed_contents, read_replacement
from kvnode.changes import CHANGE_REPLACED
from kvnode.commands import REPLACE
from kvnode.entries import encode_entry, encode_group, replacement_in
from kvnode.errors import TooLarge
from kvnode.http.restore import _command
from kvnode.outcomes import Outcomes
from kvnode.results import Invalid, Replaced, Written
from kvnode.store import KeyValueStore


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
    store._outcomes = Outcomes()
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
