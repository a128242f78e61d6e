"""Calls on keys beyond what the recordings hold: what is large, what is bounded, what is doubtful, who may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvnode.errors import NoLeader, OutcomeUnknown
from kvnode.http.gateway import keys
from kvnode.state.commands import DELETE, LEVEL, PUT
from tests.gateway.calls import b64, call, error, keep_alive, leveled, plain, put, token
from tests.http.serving import Served, serve
from tests.http.single import SingleGroup

FIRST = "the-first-token-of-this-cluster"
EVERYTHING = {"key": b64("\0"), "range_end": b64("\0")}


@pytest.fixture
async def node() -> AsyncIterator[Served]:
    async with serve(leveled()) as served:
        yield served


def fill(group: SingleGroup, count: int, value: bytes = b"v") -> None:
    for number in range(count):
        group.store.apply([PUT, f"key/{number:06}", value, "", None])
    group.watches.publish()


def names(answer: Any) -> list[str]:
    return [plain(each["key"]) for each in answer["kvs"]]


async def test_what_was_put_by_either_api_is_there_for_the_other(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", {"Content-Type": "text/plain"}, b"one")
    status, answer = await call(node, "kv/range", {"key": b64("a")})
    assert (status, answer["kvs"][0]["value"], answer["count"]) == (200, b64("one"), "1")
    await put(node, "b", b"\x00\xff")
    assert (await node.ask("GET", "/v1/kv/b")).body == b"\x00\xff"
    await call(node, "kv/put", {"key": b64("a"), "ignore_value": True})  # keeps the content type as well
    assert (await node.ask("GET", "/v1/kv/a")).headers["content-type"] == "text/plain"


async def test_nothing_is_served_while_a_member_of_an_older_version_is_there() -> None:
    group = SingleGroup()
    async with serve(group) as node:
        for path in ("kv/range", "kv/put", "kv/deleterange", "kv/txn", "lease/grant", "lease/leases"):
            status, answer = await call(node, path, {"key": b64("a"), "TTL": 5})
            assert (status, answer["code"]) == (503, 14), path
        status, answer = await call(node, "watch", {"create_request": {}})
        assert (status, answer["code"]) == (503, 14)
        assert group.proposals == 0
        group.store.apply([LEVEL, 1])
        assert (await call(node, "kv/put", {"key": b64("a")}))[0] == 200


async def test_a_write_in_doubt_is_never_called_refused(node: Served) -> None:
    for raised, status, code in ((OutcomeUnknown("x"), 500, 2), (NoLeader("x"), 503, 14)):
        node.group.raises = raised
        for path, document in (
            ("kv/put", {"key": b64("a")}),
            ("kv/deleterange", {"key": b64("a")}),
            ("kv/txn", {"success": [{"request_put": {"key": b64("a")}}]}),
            ("lease/grant", {"TTL": 5}),
            ("lease/revoke", {"ID": 5}),
        ):
            found, answer = await call(node, path, document)
            assert (found, answer["code"]) == (status, code), path
        found, answer = await call(node, "lease/keepalive", {"ID": 5})
        assert (found, answer["error"]["grpc_code"], answer["error"]["http_code"]) == (status, code, status)


async def test_serializable_reads_go_on_without_a_leader(node: Served) -> None:
    await put(node, "a", "1")
    node.group.raises = NoLeader("x")
    assert await call(node, "kv/range", {"key": b64("a")}) == (503, error(14, "etcdserver: no leader"))
    status, answer = await call(node, "kv/range", {"key": b64("a"), "serializable": True})
    assert (status, answer["count"]) == (200, "1")
    read = {"request_range": {"key": b64("a"), "serializable": True}}
    assert (await call(node, "kv/txn", {"success": [read]}))[0] == 200
    node.group.becomes(started=False)
    assert (await call(node, "kv/range", {"key": b64("a"), "serializable": True}))[0] == 503


async def test_what_is_over_a_bound_is_refused(node: Served) -> None:
    too_large = (400, error(3, "etcdserver: request is too large"))
    assert await call(node, "kv/put", {"key": b64("a"), "value": b64(b"x" * 1_048_577)}) == too_large
    assert await call(node, "kv/put", {"key": b64("a"), "value": b64(b"x" * 4_000_000)}) == too_large
    assert (await call(node, "kv/put", {"key": b64("a"), "value": b64(b"x" * 1_048_576)}))[0] == 200
    puts = [{"request_put": {"key": b64(f"k{n}"), "value": b64(b"x" * 750_000)}} for n in range(3)]
    assert await call(node, "kv/txn", {"success": puts}) == too_large
    for document in ({"key": b64("k" * 1_025)}, {"key": b64(b"\xff\xfe")}, {"key": b64(b"a\xc3")}):
        for path in ("kv/put", "kv/range", "kv/deleterange"):
            status, answer = await call(node, path, document)
            assert (status, answer["code"]) == (400, 3), (path, document)
    deep: dict[str, Any] = {"success": [{"request_put": {"key": b64("d")}}]}
    for _ in range(40):
        deep = {"success": [{"request_txn": deep}]}
    assert await call(node, "kv/txn", deep) == (400, error(3, "etcdserver: too many operations in txn request"))
    two = {"request_put": {"key": b64("a")}, "request_range": {"key": b64("a")}}
    for entry in (two, {"request_put": []}, 7):
        status, answer = await call(node, "kv/txn", {"success": [entry]})
        assert (status, answer["code"]) == (400, 3)
    for compared in ({"target": 9}, {"result": "WRONG"}, []):
        assert (await call(node, "kv/txn", {"compare": [compared]}))[0] == 400


async def test_a_large_range_is_whole_and_in_order(node: Served) -> None:
    fill(node.group, 10_000, b"x" * 50)
    status, answer = await call(node, "kv/range", EVERYTHING)
    assert (status, answer["count"], "more" in answer) == (200, "10000", False)
    assert names(answer) == [f"key/{number:06}" for number in range(10_000)]
    assert {each["value"] for each in answer["kvs"]} == {b64(b"x" * 50)}
    assert int(answer["header"]["revision"]) == node.group.store.revision
    status, answer = await call(node, "kv/range", EVERYTHING | {"limit": 5_000, "sort_order": "DESCEND"})
    assert (answer["count"], answer["more"]) == ("10000", True)
    assert names(answer) == [f"key/{number:06}" for number in range(9_999, 4_999, -1)]
    status, answer = await call(node, "kv/range", EVERYTHING | {"limit": 6_000, "keys_only": True})
    assert (len(answer["kvs"]), answer["more"], "value" in answer["kvs"][0]) == (6_000, True, False)
    status, answer = await call(node, "kv/range", EVERYTHING | {"sort_target": "MOD", "sort_order": "DESCEND"})
    assert names(answer)[0] == "key/009999"
    assert (await call(node, "kv/range", EVERYTHING | {"count_only": True}))[1]["count"] == "10000"
    held = node.server.app.budgets.answers
    assert held.in_use == 0


async def test_a_large_range_is_of_one_revision_whatever_changes_meanwhile(
    node: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two slices keys before, in and behind what was read are changed, deleted and made."""
    group, store = node.group, node.group.store
    fill(group, 300)
    monkeypatch.setattr(keys, "SLICE_KEYS", 16)
    turns = node.server.app.budgets.turns
    step = 0

    async def take(*, done: bool = False) -> None:
        nonlocal step
        step += 1
        if step > 1:
            for command in (
                [PUT, f"key/{step * 7 % 300:06}", b"changed", "", None],
                [DELETE, f"key/{step * 11 % 300:06}", None],
                [PUT, f"key/{step * 13 % 300:06}x", b"new", "", None],
                [PUT, f"key/{299 - step % 300:06}", b"changed", "", None],
            ):
                store.apply(command)
            group.watches.publish()
        await asyncio.sleep(0)

    monkeypatch.setattr(type(turns), "take", lambda self, *, done=False: take(done=done))
    for limit in (0, 40, 250, 300):
        step = 0
        before = {key: bytes(packed) for key, packed in store.walk_packed("", None)}
        revision = store.revision
        sent = EVERYTHING | {"limit": limit}
        body = json.dumps(sent).encode()
        monkeypatch.setattr(keys, "SMALL_BYTES", 10)
        reply = await node.ask("POST", "/v3/kv/range", None, body)
        monkeypatch.setattr(keys, "SMALL_BYTES", 65_536)
        answer = reply.json
        wanted = sorted(before)[: limit or None]
        assert step > 2
        assert int(answer["header"]["revision"]) == revision
        assert names(answer) == wanted
        assert answer["count"] == str(len(before))
        assert all(int(each["mod_revision"]) <= revision for each in answer["kvs"])
        assert answer.get("more", False) is (0 < limit < len(before))


async def test_what_is_larger_than_an_answer_may_be_is_refused(node: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(node.group, 300, b"x" * 1_000)
    monkeypatch.setattr(keys, "ANSWER_BYTES_MAX", 200_000)
    too_large = (400, error(3, "etcdserver: request is too large"))
    assert await call(node, "kv/range", EVERYTHING) == too_large
    assert await call(node, "kv/range", EVERYTHING | {"sort_target": "VALUE", "sort_order": "ASCEND"}) == too_large
    assert (await call(node, "kv/range", EVERYTHING | {"limit": 100}))[0] == 200
    assert (await call(node, "kv/range", EVERYTHING | {"keys_only": True}))[0] == 200


async def test_an_answer_without_room_is_refused_before_it_is_made(node: Served) -> None:
    fill(node.group, 300, b"x" * 1_000)
    budget = node.server.app.budgets.answers
    hold = budget.hold(budget.limit - 1_000)
    status, answer = await call(node, "kv/range", EVERYTHING)
    assert (status, answer["code"]) == (503, 14)
    read = {"request_range": EVERYTHING}
    before = node.group.proposals
    status, answer = await call(node, "kv/txn", {"success": [read, {"request_put": {"key": b64("new")}}]})
    assert (status, answer["code"], node.group.proposals) == (503, 14, before)
    hold.release()
    assert (await call(node, "kv/range", EVERYTHING))[0] == 200


async def test_the_past_is_read_as_far_as_it_is_known(node: Served) -> None:
    group = node.group
    fill(group, 20)
    middle = group.store.revision
    fill(group, 5, b"new")
    _status, answer = await call(node, "kv/range", EVERYTHING | {"revision": middle, "limit": 3})
    assert (answer["count"], answer["more"], [each["value"] for each in answer["kvs"]]) == ("20", True, [b64("v")] * 3)
    assert int(answer["header"]["revision"]) == group.store.revision
    group.watches.history.reset(group.store.revision)
    compacted = (400, error(11, "etcdserver: mvcc: required revision has been compacted"))
    assert await call(node, "kv/range", EVERYTHING | {"revision": middle}) == compacted
    past = {"request_range": {"key": b64("a"), "revision": middle}}
    assert await call(node, "kv/txn", {"success": [past, {"request_put": {"key": b64("z")}}]}) == compacted


async def test_rights_are_of_the_call_and_of_every_key_that_it_names() -> None:
    group = leveled()
    token(group, "id0", "read")
    token(group, "id1", "write", "app/")
    async with serve(group, token=FIRST) as node:
        denied = (403, error(7, "etcdserver: permission denied"))
        lease = (await call(node, "lease/grant", {"TTL": 60}, {"Authorization": FIRST}))[1]["ID"]
        await call(node, "kv/put", {"key": b64("other"), "lease": lease}, {"Authorization": FIRST})
        reader = {"Authorization": "kvnode_id0_read"}
        read, write = {"request_range": {"key": b64("other")}}, {"request_put": {"key": b64("other")}}
        assert (await call(node, "kv/range", {"key": b64("other")}, reader))[0] == 200
        assert (await call(node, "kv/txn", {"success": [read]}, reader))[0] == 200
        for path, document in (
            ("kv/put", {"key": b64("a")}),
            ("kv/deleterange", {"key": b64("a")}),
            ("kv/txn", {"failure": [write]}),
            ("lease/grant", {"TTL": 5}),
            ("lease/keepalive", {"ID": lease}),
        ):
            assert await call(node, path, document, reader) == denied, path
        app = {"Authorization": "Bearer kvnode_id1_write"}
        end = {"range_end": b64("app0")}
        for path, document in (
            ("kv/put", {"key": b64("app/a")}),
            ("kv/range", {"key": b64("app/a")}),
            ("kv/range", {"key": b64("app/")} | end),
            ("kv/txn", {"success": [{"request_put": {"key": b64("app/b")}}]}),
            ("kv/deleterange", {"key": b64("app/")} | end),
        ):
            assert (await call(node, path, document, app))[0] == 200, document
        for path, document in (
            ("kv/put", {"key": b64("other")}),
            ("kv/put", {"key": b64("app/a"), "lease": lease}),
            ("kv/range", {"key": b64("app")}),
            ("kv/range", EVERYTHING),
            ("kv/range", {"key": b64("app/"), "range_end": b64("app1")}),
            ("kv/deleterange", {"key": b64("app/"), "range_end": b64("\0")}),
            ("kv/txn", {"compare": [{"key": b64("other")}]}),
            ("kv/txn", {"failure": [read | {}]}),
            ("kv/txn", {"success": [{"request_txn": {"failure": [read]}}]}),
            ("kv/txn", {"success": [{"request_range": {"key": b64("other"), "revision": 1}}]}),
            ("kv/txn", {"success": [{"request_put": {"key": b64("app/a"), "lease": lease}}]}),
            ("lease/revoke", {"ID": lease}),
            ("lease/timetolive", {"ID": lease, "keys": True}),
            ("lease/leases", {}),
        ):
            assert await call(node, path, document, app) == denied, document
        own = (await call(node, "lease/grant", {"TTL": 60}, app))[1]["ID"]
        assert (await call(node, "kv/put", {"key": b64("app/a"), "lease": own}, app))[0] == 200
        assert (await keep_alive(node, own, token="kvnode_id1_write"))[0]["TTL"] == "60"
        assert (await call(node, "lease/revoke", {"ID": own}, app))[0] == 200


async def test_leases_of_the_gateway_are_drawn_by_lot_and_listed(node: Served) -> None:
    ids = [(await call(node, "lease/grant", {"TTL": 60}))[1]["ID"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(2**52 <= int(each) < 2**53 for each in ids)
    assert {each["ID"] for each in (await call(node, "lease/leases", {}))[1]["leases"]} == set(ids)
    await put(node, "a", lease=ids[0])
    await put(node, "b", lease=ids[0])
    _status, answer = await call(node, "lease/timetolive", {"ID": ids[0], "keys": True})
    assert (answer["TTL"], answer["grantedTTL"], [plain(key) for key in answer["keys"]]) == ("60", "60", ["a", "b"])
    kept = await keep_alive(node, ids[0], "12345", ids[1])
    assert [(each["ID"], each.get("TTL")) for each in kept] == [(ids[0], "60"), ("12345", None), (ids[1], "60")]


async def test_the_header_of_a_put_follows_the_term(node: Served) -> None:
    plain_put, other = {"key": b64("a"), "value": b64("1")}, {"key": b64("a"), "value": b64("1"), "lease": "0"}
    for term, documents in ((7, (plain_put, plain_put)), (8, (plain_put, other)), (9, (other, plain_put))):
        node.group.becomes(term=term)
        for document in documents:
            _, answer = await call(node, "kv/put", document)
            assert answer["header"]["raft_term"] == str(term)
            assert answer["header"]["revision"] == str(node.group.store.revision)
            assert list(answer) == ["header"]
