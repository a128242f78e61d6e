"""The end of the journal: what a crash may leave there is cut, what a disk has lost or altered is refused."""

from __future__ import annotations

import asyncio
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from kvnode.errors import StartupError
from kvnode.storage import tail
from kvnode.storage.disk import Directory
from kvnode.storage.flusher import Flusher, Fsync
from kvnode.storage.journal import Journal
from kvnode.storage.records import (
    MARK,
    SYNCED,
    entry_record,
    records,
    state_record,
)
from kvnode.storage.segments import HEADER_BYTES, Recovered, Segments
from tests.simulation.disk import MemoryDisk

CLUSTER_ID = b"0123456789abcdef"
FIRST = "journal-000000000001"
STATE = state_record(3, "n2")


def entries(first: int, last: int) -> list[bytes]:
    return [part for index in range(first, last + 1) for part in entry_record(b"command %d" % index, index, 1)]


def disk_with(*flights: list[bytes], noted: bool = False, sync: bool = True) -> MemoryDisk:
    """A disk on which each flight was appended and synced; `noted`: and then it was quiet."""
    disk = MemoryDisk()
    segments = Segments(disk, CLUSTER_ID)
    segments.recover()
    for buffers in flights:
        segments.append(buffers, 0, STATE, sync)
    if noted:
        segments.note_durable()
    return disk


def recovered_from(disk: MemoryDisk) -> list[int]:
    return [index for _, index, _ in Segments(disk, CLUSTER_ID).recover().entries]


def with_bytes(disk: MemoryDisk, change: Callable[[bytearray], object]) -> MemoryDisk:
    data = bytearray(disk.read(FIRST))
    change(data)
    disk.replace(FIRST, bytes(data))
    return disk


def test_each_flight_begins_with_how_far_the_one_before_it_was_durable() -> None:
    disk = disk_with(entries(1, 2), entries(3, 3), entries(4, 5))
    data = disk.read(FIRST)
    found, end = [], HEADER_BYTES
    for behind, kind, body in records(data, end):
        if kind == SYNCED:
            found.append((end, int.from_bytes(body[:8], "little"), int.from_bytes(body[8:], "little")))
        end = behind
    assert [at for at, _, _ in found] == [place for _, place, _ in found] == [known for _, _, known in found]
    assert len(found) == 3


def test_what_was_not_synced_is_not_said_to_be() -> None:
    disk = disk_with(entries(1, 2), entries(3, 3), entries(4, 5), sync=False)
    told = [body for _, kind, body in records(disk.read(FIRST), HEADER_BYTES) if kind == SYNCED]
    assert len(told) == 1, "the head of the segment alone was synced"


def test_every_single_flipped_bit_of_the_last_flight_is_refused() -> None:
    """The hole that a checksum alone leaves: a bad last record looks like one that was never finished."""
    whole = disk_with(entries(1, 2), entries(3, 5)).read(FIRST)
    for offset in range(len(whole)):
        for bit in range(8):
            disk = MemoryDisk()
            disk.replace(FIRST, whole)
            disk.damage(FIRST, offset, bit)
            with pytest.raises(StartupError, match=FIRST):
                recovered_from(disk)


def wiped(data: bytearray, count: int) -> None:
    data[-count:] = bytes(count)


def cut(data: bytearray, count: int) -> None:
    del data[-count:]


@pytest.mark.parametrize("accident", [wiped, cut])
def test_a_last_flight_that_was_noted_can_not_be_lost(accident: Callable[[bytearray, int], None]) -> None:
    for count in range(1, 60):
        disk = with_bytes(disk_with(entries(1, 5), noted=True), lambda data, count=count: accident(data, count))
        with pytest.raises(StartupError, match=rf"{FIRST} is damaged at byte \d+ .*it was on disk up to byte"):
            recovered_from(disk)
        disk = with_bytes(disk_with(entries(1, 5)), lambda data, count=count: accident(data, count))
        assert recovered_from(disk) in ([1, 2, 3, 4, 5][:length] for length in range(6)), "it may have been a crash"


def test_what_follows_the_note_may_be_cut() -> None:
    disk = disk_with(entries(1, 5), noted=True)
    segments = Segments(disk, CLUSTER_ID)
    segments.recover()
    segments.append(entries(6, 7), 7, STATE, sync=False)
    assert recovered_from(with_bytes(disk, lambda data: cut(data, 1))) == [1, 2, 3, 4, 5, 6]


def test_the_blocks_of_a_last_flight_may_have_arrived_in_any_order() -> None:
    """Good records behind a bad one, and yet nothing that was ever synced."""
    for seed in range(200):
        disk = disk_with(entries(1, 3))
        segments = Segments(disk, CLUSTER_ID)
        segments.recover()
        segments.append(entries(4, 30), 30, STATE, sync=False)
        disk.crash(random.Random(seed))
        found = recovered_from(disk)
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= 3


def test_damage_before_a_torn_flight_is_told_from_it() -> None:
    disk = disk_with(entries(1, 3), entries(4, 6))
    segments = Segments(disk, CLUSTER_ID)
    segments.recover()
    at = disk.size(FIRST)
    segments.append(entries(7, 9), 9, STATE, sync=False)

    def twice(data: bytearray) -> None:
        data[at - 20 : at - 10] = bytes(10)  # in entry 6
        del data[at + 40 :]  # power failed within the flight that followed it

    with pytest.raises(StartupError, match="on disk before the next flight"):
        recovered_from(with_bytes(disk, twice))


def test_a_value_that_looks_like_a_record_proves_nothing() -> None:
    """A user may store a copy of a journal as a value."""
    inner = disk_with(entries(1, 5), entries(6, 9)).read(FIRST)
    assert MARK in inner
    disk = disk_with(entries(1, 3))
    at = disk.size(FIRST)
    segments = Segments(disk, CLUSTER_ID)
    segments.recover()
    segments.append([*entry_record(inner, 4, 1)], 4, STATE, sync=False)

    def torn(data: bytearray) -> None:
        data[at + 60 : at + 70] = bytes(10)

    assert recovered_from(with_bytes(disk, torn)) == [1, 2, 3]


def test_a_journal_that_is_missing_and_was_there_is_refused() -> None:
    disk = disk_with(entries(1, 3), noted=True)
    disk.unlink(FIRST)
    with pytest.raises(StartupError, match=f"{FIRST} is damaged at byte 0 .*missing"):
        recovered_from(disk)


def test_every_flipped_bit_of_the_note_itself_is_refused() -> None:
    disk = disk_with(entries(1, 3), noted=True)
    for offset in range(disk.size(tail.FILE)):
        disk.damage(tail.FILE, offset)
        with pytest.raises(StartupError, match=tail.FILE):
            recovered_from(disk)
        disk.damage(tail.FILE, offset)
    assert recovered_from(disk) == [1, 2, 3]


def test_what_a_killed_process_never_synced_is_synced_before_it_is_believed() -> None:
    disk = disk_with(entries(1, 3))
    segments = Segments(disk, CLUSTER_ID)
    segments.recover()
    segments.append(entries(4, 6), 6, STATE, sync=False)
    disk.kill()
    assert recovered_from(disk) == [1, 2, 3, 4, 5, 6]
    for seed in range(20):
        disk.crash(random.Random(seed))
        assert recovered_from(disk) == [1, 2, 3, 4, 5, 6]


def test_a_journal_without_synced_records_is_read_and_goes_on_in_a_new_segment() -> None:
    head = struct.pack("<4sHQ16s", b"KVNJ", 1, 1, CLUSTER_ID)
    disk = MemoryDisk()
    disk.replace(FIRST, head + zlib.crc32(head).to_bytes(4, "little") + STATE + b"".join(entries(1, 3)))
    segments = Segments(disk, CLUSTER_ID)
    assert [index for _, index, _ in segments.recover().entries] == [1, 2, 3]
    segments.append(entries(4, 5), 5, STATE, sync=True)
    assert disk.names() == [FIRST, "journal-000000000002"]
    assert recovered_from(disk) == [1, 2, 3, 4, 5]


# --- the thread that notes -----------------------------------------------------------------------------------


async def flushing(path: Path, fsync: Fsync, seconds: float) -> tuple[Directory, Segments, Flusher]:
    """A flusher that has had a change every few milliseconds for so long, and still runs."""
    disk = Directory(path)
    journal, segments = Journal(Recovered()), Segments(disk, CLUSTER_ID)
    flusher = Flusher(journal, segments, fsync, lambda: None, lambda error: None, lambda blocked: None)
    for index in range(1, round(seconds / 0.005)):
        journal.add(b"x", index, 1)
        flusher.kick()
        await asyncio.sleep(0.005)
    return disk, segments, flusher


async def test_a_quiet_journal_is_noted(tmp_path: Path) -> None:
    disk, _, flusher = await flushing(tmp_path, "always", 0.1)
    assert tail.FILE not in disk.names(), "while writes come one after the other it is not worth a sync"
    for _ in range(500):
        if tail.FILE in disk.names():
            break
        await asyncio.sleep(0.01)
    assert tail.read_mark(disk, CLUSTER_ID) == (1, disk.size(FIRST))
    assert await flusher.stop(5.0)
    disk.close()


async def test_the_interval_is_kept_also_when_writes_never_pause(tmp_path: Path) -> None:
    disk, segments, flusher = await flushing(tmp_path, "interval", 0.6)
    told = [body for _, kind, body in records(disk.read(FIRST), HEADER_BYTES) if kind == SYNCED]
    assert len(told) > 1, "a sync came between the writes"
    assert await flusher.stop(5.0)
    assert tail.read_mark(disk, CLUSTER_ID) == (1, disk.size(FIRST)), "a clean stop leaves a note"
    assert segments.disk_bytes == disk.size(FIRST)
    disk.close()
