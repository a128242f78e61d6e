"""POST /v1/txn, /v1/batch, /v1/leases and DELETE of a prefix: shapes, outcomes, and bad input that changes nothing."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from kvnode.state.leases import Leases
from kvnode.state.limits import LEASES_MAX
from kvnode.state.results import LeasesFull
from tests.http.serving import Reply, Served


async def send(node: Served, path: str, document: Any, **headers: str) -> Reply:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return await node.ask("POST", path, {name.replace("_", "-"): value for name, value in headers.items()}, body)


async def test_a_transaction_as_a_person_writes_it(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"one")
    asked = {
        "compare": [
            {"key": "a", "text": "one"},
            {"key": "a", "version": 1},
            {"key": "b", "exists": False},
            {"key": "a", "op": "<", "mod_revision": 9},
        ],
        "success": [
            {"put": {"key": "b", "text": "é", "content_type": "text/plain"}},
            {"get": {"key": "b"}},
            {"delete": {"key": "a"}},
            {"get": {"key": "a"}},
            {"delete_prefix": {"prefix": "none/"}},
        ],
        "failure": [{"get": {"key": "a"}}],
    }
    first = await send(node, "/v1/txn", asked, Idempotency_Key="k")
    assert first.status == 200
    value = b64encode("é".encode()).decode()
    assert first.json == {
        "succeeded": True,
        "revision": 2,
        "results": [
            {"put": {"key": "b", "revision": 2, "version": 1, "created": True}},
            {
                "get": {
                    "key": "b", "exists": True, "value": value, "create_revision": 2, "mod_revision": 2, "version": 1,
                }
            },
            {"delete": {"deleted": 1}},
            {"get": {"key": "a", "exists": False}},
            {"delete_prefix": {"deleted": 0}},
        ],
    }  # fmt: skip
    assert (await send(node, "/v1/txn", asked, Idempotency_Key="k")).json == first.json
    await node.ask("PUT", "/v1/kv/b", body=b"2")
    again = (await send(node, "/v1/txn", asked, Idempotency_Key="k")).json
    assert again["results"][1]["get"]["value"] is None  # it was read, and is not there any more
    again["results"][1]["get"]["value"] = value
    assert again == first.json
    other = await send(node, "/v1/txn", asked)
    assert (other.json["succeeded"], other.json["results"]) == (False, [{"get": {"key": "a", "exists": False}}])


async def test_the_deletion_of_a_prefix_is_one_revision(node: Served) -> None:
    for key in ("a/1", "a/2", "b"):
        await node.ask("PUT", f"/v1/kv/{key}", body=b"")
    for _ in range(2):
        reply = await node.ask("DELETE", "/v1/kv?prefix=a/", {"Idempotency-Key": "k"})
        assert (reply.status, reply.json) == (200, {"deleted": 2, "revision": 4})
    assert (await node.ask("DELETE", "/v1/kv?prefix=a/")).json == {"deleted": 0, "revision": 4}
    assert (await node.ask("GET", "/v1/kv?count=only")).json == {"count": 1, "revision": 4}


async def test_a_count_is_of_the_range_and_not_of_the_page(node: Served) -> None:
    for key in ("a/1", "a/2", "a/3", "b"):
        await node.ask("PUT", f"/v1/kv/{key}", body=b"")
    page = (await node.ask("GET", "/v1/kv?prefix=a/&limit=2&count&keys_only")).json
    assert (page["count"], len(page["items"])) == (3, 2)
    await node.ask("DELETE", "/v1/kv/a/2")  # the cursor's own key
    await node.ask("PUT", "/v1/kv/a/1x", body=b"")
    rest = (await node.ask("GET", f"/v1/kv?prefix=a/&count=true&cursor={page['cursor']}")).json
    assert ([item["key"] for item in rest["items"]], rest["count"]) == (["a/3"], 3)
    assert (await node.ask("GET", "/v1/kv?start=a/2&end=b&count=only")).json["count"] == 1


async def test_each_write_of_a_batch_has_its_own_outcome(node: Served) -> None:
    value = b64encode(b"1").decode()
    operations = [
        {"put": {"key": "a", "value": value}},
        {"delete": {"key": "missing"}},
        {"put": {"key": "b", "value": value, "ttl": 60}},
        {"put": {"key": "c", "value": value, "lease": 99}},
        {"delete": {"key": "a"}},
    ]
    for _ in range(2):
        reply = await send(node, "/v1/batch", {"operations": operations}, Idempotency_Key="k")
        assert reply.status == 200
        results = reply.json["results"]
        assert results[0] == {"key": "a", "revision": 1, "version": 1, "created": True}
        assert (results[1]["error"], results[1]["outcome"]) == ("key_not_found", "not_applied")
        assert results[2] == {"key": "b", "revision": 2, "version": 1, "created": True, "lease": 1}
        assert (results[3]["error"], results[3]["outcome"]) == ("lease_not_found", "not_applied")
        assert results[4] == {"key": "a", "deleted": 1, "revision": 3}
    assert node.group.store.revision == 3


async def test_the_life_of_a_lease(node: Served) -> None:
    granted = await send(node, "/v1/leases", {"ttl": 30})
    assert (granted.status, granted.json) == (200, {"id": 1, "ttl": 30, "remaining": 30})
    for key in ("b", "a"):
        assert (await node.ask("PUT", f"/v1/kv/{key}?lease=1", body=b"")).json["lease"] == 1
    node.group.left_s = 7.2
    shown = (await node.ask("GET", "/v1/leases/1")).json
    assert shown == {"id": 1, "ttl": 30, "remaining": 8, "keys": ["a", "b"], "key_count": 2}
    got = await node.ask("GET", "/v1/kv/a")
    assert (got.headers["kvnode-lease"], got.headers["kvnode-ttl"]) == ("1", "8")
    item = (await node.ask("GET", "/v1/kv?prefix=a")).json["items"][0]
    assert (item["lease"], item["ttl"]) == (1, 8)
    assert (await node.ask("POST", "/v1/leases/1/keepalive")).json == {"id": 1, "ttl": 30, "remaining": 30}
    await node.ask("PUT", "/v1/kv/b", body=b"")  # without a lease: it stays
    assert (await node.ask("GET", "/v1/leases")).json == {"leases": [{"id": 1, "ttl": 30, "remaining": 8}]}
    revoked = await node.ask("DELETE", "/v1/leases/1")
    assert revoked.json == {"id": 1, "ttl": 30, "remaining": 0, "deleted": 1, "revision": 4}
    assert [(await node.ask("GET", f"/v1/kv/{key}")).status for key in "ab"] == [404, 200]
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/keepalive")):
        gone = await node.ask(method, f"/v1/leases/1{path}")
        assert (gone.status, gone.json["error"]) == (404, "lease_not_found")
    assert (await node.ask("PUT", "/v1/kv/a?lease=1", body=b"")).status == 404


async def test_a_lease_too_many_is_refused(node: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leases, "cannot_grant", lambda _, count, revision, chosen=False: LeasesFull(revision))
    reply = await send(node, "/v1/leases", {"ttl": 30})
    assert (reply.status, reply.json["error"], reply.json["outcome"]) == (429, "too_many_leases", "not_applied")
    assert LEASES_MAX > 1_000_000


PUT_A = {"put": {"key": "a", "text": ""}}
BAD: list[tuple[str, Any]] = [
    *(("/v1/txn", body) for body in (
        b"", b"{", b"[]", b"\xff", b"[" * 100_000, {"x": []}, {"compare": {}}, {"success": [PUT_A] * 2},
        {"success": [{"put": {"key": f"{i}", "text": ""}} for i in range(129)]}, {"failure": [7]},
        {"success": [PUT_A, {"delete": {"key": "a"}}]}, {"success": [PUT_A, {"delete_prefix": {"prefix": "a"}}]},
        {"success": [{}]}, {"success": [{"put": {"key": "b", "text": ""}, "get": {"key": "b"}}]},
        {"success": [{"frob": {"key": "a"}}]}, {"success": [{"get": {}}]}, {"success": [{"get": {"key": ""}}]},
        {"success": [{"get": {"key": "k" * 1025}}]}, {"success": [{"get": "a"}]},
        {"success": [{"delete_prefix": {"prefix": ""}}]}, {"success": [{"delete_prefix": {"key": "a"}}]},
        *({"success": [{"put": {"key": "b"} | put}]} for put in (
            {}, {"value": "!"}, {"value": 1}, {"text": 1}, {"text": "\ud800"}, {"text": "", "value": ""},
            {"text": "", "ttl": 0}, {"text": "", "ttl": "5"}, {"text": "", "ttl": 1.5}, {"text": "", "ttl": True},
            {"text": "", "ttl": 10**9}, {"text": "", "lease": 0}, {"text": "", "lease": 1, "ttl": 1},
            {"text": "", "content_type": "a\nb"}, {"text": "", "content_type": "x" * 257}, {"text": "", "frob": 1},
        )),
        *({"compare": [compare], "success": [{"delete": {"key": "a"}}]} for compare in (
            {}, {"key": "a"}, {"key": "a", "version": "1"}, {"key": "a", "version": -1}, {"key": "a", "version": True},
            {"key": "a", "version": 1, "exists": True}, {"key": "a", "op": "~", "version": 1},
            {"key": "a", "op": 1, "version": 1}, {"key": "a", "exists": 1}, {"key": "a", "op": "<", "exists": True},
            {"key": "a", "value": "!"}, {"key": "a", "version": 2**63}, {"key": 1, "version": 1},
        )),
    )),
    *(("/v1/batch", body) for body in (
        b"", b"null", {}, {"operations": []}, {"operations": [PUT_A] * 1001},
        {"operations": [PUT_A, {"get": {"key": "a"}}]},
        {"operations": [PUT_A, {"put": {"key": "b", "value": "!"}}]}, {"operations": [PUT_A, {"delete": {"key": ""}}]},
        {"operations": [PUT_A, None]}, {"operations": [PUT_A], "x": 1},
    )),
    *(("/v1/leases", body) for body in (
        b"", b"1", {}, {"ttl": 0}, {"ttl": -1}, {"ttl": "5"}, {"ttl": 1.5}, {"ttl": None}, {"ttl": 366 * 86_400 + 1},
        {"ttl": True}, {"ttl": 5, "id": 1},
    )),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), BAD)
async def test_a_bad_body_is_refused_with_a_sentence_and_changes_nothing(node: Served, path: str, body: Any) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"1")
    before = list(node.group.store.view().chunks())
    reply = await send(node, path, body)
    assert (reply.status, reply.json["error"], reply.json["outcome"]) == (400, "bad_request", "not_applied"), reply
    assert reply.json["message"].endswith((".", "="))
    assert list(node.group.store.view().chunks()) == before
    assert node.group.proposals == 1


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *(("PUT", f"/v1/kv/a?{query}") for query in (
            "ttl=0", "ttl=", "ttl=-1", "ttl=1.5", "ttl=x", "ttl=99999999999", "ttl=1&ttl=1", "lease=0", "lease=x",
            "lease=1&ttl=1", "lease=99999999999999999999", "ttl=%D9%A3",
        )),
        *(("DELETE", f"/v1/kv{query}") for query in (
            "", "?prefix=", "?prefix=a&limit=1", "?start=a", "?prefix=a&prefix=b", "?prefix=%ff",
            f"?prefix={'k' * 1025}",
        )),
        *(("GET", f"/v1/kv?{query}") for query in ("count=maybe", "revision=1", "count=only&limit=0")),
        ("GET", "/v1/kv/a?revision=1"),
        *((method, f"/v1/leases/{lease}") for method in ("GET", "DELETE") for lease in ("0", "x", "-1", "9" * 20, "")),
        *(("POST", f"/v1/leases/{lease}/keepalive") for lease in ("0", "x", "")),
        ("GET", "/v1/leases?cursor=x"),
        ("GET", "/v1/leases/1?consistency=x"),
    ],
)  # fmt: skip
async def test_a_bad_parameter_is_refused_and_changes_nothing(node: Served, method: str, target: str) -> None:
    reply = await node.ask(method, target, {}, b"" if method != "GET" else None)
    assert (reply.status, reply.json["error"]) == (400, "bad_request"), reply
    assert node.group.proposals == 0


async def test_bodies_are_bounded(node: Served) -> None:
    large = {"put": {"key": "a", "value": b64encode(bytes(1_048_577)).decode()}}
    parts = [{"put": {"key": f"{i}", "value": b64encode(bytes(800_000)).decode()}} for i in range(3)]
    for path, body in (
        ("/v1/txn", {"success": [large]}),
        ("/v1/txn", {"success": parts}),
        ("/v1/txn", b" " * (4 * 1_048_576 + 1)),
        ("/v1/batch", {"operations": [large]}),
        ("/v1/batch", b" " * (8 * 1_048_576 + 1)),
        ("/v1/leases", b" " * 65_537),
    ):
        reply = await send(node, path, body)
        assert (reply.status, reply.json["error"]) == (413, "too_large"), path
    assert node.group.proposals == 0
