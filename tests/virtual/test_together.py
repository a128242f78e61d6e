"""Calls of one client that travel together, while what carries them breaks: each is carried out once, or not at all."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from kvnode.client.together import Lane, Share
from tests.virtual.scene import Scene, scene_of

TASKS, CALLS = 12, 8


@pytest.fixture
def flights(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many requests held several calls, and how many of these calls the request left open."""
    counted: Counter[str] = Counter()
    travel, fail = Lane._travel, Share.fail

    async def counted_travel(self: Lane, shares: list[Share]) -> None:
        counted["flights"] += 1
        counted["calls"] += len(shares)
        await travel(self, shares)

    def counted_fail(self: Share, error: BaseException) -> None:
        counted["failed"] += 1
        fail(self, error)

    monkeypatch.setattr(Lane, "_travel", counted_travel)
    monkeypatch.setattr(Share, "fail", counted_fail)
    return counted


async def crowd(scene: Scene, *names: str) -> None:
    """Tasks of one client that write and read the same few keys."""
    async with scene.cluster.client(*names, timeout_s=8.0) as client:

        async def each(number: int) -> None:
            for count in range(CALLS):
                call = scene.work.get if (number + count) % 4 == 0 else scene.work.put
                await call(client, f"y{count % 3}")

        await asyncio.gather(*(each(number) for number in range(TASKS)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what the killed node had not begun
@pytest.mark.parametrize("after_ms", range(2, 40, 6))
def test_a_leader_that_dies_with_calls_on_their_way_loses_none_and_doubles_none(
    flights: Counter[str], after_ms: int
) -> None:
    with scene_of(21) as scene:
        work = scene.begin(crowd(scene, "n1", "n2", "n3"))
        scene.world.pass_s(after_ms / 1000)
        scene.node("n1").kill()
        scene.world.pass_s(1.0)
        scene.node("n1").start()
        scene.world.run(work.done, 30.0)
        work.result()
        outcomes = Counter(each.outcome for each in scene.cluster.judge.operations)
    assert flights["calls"] > 2 * flights["flights"] > 0
    assert outcomes["ok"] >= TASKS * CALLS * 0.9, outcomes


def test_answers_that_are_lost_leave_each_write_in_doubt_and_each_is_sent_again(flights: Counter[str]) -> None:
    with scene_of(22) as scene:
        work = scene.begin(crowd(scene, "n1", "n2", "n3"))
        scene.world.run(lambda: flights["flights"] > 0, 5.0)
        scene.world.pass_s(0.0015)  # it has arrived, and is not answered yet
        for end in scene.network.connections("clients", "n1"):
            scene.network.reset(end)
        scene.world.run(work.done, 30.0)
        work.result()
        outcomes = Counter(each.outcome for each in scene.cluster.judge.operations)
    assert flights["failed"] > 1
    assert set(outcomes) == {"ok"}
