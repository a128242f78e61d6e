"""What a lock does where the cluster cannot say whether it was taken, or answers late, or not any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvnode import errors
from kvnode.client import Client
from tests.cli.scripted import Asked, Reply, always, say_nothing, scripted

UNKNOWN = Reply(504, b'{"error":"outcome_unknown","message":"Nobody can tell.","outcome":"unknown"}')


@pytest.mark.parametrize("wait_s", [0, 0.3])
async def test_a_lock_that_nobody_can_tell_about_is_waited_for_no_longer_than_asked(wait_s: float) -> None:
    async with scripted(always(UNKNOWN)) as node, Client([node.url], 0.2) as client:
        async with asyncio.timeout(5):
            with pytest.raises(errors.OutcomeUnknown):
                await client.lock("x").acquire(wait_s)
    assert len(node.asked) >= 1


NO_LEADER = Reply(503, b'{"error":"no_leader","message":"None.","outcome":"not_applied"}')
NO_LEASE = Reply(404, b'{"error":"lease_not_found","message":"Gone.","outcome":"not_applied"}')


class Locks:
    """A node that gives the lock to whoever asks. Each put is the next revision, and its lease has the same number."""

    def __init__(self) -> None:
        self.answers_after_s = [0.0]  # a transaction; the last counts from then on
        self.renews = True
        self.lives = True
        self.token = 0
        self.asked: list[str] = []

    async def __call__(self, asked: Asked) -> Reply:
        path = asked.raw_path.partition("?")[0]
        if path == "/v1/watch":
            return await say_nothing(asked)
        if path != "/v1/txn":
            self.asked.append("keepalive" if path.endswith("/keepalive") else "revoke")
            if self.asked[-1] == "revoke":
                return Reply(200, b'{"deleted":1}')
            if not self.lives:
                self.lives = True  # the next one that is granted
                return NO_LEASE
            if not self.renews:
                return await say_nothing(asked)
            return Reply(200, b'{"id":%d,"ttl":3,"remaining":3}' % self.token)
        document = json.loads(asked.body)
        if not document["compare"]:
            self.asked.append("get")
            seen = {"key": "locks/x", "exists": True, "value": "", "create_revision": self.token}
            results = [{"get": seen | {"mod_revision": self.token, "version": 1}}]
        else:
            self.asked.append("take")
            delay_s = self.answers_after_s.pop(0) if len(self.answers_after_s) > 1 else self.answers_after_s[0]
            self.token += 1
            token = self.token
            await asyncio.sleep(delay_s)
            results = [{"put": {"key": "locks/x", "revision": token, "version": 1, "created": True, "lease": token}}]
        return Reply(200, json.dumps({"succeeded": True, "revision": self.token, "results": results}).encode())


@asynccontextmanager
async def cluster_of_locks() -> AsyncIterator[tuple[Locks, Client]]:
    locks = Locks()
    async with scripted(locks) as node, Client([node.url], 5) as client:
        yield locks, client


async def test_a_lock_that_was_answered_at_once_is_held_without_another_question() -> None:
    async with cluster_of_locks() as (locks, client):
        lock = client.lock("x", ttl_s=30)
        assert await lock.acquire()
        assert (lock.held, locks.asked) == (True, ["take"])
        await lock.release()


async def test_a_lock_whose_answer_came_late_is_renewed_before_it_is_held() -> None:
    async with cluster_of_locks() as (locks, client):
        locks.answers_after_s = [1.2]
        lock = client.lock("x", ttl_s=3)
        assert await lock.acquire()
        assert locks.asked[:3] == ["take", "keepalive", "get"]
        assert lock.ends_in_s > 2.0  # the answer is older than that
        await lock.release()


async def test_a_lock_whose_lease_ended_before_its_answer_came_is_taken_anew() -> None:
    async with cluster_of_locks() as (locks, client):
        locks.answers_after_s, locks.lives = [1.2, 0.0], False
        lock = client.lock("x", ttl_s=3)
        assert await lock.acquire()
        assert locks.asked[:3] == ["take", "keepalive", "take"]
        assert (lock.token, lock.held) == (2, True)
        await lock.release()


async def test_a_lock_that_cannot_be_renewed_is_given_up_before_its_lease_can_end() -> None:
    async with cluster_of_locks() as (locks, client):
        locks.renews = False
        lock = client.lock("x", ttl_s=2)
        assert await lock.acquire()
        async with asyncio.timeout(5):
            await lock.lost.wait()
        # A quarter of the ttl is left for what the holder does to come to an end.
        assert 0.2 < lock.ends_in_s <= 0.5
        assert not lock.held
        await lock.release()


async def test_a_holder_that_could_not_run_does_not_believe_in_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster_of_locks() as (_, client):
        lock = client.lock("x", ttl_s=4)
        assert await lock.acquire()
        later_s = lock._renewed_at + 3.1
        monkeypatch.setattr("kvnode.client.lock._now", lambda: later_s)  # the machine slept; no task has run since
        assert not lock.held


@pytest.mark.parametrize("reply", [NO_LEADER, UNKNOWN, None])
async def test_a_lock_is_waited_for_for_ever_without_a_leader(reply: Reply | None) -> None:
    replies = [reply] * 8

    async def script(asked: Asked) -> Reply | None:
        return replies.pop() if replies else await locks(asked)

    locks = Locks()
    async with scripted(script) as node, Client([node.url], 0.2) as client:
        async with asyncio.timeout(20):
            assert await client.lock("x").acquire()


async def test_a_lock_that_is_not_waited_for_for_ever_says_that_nobody_could_be_asked() -> None:
    async with scripted(always(NO_LEADER)) as node, Client([node.url], 20) as client:
        began = asyncio.get_running_loop().time()
        with pytest.raises(errors.NoLeader):
            await client.lock("x").acquire(1.5)
        assert asyncio.get_running_loop().time() - began < 5
