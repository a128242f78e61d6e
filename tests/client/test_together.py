"""Calls that are under way at a time travel together, and each has an outcome of its own."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvnode import client, errors
from kvnode.client import Client
from kvnode.client.calls import IDEMPOTENCY_KEY
from kvnode.client.entries import TOGETHER_BYTES_MAX
from kvnode.client.together import BEHIND_S
from tests.cli.scripted import Asked, Reply, Scripted, break_off, scripted
from tests.cluster import Cluster

PUT = Reply(200, b'{"key":"k","revision":5,"version":2,"created":false}')
OLD = Reply(400, b'{"error":"bad_request","message":"The body has an unknown field.","outcome":"not_applied"}')
FIRST = b"first"  # the value of the call that the others travel behind
Answering = Callable[[list[dict[str, Any]]], Awaitable[Reply | None]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("together")
    with Cluster(folder, size=1).start() as cluster:
        yield cluster.url("n1")


class Gate:
    """A script whose first request waits for `open`, so that what is called meanwhile travels together."""

    def __init__(self, together: Answering, alone: Callable[[Asked], Awaitable[Reply | None]] | None = None) -> None:
        self._together = together
        self._alone = alone
        self.open = asyncio.Event()
        self.came = asyncio.Event()

    async def script(self, asked: Asked) -> Reply | None:
        if asked.body == FIRST:
            self.came.set()
            await self.open.wait()
            return PUT
        if asked.raw_path == "/v1/batch":
            document = json.loads(asked.body)
            assert document["independent"] is True
            return await self._together(document["operations"])
        return PUT if self._alone is None else await self._alone(asked)

    async def behind(self, c: Client, *calls: Awaitable[Any]) -> list[Any]:
        """What becomes of these calls, which are made while another one is under way."""
        first = asyncio.ensure_future(c.put("first", FIRST))
        await self.came.wait()
        others = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        self.open.set()
        await first
        return await asyncio.gather(*others, return_exceptions=True)


def results(*each: dict[str, Any]) -> Reply:
    return Reply(200, json.dumps({"results": each}).encode())


def written(key: str, revision: int) -> dict[str, Any]:
    return {"key": key, "revision": revision, "version": 1, "created": True}


def failed(code: str, outcome: str) -> dict[str, Any]:
    return {"key": "k", "error": code, "message": "A sentence.", "outcome": outcome}


async def never(asked: Any) -> Reply:
    raise AssertionError(asked)


async def all_written(operations: list[dict[str, Any]]) -> Reply:
    return results(*(written(each["put"]["key"], number) for number, each in enumerate(operations, 1)))


def sent(node: Scripted) -> list[tuple[str, str]]:
    """But for the first."""
    return [(asked.method, asked.raw_path) for asked in node.asked[1:]]


async def test_a_call_alone_is_sent_at_once_and_as_it_always_was() -> None:
    gate = Gate(never)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        for number in range(3):
            await c.put(f"k{number}", b"v")
        await c.delete("k")
    assert [(asked.method, asked.raw_path) for asked in node.asked] == [
        ("PUT", "/v1/kv/k0"), ("PUT", "/v1/kv/k1"), ("PUT", "/v1/kv/k2"), ("DELETE", "/v1/kv/k"),
    ]  # fmt: skip


async def test_what_is_called_meanwhile_is_one_request_with_a_key_for_each() -> None:
    seen: list[dict[str, Any]] = []

    async def together(operations: list[dict[str, Any]]) -> Reply:
        seen.extend(operations)
        return results(written("a", 7), written("b", 8), {"key": "c", "deleted": 1, "revision": 9})

    gate = Gate(together)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        outcomes = await gate.behind(
            c, c.put("a", b"\0", ttl=3, content_type="x/y"), c.put("b", b"1", idempotency_key="own"), c.delete("c")
        )
    assert outcomes == [client.Put(7, 1, True), client.Put(8, 1, True), 9]
    assert sent(node) == [("POST", "/v1/batch")]
    assert IDEMPOTENCY_KEY not in node.asked[1].headers
    assert 4.0 < float(node.asked[1].headers["Kvnode-Timeout"]) <= 5.0
    put, own, delete = (next(iter(each.values())) for each in seen)
    assert len(put.pop("idempotency_key")) == len(delete.pop("idempotency_key")) == 32
    assert put == {"key": "a", "value": b64encode(b"\0").decode(), "content_type": "x/y", "ttl": 3}
    assert (own["idempotency_key"], delete) == ("own", {"key": "c"})


async def test_many_at_once_do_not_wait_for_each_other(node: str) -> None:
    async with Client(node, 5) as c:
        puts = await asyncio.gather(*(c.put(f"many/{number}", b"%d" % number) for number in range(300)))
        assert len({put.revision for put in puts}) == 300
        items = await asyncio.gather(*(c.get(f"many/{number}") for number in range(300)))
        assert [item.value for item in items] == [b"%d" % number for number in range(300)]
        assert [item.mod_revision for item in items] == [put.revision for put in puts]


async def test_reads_that_travel_together_say_what_reads_alone_say(node: str) -> None:
    async with Client(node, 5) as c:
        await c.put('é/ "', b"\xff\0", content_type="text/x")
        leased = await c.put("leased", b"", ttl=60)
        for kind in ("linearizable", "stale"):
            alone = [await c.get(key, kind) for key in ('é/ "', "leased")]
            _, *found, missing = await asyncio.gather(
                *(c.get(key, kind) for key in ("leased", 'é/ "', "leased", "none")), return_exceptions=True
            )
            assert found == alone
            assert isinstance(missing, errors.KeyNotFound)
            assert found[1].lease == leased.lease


async def test_each_call_has_its_own_outcome() -> None:
    alone: list[Asked] = []

    async def together(operations: list[dict[str, Any]]) -> Reply:
        return results(
            written("a", 7), failed("key_not_found", "not_applied"), failed("no_leader", "not_applied"),
            failed("outcome_unknown", "unknown"), failed("disk_full", "not_applied"),
            failed("bad_request", "not_applied"),
        )  # fmt: skip

    async def told_alone(asked: Asked) -> Reply:
        alone.append(asked)
        return OLD if asked.raw_path.endswith("wrong") else PUT

    gate = Gate(together, told_alone)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        fine, missing, later, doubtful, full, wrong = await gate.behind(
            c, c.put("a", b""), c.delete("b"), c.put("later", b""),
            c.put("doubtful", b"", idempotency_key="kept"), c.put("full", b""), c.put("wrong", b""),
        )  # fmt: skip
    assert fine == client.Put(7, 1, True)
    assert isinstance(missing, errors.KeyNotFound)
    assert later == doubtful == client.Put(5, 2, False)
    assert isinstance(full, errors.DiskFull)
    assert (type(wrong), wrong.message) == (errors.BadRequest, "The body has an unknown field.")
    assert {asked.raw_path.rpartition("/")[2] for asked in alone} == {"later", "doubtful", "wrong"}
    assert [asked.headers[IDEMPOTENCY_KEY] for asked in alone if asked.raw_path.endswith("doubtful")] == ["kept"]


async def test_a_write_whose_answer_is_lost_is_sent_again_alone_under_its_own_key() -> None:
    keys: list[set[str]] = []

    async def together(operations: list[dict[str, Any]]) -> Reply | None:
        keys.append({each["put"]["idempotency_key"] for each in operations})
        return await break_off(node.asked[-1])

    gate = Gate(together)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        outcomes = await gate.behind(c, *(c.put(f"k{number}", b"") for number in range(3)))
    assert outcomes == [client.Put(5, 2, False)] * 3
    assert sent(node)[0] == ("POST", "/v1/batch")
    assert {asked.headers[IDEMPOTENCY_KEY] for asked in node.asked[2:]} == keys[0]
    assert len(node.asked) == 5


async def test_a_refusal_after_a_lost_answer_leaves_each_in_doubt() -> None:
    async def together(operations: list[dict[str, Any]]) -> Reply | None:
        return await break_off(node.asked[-1])

    async def full(asked: Asked) -> Reply:
        return Reply(507, b'{"error":"disk_full","message":"Full.","outcome":"not_applied"}')

    gate = Gate(together, full)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        outcomes = await gate.behind(c, c.put("a", b""), c.put("b", b""))
    assert [type(each) for each in outcomes] == [errors.OutcomeUnknown] * 2
    assert outcomes[0] is not outcomes[1]


async def test_reads_whose_answer_is_lost_are_read_again() -> None:
    async def together(operations: list[dict[str, Any]]) -> Reply | None:
        return await break_off(node.asked[-1])

    found = Reply(200, b"v", {"ETag": '"5"', "Kvnode-Revision": "9"})
    held = asyncio.Event()

    async def alone(asked: Asked) -> Reply:
        if asked.raw_path.startswith("/v1/kv/held") and not held.is_set():
            await held.wait()
        return found

    gate = Gate(together, alone)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        first = asyncio.ensure_future(c.get("held"))
        while not node.asked:  # noqa: ASYNC110 - a request has no event of its own
            await asyncio.sleep(0.005)
        others = [asyncio.ensure_future(c.get(f"k{number}")) for number in range(2)]
        await asyncio.sleep(0)
        held.set()
        assert [(await each).value for each in (first, *others)] == [b"v"] * 3
    assert [method for method, _ in sent(node)] == ["POST", "GET", "GET"]


async def test_a_node_that_knows_no_such_batch_gets_each_call_alone() -> None:
    async def together(operations: list[dict[str, Any]]) -> Reply:
        return OLD

    gate = Gate(together)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        assert await gate.behind(c, c.put("a", b""), c.put("b", b"")) == [client.Put(5, 2, False)] * 2
        await asyncio.gather(*(c.put(f"more/{number}", b"") for number in range(5)))
    assert [path for _, path in sent(node)].count("/v1/batch") == 1
    assert len(node.asked) == 1 + 1 + 2 + 5


async def test_who_goes_away_takes_nobody_along() -> None:
    arrived, answer = asyncio.Event(), asyncio.Event()

    keys: list[str] = []

    async def together(operations: list[dict[str, Any]]) -> Reply:
        keys.extend(each["put"]["key"] for each in operations)
        arrived.set()
        await answer.wait()
        return await all_written(operations)

    gate = Gate(together)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        first = asyncio.ensure_future(c.put("first", FIRST))
        await gate.came.wait()
        gone, stays, later = (asyncio.ensure_future(c.put(key, b"")) for key in ("gone", "stays", "goes later"))
        await asyncio.sleep(0)
        gone.cancel()
        gate.open.set()
        await first
        await arrived.wait()
        later.cancel()
        answer.set()
        one, two, three = await asyncio.gather(gone, stays, later, return_exceptions=True)
    assert keys == ["stays", "goes later"]
    assert two == client.Put(1, 1, True)
    assert isinstance(one, asyncio.CancelledError)
    assert isinstance(three, asyncio.CancelledError)
    assert len(sent(node)) == 1


async def test_what_must_be_alone_is_alone() -> None:
    gate = Gate(never)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        await gate.behind(
            c, c.put("a", b"", if_match=4), c.put("b", b"", if_absent=True), c.delete("c", if_match=4),
            c.put("d", b"x" * TOGETHER_BYTES_MAX),
        )  # fmt: skip
    assert sorted(sent(node)) == [("DELETE", "/v1/kv/c"), *(("PUT", f"/v1/kv/{key}") for key in "abd")]


async def test_nobody_waits_long_for_a_request_that_hangs() -> None:
    gate = Gate(all_written)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        stuck = asyncio.ensure_future(c.put("first", FIRST))
        await gate.came.wait()
        began = asyncio.get_running_loop().time()
        assert await asyncio.gather(c.put("a", b""), c.put("b", b"")) == [
            client.Put(1, 1, True),
            client.Put(2, 1, True),
        ]
        assert asyncio.get_running_loop().time() - began < BEHIND_S + 2.0
        assert not stuck.done()
        stuck.cancel()


@pytest.mark.parametrize("body", [b"{}", b'{"results":[]}', b'{"results":[1,2]}', b'{"results":[{},{}]}', b"no"])
async def test_an_answer_that_no_node_gives_ends_every_call(body: bytes) -> None:
    async def together(operations: list[dict[str, Any]]) -> Reply:
        return Reply(200, body)

    gate = Gate(together)
    async with scripted(gate.script) as node, Client(node.url, 5) as c:
        outcomes = await gate.behind(c, c.put("a", b""), c.put("b", b""))
    assert [type(each) for each in outcomes] == [errors.KvnodeError] * 2


async def test_a_client_that_is_closed_leaves_no_call_waiting() -> None:
    gate = Gate(never)
    async with scripted(gate.script) as node:
        async with Client(node.url, 5) as c:
            calls = [asyncio.ensure_future(c.put("first", FIRST))]
            await gate.came.wait()
            calls += [asyncio.ensure_future(c.put(key, b"")) for key in "ab"]
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, errors.KvnodeError) for each in outcomes), outcomes
