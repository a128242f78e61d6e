"""The cluster's feature level rises once every member knows the next one, is kept, and is never lowered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvnode.errors import StartupError
from kvnode.node import feature_level
from kvnode.node.group import RaftGroup
from kvnode.node.settings import RaftSettings
from kvnode.state.commands import (
    FEATURE_LEVEL,
    LEVEL,
    Put,
    RaiseLevel,
)
from kvnode.state.limits import LEVEL_MAX
from kvnode.state.results import Invalid, LevelRaised
from kvnode.state.store import KeyValueStore
from kvnode.storage import backup
from tests.cluster import free_ports


def store_at(level: int) -> KeyValueStore:
    store = KeyValueStore()
    store.apply([LEVEL, level])
    return store


def test_a_level_rises_and_never_falls_and_changes_no_revision_but_that_of_an_empty_store() -> None:
    """Which it lifts to 1, where an empty store of etcd's begins: 0 is no revision to etcd's clients."""
    store = KeyValueStore()
    assert store.apply([LEVEL, 2]) == LevelRaised(1, 2)
    assert store.apply([LEVEL, 1]) == LevelRaised(1, 2)
    assert store.revision == 1
    older = KeyValueStore()
    older.apply([1, "k", b"v", "", None])
    assert older.apply([LEVEL, 1]) == LevelRaised(1, 1)


@pytest.mark.parametrize("level", [0, -1, LEVEL_MAX + 1, 2**70, True, None, "1", [1], 1.0])
def test_what_is_no_level_is_refused(level: object) -> None:
    store = store_at(1)
    assert isinstance(store.apply([LEVEL, level]), Invalid)
    assert isinstance(store.apply([LEVEL, 2, "idempotency-key"]), Invalid)
    assert isinstance(store.apply([LEVEL]), Invalid)
    assert store.level == 1


def test_a_snapshot_carries_the_level_and_a_backup_does_not() -> None:
    store = KeyValueStore()
    store.apply([1, "k", b"v", "", None])
    store.apply([LEVEL, 3])
    assert KeyValueStore.load(store.view().chunks()).level == 3
    file = b"".join(backup.pieces(store.view(), "cluster"))
    _, chunks = backup.chunks_of(file)
    assert KeyValueStore.load(chunks).level == 0
    before = KeyValueStore()
    before.apply([1, "k", b"v", "", None])
    assert b"".join(backup.pieces(before.view(), "cluster")) == file, "nodes of 0.1 read it, too"


def test_a_store_is_marked_with_its_level() -> None:
    assert store_at(1).mark != KeyValueStore().mark
    assert KeyValueStore().mark == 0, "what nodes of 0.1 reckon"


@asynccontextmanager
async def running(
    folder: Path, size: int, started: int | None = None, level: int = FEATURE_LEVEL
) -> AsyncIterator[list[RaftGroup]]:
    peers = {f"n{number}": ("127.0.0.1", port) for number, port in enumerate(free_ports(size), 1)}
    groups = [
        RaftGroup(
            RaftSettings(
                node_id=name,
                listen=address,
                peers=peers,
                http_url="http://127.0.0.1:1",
                data_dir=folder / name,
                secret=b"x" * 16,
                election_timeout_min_s=0.3,
                election_timeout_max_s=0.6,
                heartbeat_s=0.05,
                feature_level=level,
            )
        )
        for name, address in peers.items()
    ]
    try:
        for group in groups[:started]:
            await group.start()
        yield groups
    finally:
        for group in groups:
            await group.stop()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [1, 3])
async def test_a_new_cluster_reaches_this_versions_level_by_itself(tmp_path: Path, size: int) -> None:
    async with running(tmp_path, size) as groups:
        await until(lambda: all(group.status().feature_level == FEATURE_LEVEL for group in groups))
        leader = next(group for group in groups if group.leader_refusal() is None)
        assert leader.store.revision == 1
        last = leader.status().last_index
        await leader.propose(Put("k", b"v").encode())
        assert leader.status().last_index <= last + 2, "a level is proposed once"  # the session key may come late


async def test_a_member_that_is_away_holds_the_level(tmp_path: Path) -> None:
    async with running(tmp_path, 3, started=2) as groups:
        await until(lambda: any(group.leader_refusal() is None for group in groups))
        leader = next(group for group in groups if group.leader_refusal() is None)
        for number in range(20):
            await leader.propose(Put(f"k{number}", b"v").encode())
            await asyncio.sleep(0.02)
        assert leader.status().feature_level == 0
        await groups[2].start()
        await until(lambda: all(group.status().feature_level == FEATURE_LEVEL for group in groups))


async def test_a_member_that_knows_less_holds_the_level_and_more_than_this_version_knows_stops_a_node(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, 3, level=0) as groups:
        await until(lambda: any(group.leader_refusal() is None for group in groups))
        leader = next(group for group in groups if group.leader_refusal() is None)
        await leader.propose(Put("k", b"v").encode())
        await asyncio.sleep(0.1)
        assert leader.status().feature_level == 0
        await leader.propose(RaiseLevel(FEATURE_LEVEL + 1).encode())
        async with asyncio.timeout(10):
            assert f"feature level {FEATURE_LEVEL + 1}" in (await groups[0].fatal).message


async def test_a_directory_of_a_later_version_is_not_started_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_level, "FEATURE_LEVEL", 7)
    async with running(tmp_path, 1) as (group,):
        await until(lambda: group.leader_refusal() is None)
        await group.propose(RaiseLevel(7).encode())
        engine = group._engine
        assert engine is not None
        engine._compaction.bounds = type(engine._compaction.bounds)(0, 0, tail_entries=0)
        await until(lambda: (levels := group.levels()) is not None and levels.snapshot_index > 0)
    monkeypatch.undo()
    peers = {"n1": ("127.0.0.1", free_ports(1)[0])}
    older = RaftGroup(RaftSettings("n1", peers["n1"], peers, "http://127.0.0.1:1", tmp_path / "n1", secret=b"x" * 16))
    with pytest.raises(StartupError, match="feature level 7, and this version of kvnode knows"):
        await older.start()
    await older.stop()
