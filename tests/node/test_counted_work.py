"""What writes, reads and probes cost in messages, entries and syncs: counted, so that no machine is too slow to tell.

Three groups in one process, with real sockets and files. Heartbeats come by the clock and not by the work: here they
are far apart, and what a test counts is over before the next of them.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import FrameType

import pytest

from kvnode.node.engine import Engine
from kvnode.node.group import RaftGroup
from kvnode.node.settings import RaftSettings
from kvnode.peers.network import Network
from kvnode.raft import messages
from kvnode.state.commands import FEATURE_LEVEL, Put
from kvnode.storage.disk import Directory
from tests.cluster import free_ports
from tests.node import path_of_a_put

HEARTBEAT_S = 1.0
BEATS = 8  # messages of one heartbeat and of the audit between three nodes, should one fall into what is counted


class Calls:
    """Functions of the node and of its core that are called meanwhile, on all three nodes together."""

    def __init__(self) -> None:
        self.count = 0

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and ("/kvnode/" in frame.f_code.co_filename or "/pysyncobj/" in frame.f_code.co_filename):
            self.count += 1

    def __enter__(self) -> Calls:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


class Trio:
    """A leader and its two followers; `counted` is what they did together since `begin`."""

    def __init__(self, groups: list[RaftGroup], counted: Counter[str]) -> None:
        self._groups = groups
        self.counted = counted
        self.leader = next(group for group in groups if group.leader_refusal() is None)
        self.follower = next(group for group in groups if group is not self.leader)
        self._last_index = 0

    async def settle(self) -> None:
        """Until all have applied the same, and nothing is on its way."""
        async with asyncio.timeout(20):
            while True:
                before = self.counted["messages"], self.counted["syncs"]
                await asyncio.sleep(0.05)
                applied = {group.status().applied_index for group in self._groups}
                if len(applied) == 1 and (self.counted["messages"], self.counted["syncs"]) == before:
                    return

    async def count(self, work: Callable[[], Awaitable[object]]) -> Counter[str]:
        await self.settle()
        self.counted.clear()
        first = self.leader.status().last_index
        await work()
        await self.settle()
        self.counted["entries"] = self.leader.status().last_index - first
        return self.counted.copy()


@pytest.fixture
async def trio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Trio]:
    counted: Counter[str] = Counter()
    send, sync, step, tick = Network.send, Directory.sync, Engine._step, Engine._on_timer

    def counted_send(self: Network, node_id: str, message: messages.Message) -> bool:
        counted["messages"] += 1
        if message[0] == messages.READ_INDEX:
            counted["questions"] += 1
        return send(self, node_id, message)

    def counted_sync(self: Directory, name: str) -> None:
        counted["syncs"] += name.startswith("journal-")  # the mark of what is durable follows in a quiet moment
        sync(self, name)

    def counted_step(self: Engine) -> None:
        counted["steps"] += 1
        step(self)

    monkeypatch.setattr(Network, "send", counted_send)
    monkeypatch.setattr(Directory, "sync", counted_sync)

    def uncounted_tick(self: Engine) -> None:
        counted["steps"] -= 1  # those by the clock are not of the work, and more on a slow machine
        counting = sys.getprofile()
        sys.setprofile(None)
        tick(self)
        sys.setprofile(counting)

    monkeypatch.setattr(Engine, "_step", counted_step)
    monkeypatch.setattr(Engine, "_on_timer", uncounted_tick)
    ports = free_ports(3)
    peers = {f"n{number}": ("127.0.0.1", port) for number, port in enumerate(ports, 1)}
    groups = []
    try:
        for name, address in peers.items():
            settings = RaftSettings(
                node_id=name, listen=address, peers=peers, http_url="http://127.0.0.1:1", data_dir=tmp_path / name,
                secret=b"x" * 16, election_timeout_min_s=5.0, election_timeout_max_s=8.0, heartbeat_s=HEARTBEAT_S,
            )  # fmt: skip
            groups.append(RaftGroup(settings))
        for group in groups:
            await group.start()
        await until(lambda: any(group.leader_refusal() is None for group in groups))
        await until(lambda: all(group.session.keys for group in groups))
        await until(lambda: all(group.store.level == FEATURE_LEVEL for group in groups))  # another entry of its own
        yield Trio(groups, counted)
    finally:
        for group in groups:
            await group.stop()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.02)


def command(number: int) -> bytes:
    return Put(f"k{number}", b"v" * 80).encode()


async def test_many_writes_share_entries_messages_and_syncs(trio: Trio) -> None:
    async def wave() -> None:
        await asyncio.gather(*(trio.leader.propose(command(number)) for number in range(64)))

    async def client(number: int) -> None:
        for _ in range(20):
            await trio.leader.propose(command(number))

    async def clients() -> None:
        await asyncio.gather(*(client(number) for number in range(64)))

    # 64 that come at once are one entry: to two followers and back, the news of the commit, one sync on each node.
    counted = await trio.count(wave)
    assert counted["entries"] == 1
    assert counted["syncs"] <= 3
    assert counted["messages"] <= 8 + BEATS
    # And 64 clients that each wait for their answer: at least forty writes to an entry.
    counted = await trio.count(clients)
    entries = counted["entries"]
    assert entries <= 64 * 20 / 40
    assert counted["syncs"] <= 3 * entries
    assert counted["messages"] <= 7 * entries + BEATS
    assert counted["steps"] <= 5 * entries + BEATS


async def test_a_follower_forwards_whole_groups(trio: Trio) -> None:
    async def wave() -> None:
        await asyncio.gather(*(trio.follower.propose(command(number)) for number in range(64)))

    counted = await trio.count(wave)
    assert counted["entries"] == 1
    assert counted["messages"] <= 9 + BEATS
    assert counted["syncs"] <= 3


async def test_a_lone_write_costs_one_entry_and_a_sync_on_each_node(trio: Trio) -> None:
    counted = await trio.count(lambda: trio.leader.propose(command(1)))
    assert counted["entries"] == 1
    assert counted["syncs"] <= 3
    assert counted["messages"] <= 8 + BEATS


async def test_probes_share_rounds_and_write_nothing(trio: Trio) -> None:
    async def probes() -> None:
        confirmed = await asyncio.gather(*(trio.leader.verify_leader(2.0) for _ in range(100)))
        assert None not in confirmed

    counted = await trio.count(probes)
    assert counted["entries"] == counted["syncs"] == 0
    # A round is a message to each follower and one back; those that come while one is on its way share the next.
    assert counted["messages"] <= 2 * 4 + BEATS


@pytest.mark.parametrize("where", ["leader", "follower"])
async def test_reads_share_rounds_and_write_nothing(trio: Trio, where: str) -> None:
    group = trio.leader if where == "leader" else trio.follower

    async def reads() -> None:
        await asyncio.gather(*(group.read_barrier() for _ in range(100)))

    counted = await trio.count(reads)
    assert counted["entries"] == counted["syncs"] == 0
    assert counted["questions"] <= (0 if where == "leader" else 2)
    assert counted["messages"] <= 2 * 6 + BEATS


@pytest.mark.parametrize(("what", "calls_max"), [("put", 36), ("forwarded put", 42), ("read", 17), ("probe", 14)])
async def test_calls_for_each_request(trio: Trio, what: str, calls_max: int) -> None:
    """Of all three nodes, below HTTP, with 64 clients that each wait for their answers: 29, 34, 13 and 10."""
    leader, follower = trio.leader, trio.follower

    async def client(number: int) -> None:
        for _ in range(20):
            if what == "put":
                await leader.propose(command(number))
            elif what == "forwarded put":
                await follower.propose(command(number))
            elif what == "read":
                asked = leader.read_index()
                assert asked is not None
                assert leader.holds(await asked)
            else:
                assert await leader.verify_leader(2.0) is not None

    await asyncio.gather(*(client(number) for number in range(64)))  # whatever is done once is done
    await trio.settle()
    with Calls() as calls:
        await asyncio.gather(*(client(number) for number in range(64)))
    assert calls.count <= calls_max * 64 * 20


def test_the_way_of_a_lone_put() -> None:
    """Through HTTP, of all nodes and on the leader: 56 files and 309 calls."""
    way = path_of_a_put.lone()
    assert len(way.files) <= 56
    assert way.calls <= 320


def test_the_way_of_each_put_of_many() -> None:
    """Through HTTP, on the leader: 113 calls."""
    assert path_of_a_put.crowded() <= 120


def test_the_way_of_puts_that_travel_together() -> None:
    """Through HTTP, on the leader: 65 calls."""
    assert path_of_a_put.crowded(together=True) <= 68
