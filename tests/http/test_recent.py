"""What nodes saw of late, as the API gives it: every way to a key is counted, and the past of a key is told."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import Any

from kvnode.http.recent import record
from kvnode.metrics.meters import HttpMeters
from tests.gateway.calls import leveled
from tests.http.serving import Served, serve
from tests.http.single import SingleGroup


def coded(text: str) -> str:
    return b64encode(text.encode()).decode()


async def post(node: Served, path: str, document: Any) -> None:
    reply = await node.ask("POST", path, {"Content-Type": "application/json"}, json.dumps(document).encode())
    assert reply.status == 200, reply.body


async def heat(node: Served, headers: dict[str, str] | None = None) -> dict[str, tuple[int, int]]:
    document = (await node.ask("GET", "/admin/api/v1/heat", headers)).json
    assert document["unanswered"] == ["n2"]
    return {row["prefix"]: (sum(row["reads"]), sum(row["writes"])) for row in document["rows"]}


async def test_every_way_to_a_key_is_counted_and_the_pages_own_is_not() -> None:
    group = leveled()
    async with serve(group) as node:
        await node.ask("PUT", "/v1/kv/one/a", body=b"1")
        await node.ask("GET", "/v1/kv/one/a")
        await node.ask("GET", "/v1/kv/one/none?consistency=stale")
        await node.ask("DELETE", "/v1/kv/one/a")
        assert await heat(node) == {"one/": (2, 2)}
        await node.ask("GET", "/v1/kv?prefix=list/x/")
        await node.ask("GET", "/v1/kv?prefix=page/&keys_only=true&sizes=true")
        puts = [{"put": {"key": f"batch/{each}", "text": ""}} for each in range(5)]
        await post(node, "/v1/batch", {"operations": puts})
        await post(node, "/v1/txn", {"success": [{"put": {"key": "txn/a", "text": ""}}, {"get": {"key": "txn/b"}}]})
        key = coded("etcd/a")
        await post(node, "/v3/kv/put", {"key": key, "value": coded("1")})
        await post(node, "/v3/kv/range", {"key": key})
        await post(node, "/v3/kv/deleterange", {"key": key})
        branch = {"request_put": {"key": coded("etcd/t/x"), "value": ""}}
        await post(node, "/v3/kv/txn", {"success": [branch], "failure": [branch]})
        assert await heat(node) == {
            "one/": (2, 2),
            "list/x/": (1, 0),
            "batch/": (0, 5),
            "txn/": (0, 1),
            "etcd/": (1, 2),
            "etcd/t/": (0, 1),
        }


async def test_the_past_of_a_key_is_told_newest_first(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/k", {"Content-Type": "text/plain"}, b"first")
    await node.ask("PUT", "/v1/kv/other", body=b"x")
    await node.ask("DELETE", "/v1/kv/k")
    await node.ask("PUT", "/v1/kv/k", body=b"\x00" * 5_000)
    past = (await node.ask("GET", "/admin/api/v1/history?key=k")).json
    assert (past["key"], past["oldest_revision"], past["revision"]) == ("k", 1, 4)
    newest, deleted, first = past["changes"]
    assert (newest["event"], newest["revision"], newest["version"], newest["size"]) == ("put", 4, 1, 5_000)
    assert b64decode(newest["value"]) == b"\x00" * 2_048
    assert deleted == {"event": "delete", "revision": 3}
    assert (first["content_type"], b64decode(first["value"])) == ("text/plain", b"first")
    assert (await node.ask("GET", "/admin/api/v1/history?key=k&limit=1")).json["changes"] == [newest]
    assert (await node.ask("GET", "/admin/api/v1/history?key=none")).json["changes"] == []


async def test_sizes_are_given_with_the_keys_alone(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/k", body=b"12345")
    for query in ("keys_only=true&sizes=true", "sizes=true"):
        assert (await node.ask("GET", f"/v1/kv?{query}")).json["items"][0]["size"] == 5


async def test_figures_are_those_after_a_time_and_the_timeline_is_there(node: Served) -> None:
    empty = (await node.ask("GET", "/admin/api/v1/figures")).json
    assert [(each["node"], each["samples"]) for each in empty["nodes"]] == [("n1", [])]
    assert (empty["step_s"], empty["span_s"], empty["unanswered"]) == (5, 900, ["n2"])
    assert (await node.ask("GET", "/admin/api/v1/timeline")).json == {"changes": [], "unanswered": ["n2"]}


async def test_the_recorder_takes_a_sample_at_once_and_ends_when_it_is_told_to() -> None:
    import asyncio

    meters = HttpMeters()
    task = asyncio.create_task(record(SingleGroup(), meters))
    await asyncio.sleep(0)
    meters.figures.take(1, 1e12, 5, 7, [0] * 15, [])
    assert meters.figures.since(0)
    task.cancel()
