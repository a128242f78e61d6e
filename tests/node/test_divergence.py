"""The digest of a history, and who is taken for wrong when digests differ."""

from __future__ import annotations

import struct
import zlib
from collections import deque
from pathlib import Path
from typing import Any, cast

import pytest

from kvnode.configuration import named
from kvnode.node.divergence import (
    EVERY,
    REMEMBERED,
    ROUND_S,
    ROUNDS_MAX,
    SETTLE_S,
    DivergenceCheck,
    History,
)
from kvnode.raft.messages import Message
from kvnode.raft.progress import Progress
from kvnode.state.commands import Put
from kvnode.state.entries import decode_entry, encode_entry, encode_group
from kvnode.state.store import KeyValueStore
from kvnode.storage.bootstrap import found
from kvnode.storage.disk import Directory
from kvnode.storage.identity import Claim
from kvnode.storage.journal import Journal
from kvnode.storage.segments import Recovered, Segments
from kvnode.storage.snapshots import Snapshot, Snapshots

CLUSTER_ID = b"c" * 16
REGULAR = b"\x00"


def payload(number: int, value: bytes = b"value") -> bytes:
    put = Put(f"key/{number % 50}", value).encode()
    return encode_entry([encode_group(b"origin..", number, [put])])


class Applier:
    """Journal, store and history, as a node puts them together: `run` applies entries as they are committed."""

    def __init__(self, journal: Journal | None = None, snapshot: tuple[Snapshot, KeyValueStore] | None = None) -> None:
        self.journal = journal or Journal(Recovered())
        self.store = KeyValueStore() if snapshot is None else snapshot[1]
        self.history = History(self.journal, self.store)
        if snapshot is not None:
            self.history.restored(snapshot[0].index, snapshot[0].digest)
        if not len(self.journal):
            self.journal.add(b"\x01", 1, 0)

    def write(self, last: int, altered: int | None = None, term: int = 1) -> None:
        """Adds entries up to `last`, one of them with another value, and applies them."""
        for index in range(self.journal[-1][1] + 1, last + 1):
            self.journal.add(REGULAR + payload(index, b"other" if index == altered else b"value"), index, term)
        self.apply(last)

    def apply(self, last: int) -> None:
        for index in range(self.history.index + 1, last + 1):
            command = self.journal[index - self.journal[0][1]][0]
            for _, _, commands in decode_entry(command[1:]):
                for each in commands:
                    self.store.apply(each)
            self.history.applied(index)


def digest_after(last: int, **how: Any) -> int | None:
    applier = Applier()
    applier.write(last, **how)
    return applier.history.at(last)


@pytest.mark.parametrize("last", [2, 10, EVERY, EVERY + 1, 5 * EVERY])
def test_the_same_history_gives_the_same_digest(last: int) -> None:
    assert digest_after(last) is not None
    assert digest_after(last) == digest_after(last)


def test_a_difference_anywhere_in_the_past_shows_at_every_later_index() -> None:
    ours, theirs = Applier(), Applier()
    ours.write(1_000)
    theirs.write(1_000, altered=2)
    for index in range(EVERY, 1_000, EVERY):
        assert ours.history.at(index) != theirs.history.at(index) is not None
    assert ours.history.at(1_000) != theirs.history.at(1_000)


def test_another_term_of_the_same_command_is_another_history() -> None:
    assert digest_after(40) != digest_after(40, term=2)


def test_a_store_that_answered_otherwise_shows_where_the_log_is_the_same() -> None:
    ours, theirs = Applier(), Applier()
    for applier in (ours, theirs):
        applier.write(100)
    theirs.store.apply([1, "stray", b"", "", None])
    assert ours.history.at(100) != theirs.history.at(100)
    for applier in (ours, theirs):
        applier.write(3 * EVERY)
    assert ours.history.at(3 * EVERY) != theirs.history.at(3 * EVERY)


def test_a_store_that_lost_an_item_shows_though_its_revision_is_right() -> None:
    ours, theirs = Applier(), Applier()
    for applier in (ours, theirs):
        applier.write(100)
    items = theirs.store.range("", None, 1_000)
    theirs.store.restore(theirs.store.revision, items[1:])
    assert ours.store.revision == theirs.store.revision
    assert ours.history.at(100) != theirs.history.at(100)


def test_only_what_is_remembered_can_be_compared() -> None:
    applier = Applier()
    applier.write(200)
    assert [index for index in range(1, 300) if applier.history.at(index) is not None] == [64, 128, 192, 200]
    assert applier.history.oldest == 64
    last = (REMEMBERED + 10) * EVERY
    applier.write(last)
    assert applier.history.oldest == 11 * EVERY
    assert applier.history.at(10 * EVERY) is None
    assert applier.history.at(11 * EVERY) is not None


def test_the_digest_survives_a_restart_from_the_log_and_from_a_snapshot(tmp_path: Path) -> None:
    disk = Directory(tmp_path / "n1")
    segments, snapshots = Segments(disk, CLUSTER_ID), Snapshots(disk, CLUSTER_ID)
    segments.recover()
    before = Applier()
    before.write(333)
    members, view = named("n1", "n2", "n3"), before.store.view()
    written = snapshots.write(333, 1, members, view, before.history.value)
    snapshots.published(written)
    before.write(500)
    flight = before.journal.begin_flight()
    assert flight is not None
    segments.append(flight.buffers, flight.last_index, flight.state, sync=True)
    from_log = Applier(Journal(Segments(disk, CLUSTER_ID).recover()))
    from_log.apply(500)
    from_snapshot = Applier(Journal(Segments(disk, CLUSTER_ID).recover()), snapshots.load(written.name))
    from_snapshot.apply(500)
    for index in (6 * EVERY, 500):
        assert before.history.at(index) == from_log.history.at(index) == from_snapshot.history.at(index) is not None
    disk.close()


def test_a_snapshot_of_the_first_format_is_read_and_its_digest_is_not_known(tmp_path: Path) -> None:
    disk = Directory(tmp_path / "n1")
    snapshots, applier = Snapshots(disk, CLUSTER_ID), Applier()
    applier.write(100)
    written = snapshots.write(100, 1, named("n1"), applier.store.view(), applier.history.value)
    head, members, rest = 42, len(named("n1").packed), disk.read(written.name)
    names = b"\x91\xa2n1"
    old = struct.pack("<4sH", b"KVNS", 1) + rest[6 : head - 4] + struct.pack("<I", len(names)) + names
    name = "snapshot-old"
    disk.append(name, [old + zlib.crc32(old).to_bytes(4, "little") + rest[head + 9 + members + 4 :]])
    snapshot, store = snapshots.load(name)
    assert (snapshot.index, snapshot.members, snapshot.digest, len(store)) == (100, ("n1",), None, 50)
    restored = Applier(applier.journal, (snapshot, store))
    restored.write(200)
    assert restored.history.value is None
    assert [index for index in range(300) if restored.history.at(index) is not None] == []
    disk.close()


# --- the verdict -----------------------------------------------------------------------------------------


class Core:
    """What an audit asks of its node's core."""

    def __init__(self, node_id: str, cluster: Cluster) -> None:
        self.node_id = node_id
        self.applier = Applier()
        self.journal = self.applier.journal
        self.term = 3
        self.replicator = self
        self._cluster = cluster

    @property
    def peer_ids(self) -> list[str]:
        return [node_id for node_id in self._cluster.ids if node_id != self.node_id]

    @property
    def leader_id(self) -> str | None:
        return self._cluster.leader

    @property
    def is_leader(self) -> bool:
        return self.leader_id == self.node_id

    @property
    def followers(self) -> dict[str, Progress]:
        nodes = self._cluster.nodes
        return {peer: Progress(1, applied=nodes[peer].core.applier.history.index) for peer in self.peer_ids}

    def clock(self) -> float:
        return self._cluster.now

    def is_follower(self, node_id: str) -> bool:
        return node_id in self.peer_ids

    is_voter = True  # learners: tests/processes/test_membership.py

    @property
    def follower_ids(self) -> list[str]:
        return self.peer_ids

    def answered_within(self, node_id: str, age_s: float) -> bool:
        return node_id not in self._cluster.away


class Node:
    def __init__(self, node_id: str, cluster: Cluster) -> None:
        self.core = Core(node_id, cluster)
        self.audit = DivergenceCheck(cast(Any, self.core), self.core.applier.store, self._send, None)
        self.audit.history = self.core.applier.history
        self._cluster = cluster

    def _send(self, node_id: str, message: Message) -> bool:
        self._cluster.sent.append((self.core.node_id, node_id, message))
        return True


class Cluster:
    """Audits that talk to each other; `away` hears and says nothing."""

    def __init__(self, size: int = 3, leader: str = "n1") -> None:
        self.ids = [f"n{number}" for number in range(1, size + 1)]
        self.leader: str | None = leader
        self.now = 100.0
        self.away: set[str] = set()
        self.sent: deque[tuple[str, str, Message]] = deque()
        self.nodes = {node_id: Node(node_id, self) for node_id in self.ids}

    def write(self, last: int, different: str = "", away: str = "") -> None:
        for node_id, node in self.nodes.items():
            if node_id not in away.split():
                node.core.applier.write(last, altered=50 if node_id in different.split() else None)

    def round(self) -> None:
        """Time for the leader to ask, for all to answer, and for what is left open to be settled."""
        for passed_s in (ROUND_S, SETTLE_S / 2, SETTLE_S):
            self.now += passed_s
            for node_id in self.ids:
                if node_id not in self.away:
                    self.nodes[node_id].audit.look()
            while self.sent:
                source, target, message = self.sent.popleft()
                if not {source, target} & self.away:
                    self.nodes[target].audit.heard(source, *message[1:])

    @property
    def unfit(self) -> list[str]:
        return [node_id for node_id, node in self.nodes.items() if node.audit.error is not None]


@pytest.mark.parametrize("last", [60, 200, 1_000])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_nodes_with_the_same_data_find_nothing(size: int, last: int) -> None:
    cluster = Cluster(size)
    cluster.write(last)
    cluster.round()
    assert cluster.unfit == []


@pytest.mark.parametrize("last", [60, 1_000])
@pytest.mark.parametrize("wrong", ["n1", "n2", "n3"])
def test_the_one_that_differs_is_unfit_leader_or_not(wrong: str, last: int, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(leader="n1")
    cluster.write(last, different=wrong)
    cluster.round()
    cluster.round()
    assert cluster.unfit == [wrong]
    error = cluster.nodes[wrong].audit.error
    assert error is not None
    assert error.startswith(f"This node's data differs from the majority's at entry {last if last < EVERY else ''}")
    for node_id in cluster.ids:
        agrees = cluster.nodes[node_id].audit.agrees
        assert [peer for peer in cluster.ids if not agrees(peer)] == [wrong]
    said = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 3, "each node says it, once"


def test_two_of_five_that_differ_are_both_unfit() -> None:
    cluster = Cluster(size=5)
    cluster.write(500, different="n1 n4")
    cluster.round()
    assert cluster.unfit == ["n1", "n4"]


def test_without_a_majority_a_follower_takes_the_leaders_word_until_one_is_heard() -> None:
    cluster = Cluster(leader="n1")
    cluster.write(500, different="n1")
    cluster.away = {"n3"}
    cluster.round()
    assert cluster.unfit == ["n2"]
    assert "differs from the leader's" in (cluster.nodes["n2"].audit.error or "")
    cluster.away = set()
    cluster.round()
    assert cluster.unfit == ["n1"]
    cluster.away = {"n3"}
    cluster.round()
    assert cluster.unfit == ["n1"], "what a majority has found is not undone by less"


def test_a_node_that_is_behind_or_does_not_know_is_not_waited_for() -> None:
    cluster = Cluster(size=5)
    cluster.write(10)
    cluster.write(500, different="n3", away="n2")
    cluster.nodes["n4"].audit.restored(Snapshot("snapshot-old", 500, 1, (), 1))
    cluster.round()
    assert cluster.unfit == ["n3"]


def test_a_follower_a_little_behind_is_compared_where_it_is() -> None:
    cluster = Cluster()
    cluster.write(300, different="n2")
    cluster.write(350, away="n2")
    cluster.round()
    assert cluster.unfit == ["n2"]
    assert "at entry 256:" in (cluster.nodes["n2"].audit.error or "")


def test_a_snapshot_from_the_leader_makes_a_node_fit_again() -> None:
    cluster = Cluster(leader="n1")
    cluster.write(500, different="n2")
    cluster.round()
    assert cluster.unfit == ["n2"]
    good = cluster.nodes["n1"].core.applier
    node = cluster.nodes["n2"]
    node.core.applier.store.restore(good.store.revision, good.store.range("", None, 1_000))
    node.audit.restored(Snapshot("snapshot", 500, 1, (), 1, good.history.value))
    assert cluster.unfit == []
    cluster.write(700)
    cluster.round()
    assert cluster.unfit == []
    assert cluster.nodes["n1"].audit.agrees("n2")


def test_words_of_another_term_or_of_strangers_do_not_count() -> None:
    cluster = Cluster()
    cluster.write(64)
    audit = cluster.nodes["n2"].audit
    for node_id in ("n1", "n3"):
        audit.heard(node_id, 2, 64, 1)
    for stranger in ("n7", "n8", "n9"):
        audit.heard(stranger, 3, 64, 1)
    cluster.round()
    assert cluster.unfit == []


def test_open_rounds_are_bounded() -> None:
    cluster = Cluster()
    cluster.write(64)
    audit = cluster.nodes["n2"].audit
    for index in range(1_000):
        audit.heard("n3", 3, index, 1)
    assert len(audit._rounds) <= ROUNDS_MAX


def test_a_cluster_that_was_founded_on_a_snapshot_compares_from_there_on(tmp_path: Path) -> None:
    """As `kvnode recover` and `kvnode restore` make it."""
    claim = Claim("n1", CLUSTER_ID, ["n1"], recovered=True)
    before = Applier()
    before.write(5)
    found(tmp_path / "n1", claim, 70, 1, 2, named("n1"), before.store)
    disk = Directory(tmp_path / "n1")
    snapshots = Snapshots(disk, CLUSTER_ID)
    snapshots.recover()
    assert snapshots.newest is not None
    history = History(Journal(Segments(disk, CLUSTER_ID).recover()), before.store)
    history.restored(snapshots.newest.index, snapshots.newest.digest)
    disk.close()
    assert history.value is not None
