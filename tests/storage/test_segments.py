"""The journal's files: what a crash leaves is mended, what a disk damages is refused with file and offset."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kvnode.errors import StartupError
from kvnode.storage.disk import Directory, Disk, ReadOnly
from kvnode.storage.records import (
    NO_OP,
    base_record,
    entry_record,
    state_record,
    truncate_record,
)
from kvnode.storage.segments import Recovered, Segments
from tests.simulation.disk import MemoryDisk

CLUSTER_ID = b"0123456789abcdef"
FIRST = "journal-000000000001"
STATE = state_record(3, "n2")


def segments_on(disk: Disk, segment_bytes: int = 1_000_000) -> Segments:
    return Segments(disk, CLUSTER_ID, segment_bytes)


def recovered_from(disk: Disk) -> Recovered:
    return segments_on(disk).recover()


def entries(first: int, last: int, term: int = 1) -> list[bytes]:
    return [part for index in range(first, last + 1) for part in entry_record(b"command %d" % index, index, term)]


def disk_with(*flights: tuple[list[bytes], int], segment_bytes: int = 1_000_000) -> MemoryDisk:
    """A disk on which each flight was appended and synced."""
    disk = MemoryDisk()
    segments = segments_on(disk, segment_bytes)
    segments.recover()
    for buffers, last_index in flights:
        segments.append(buffers, last_index, STATE, sync=True)
    return disk


def test_an_empty_directory_is_an_empty_journal() -> None:
    recovered = recovered_from(MemoryDisk())
    assert (recovered.entries, recovered.term, recovered.vote) == ([], 0, None)


@pytest.mark.parametrize("on", ["memory", "directory"])
def test_every_kind_of_record_comes_back(on: str, tmp_path: Path) -> None:
    disk: Disk = MemoryDisk() if on == "memory" else Directory(tmp_path / "data")
    segments = segments_on(disk)
    segments.recover()
    segments.append(entries(1, 5), 5, STATE, sync=True)
    segments.append([truncate_record(4), *entries(4, 4, term=2), state_record(7, "n3")], 4, STATE, sync=True)
    recovered = recovered_from(disk)
    assert [(index, term) for _, index, term in recovered.entries] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    assert recovered.entries[3][0] == b"command 4"
    assert (recovered.term, recovered.vote, recovered.cut_bytes) == (7, "n3", 0)
    disk.close()


def test_a_base_starts_the_log_anew() -> None:
    disk = disk_with((entries(1, 5), 5), ([base_record(90, 4), *entries(91, 92, term=4)], 92))
    assert recovered_from(disk).entries == [(NO_OP, 90, 4), (b"command 91", 91, 4), (b"command 92", 92, 4)]


def test_no_vote_is_not_a_vote_for_nobody() -> None:
    disk = disk_with(([*entries(1, 1), state_record(4, None)], 1))
    assert recovered_from(disk).vote is None


def test_a_torn_tail_is_cut_at_every_byte_of_the_last_record() -> None:
    whole = disk_with((entries(1, 3), 3)).read(FIRST)
    last_record = sum(map(len, entry_record(b"command 3", 3, 1)))
    for length in range(len(whole) - last_record, len(whole)):
        disk = MemoryDisk()
        disk.replace(FIRST, whole[:length])
        recovered = recovered_from(disk)
        assert [index for _, index, _ in recovered.entries] == [1, 2]
        assert recovered.cut_bytes == length - (len(whole) - last_record)
        assert disk.size(FIRST) == len(whole) - last_record, "what was cut must not be there at the next start"


def test_what_follows_a_cut_is_appended_behind_it() -> None:
    disk = disk_with((entries(1, 3), 3))
    disk.replace(FIRST, disk.read(FIRST)[:-1])
    segments = segments_on(disk)
    segments.recover()
    segments.append(entries(3, 4, term=2), 4, STATE, sync=True)
    assert [(index, term) for _, index, term in recovered_from(disk).entries] == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_a_tail_of_zeros_is_cut() -> None:
    """Some file systems lengthen a file before its data arrives (R12)."""
    disk = disk_with((entries(1, 3), 3))
    disk.append(FIRST, [bytes(4_096)])
    recovered = recovered_from(disk)
    assert len(recovered.entries) == 3
    assert recovered.cut_bytes == 4_096


def test_a_flipped_bit_is_refused_wherever_good_records_follow() -> None:
    whole = disk_with((entries(1, 4), 4)).read(FIRST)
    last_record = sum(map(len, entry_record(b"command 4", 4, 1)))
    for offset in range(len(whole) - last_record):
        disk = MemoryDisk()
        disk.replace(FIRST, whole)
        disk.damage(FIRST, offset)
        with pytest.raises(StartupError) as refusal:
            recovered_from(disk)
        at = re.search(rf"memory/{FIRST} .*at byte (\d+)|memory/{FIRST}", str(refusal.value))
        assert at is not None, "the sentence names the file"
        if at[1] is not None:
            assert int(at[1]) <= offset < int(at[1]) + 60, "and where in it the damage begins"


def test_damage_in_a_segment_that_is_not_the_last_is_refused_also_at_its_end() -> None:
    disk = disk_with((entries(1, 3), 3), (entries(4, 6), 6), segment_bytes=1)
    first = disk.names()[0]
    disk.damage(first, disk.size(first) - 1)
    with pytest.raises(StartupError, match=rf"memory/{first} is damaged at byte \d+ .*a later segment exists"):
        recovered_from(disk)


def test_a_missing_segment_is_refused() -> None:
    disk = disk_with((entries(1, 2), 2), (entries(3, 4), 4), (entries(5, 6), 6), segment_bytes=1)
    assert len(disk.names()) == 3
    disk.unlink(disk.names()[1])
    with pytest.raises(StartupError, match="the segment before it is missing"):
        recovered_from(disk)


def test_a_journal_of_another_cluster_is_refused() -> None:
    disk = disk_with((entries(1, 2), 2))
    with pytest.raises(StartupError, match="belongs to another cluster"):
        Segments(disk, b"another cluster!").recover()


@pytest.mark.parametrize("length", range(30))
def test_a_segment_whose_header_never_reached_the_disk_is_as_if_never_made(length: int) -> None:
    disk = disk_with((entries(1, 2), 2))
    disk.append("journal-000000000002", [disk.read(FIRST)[:length]])
    recovered = recovered_from(disk)
    assert len(recovered.entries) == 2
    assert disk.names() == [FIRST]


def test_the_hard_state_survives_rotation_and_the_loss_of_what_came_before() -> None:
    disk = MemoryDisk()
    segments = segments_on(disk, segment_bytes=1)
    segments.recover()
    segments.append([*entries(1, 3), STATE], 3, STATE, sync=True)
    segments.append(entries(4, 6), 6, STATE, sync=True)
    segments.drop_before(5)
    assert disk.names() == ["journal-000000000002"]
    recovered = recovered_from(disk)
    assert (recovered.term, recovered.vote) == (3, "n2")
    assert [index for _, index, _ in recovered.entries] == [4, 5, 6]


def test_the_hard_state_survives_a_rotation_that_was_torn() -> None:
    """Power fails behind a new segment's header and before its hard state; then the older segments go."""
    intact = disk_with(([*entries(1, 3), STATE], 3), (entries(4, 6), 6), segment_bytes=1)
    first, second = intact.names()
    header_bytes = 34
    for length in range(header_bytes, header_bytes + len(STATE)):
        disk = MemoryDisk()
        disk.replace(first, intact.read(first))
        disk.replace(second, intact.read(second)[:length])
        segments = segments_on(disk, segment_bytes=intact.size(first))
        segments.recover()
        segments.append(entries(4, 6), 6, STATE, sync=True)
        segments.drop_before(4)
        assert first not in disk.names()
        recovered = recovered_from(disk)
        assert (recovered.term, recovered.vote) == (3, "n2"), "a node that forgets its vote votes twice (R10)"


def test_only_whole_segments_below_the_bound_are_dropped_and_never_the_last() -> None:
    disk = disk_with((entries(1, 3), 3), (entries(4, 6), 6), (entries(7, 9), 9), segment_bytes=1)
    segments = segments_on(disk, segment_bytes=1)
    segments.recover()
    segments.drop_before(6)
    assert len(disk.names()) == 2
    segments.drop_before(1_000)
    assert len(disk.names()) == 1
    assert [index for _, index, _ in recovered_from(disk).entries] == [7, 8, 9]


def test_a_segment_is_kept_for_entries_that_a_later_one_truncated() -> None:
    """Dropping by the last index alone must not take entries that the log still stands on."""
    disk = disk_with((entries(1, 9), 9), ([truncate_record(5), *entries(5, 6, term=2)], 6), segment_bytes=1)
    segments = segments_on(disk, segment_bytes=1)
    segments.recover()
    segments.drop_before(4)
    assert [(index, term) for _, index, term in recovered_from(disk).entries][3:] == [(4, 1), (5, 2), (6, 2)]


def test_what_was_not_synced_may_be_gone_and_the_rest_is_not() -> None:
    import random

    for seed in range(50):
        disk = disk_with((entries(1, 3), 3))
        segments = segments_on(disk)
        segments.recover()
        segments.append(entries(4, 6), 6, STATE, sync=False)
        disk.crash(random.Random(seed))
        indexes = [index for _, index, _ in recovered_from(disk).entries]
        assert indexes == list(range(1, len(indexes) + 1))
        assert len(indexes) >= 3


def test_a_new_data_directory_and_those_above_it_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a crash may take the directory, with a journal in it that was synced and promised."""
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    Directory(tmp_path / "above" / "n1").close()
    assert synced == [str(tmp_path), str(tmp_path / "above")]
    Directory(tmp_path / "above" / "n1").close()
    assert len(synced) == 2


def test_what_is_no_regular_file_or_far_too_large_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """A pipe in the place of a file held every command that reads a data directory, `verify` too, for ever."""
    disk = ReadOnly(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "file").write_bytes(b"here")
    for name in ("pipe", "endless", "folder", "sparse"):
        with pytest.raises(OSError, match=r"regular file|too large|directory"):
            disk.read(name)
    assert disk.read("sparse", 2**39, 4) == bytes(4)
    assert (disk.read("file"), disk.read("file", 1, 2)) == (b"here", b"er")
