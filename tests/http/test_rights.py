"""Tokens with prefixes: what lies outside of them is refused before anything is read, and nothing is told of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from typing import Any

import pytest

from kvnode.errors import Forbidden
from kvnode.http.rights import ADMIN, ALL, READ, WRITE, Rights
from kvnode.state.commands import LEVEL, PUT, TOKEN_PUT
from tests.http.serving import Reply, Served, serve
from tests.http.single import SingleGroup

FIRST = "the-first-token-of-this-cluster"
ADMIN_BEARER = {"Authorization": f"Bearer {FIRST}"}
TOKENS = "/admin/api/v1/tokens"
ACCESS = "/admin/api/v1/access"
OWN = ("app/", "b/")


def bearer(token_id: str) -> dict[str, str]:
    return {"Authorization": f"Bearer kvnode_{token_id}_{token_id}"}


def put_token(
    group: SingleGroup, token_id: str, role: str, prefixes: tuple[str, ...] = (), expires_ms: int = 0
) -> dict[str, str]:
    """A token whose id, name and secret are one word."""
    digest = hashlib.sha256(token_id.encode()).digest()
    group.store.apply([TOKEN_PUT, [b"", [token_id, token_id, role, digest, 1, list(prefixes), expires_ms, b"", 0]]])
    return bearer(token_id)


def a_group(**tokens: str) -> SingleGroup:
    """At feature level 1, with these keys, and tokens with the prefixes of `OWN`."""
    group = SingleGroup()
    group.store.apply([LEVEL, 1])
    for key in ("app/1", "app/2", "b/1", "c/1", "ap", "a"):
        group.store.apply([PUT, key, key.encode(), "", None])
    for name, role in (tokens or {"reader": "read", "writer": "write"}).items():
        put_token(group, name, role, OWN)
    return group


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def check_forbidden(reply: Reply, names: str | None = None) -> None:
    assert reply.status == 403, reply
    if reply.body:
        assert reply.json["error"] == "forbidden", reply
        assert not any(word in reply.json["message"] for word in ("writer", FIRST))
        assert names is None or f'"{names}"' in reply.json["message"], reply
    assert not {"etag", "kvnode-revision"} & reply.headers.keys()


# --- pure ----------------------------------------------------------------------------------------------


def test_a_range_lies_under_one_prefix() -> None:
    rights = Rights(READ, ("app/", "b"), "id")
    for start, end in (("app/", "app0"), ("app/x", "app/y"), ("app/zz", "app0"), ("b", "c"), ("b1", "b2")):
        rights.check_range(start, end)
    for start, end in (
        ("", None), ("app/", None), ("app/", "app1"), ("app", "app0"), ("a", "c"), ("b", "c0"), ("b", None), ("c", "d"),
        ("app/", "b1"),
    ):  # fmt: skip
        with pytest.raises(Forbidden):
            rights.check_range(start, end)
    last = Rights(READ, ("\U0010ffff",), "id")
    last.check_range("\U0010ffff\U0010ffff", None)
    with pytest.raises(Forbidden):
        last.check_range("\U0010fffe", None)


def test_a_token_without_prefixes_may_all_keys() -> None:
    for rights in (ALL, Rights(WRITE, (), "")):
        rights.check_key("x")
        rights.check_prefix("")
        rights.check_range("", None)
        rights.check_write()
        assert rights.idempotency_key("k") == "k"
    with pytest.raises(Forbidden):
        Rights(READ, (), "").check_write()
    assert ALL.may() == ["read", "write", "admin"]
    assert (ALL.role, Rights(READ, (), "").may()) == (ADMIN, ["read"])


def test_a_token_with_prefixes_has_idempotency_keys_of_its_own() -> None:
    mine, others = Rights(WRITE, OWN, "id1"), Rights(WRITE, OWN, "id2")
    keys = {mine.idempotency_key("k"), others.idempotency_key("k"), mine.idempotency_key("l"), "k"}
    assert len(keys) == 4
    assert all(len(key) <= 64 for key in keys)


# --- keys ----------------------------------------------------------------------------------------------

OUTSIDE = ("c/1", "c/none", "ap", "app", "a", "b", "B/1", "app%00", "%2Fapp/1", "c/../app/1", "%C3%A9")


@pytest.mark.parametrize("key", OUTSIDE)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_a_key_outside_of_the_prefixes_is_refused_whether_it_is_there_or_not(method: str, key: str) -> None:
    group = a_group()
    proposals = group.proposals
    async with serve(group, token=FIRST) as node:
        for condition in ({}, {"If-Match": '"1"'}, {"If-None-Match": "*"}, {"Idempotency-Key": "k"}):
            body = b"x" if method == "PUT" else None
            reply = await node.ask(method, f"/v1/kv/{key}".encode(), {**bearer("writer"), **condition}, body)
            check_forbidden(reply)
        if method in ("GET", "HEAD"):
            for query in ("consistency=stale", "revision=4", "revision=400"):
                check_forbidden(await node.ask(method, f"/v1/kv/{key}?{query}".encode(), bearer("reader")))
        check_forbidden(
            await node.ask("PUT", f"/v1/kv/{key}".encode(), {**bearer("writer"), "Content-Length": "9999999"})
        )
    assert group.proposals == proposals


async def test_a_key_under_a_prefix_is_as_for_anybody() -> None:
    group = a_group()
    async with serve(group, token=FIRST) as node:
        for token in ("reader", "writer"):
            assert (await node.ask("GET", "/v1/kv/app/1", bearer(token))).body == b"app/1"
            assert (await node.ask("GET", "/v1/kv/b/none", bearer(token))).status == 404
        assert (await node.ask("PUT", "/v1/kv/app%2F9", bearer("writer"), b"9")).status == 200
        assert (await node.ask("DELETE", "/v1/kv/app/1", bearer("writer"))).status == 200
        check_forbidden(await node.ask("PUT", "/v1/kv/app/9", bearer("reader"), b"9"))


# --- listings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "", "prefix=", "prefix=app", "prefix=a", "prefix=c/", "start=app/", "start=app/&end=b/9", "start=app/&end=b0",
        "start=a&end=c", "end=app0", "prefix=ap&start=app/1", "start=b/", "keys_only", "count=only", "count=true",
        "prefix=app&count=only", "limit=1",
    ],
)  # fmt: skip
async def test_a_listing_that_reaches_outside_is_refused(query: str) -> None:
    async with serve(a_group(), token=FIRST) as node:
        for method in ("GET", "HEAD"):
            check_forbidden(await node.ask(method, f"/v1/kv?{query}", bearer("reader")))
        all_pages = await node.ask("GET", "/v1/kv?limit=1", ADMIN_BEARER)
        cursor = all_pages.json["cursor"]
        check_forbidden(await node.ask("GET", f"/v1/kv?{query}{'&' if query else ''}cursor={cursor}", bearer("reader")))


async def test_a_listing_under_a_prefix_shows_and_counts_that_alone() -> None:
    async with serve(a_group(), token=FIRST) as node:
        for query, keys in (
            ("prefix=app/", ["app/1", "app/2"]),
            ("prefix=b/", ["b/1"]),
            ("start=app/1&end=app/2", ["app/1"]),
            ("prefix=app/&start=app/2", ["app/2"]),
            ("prefix=app/&end=z", ["app/1", "app/2"]),
        ):
            reply = await node.ask("GET", f"/v1/kv?{query}&count=true", bearer("reader"))
            assert [item["key"] for item in reply.json["items"]] == keys, query
            assert reply.json["count"] == (2 if "prefix=app/" in query and "start" not in query else len(keys))
        # step: another listing's cursor leads no further than the range does
        cursor = (await node.ask("GET", "/v1/kv?limit=4", ADMIN_BEARER)).json["cursor"]
        page = (await node.ask("GET", f"/v1/kv?prefix=app/&cursor={cursor}", bearer("reader"))).json
        assert {item["key"] for item in page["items"]} <= {"app/1", "app/2"}


async def test_a_prefix_is_deleted_under_a_prefix_alone() -> None:
    group = a_group()
    async with serve(group, token=FIRST) as node:
        for prefix in ("a", "app", "c/", "b"):
            check_forbidden(await node.ask("DELETE", f"/v1/kv?prefix={prefix}", bearer("writer")), prefix)
        assert (await node.ask("DELETE", "/v1/kv?prefix=app/", bearer("writer"))).json["deleted"] == 2
    assert len(group.store) == 4


# --- several keys at once ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"compare": [{"key": "c/1", "exists": True}], "success": []},
        {"compare": [{"key": "c/1", "op": ">", "text": "a"}]},
        {"success": [{"get": {"key": "c/1"}}]},
        {"failure": [{"get": {"key": "c/1"}}]},
        {"success": [{"put": {"key": "app/1", "text": "1"}}, {"delete": {"key": "c/1"}}]},
        {"compare": [{"key": "app/1", "exists": True}], "failure": [{"put": {"key": "c/9", "text": "1"}}]},
        {"success": [{"delete_prefix": {"prefix": "app"}}]},
        {"success": [{"delete_prefix": {"prefix": "c/"}}]},
    ],
)
async def test_a_transaction_that_names_another_key_anywhere_is_refused(document: dict[str, Any]) -> None:
    group = a_group()
    proposals = group.proposals
    async with serve(group, token=FIRST) as node:
        check_forbidden(await node.ask("POST", "/v1/txn", bearer("writer"), as_json(document)))
        check_forbidden(await node.ask("POST", "/v1/txn", bearer("reader"), as_json(document)))
    assert group.proposals == proposals


async def test_a_batch_with_one_other_key_is_refused_whole() -> None:
    group = a_group()
    revision = group.store.revision
    own = {"put": {"key": "app/1", "value": b64("x")}}
    async with serve(group, token=FIRST) as node:
        for other in ({"put": {"key": "c/1", "value": ""}}, {"delete": {"key": "c/none"}}):
            body = as_json({"operations": [own, other, own]})
            check_forbidden(await node.ask("POST", "/v1/batch", bearer("writer"), body))
        assert group.store.revision == revision
        reply = await node.ask("POST", "/v1/batch", bearer("writer"), as_json({"operations": [own]}))
        assert reply.json["results"][0]["key"] == "app/1"


@pytest.mark.parametrize("query", ["", "prefix=", "prefix=a", "prefix=c/", "key=c/1", "key=app", "prefix=app&wait=1ms"])
async def test_a_watch_that_reaches_outside_is_refused(query: str) -> None:
    async with serve(a_group(), token=FIRST) as node:
        for headers in ({}, {"Last-Event-ID": "0"}):
            check_forbidden(await node.ask("GET", f"/v1/watch?{query}", {**bearer("reader"), **headers}))


async def test_a_watch_under_a_prefix_tells_of_that_alone() -> None:
    async with serve(a_group(), token=FIRST) as node:
        for key in ("c/2", "app/3", "ap", "app/4"):
            assert (await node.ask("PUT", f"/v1/kv/{key}", ADMIN_BEARER, b"x")).status == 200
        for query, keys in (("prefix=app/", ["app/3", "app/4"]), ("key=app/4", ["app/4"]), ("prefix=b/1", [])):
            reply = await node.ask("GET", f"/v1/watch?{query}&from_revision=7&wait=1ms", bearer("reader"))
            assert [event["key"] for event in reply.json["events"]] == keys


async def test_an_idempotency_key_of_another_token_tells_nothing() -> None:
    group = a_group()
    async with serve(group, token=FIRST) as node:
        key = {"Idempotency-Key": "deploy-7"}
        put_token(group, "other", "write", ("app/",))
        first = await node.ask("PUT", "/v1/kv/app/1", {**ADMIN_BEARER, **key}, b"secret")
        for token in ("writer", "other"):
            again = await node.ask("PUT", "/v1/kv/app/1", {**bearer(token), **key}, b"secret")
            assert again.status == 200
            assert again.json["revision"] > first.json["revision"], "a write of its own"
            other = await node.ask("PUT", "/v1/kv/app/2", {**bearer(token), **key}, b"other")
            assert other.json["error"] == "idempotency_key_reused", "its own key is its own"
            retry = await node.ask("PUT", "/v1/kv/app/1", {**bearer(token), **key}, b"secret")
            assert retry.json == again.json
        assert (await node.ask("PUT", "/v1/kv/app/1", {**ADMIN_BEARER, **key}, b"secret")).json == first.json


# --- leases --------------------------------------------------------------------------------------------


async def test_leases_are_for_those_whose_keys_are_on_them() -> None:
    group = a_group()
    put_token(group, "other", "write", ("c/",))
    put_token(group, "team", "write", ("app/", "c/"))
    ttl = as_json({"ttl": 60})
    async with serve(group, token=FIRST) as node:

        async def ask(token: str, method: str, target: str, body: bytes | None = None) -> Reply:
            return await node.ask(method, target, ADMIN_BEARER if token == "admin" else bearer(token), body)

        own = (await ask("writer", "POST", "/v1/leases", ttl)).json["id"]
        free = (await ask("admin", "POST", "/v1/leases", ttl)).json["id"]
        assert (await ask("reader", "POST", "/v1/leases", ttl)).status == 403
        # step: one without keys is its owner's, or anybody's where it has no owner
        assert (await ask("writer", "POST", f"/v1/leases/{own}/keepalive")).status == 200
        for method, target, body in (
            ("GET", f"/v1/leases/{own}", None),
            ("DELETE", f"/v1/leases/{own}", None),
            ("POST", f"/v1/leases/{own}/keepalive", None),
            ("PUT", f"/v1/kv/c/9?lease={own}", b""),
            ("POST", "/v1/txn", as_json({"failure": [{"put": {"key": "c/9", "text": "", "lease": own}}]})),
            ("POST", "/v1/batch", as_json({"operations": [{"put": {"key": "c/9", "text": "", "lease": own}}]})),
        ):
            check_forbidden(await ask("other", method, target, body))
        assert (await ask("other", "GET", "/v1/leases/99")).json["error"] == "lease_not_found"
        # step: with keys it is for those whose keys they are, all of them
        assert (await ask("writer", "PUT", f"/v1/kv/app/1?lease={own}", b"")).status == 200
        assert (await ask("admin", "PUT", f"/v1/kv/c/2?lease={free}", b"")).status == 200
        for token, lease, status in (
            ("team", own, 200),
            ("reader", own, 200),
            ("other", own, 403),
            ("writer", free, 403),
        ):
            shown = await ask(token, "GET", f"/v1/leases/{lease}")
            assert shown.status == status
            assert status == 403 or shown.json["keys"] == ["app/1"]
        assert [each["id"] for each in (await ask("other", "GET", "/v1/leases")).json["leases"]] == [free]
        assert [each["id"] for each in (await ask("team", "GET", "/v1/leases")).json["leases"]] == [own, free]
        check_forbidden(await ask("team", "PUT", f"/v1/kv/b/9?lease={own}", b""))
        assert (await ask("team", "PUT", f"/v1/kv/c/3?lease={own}", b"")).status == 200
        # step: now it has keys of two teams, and is for neither alone: to end it would delete the other's
        for token in ("writer", "other"):
            for method, target in (("DELETE", ""), ("POST", "/keepalive"), ("GET", "")):
                check_forbidden(await ask(token, method, f"/v1/leases/{own}{target}"))
        assert (await ask("team", "DELETE", f"/v1/leases/{own}")).json["deleted"] == 2


async def test_what_a_node_does_not_know_yet_of_a_lease_the_state_machine_does() -> None:
    """The node that is asked may be behind; the log is not."""
    group = a_group()
    lease = (group.store.apply([5, 60])).lease  # type: ignore[union-attr]
    ahead, propose = group.store, group.propose

    def late(command: bytes, deadline_s: float = 5.0) -> Any:
        ahead.apply([PUT, "c/2", b"", "", None, None, lease, 0])
        return propose(command, deadline_s)

    group.propose = late  # type: ignore[method-assign]
    async with serve(group, token=FIRST) as node:
        for method, target in (("DELETE", ""), ("POST", "/keepalive")):
            reply = await node.ask(method, f"/v1/leases/{lease}{target}", bearer("writer"))
            check_forbidden(reply)
            assert reply.json["outcome"] == "not_applied"
            ahead.apply([2, "c/2", None])
    assert lease in ahead.leases


async def test_a_page_of_metrics_does_not_count_what_others_have() -> None:
    async with serve(a_group(), token=FIRST) as node:
        for headers, counts in ((ADMIN_BEARER, True), (bearer("reader"), False), (ADMIN_BEARER, True)):
            page = (await node.ask("GET", "/metrics", headers)).body
            assert b"kvnode_http_answers" in page
            assert (b"kvnode_store_keys " in page, b"kvnode_store_leases " in page) == (counts, counts)


async def test_etcds_leases_are_for_those_whose_keys_are_on_them_as_well() -> None:
    group = a_group()
    put_token(group, "other", "write", ("c/",))
    async with serve(group, token=FIRST) as node:

        async def ask(token: str, call: str, **document: Any) -> Reply:
            return await node.ask("POST", f"/v3/{call}", bearer(token), as_json(document))

        def put(lease: str, key: str) -> dict[str, Any]:
            return {"key": b64(key), "value": b64("v"), "lease": lease}

        lease = (await ask("writer", "lease/grant", TTL=60)).json["ID"]
        for keys in ([], ["app/1", "b/2"]):
            for key in keys:
                assert (await ask("writer", "kv/put", **put(lease, key))).status == 200
            txn = {"success": [{"requestPut": put(lease, "c/9")}]}
            for call, document in (
                *((f"lease/{call}", {"ID": lease}) for call in ("keepalive", "revoke", "timetolive")),
                ("kv/put", put(lease, "c/9")),
                ("kv/txn", txn),
            ):
                refused = await ask("other", call, **document)
                assert refused.status == 403, (call, refused)
                assert b"app" not in refused.body
        assert group.store.get("c/9") is None
        for call, sent in (("range", {"key": b64("c/1")}), ("range", {"key": b64("a"), "range_end": b64("d")})):
            assert (await ask("writer", f"kv/{call}", **sent)).status == 403
        assert (await ask("writer", "kv/range", key=b64("app/"), range_end=b64("app0"))).json["count"] == "2"
        assert (await ask("writer", "lease/revoke", ID=lease)).status == 200
        assert group.store.get("app/1") is None


# --- tokens --------------------------------------------------------------------------------------------


async def made(node: Served, **document: Any) -> Reply:
    return await node.ask("POST", TOKENS, ADMIN_BEARER, as_json(document))


async def test_a_token_is_made_changed_rotated_listed_and_revoked() -> None:
    group = a_group()
    async with serve(group, token=FIRST) as node:
        reply = await made(node, name="ci", role="write", prefixes=["ci/", "a/", "ci/x"], expires_s=60)
        assert reply.status == 200
        token, now_ms = reply.json, time.time() * 1000
        assert token["prefixes"] == ["a/", "ci/"]
        assert 50_000 < token["expires_ms"] - now_ms <= 60_000
        own = {"Authorization": f"Bearer {token['token']}"}
        assert (await node.ask("PUT", "/v1/kv/ci/1", own, b"1")).status == 200
        # step: a change of its rights counts at once
        changed = await node.ask("PATCH", f"{TOKENS}/ci", ADMIN_BEARER, as_json({"role": "read", "expires_s": None}))
        assert (changed.json["role"], changed.json["expires_ms"]) == ("read", None)
        assert (await node.ask("PUT", "/v1/kv/ci/1", own, b"1")).status == 403
        # step: both secrets for a time, then the new one alone
        rotated = await node.ask("POST", f"{TOKENS}/ci/rotate", ADMIN_BEARER, as_json({"grace_s": 60}))
        new = {"Authorization": f"Bearer {rotated.json['token']}"}
        assert rotated.json["id"] == token["id"]
        for each in (own, new):
            assert (await node.ask("GET", "/v1/kv/ci/1", each)).status == 200
        again = await node.ask("POST", f"{TOKENS}/{token['id']}/rotate", ADMIN_BEARER, as_json({"grace_s": 0}))
        newest = {"Authorization": f"Bearer {again.json['token']}"}
        for each, status in ((own, 401), (new, 401), (newest, 200)):
            assert (await node.ask("GET", "/v1/kv/ci/1", each)).status == status
        listed = {each["name"]: each for each in (await node.ask("GET", TOKENS, ADMIN_BEARER)).json["tokens"]}
        assert listed["ci"]["last_used_ms"] >= now_ms - 1000
        assert listed["writer"]["last_used_ms"] is None
        assert "token" not in listed["ci"]
        # step: by its name
        assert (await node.ask("DELETE", f"{TOKENS}/ci", ADMIN_BEARER)).json == {"revoked": token["id"]}
        assert (await node.ask("GET", "/v1/kv/ci/1", newest)).status == 401
        gone = await node.ask("DELETE", f"{TOKENS}/ci", ADMIN_BEARER)
        assert (gone.status, gone.json["error"]) == (404, "token_not_found")


async def test_an_expired_token_lets_nobody_in_and_is_listed_as_such() -> None:
    group = a_group()
    old = put_token(group, "old", "admin", expires_ms=int(time.time() * 1000) - 1)
    soon = put_token(group, "soon", "admin", expires_ms=int(time.time() * 1000) + 150)
    async with serve(group, token=FIRST) as node, node.connect() as wire:
        assert (await node.ask("GET", "/v1/kv/a", old)).status == 401
        async with node.connect() as another:
            assert (await another.ask("GET", "/v1/kv/a", soon)).status == 200
            listed = (await wire.ask("GET", TOKENS, ADMIN_BEARER)).json["tokens"]
            assert {each["name"]: each["expired"] for each in listed}["old"] is True
            while (await another.ask("GET", "/v1/kv/a", soon)).status == 200:
                assert time.time() * 1000 < group.store.tokens.get("soon").expires_ms + 1000  # type: ignore[union-attr]
            assert (await another.ask("GET", "/v1/kv/a", soon)).status == 401


@pytest.mark.parametrize(
    "document",
    [
        {"name": "x", "role": "root"}, {"name": "x", "role": "admin", "prefixes": ["a"]}, {"name": "x"},
        {"name": "x", "role": "full", "prefixes": ["a"]}, {"name": "x", "role": "read", "prefixes": [""]},
        {"name": "x", "role": "read", "prefixes": "a"}, {"name": "x", "role": "read", "prefixes": [1]},
        {"name": "x", "role": "read", "prefixes": ["a" * 481]}, {"name": "x", "role": "read", "prefixes": ["\ud800"]},
        {"name": "x", "role": "read", "prefixes": [f"{n:02}" for n in range(17)]},
        {"name": "x", "role": "read", "expires_s": 0}, {"name": "x", "role": "read", "expires_s": True},
        {"name": "x", "role": "read", "ttl": 1},
    ],
)  # fmt: skip
async def test_a_token_that_makes_no_sense_is_refused(document: dict[str, Any]) -> None:
    group = a_group()
    async with serve(group, token=FIRST) as node:
        reply = await made(node, **document)
        assert (reply.status, reply.json["error"]) == (400, "bad_request")
    assert group.proposals == 0


async def test_while_a_member_may_be_of_version_0_1_tokens_are_as_it_knows_them() -> None:
    group = SingleGroup()
    async with serve(group, token=FIRST) as node:
        for role, kept in (("read", "read_only"), ("admin", "full"), ("full", "full"), ("read_only", "read_only")):
            reply = await made(node, name=f"a {role}", role=role)
            assert reply.json["role"] == kept
            token = group.store.tokens.get(reply.json["id"])
            assert token is not None
            assert not token.scoped
        for more in ({"role": "write"}, {"role": "read", "prefixes": ["a"]}, {"role": "read", "expires_s": 9}):
            reply = await made(node, name="new", **more)
            assert (reply.status, reply.json["error"]) == (503, "unavailable")
        assert (await node.ask("POST", f"{TOKENS}/a%20read/rotate", ADMIN_BEARER)).status == 503


async def test_the_word_that_a_role_was_given_by_stays() -> None:
    async with serve(a_group(), token=FIRST) as node:
        for role in ("read", "read_only", "write", "admin", "full"):
            assert (await made(node, name=role, role=role)).json["role"] == role


async def test_a_page_learns_what_it_may_offer() -> None:
    group = a_group()
    put_token(group, "ops", "admin")
    async with serve(group, token=FIRST) as node:
        mine = (await node.ask("GET", ACCESS, bearer("writer"))).json
        assert (mine["role"], mine["may"], mine["prefixes"]) == ("write", ["read", "write"], list(OWN))
        began = await node.ask("POST", "/admin/api/v1/session", bearer("ops"))
        cookie = {"Cookie": began.headers["set-cookie"].partition(";")[0]}
        ops = (await node.ask("GET", ACCESS, cookie)).json
        assert (ops["session"], ops["may"], ops["prefixes"]) == (True, ["read", "write", "admin"], [])
    async with serve(group) as node:
        assert (await node.ask("GET", ACCESS)).json["may"] == ["read", "write", "admin"]


async def test_every_change_by_an_administrator_names_in_the_audit_log_what_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kvnode.audit")
    group = a_group()
    waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    api = "/admin/api/v1"
    async with serve(group, token=FIRST) as node:
        for method, path, document in (
            ("POST", "drain", {"node": "n1"}),
            ("DELETE", "drain", {"node": "n1"}),
            ("POST", "leader/transfer", {"to": "n3"}),
            ("POST", "members", {"id": "n4", "raft": "127.0.0.1:7004"}),
            ("POST", "members/n4/promote", None),
            ("DELETE", "members", {"id": "n4"}),
            ("POST", "tokens", {"name": "writer", "role": "read"}),
        ):
            body = None if document is None else as_json(document)
            assert (await node.ask(method, f"{api}/{path}", ADMIN_BEARER, body)).status in (200, 409), path
        group.drain = lambda node_id, force: waiting  # type: ignore[method-assign, assignment, return-value]
        late = await node.ask("POST", f"{api}/drain", {**ADMIN_BEARER, "Kvnode-Timeout": "0.1"}, b'{"node":"n2"}')
        assert (late.status, late.json["outcome"]) == (504, "unknown")
    who = "token first (the node's own --token-file) at 127.0.0.1"
    for line in (
        f"{who}: POST {api}/drain: 200: drained n1.",
        f"{who}: DELETE {api}/drain: 200: undrained n1.",
        f"{who}: POST {api}/leader/transfer: 200: made n3 the leader.",
        f"{who}: POST {api}/members: 200: added n4 at 127.0.0.1:7004.",
        f"{who}: POST {api}/members/n4/promote: 200: promoted n4.",
        f"{who}: DELETE {api}/members: 200: removed n4.",
        f"{who}: POST {api}/tokens: conflict (not_applied): There is a token named 'writer' already",
        f"{who}: POST {api}/drain: cut_off (unknown).",
    ):
        assert line in caplog.text, line
