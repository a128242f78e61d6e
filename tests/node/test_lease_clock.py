"""The clock of leases, on a store of its own and a clock that the test moves."""

from __future__ import annotations

from typing import Any

import msgpack

from kvnode.node.lease_clock import (
    LOOK_S,
    SLICE,
    STAGED_S,
    STALL_S,
    LeaseClock,
)
from kvnode.state.admin_commands import packed_contents
from kvnode.state.commands import (
    EXPIRE,
    GRANT,
    LEVEL,
    PUT,
    RENEW,
    REPLACE,
    RESTORE_ABORT,
    RESTORE_BEGIN,
    RESTORE_PIECE,
    REVOKE,
)
from kvnode.state.entries import decode_entry
from kvnode.state.limits import EXPIRED_MAX, RESTORE_ID_BYTES
from kvnode.state.results import RestoreMissing, Staged
from kvnode.state.store import KeyValueStore


class Group:
    """A leader whose proposals are applied when the test says so."""

    def __init__(self) -> None:
        self.store = KeyValueStore()
        self.term: int | None = 1
        self.now_s = 100.0
        self.log: list[list[Any]] = []
        self.applied = 0
        self.expiry = LeaseClock(self, self.store, lambda: self.now_s)

    def serving_term(self) -> int | None:
        return self.term

    def propose(self, payload: bytes) -> int:
        ((_, _, (command,)),) = decode_entry(payload)
        self.log.append(command)
        return len(self.log)

    def applied_index(self) -> int:
        return self.applied

    def commit(self) -> None:
        while self.applied < len(self.log):
            self.store.apply(self.log[self.applied])
            self.applied += 1

    def passes(self, seconds: float) -> None:
        for _ in range(round(seconds / LOOK_S)):
            self.now_s += LOOK_S
            self.expiry.look()


def leased(ttl_s: int) -> Group:
    group = Group()
    group.expiry.look()
    group.store.apply([PUT, "a", b"", "", None, None, 0, ttl_s])
    group.expiry.look()
    return group


def test_a_lease_ends_at_its_time_and_not_before() -> None:
    group = leased(3)
    group.passes(2.95)
    assert group.log == []
    assert group.expiry.left_s(1) is not None
    group.passes(0.2)
    assert group.log == [[EXPIRE, [[1, 0]]]]
    group.commit()
    assert group.store.get("a") is None
    group.passes(5)
    assert len(group.log) == 1


def test_a_renewal_begins_the_time_anew_and_one_that_crosses_an_expiry_wins() -> None:
    group = leased(3)
    group.passes(2)
    group.store.apply([RENEW, 1])
    group.passes(2.9)
    assert group.log == []
    group.passes(0.3)
    assert group.log == [[EXPIRE, [[1, 1]]]]
    group.store.apply([RENEW, 1])  # before the expiry in the log
    group.commit()
    assert group.store.get("a") is not None
    group.passes(2.8)
    assert len(group.log) == 1
    group.passes(0.5)
    assert group.log[1:] == [[EXPIRE, [[1, 2]]]]


def test_what_is_left_is_all_of_it_right_after_a_renewal_and_less_with_every_moment() -> None:
    group = leased(3)
    group.passes(2)
    group.store.apply([RENEW, 1])
    assert group.expiry.left_s(1) == 3, "before the next look"
    group.now_s += LOOK_S / 2
    left_s = group.expiry.left_s(1)
    assert left_s is not None
    assert 2.9 < left_s < 3
    group.passes(2.9)
    assert group.log == []


def test_a_process_that_stood_still_ends_nothing_for_it() -> None:
    group = leased(3)
    for _ in range(5):
        group.now_s += 3 + STALL_S  # SIGSTOP
        group.expiry.look()
    assert group.log == []
    group.passes(3.2)
    assert len(group.log) == 1


def test_a_new_leader_begins_in_full_and_a_deposed_one_is_still() -> None:
    group = leased(3)
    group.passes(2.5)
    group.term = None
    group.passes(2)
    assert (group.log, group.expiry.left_s(1), group.store.leases.touched) == ([], None, None)
    group.term = 3
    group.passes(2.9)
    assert group.log == []
    group.passes(0.4)
    assert len(group.log) == 1


def test_an_expiry_that_came_to_nothing_is_proposed_again() -> None:
    group = leased(1)
    group.passes(1.2)
    assert len(group.log) == 1
    group.applied = 1  # lost with a leader that came back in the same breath: counted as applied, never carried out
    group.passes(3)
    assert len(group.log) == 2


def test_a_lease_that_is_gone_is_forgotten() -> None:
    group = Group()
    group.expiry.look()
    for _ in range(100):
        group.store.apply([GRANT, 31_000_000])
        group.store.apply([REVOKE, group.store.leases.last_id])
    group.expiry.look()
    assert (len(group.expiry._ticks), len(group.expiry._ends), len(group.expiry._due)) == (0, 0, 0)


def test_many_leases_cost_nothing_while_none_of_them_ends() -> None:
    group, count = Group(), 50_000
    for _ in range(count):
        group.store.leases.grant(1_000, private=False)
    group.expiry.look()
    assert group.expiry.visited <= SLICE  # found in slices
    group.passes(count / SLICE * LOOK_S + 1)
    assert group.expiry.visited == count
    group.passes(100)
    assert (group.expiry.visited, group.log) == (count, [])


def test_leases_that_end_together_go_in_bounded_entries_one_at_a_time() -> None:
    group, count = Group(), 2 * EXPIRED_MAX + 10
    for _ in range(count):
        group.store.leases.grant(30, private=False)
    group.passes(31)
    for _ in range(9):
        assert len(group.log) <= group.applied + 1
        group.commit()
        group.passes(1)
    assert all(len(command[1]) <= EXPIRED_MAX for command in group.log)
    assert len(group.store.leases) == 0


def test_an_expiry_that_a_restore_overtakes_ends_nothing_and_the_time_begins_again() -> None:
    group = leased(3)
    group.store.apply([LEVEL, 1])
    contents = packed_contents(list(group.store.view().chunks()))
    for _ in range(2):
        group.passes(3.2)
        assert len(group.log) == group.applied + 1, "its end is proposed"
        group.store.apply([REPLACE, contents])  # stands before it in the log
        group.commit()
        assert group.store.get("a") is not None
        group.passes(2.9)
        assert len(group.log) == group.applied
    group.passes(0.3)
    group.commit()
    assert group.store.get("a") is None


def staged(group: Group, restore_id: bytes) -> None:
    group.store.apply([RESTORE_BEGIN, [restore_id, 9, 2, 0, 0]])


def piece(group: Group, restore_id: bytes, number: int) -> None:
    chunk = msgpack.packb([[f"r{number}", b"1", "", 1, 1, 1]])
    result = group.store.apply([RESTORE_PIECE, [restore_id, number, chunk]])
    assert isinstance(result, Staged)
    assert result.pieces == number + 1


def test_a_restore_that_is_not_gone_on_with_is_dropped_after_its_time_and_not_before() -> None:
    group, restore_id = Group(), b"r" * RESTORE_ID_BYTES
    group.store.apply([LEVEL, 1])
    staged(group, restore_id)
    group.passes(STAGED_S - 1)
    piece(group, restore_id, 0)
    group.passes(STAGED_S - 1)
    assert group.log == [], "its time begins anew with each piece"
    group.passes(2)
    assert group.log == [[RESTORE_ABORT, [restore_id, 0, 0]]]
    group.commit()
    assert group.store.staging is None
    late = [RESTORE_PIECE, [restore_id, 1, msgpack.packb([["r1", b"1", "", 1, 1, 1]])]]
    assert isinstance(group.store.apply(late), RestoreMissing)
    group.passes(2 * STAGED_S)
    assert len(group.log) == 1


def test_the_next_leader_gives_a_restore_its_whole_time_again() -> None:
    group, restore_id = Group(), b"r" * RESTORE_ID_BYTES
    group.store.apply([LEVEL, 1])
    staged(group, restore_id)
    group.passes(STAGED_S - 1)
    group.term = None
    group.passes(1)
    group.term = 2
    group.passes(STAGED_S - 1)
    assert group.log == []
    group.passes(2)
    assert len(group.log) == 1


def test_an_end_that_came_to_nothing_is_proposed_again_and_meets_no_other_restore() -> None:
    group, first, second = Group(), b"1" * RESTORE_ID_BYTES, b"2" * RESTORE_ID_BYTES
    group.store.apply([LEVEL, 1])
    staged(group, first)
    group.passes(STAGED_S + 1)
    assert len(group.log) == 1
    staged(group, second)  # before the end of the first in the log
    group.commit()
    assert group.store.staging is not None
    assert group.store.staging.id == second
    group.passes(STAGED_S + 1)
    assert group.log[1:] == [[RESTORE_ABORT, [second, 0, 0]]]
