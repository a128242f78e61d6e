"""`verify` on directories with every kind of damage: it says what a start would say, and changes nothing."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvnode.configuration import named
from kvnode.errors import StartupError
from kvnode.node.group import RaftGroup
from kvnode.node.settings import RaftSettings
from kvnode.state.commands import PUT
from kvnode.state.store import KeyValueStore
from kvnode.storage.disk import Directory
from kvnode.storage.identity import claim
from kvnode.storage.records import (
    base_record,
    entry_record,
    state_record,
    truncate_record,
)
from kvnode.storage.segments import Segments
from kvnode.storage.snapshots import Snapshots
from kvnode.storage.verify import NotADataDirectory, VerifyReport, verify
from tests.cluster import free_ports

PEERS = {"n1": ("127.0.0.1", 7001), "n2": ("127.0.0.1", 7002), "n3": ("127.0.0.1", 7003)}
STATE = state_record(3, "n2")
SEGMENTS = [f"journal-{number:012d}" for number in (1, 2, 3)]
OLDER, NEWEST = "snapshot-00000000000000000008-1", "snapshot-00000000000000000015-2"


def entries(first: int, last: int, term: int) -> list[bytes]:
    return [part for index in range(first, last + 1) for part in entry_record(b"\x01" * 20, index, term)]


def filled(count: int) -> KeyValueStore:
    store = KeyValueStore()
    for number in range(count):
        store.apply([PUT, f"key/{number}", b"v" * 100, "", None])
    return store


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Three segments with entries 1 to 30, some of them truncated and written again, and two snapshots."""
    disk = Directory(tmp_path / "n1")
    cluster_id = claim(disk, "n1", None, PEERS).cluster_id
    segments = Segments(disk, cluster_id, segment_bytes=1)
    segments.recover()
    segments.append([STATE, *entries(1, 10, 1)], 10, STATE, sync=True)
    segments.append([*entries(11, 22, 1), truncate_record(15), *entries(15, 20, 2)], 20, STATE, sync=True)
    segments.append(entries(21, 30, 3), 30, STATE, sync=True)
    snapshots = Snapshots(disk, cluster_id)
    snapshots.write(8, 1, named(*PEERS), filled(8).view(), 12345)
    snapshots.write(15, 2, named(*PEERS), filled(15).view())
    disk.close()
    return tmp_path / "n1"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


async def start_refuses(data_dir: Path) -> str | None:
    """What a start says to a copy of the directory; None where it starts."""
    copy = data_dir.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(data_dir, copy)
    settings = RaftSettings(
        node_id="n1", listen=("127.0.0.1", free_ports(1)[0]), peers=PEERS, http_url="http://127.0.0.1:1",
        data_dir=copy, secret=b"", cluster_id=None, fsync="always", election_timeout_min_s=60.0,
        election_timeout_max_s=61.0, heartbeat_s=1.0,
    )  # fmt: skip
    group = RaftGroup(settings)
    try:
        await group.start()
    except StartupError as error:
        return error.message
    finally:
        await group.stop()
    return None


def files_of(data_dir: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in data_dir.iterdir()}


def found(report: VerifyReport) -> list[tuple[str, int | None]]:
    return [(damage.file, damage.offset) for damage in report.damage]


async def test_a_whole_directory_is_described(data_dir: Path) -> None:
    report = verify(data_dir)
    assert report.damage == []
    assert (report.node_id, report.members, len(report.cluster_id or "")) == ("n1", ["n1", "n2", "n3"], 32)
    assert (report.term, report.vote, report.first_index, report.last_index) == (3, "n2", 1, 30)
    first, second, third = report.segments
    assert [segment.file for segment in report.segments] == SEGMENTS
    assert (first.entries, first.first_index, first.last_index, first.hard_states) == (10, 1, 10, 2)
    assert (second.entries, second.truncations, second.first_term, second.last_term) == (18, 1, 1, 2)
    assert (third.entries, third.bases, third.bytes) == (10, 0, (data_dir / SEGMENTS[2]).stat().st_size)
    older, newest = report.snapshots
    assert (older.index, older.term, older.revision, older.items, older.digest) == (8, 1, 8, 8, 12345)
    assert (newest.file, newest.index, newest.members, newest.digest) == (NEWEST, 15, ("n1", "n2", "n3"), None)
    assert await start_refuses(data_dir) is None


async def test_what_a_crash_leaves_is_whole_and_stays_as_it_is(data_dir: Path) -> None:
    cut(data_dir / SEGMENTS[2], (data_dir / SEGMENTS[2]).stat().st_size - 5)
    (data_dir / f"{NEWEST}.part").write_bytes(b"half")
    before = files_of(data_dir)
    report = verify(data_dir)
    assert report.damage == []
    assert report.segments[2].unread_bytes == len(entries(30, 30, 3)[0]) + 20 - 5
    assert report.last_index == 29
    assert report.leftovers == {f"{NEWEST}.part": 4}
    assert files_of(data_dir) == before
    assert await start_refuses(data_dir) is None


@pytest.mark.parametrize("tail", [b"", b"KVNJ", "whole header"])
async def test_a_segment_that_was_only_begun_is_whole(data_dir: Path, tail: bytes | str) -> None:
    begun = (data_dir / SEGMENTS[2]).read_bytes()[:34] if tail == "whole header" else tail
    (data_dir / SEGMENTS[2]).write_bytes(begun if isinstance(begun, bytes) else b"")
    assert verify(data_dir).damage == []
    assert verify(data_dir).last_index == 20
    assert await start_refuses(data_dir) is None


def _flip_in_the_middle(data_dir: Path) -> list[tuple[str, int | None]]:
    record_bytes = sum(map(len, entry_record(b"\x01" * 20, 1, 1)))
    first_entry = (data_dir / SEGMENTS[2]).stat().st_size - 10 * record_bytes
    flip(data_dir / SEGMENTS[2], first_entry + 4 * record_bytes + 25)
    return [(SEGMENTS[2], first_entry + 4 * record_bytes)]


def _flip_at_the_end_of_an_earlier_segment(data_dir: Path) -> list[tuple[str, int | None]]:
    size = (data_dir / SEGMENTS[0]).stat().st_size
    flip(data_dir / SEGMENTS[0], size - 1)
    return [(SEGMENTS[0], size - sum(map(len, entry_record(b"\x01" * 20, 1, 1))))]


def _flip_in_a_header(data_dir: Path) -> list[tuple[str, int | None]]:
    flip(data_dir / SEGMENTS[1], 20)
    return [(SEGMENTS[1], 0)]


def _lose_a_segment(data_dir: Path) -> list[tuple[str, int | None]]:
    (data_dir / SEGMENTS[1]).unlink()
    return [(SEGMENTS[2], 0)]


def _lose_the_journal(data_dir: Path) -> list[tuple[str, int | None]]:
    for name in SEGMENTS:
        (data_dir / name).unlink()
    return [("journal", None)]


def _lose_the_first_segment_and_the_newest_snapshot(data_dir: Path) -> list[tuple[str, int | None]]:
    (data_dir / SEGMENTS[0]).unlink()
    (data_dir / NEWEST).unlink()
    return [(SEGMENTS[1], None)]


def _damage_the_newest_snapshot(data_dir: Path) -> list[tuple[str, int | None]]:
    size = (data_dir / NEWEST).stat().st_size
    flip(data_dir / NEWEST, size - 200)
    return [(NEWEST, size - 16)]  # behind the chunk that does not check out


def _cut_the_newest_snapshot(data_dir: Path) -> list[tuple[str, int | None]]:
    cut(data_dir / NEWEST, 30)
    return [(NEWEST, 0)]


def _lose_what_was_on_disk_at_the_end(data_dir: Path) -> list[tuple[str, int | None]]:
    disk = Directory(data_dir)
    segments = Segments(disk, bytes.fromhex(verify(data_dir).cluster_id or ""))
    segments.recover()
    segments.append(entries(31, 31, 3), 31, STATE, sync=True)
    segments.note_durable()
    disk.close()
    last = sorted(data_dir.glob("journal-*"))[-1]
    size = last.stat().st_size - sum(map(len, entry_record(b"\x01" * 20, 31, 3)))
    cut(last, size)
    return [(last.name, size)]


def _damage_the_mark(data_dir: Path) -> list[tuple[str, int | None]]:
    _lose_what_was_on_disk_at_the_end(data_dir)
    flip(data_dir / "tail.mark", 10)
    return [("journal", None)]


def _lose_the_identity(data_dir: Path) -> list[tuple[str, int | None]]:
    (data_dir / "identity.json").unlink()
    return [("identity.json", None)]


def _garble_the_identity(data_dir: Path) -> list[tuple[str, int | None]]:
    (data_dir / "identity.json").write_text('{"cluster_id": "no", "node_id": 7}')
    return [("identity.json", None)]


@pytest.mark.parametrize(
    "damage",
    [
        _flip_in_the_middle,
        _flip_at_the_end_of_an_earlier_segment,
        _flip_in_a_header,
        _lose_a_segment,
        _lose_the_journal,
        _lose_the_first_segment_and_the_newest_snapshot,
        _damage_the_newest_snapshot,
        _cut_the_newest_snapshot,
        _lose_what_was_on_disk_at_the_end,
        _damage_the_mark,
        _lose_the_identity,
        _garble_the_identity,
    ],
)
async def test_damage_is_named_with_its_place_and_a_start_refuses_it_too(
    data_dir: Path, damage: Callable[[Path], list[tuple[str, int | None]]]
) -> None:
    expected = damage(data_dir)
    before = files_of(data_dir)
    report = verify(data_dir)
    assert found(report) == expected
    assert report.damage[0].what
    assert report.damage[0].remedy
    assert files_of(data_dir) == before
    assert await start_refuses(data_dir) is not None


async def test_a_start_does_not_need_an_older_snapshot_and_verify_says_so(data_dir: Path) -> None:
    cut(data_dir / OLDER, 500)
    (damage,) = verify(data_dir).damage
    assert damage.file == OLDER
    assert "delete the file" in damage.remedy
    assert await start_refuses(data_dir) is None


async def test_files_of_another_cluster_are_damage(data_dir: Path, tmp_path: Path) -> None:
    other = Directory(tmp_path / "other")
    cluster_id = claim(other, "n1", "another", PEERS).cluster_id
    segments = Segments(other, cluster_id)
    segments.recover()
    segments.append(entries(1, 3, 1), 3, STATE, sync=True)
    other.close()
    shutil.copy(tmp_path / "other" / "identity.json", data_dir)
    report = verify(data_dir)
    assert [file for file, _ in found(report)] == ["journal", OLDER, NEWEST]
    assert "belongs to another cluster" in report.damage[0].what
    assert await start_refuses(data_dir) is not None


async def test_a_snapshot_that_is_ahead_of_the_log_is_whole(data_dir: Path) -> None:
    """A crash between publishing an installed snapshot and starting the log anew behind it."""
    disk = Directory(data_dir)
    snapshots = Snapshots(disk, bytes.fromhex(verify(data_dir).cluster_id or ""))
    snapshots.write(99, 3, named(*PEERS), filled(3).view())
    disk.close()
    assert verify(data_dir).damage == []
    assert await start_refuses(data_dir) is None


def test_a_log_that_starts_anew_is_described_by_what_is_left_of_it(tmp_path: Path) -> None:
    disk = Directory(tmp_path / "n1")
    cluster_id = claim(disk, "n1", None, PEERS).cluster_id
    segments = Segments(disk, cluster_id)
    segments.recover()
    segments.append([*entries(1, 3, 1), base_record(90, 4), *entries(91, 92, 4)], 92, STATE, sync=True)
    Snapshots(disk, cluster_id).write(90, 4, named("n1"), filled(1).view())
    report = verify(tmp_path / "n1")  # while somebody holds the lock
    assert report.damage == []
    assert (report.first_index, report.last_index, report.segments[0].bases) == (90, 92, 1)
    disk.close()


def test_what_is_no_data_directory_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a node's")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "notes.txt"):
        with pytest.raises(NotADataDirectory):
            verify(path)


def test_files_that_are_listed_and_not_there_are_said(data_dir: Path) -> None:
    """As where a node removes files faster than they are read."""
    (data_dir / "journal-999999999999").symlink_to(data_dir / "gone")
    with pytest.raises(StartupError, match=r"were not there at each of 10 looks.*try again, or stop the node"):
        verify(data_dir)


def test_a_directory_that_is_written_compacted_and_read_at_once_is_whole(tmp_path: Path) -> None:
    disk = Directory(tmp_path / "n1")
    cluster_id = claim(disk, "n1", None, PEERS).cluster_id
    segments, snapshots = Segments(disk, cluster_id, segment_bytes=2_000), Snapshots(disk, cluster_id)
    segments.recover()
    segments.append(entries(1, 1, 1), 1, STATE, sync=False)
    stop = threading.Event()

    def write() -> None:
        view = filled(20).view()
        for index in itertools.count(2):
            segments.append(entries(index, index, 1), index, STATE, sync=False)
            if index % 100 == 0:
                snapshots.published(snapshots.write(index, 1, named("n1"), view))
                segments.drop_before(index - 10)
            if stop.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        reports = [verify(tmp_path / "n1")]
        deadline = time.monotonic() + 60.0
        # At least a hundred, and as many more as it takes until some compactions have happened between them.
        while len(reports) < 100 or len({report.first_index for report in reports}) <= 3:
            assert time.monotonic() < deadline, "nothing was compacted meanwhile: not a test"
            reports.append(verify(tmp_path / "n1"))
    finally:
        stop.set()
        writer.join(20)
        disk.close()
    assert [report.damage for report in reports] == [[]] * len(reports)
