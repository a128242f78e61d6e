"""Leases whose ids clients chose: all 64 bits, back again, through every file, and never before feature level 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest

from kvnode.state.admin_commands import packed_contents
from kvnode.state.commands import (
    EXPIRE,
    GRANT,
    LEVEL,
    PUT,
    RENEW,
    REPLACE,
    REVOKE,
    TXN,
    BeginRestore,
    CommitRestore,
    Grant,
    RestorePiece,
)
from kvnode.state.limits import COUNTER_MAX, LEASE_ID_MAX, LEASE_TTL_S_MAX, RENEWALS_SHARED_MIN, TTL_S_MAX
from kvnode.state.results import (
    Deleted,
    Granted,
    Invalid,
    LeaseExists,
    LeaseMissing,
    Replaced,
    Result,
    Revoked,
    Staged,
    Written,
)
from kvnode.state.store import KeyValueStore
from kvnode.state.view import read_header, unpack_chunk
from kvnode.storage import backup
from kvnode.storage.salvage import salvage

BIG = LEASE_ID_MAX
IDS = [1, 7, 2**53, 2**63 - 1, 2**63, BIG]


def store_at(level: int) -> KeyValueStore:
    store = KeyValueStore()
    if level:
        store.apply([LEVEL, level])
    return store


def grant(store: KeyValueStore, lease: int, ttl_s: int = 60) -> Result:
    return store.apply(msgpack.unpackb(Grant(ttl_s, None, lease).encode()))


def with_leases() -> KeyValueStore:
    store = store_at(1)
    for lease in IDS:
        assert grant(store, lease) == Granted(lease, 60)
        store.apply([PUT, f"of {lease}", b"v", "", None, None, lease, 0])
    grant(store, 99, LEASE_TTL_S_MAX)
    return store


def renewals(store: KeyValueStore, lease: int) -> int:
    found = store.leases.get(lease)
    assert found is not None
    return found.renewals


def assert_alike(one: KeyValueStore, other: KeyValueStore) -> None:
    assert one.leases.ids(0, 99) == other.leases.ids(0, 99)
    for lease in one.leases.ids(0, 99):
        assert one.leases.get(lease) == other.leases.get(lease)
        assert one.leases.keys(lease) == other.leases.keys(lease)
        assert one.leases.key_count(lease) == other.leases.key_count(lease)


def test_every_id_of_64_bits_can_be_chosen_once_at_a_time() -> None:
    store = with_leases()
    for lease in IDS:
        assert grant(store, lease) == LeaseExists(store.revision, lease)
        assert store.leases.keys(lease) == [f"of {lease}"]
        assert store.leases.key_count(lease) == 1
    assert store.leases.ids(0, 99) == sorted([*IDS, 99])
    assert store.apply([RENEW, BIG]) == Granted(BIG, 60)
    assert store.apply([REVOKE, BIG]) == Revoked(BIG, 60, 1, store.revision)
    assert grant(store, BIG) == Granted(BIG, 60)
    assert store.leases.keys(BIG) == []


def test_the_store_passes_by_ids_that_clients_chose() -> None:
    store = store_at(1)
    for lease in (1, 2, 4):
        grant(store, lease)
    assert [grant(store, 0), store.apply([GRANT, 5])] == [Granted(3, 60), Granted(5, 5)]
    assert store.apply([PUT, "a", b"", "", None, None, 0, 9]) == Written(2, 1, 6)
    store.leases.last_id = COUNTER_MAX - 7
    assert grant(store, 0) == Granted(COUNTER_MAX - 6, 60)
    assert isinstance(grant(store, 0), Invalid), "as many ids as there are leases may be in use up to the last one"
    assert grant(store, COUNTER_MAX) == Granted(COUNTER_MAX, 60)


@pytest.mark.parametrize("regranted", [2, 2**63 + 5])
def test_an_expiry_of_the_last_lease_of_an_id_never_meets_the_next(regranted: int) -> None:
    """Whatever happened between: the pair of an id and a count comes once."""
    store, seen = store_at(1), set[tuple[int, int]]()
    store.apply([GRANT, 60])  # 1
    store.apply([GRANT, 60])  # 2, chosen by the store, before any client chose one
    for _ in range(3):
        store.apply([RENEW, 2])
    seen.add((2, renewals(store, 2)))
    for _ in range(4):
        store.apply([REVOKE, regranted])
        assert isinstance(grant(store, regranted), Granted | LeaseExists)
        for _ in range(3):
            pair = (regranted, renewals(store, regranted))
            assert pair not in seen
            for stale in seen:
                assert store.apply([EXPIRE, [list(stale)]]) == Deleted(0, store.revision)
                assert regranted in store.leases
            seen.add(pair)
            store.apply([RENEW, regranted])
    assert store.apply([EXPIRE, [[regranted, renewals(store, regranted)]]]) == Deleted(0, 1)
    assert regranted not in store.leases


def test_before_a_client_chooses_an_id_renewals_count_for_each_lease() -> None:
    """As 0.1.0 counts them, whose expiries and snapshots say so."""
    store = store_at(1)
    store.apply([GRANT, 60])
    store.apply([RENEW, 1])
    assert (renewals(store, 1), store.leases.shared) == (1, 0)
    grant(store, 9)
    assert renewals(store, 9) == store.leases.shared == RENEWALS_SHARED_MIN + 1
    store.apply([RENEW, 1])
    assert renewals(store, 1) == RENEWALS_SHARED_MIN + 2


def test_snapshots_backups_and_verify_keep_them(tmp_path: Path) -> None:
    store = with_leases()
    chunks = list(store.view().chunks())
    loaded = KeyValueStore.load(chunks)
    assert list(loaded.view().chunks()) == chunks
    assert_alike(loaded, store)
    assert (loaded.mark, loaded.leases.shared) == (store.mark, store.leases.shared)
    path = tmp_path / "file"
    path.write_bytes(b"".join(backup.pieces(store.view(), "cluster")))
    _, again = backup.load(path)
    assert_alike(again, store)
    assert again.leases.shared == store.leases.shared, "who goes on from it counts on"
    kept, done = salvage(chunks)
    assert_alike(kept, store)
    assert (done.mended, done.left_out) == (0, 0)


@pytest.mark.parametrize(
    "leases",
    [
        [[[2**53, 60, 0, False]], 0],  # no id was chosen by a client, as far as the file says
        [[[1, TTL_S_MAX + 1, 0, False]], 0],
        [[[1, LEASE_TTL_S_MAX + 1, RENEWALS_SHARED_MIN, False]], RENEWALS_SHARED_MIN],
        [[[1, 60, RENEWALS_SHARED_MIN + 1, False]], RENEWALS_SHARED_MIN],  # counted further than the count
        [[[2, 60, 1, False], [1, 60, 1, False]], RENEWALS_SHARED_MIN],
        [[[0, 60, 1, False]], RENEWALS_SHARED_MIN],
        [[], RENEWALS_SHARED_MIN - 1],
        [[], COUNTER_MAX + 1],
        [[], True],
    ],
)
def test_a_file_with_leases_that_cannot_be_is_refused(leases: list[Any]) -> None:
    granted, shared = leases
    header = [4, 5, 0, 0, len(granted), 1, {"renewals": shared} if shared else {}]
    chunks = [msgpack.packb(part) for part in ([header, granted] if granted else [header])]
    with pytest.raises(ValueError, match="snapshot"):
        KeyValueStore.load(chunks)


def test_a_restore_in_pieces_brings_them_and_counts_on_above_both() -> None:
    store, new = store_at(1), with_leases()
    grant(store, 5)
    for _ in range(50):
        store.apply([RENEW, 5])
    header, *chunks = new.view().chunks()
    said = read_header(unpack_chunk(header))
    counts = (said.item_count, said.lease_count, said.last_lease_id, said.small["renewals"])
    store.apply(msgpack.unpackb(BeginRestore(b"i" * 16, said.revision, *counts).encode()))
    for number, chunk in enumerate(chunks):
        loaded = KeyValueStore.load(store.view().chunks())
        assert list(loaded.view().chunks()) == list(store.view().chunks())
        piece = RestorePiece(b"i" * 16, number, chunk)
        assert store.apply(msgpack.unpackb(piece.encode())) == Staged(store.revision, number + 1)
    counted = max(store.leases.shared, new.leases.shared)
    committed = store.apply(msgpack.unpackb(CommitRestore(b"i" * 16, len(chunks)).encode()))
    assert committed == Replaced(store.revision, len(IDS))
    assert_alike(store, new)
    assert store.leases.shared == counted
    # Without the count, as a backup of 0.1.0 has none, no such lease comes in.
    other = store_at(1)
    other.apply(msgpack.unpackb(BeginRestore(b"i" * 16, said.revision, *counts[:3]).encode()))
    assert isinstance(other.apply(msgpack.unpackb(RestorePiece(b"i" * 16, 0, chunks[0]).encode())), Invalid)


def test_before_level_1_such_ids_are_what_they_are_to_a_member_of_0_1() -> None:
    """It takes them for a fault: nothing is looked at, and nothing remembered under an idempotency key."""
    store = store_at(0)
    store.apply([PUT, "a", b"1", "", None])
    before = list(store.view().chunks())
    big = 2**53
    for command in (
        [PUT, "a", b"2", "", None, "key", big, 0],
        [PUT, "a", b"2", "", [5], "key", big, 0],
        [TXN, [], [[PUT, "b", b"", "", 3, 0], [PUT, "a", b"", "", big, 0]], [], "key"],
        [TXN, [["a", 5, "=", True]], [], [[PUT, "a", b"", "", big, 0]], "key"],
        [RENEW, big, "key"],
        [REVOKE, big, "key"],
        [GRANT, 60, None, 1],
        [REPLACE, packed_contents(list(with_leases().view()._replace(level=0).chunks()))],
    ):
        assert isinstance(store.apply(command), Invalid), command
        assert list(store.view().chunks()) == before, command
    store.apply([LEVEL, 1])
    assert store.apply([PUT, "a", b"2", "", None, "key", big, 0]) == LeaseMissing(1, big)
    assert store.apply([REVOKE, big, "other"]) == LeaseMissing(1, big)
    loaded = KeyValueStore.load(store.view().chunks())
    assert loaded.apply([REVOKE, big, "other"]) == LeaseMissing(1, big), "remembered, with an id of 64 bits"


def test_a_keyed_put_under_a_large_id_is_remembered() -> None:
    store = with_leases()
    command = [PUT, "once", b"", "", None, "key", BIG, 0]
    first = store.apply(command)
    assert isinstance(first, Written)
    assert first.lease == BIG
    loaded = KeyValueStore.load(store.view().chunks())
    assert loaded.apply(command) == first
    assert loaded.revision == store.revision
