"""Snapshot files are whole or nothing; and a follower fetches one at its own pace, across every interruption."""

from __future__ import annotations

import base64
import random
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvnode.configuration import named
from kvnode.errors import StartupError
from kvnode.node.catchup import CHUNK_BYTES, FETCH_SILENT_S_MAX, Catchup
from kvnode.raft.messages import CHUNK, OFFER, WANT, Message
from kvnode.state.commands import PUT
from kvnode.state.store import KeyValueStore
from kvnode.storage.disk import Directory
from kvnode.storage.snapshots import (
    KEEP,
    Damaged,
    Snapshot,
    Snapshots,
)

CLUSTER = b"c" * 16
# A file as it was written before items were packed, at feature level 1: three keys, and one with a lease. Compressed.
OF_FORMAT_4 = (
    b"eNrzDvMLZmZIRgOcDBDABKWVgJiRHcqZzMA4efqiPMMFDAsOH2IAsozgLGMIqzMx+D4/UKXK9leLp7OwsjAwMjYuzUktS81hZAMK"
    b"z7C9uXjiFEYbhkOuQF4Kp++RKdOWZqdW6hocYaxYwMTECOEZgnjMzFCeEYjHwsI4fVlOamJxasoRxspVJakVJfoFOYmZeaysjIwg"
    b"t5kcnL6PGepOAIvtQDw="
)


def filled(count: int, value_bytes: int = 100, level: int = 0) -> KeyValueStore:
    store = KeyValueStore()
    store.level = level
    for number in range(count):
        store.apply([PUT, f"key/{number:06d}", random.Random(number).randbytes(value_bytes), "text/plain", None])
    return store


@pytest.fixture
def open_snapshots(tmp_path: Path) -> Any:
    disks: list[Directory] = []

    def open_them(name: str = "n1", cluster_id: bytes = CLUSTER) -> Snapshots:
        disks.append(Directory(tmp_path / name))
        return Snapshots(disks[-1], cluster_id)

    yield open_them
    for disk in disks:
        disk.close()


LEVELS = pytest.mark.parametrize("level", [0, 1])  # below 1 older nodes read it, from 1 on its items are packed


@LEVELS
def test_a_snapshot_gives_back_the_store_and_its_place_in_the_log(
    open_snapshots: Callable[..., Snapshots], level: int
) -> None:
    snapshots, store = open_snapshots(), filled(5_000, level=level)
    written = snapshots.write(77, 3, named("n1", "n2", "n3"), store.view())
    snapshots.published(written)
    found, loaded = snapshots.load(written.name)
    assert found == written
    assert (found.index, found.term, found.members) == (77, 3, ("n1", "n2", "n3"))
    assert b"".join(loaded.view().chunks()) == b"".join(store.view().chunks())


def test_equal_stores_give_equal_files(open_snapshots: Callable[..., Snapshots]) -> None:
    first, second = open_snapshots("n1"), open_snapshots("n2")
    names = [each.write(9, 1, named("n1", "n2"), filled(500).view()).name for each in (first, second)]
    assert first.disk.read(names[0]) == second.disk.read(names[1])


def test_a_file_of_the_format_before_is_read(open_snapshots: Callable[..., Snapshots]) -> None:
    snapshots = open_snapshots()
    snapshots.disk.append("snapshot-00000000000000000009-2", [zlib.decompress(base64.b64decode(OF_FORMAT_4))])
    store = snapshots.recover()
    assert store.between("", None) == ["key-0", "key-1", "key-2", "leased"]
    assert (store.level, store.leases.keys(1)) == (1, ["leased"])
    assert snapshots.newest is not None
    assert (snapshots.newest.index, snapshots.newest.members, snapshots.newest.digest) == (9, ("n1", "n2", "n3"), 7)


def test_the_pieces_of_two_nodes_files_make_no_snapshot(open_snapshots: Callable[..., Snapshots]) -> None:
    """Packed items are in no order, so that a fetch that goes on from another node may have begun with another file."""
    snapshots, view = open_snapshots(), filled(3_000, level=1).view()
    other = view._replace(items=type(view.items)(view.items.shards[::-1], len(view.items)))
    one, two = (snapshots.disk.read(snapshots.write(9, 1, named("n1"), each).name) for each in (view, other))
    assert one != two
    for cut in (len(one) // 3, len(one) // 2, len(one) - 100):
        snapshots.disk.append(f"snapshot-mixed-{cut}", [one[:cut], two[cut:]])
        with pytest.raises(Damaged):
            snapshots.load(f"snapshot-mixed-{cut}")


@LEVELS
def test_no_altered_cut_or_extended_file_is_taken(open_snapshots: Callable[..., Snapshots], level: int) -> None:
    snapshots = open_snapshots()
    name = snapshots.write(9, 1, named("n1"), filled(300, level=level).view()).name
    whole = snapshots.disk.read(name)
    draw = random.Random(1)
    altered = []
    for _ in range(200):
        position = draw.randrange(len(whole))
        altered.append(whole[:position] + bytes((whole[position] ^ (1 << draw.randrange(8)),)) + whole[position + 1 :])
    cut = [whole[:length] for length in (0, 1, 40, len(whole) // 2, len(whole) - 1)]
    for data in (*altered, *cut, whole + b"x"):
        if "snapshot-bad" in snapshots.disk.names():
            snapshots.disk.unlink("snapshot-bad")
        snapshots.disk.append("snapshot-bad", [data])
        with pytest.raises(Damaged):
            snapshots.load("snapshot-bad")


def test_a_damaged_newest_snapshot_stops_the_start_with_a_sentence(open_snapshots: Callable[..., Snapshots]) -> None:
    snapshots = open_snapshots()
    name = snapshots.write(9, 1, named("n1"), filled(300).view()).name
    snapshots.disk.truncate(name, 500)
    with pytest.raises(StartupError, match=f"{name} is damaged"):
        snapshots.recover()


def test_leftovers_are_removed_and_another_clusters_file_is_refused(open_snapshots: Callable[..., Snapshots]) -> None:
    snapshots = open_snapshots()
    snapshots.disk.append("snapshot-00000000000000000005-1.part", [b"half"])
    assert len(snapshots.recover()) == 0
    assert snapshots.newest is None
    assert not [name for name in snapshots.disk.names() if name.endswith(".part")]
    name = snapshots.write(9, 1, named("n1"), filled(3).view()).name
    with pytest.raises(Damaged, match="another cluster"):
        Snapshots(snapshots.disk, b"d" * 16).load(name)


def test_only_the_newest_few_are_kept(open_snapshots: Callable[..., Snapshots]) -> None:
    snapshots = open_snapshots()
    for index in range(10, 16):
        snapshots.published(snapshots.write(index, 1, named("n1"), filled(3).view()))
    remove = snapshots.retire(wanted=frozenset({11}))
    assert remove is not None
    remove()
    names = [name for name in snapshots.disk.names() if name.startswith("snapshot-")]
    assert [int(name.split("-")[1]) for name in names] == [11, 14, 15], "those that are wanted, and the newest KEEP"
    assert KEEP == 2
    assert snapshots.retire(wanted=frozenset({11})) is None
    assert snapshots.published_at(11) is not None
    assert snapshots.published_at(12) is None


class Side:
    """One end of a transfer, over real files, with a network and a clock that the test drives."""

    def __init__(self, snapshots: Snapshots, sent: deque[Message], now: list[float]) -> None:
        self.snapshots = snapshots
        self.committed_floor = 1
        self.installed: list[tuple[Snapshot, KeyValueStore]] = []
        self.catchup = Catchup(
            snapshots, self, lambda _, message: bool(sent.append(message)) or True, self._work, lambda: now[0]
        )

    def snapshot_arrived(self, snapshot: Snapshot, store: KeyValueStore) -> None:
        self.installed.append((snapshot, store))
        self.committed_floor = snapshot.index

    def _work(self, job: Callable[[], Any], then: Callable[[Any, Exception | None], None]) -> None:
        try:
            result = job()
        except Exception as error:
            then(None, error)
        else:
            then(result, None)


class Transfer:
    """A leader with a snapshot of several chunks and a follower without one."""

    def __init__(self, open_snapshots: Callable[..., Snapshots], index: int = 50) -> None:
        self.now = [10.0]
        self.to_follower: deque[Message] = deque()
        self.to_leader: deque[Message] = deque()
        self.leader = Side(open_snapshots("leader"), self.to_follower, self.now)
        self.follower = Side(open_snapshots("follower"), self.to_leader, self.now)
        self.store = filled(30, CHUNK_BYTES // 8)
        self.publish(index)

    def publish(self, index: int) -> None:
        snapshots = self.leader.snapshots
        snapshots.published(snapshots.write(index, 2, named("leader", "follower"), self.store.view()))

    def offer(self) -> None:
        self.now[0] += 2.0
        self.leader.catchup.offer("follower", 2, 1)

    def deliver(self, limit: int = 1_000) -> int:
        """Hands over up to `limit` messages, both ways; how many there were."""
        count = 0
        while count < limit and (self.to_follower or self.to_leader):
            if self.to_follower:
                kind, *fields = self.to_follower.popleft()
                if kind == OFFER:
                    self.follower.catchup.offered("leader", *fields[1:])
                else:
                    assert kind == CHUNK
                    self.follower.catchup.arrived("leader", *fields)
            else:
                kind, *fields = self.to_leader.popleft()
                assert kind == WANT
                self.leader.catchup.wanted("follower", *fields)
            count += 1
        return count


def test_a_follower_pulls_a_snapshot_of_many_chunks(open_snapshots: Callable[..., Snapshots]) -> None:
    transfer = Transfer(open_snapshots)
    transfer.offer()
    assert transfer.deliver() > 6
    ((snapshot, store),) = transfer.follower.installed
    assert snapshot.index == 50
    assert b"".join(store.view().chunks()) == b"".join(transfer.store.view().chunks())
    assert transfer.follower.snapshots.newest == snapshot


def test_a_transfer_resumes_where_it_was_cut_off(open_snapshots: Callable[..., Snapshots]) -> None:
    transfer = Transfer(open_snapshots)
    transfer.offer()
    transfer.deliver(5)
    transfer.to_follower.clear()
    transfer.to_leader.clear()  # the connection breaks, with a chunk or a question on it
    transfer.offer()
    transfer.deliver(1)
    assert transfer.to_leader[0][2] > 0, "it began again from the start"
    transfer.deliver()
    assert len(transfer.follower.installed) == 1


def test_a_fetch_is_finished_however_many_newer_snapshots_there_are(open_snapshots: Callable[..., Snapshots]) -> None:
    transfer = Transfer(open_snapshots)
    leader = transfer.leader
    transfer.offer()
    for index in range(60, 200, 10):
        transfer.deliver(2)
        transfer.store.apply([PUT, f"later/{index}", b"1", "", None])
        transfer.publish(index)
        wanted = leader.catchup.kept(index, lambda _: 0)
        if (remove := leader.snapshots.retire(wanted)) is not None:
            remove()
        transfer.offer()
    transfer.deliver()
    assert [snapshot.index for snapshot, _ in transfer.follower.installed][:1] == [50]


def test_a_follower_that_asks_for_no_more_is_not_waited_for(open_snapshots: Callable[..., Snapshots]) -> None:
    transfer = Transfer(open_snapshots)
    leader, held = transfer.leader.catchup, {"follower": 0}
    transfer.offer()
    transfer.deliver(4)
    transfer.now[0] += FETCH_SILENT_S_MAX - 1
    assert leader.kept(100, held.__getitem__) == {50}
    held["follower"] = 60  # it has installed it and goes on by the log
    assert leader.kept(100, held.__getitem__) == {50}
    transfer.now[0] += FETCH_SILENT_S_MAX - 1
    assert leader.kept(100, held.__getitem__) == {50}
    transfer.now[0] += 2
    assert leader.kept(100, held.__getitem__) == frozenset()


def test_a_snapshot_that_the_log_does_not_go_on_from_gives_way(open_snapshots: Callable[..., Snapshots]) -> None:
    transfer = Transfer(open_snapshots)
    transfer.offer()
    transfer.deliver(3)
    transfer.publish(60)
    transfer.now[0] += 2.0
    transfer.to_leader.clear()
    transfer.to_follower.clear()
    transfer.leader.catchup.offer("follower", 2, first_index=55)
    transfer.deliver()
    assert [snapshot.index for snapshot, _ in transfer.follower.installed] == [60]


def test_damage_on_the_way_installs_nothing_and_is_fetched_again(open_snapshots: Callable[..., Snapshots]) -> None:
    transfer = Transfer(open_snapshots)
    transfer.offer()
    transfer.deliver(2)
    kind, index, offset, data = transfer.to_follower.popleft()
    transfer.to_follower.append((kind, index, offset, data[:-1] + bytes((data[-1] ^ 1,))))
    transfer.deliver()
    assert transfer.follower.installed == []
    transfer.offer()
    transfer.deliver()
    assert len(transfer.follower.installed) == 1


def test_chunks_that_nobody_asked_for_change_nothing(open_snapshots: Callable[..., Snapshots]) -> None:
    transfer = Transfer(open_snapshots)
    transfer.follower.catchup.arrived("leader", 50, 0, b"x")
    transfer.offer()
    transfer.deliver(1)
    for source, index, offset in (("stranger", 50, 0), ("leader", 51, 0), ("leader", 50, 7)):
        transfer.follower.catchup.arrived(source, index, offset, b"x" * 100)
    transfer.deliver()
    assert len(transfer.follower.installed) == 1


def test_a_snapshot_that_is_not_ahead_is_not_fetched(open_snapshots: Callable[..., Snapshots]) -> None:
    transfer = Transfer(open_snapshots)
    transfer.follower.committed_floor = 50
    transfer.offer()
    assert transfer.deliver() == 1
    assert transfer.follower.installed == []


def test_a_log_that_overtook_the_snapshot_while_it_came_keeps_its_place(
    open_snapshots: Callable[..., Snapshots],
) -> None:
    transfer = Transfer(open_snapshots)
    transfer.offer()
    transfer.deliver(3)
    transfer.follower.committed_floor = 55
    transfer.deliver()
    assert transfer.follower.installed == []
