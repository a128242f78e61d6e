"""Long work in a worker rests as long as it worked: by a clock and a sleep that the test hands in."""

from __future__ import annotations

import pytest

from kvnode.node.pace import REST_S_MAX, SLICE_S, SNAPSHOT_RESTS, Pace
from kvnode.state.commands import Put
from kvnode.state.entries import decode_entry, encode_entry, encode_group
from kvnode.state.items import SORT_RUN_KEYS
from kvnode.state.store import KeyValueStore


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_a_slice_of_work_is_followed_by_as_much_rest() -> None:
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    for _ in range(10):
        clock.now += SLICE_S / 4 + 1e-9
        pace.rest()
    assert len(clock.slept) == 2, "four quarters make a slice, and rest does not count as work"
    assert all(SLICE_S <= seconds <= 1.01 * SLICE_S for seconds in clock.slept)


def test_a_snapshot_leaves_most_of_the_time_to_requests() -> None:
    clock = Clock()
    pace = Pace(clock, clock.sleep, SNAPSHOT_RESTS)
    clock.now += SLICE_S + 1e-9
    pace.rest()
    assert clock.slept == [pytest.approx(4 * SLICE_S)]


def test_a_slice_that_was_drawn_out_is_no_reason_to_rest_for_long() -> None:
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    clock.now += 5.0
    pace.rest()
    assert clock.slept == [REST_S_MAX]


def test_a_snapshot_offers_to_rest_after_each_sort_and_each_chunk() -> None:
    store = KeyValueStore()
    commands = [Put(f"key-{n}", b"x" * 100).encode() for n in range(SORT_RUN_KEYS + 1)]
    for command in decode_entry(encode_entry([encode_group(b"o" * 8, 1, commands)]))[0][2]:
        store.apply(command)
    rests: list[None] = []
    chunks = list(store.view().chunks(lambda: rests.append(None)))
    assert len(chunks) > 10
    assert len(rests) == 2 + 1 + len(chunks) - 2, "two sorted runs and one merged; each chunk of items but the last"
    rests.clear()
    packed_chunks = list(store.view()._replace(level=1).snapshot_chunks(lambda: rests.append(None)))
    assert len(rests) >= len(packed_chunks) - 2
