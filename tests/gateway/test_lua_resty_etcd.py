"""What lua-resty-etcd sends, which is APISIX's client: its calls in its words, and what it looks at in the answers.

It writes values as JSON in base64, camelCase in transactions, ids of leases as it got them, and asks under `/v3/` and
`/v3/kv/lease/`. Its own suite needs OpenResty.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvnode.http.gateway.errors import BAD_PASSWORD, BAD_TOKEN
from tests.gateway.calls import Watching, b64, call, keep_alive, leveled, plain, token
from tests.http.serving import Served, serve

SECRET = "the-first-token-of-this-cluster"


@pytest.fixture
async def node() -> AsyncIterator[Served]:
    async with serve(leveled()) as served:
        yield served


def coded(value: Any) -> str:
    return b64(json.dumps(value))


async def asked(node: Served, path: str, **body: Any) -> Any:
    status, answer = await call(node, path, body)
    assert status == 200, answer
    return answer


async def write(node: Served, key: str, value: Any, **fields: Any) -> Any:
    return await asked(node, "kv/put", key=b64(key), value=coded(value), **fields)


async def value_of(node: Served, key: str) -> Any:
    """None where its `kvs` is missing, which the client takes for a missing key."""
    kvs = (await asked(node, "kv/range", key=b64(key))).get("kvs")
    return None if kvs is None else json.loads(plain(kvs[0]["value"]))


async def test_its_new_client_asks_for_the_version(node: Served) -> None:
    version = (await node.ask("GET", "/version")).json
    assert version["etcdserver"].startswith("3.5.")  # it takes /v3 from 3.4 on


async def test_set_get_readdir_and_rmdir(node: Served) -> None:
    await write(node, "/dir", "abc")
    await write(node, "/dir/a", {"a": ["abc"]})
    await write(node, "/dis", "another")
    assert await value_of(node, "/dir") == "abc"
    assert await value_of(node, "/dir/a") == {"a": ["abc"]}
    assert await value_of(node, "/no") is None
    under = {"key": b64("/dir"), "range_end": b64("/dis")}
    assert [plain(each["key"]) for each in (await asked(node, "kv/range", **under))["kvs"]] == ["/dir", "/dir/a"]
    page = await asked(node, "kv/range", **under, limit=1, sort_order="DESCEND", sort_target="KEY", keys_only=True)
    assert (plain(page["kvs"][0]["key"]), page["more"], page["count"]) == ("/dir/a", True, "2")
    deleted = await asked(node, "kv/deleterange", **under, prev_kv=True)
    assert (deleted["deleted"], len(deleted["prev_kvs"])) == ("2", 2)
    assert "deleted" not in await asked(node, "kv/deleterange", **under)


async def test_setnx_and_setx(node: Served) -> None:
    for value in ("abc", "abd"):
        put = {"requestPut": {"key": b64("/setnx"), "value": coded(value)}}
        absent = {"target": "CREATE", "key": b64("/setnx"), "createRevision": 0}
        await asked(node, "kv/txn", compare=[absent], success=[put])
        assert await value_of(node, "/setnx") == "abc"
    put = {"requestPut": {"key": b64("/setx"), "value": coded("abd")}}
    absent = {"target": "CREATE", "key": b64("/setx"), "createRevision": 0}
    await asked(node, "kv/txn", compare=[absent], failure=[put])
    assert await value_of(node, "/setx") is None
    await write(node, "/setx", "abc")
    await asked(node, "kv/txn", compare=[absent], failure=[put])
    assert await value_of(node, "/setx") == "abd"


async def test_a_transaction_compares_values(node: Served) -> None:
    await write(node, "/test", "abc")
    put = {"requestPut": {"key": b64("/test"), "value": coded("ddd")}}
    for value, then in (("not equal", "abc"), ("abc", "ddd")):
        compare = {"key": b64("/test"), "result": "EQUAL", "value": coded(value), "target": "VALUE"}
        answer = await asked(node, "kv/txn", compare=[compare], success=[put])
        assert answer.get("succeeded", False) is (then == "ddd")
        assert await value_of(node, "/test") == then


async def test_leases(node: Served) -> None:
    granted = await asked(node, "lease/grant", TTL=5, ID=0)
    lease = granted["ID"]
    await write(node, "/test", "abc", prev_kv=True, lease=lease)
    left = await asked(node, "kv/lease/timetolive", ID=lease, keys=True)
    assert left["grantedTTL"] == "5"
    assert 0 <= int(left["TTL"]) <= 5
    assert list(map(plain, left["keys"])) == ["/test"]
    assert "keys" not in await asked(node, "kv/lease/timetolive", ID=lease, keys=False)
    assert [each["TTL"] for each in await keep_alive(node, lease)] == ["5"]
    status, answer = await call(node, "lease/leases")  # without a body
    assert (status, [each["ID"] for each in answer["leases"]]) == (200, [lease])
    await asked(node, "kv/lease/revoke", ID=lease)
    assert await value_of(node, "/test") is None


async def test_watch_and_watchdir(node: Served) -> None:
    await write(node, "/wdir", "abc")
    revision = node.group.store.revision
    async with node.connect() as wire:
        stream = Watching(wire)
        under = {"key": b64("/wdir"), "range_end": b64("/wdis"), "start_revision": revision, "prev_kv": True}
        await stream.begin({"create_request": under})
        first = await stream.result()
        assert first["created"] is True  # each chunk is one document with a `result`
        assert "events" not in first
        await write(node, "/wdir/a", "bcd4a")
        events: list[Any] = []
        while len(events) < 2:
            events += (await stream.result())["events"]
        assert [json.loads(plain(each["kv"]["value"])) for each in events] == ["abc", "bcd4a"]
        await asked(node, "kv/deleterange", key=b64("/wdir"))
        (event,) = (await stream.result())["events"]
        assert "value" not in event["kv"]  # else it would be read as JSON
        assert json.loads(plain(event["prev_kv"]["value"])) == "abc"


async def test_a_user_logs_in_once_and_shows_the_bare_token() -> None:
    group = leveled()
    async with serve(group, token=SECRET) as node:
        token(group, "a", "write")
        wrong = {"name": "root", "password": "123"}
        status, answer = await call(node, "auth/authenticate", wrong)
        assert (status, answer["error"]) == (400, BAD_PASSWORD)
        status, answer = await call(node, "auth/authenticate", {"name": "root", "password": "kvnode_a_write"})
        shown = {"Authorization": answer["token"]}
        body = {"key": b64("/test"), "value": coded({"a": "abc"})}
        assert (await call(node, "kv/put", body, shown))[0] == 200
        assert (await call(node, "kv/deleterange", {"key": b64("/test")}, shown))[1]["deleted"] == "1"
        status, answer = await call(node, "kv/put", body, {"Authorization": "an old one"})
        assert (status, answer["error"]) == (401, BAD_TOKEN)  # at which it logs in again
