"""What a request says beside what its endpoint reads is refused: ignored, it would be taken for carried out."""

from __future__ import annotations

import json

import pytest

from tests.http.serving import Served

ADMIN = "/admin/api/v1"
# Without a condition each of these is carried out.
WITHOUT_CONDITIONS = [
    ("POST", "/v1/txn", b'{"success":[{"put":{"key":"a","text":"x"}}]}'),
    ("POST", "/v1/batch", b'{"operations":[{"put":{"key":"a","text":"x"}}]}'),
    ("POST", "/v1/leases", b'{"ttl":60}'),
    ("POST", "/v1/leases/1/keepalive", b""),
    ("DELETE", "/v1/leases/1", b""),
    ("DELETE", "/v1/kv?prefix=a", b""),
]
# All that they are to do stands in their paths.
WITHOUT_FIELDS = [
    ("POST", "/v1/leases/1/keepalive"),
    ("DELETE", "/v1/leases/1"),
    ("POST", ADMIN + "/members/n4/promote"),
    ("POST", ADMIN + "/members/n4/replace"),
    ("DELETE", ADMIN + "/tokens/shop"),
    ("POST", ADMIN + "/session"),
    ("DELETE", ADMIN + "/session"),
]


async def prepare(node: Served) -> int:
    """A lease and a token; the store's revision."""
    assert (await node.ask("POST", "/v1/leases", body=b'{"ttl":600}')).json["id"] == 1
    assert (await node.ask("POST", ADMIN + "/tokens", body=b'{"name":"shop","role":"read"}')).status == 200
    return node.group.store.revision


@pytest.mark.parametrize("condition", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize(("method", "path", "body"), WITHOUT_CONDITIONS)
async def test_a_condition_that_nobody_would_look_at_is_refused(
    node: Served, method: str, path: str, body: bytes, condition: str
) -> None:
    revision = await prepare(node)
    reply = await node.ask(method, path, {condition: "*"}, body)
    assert (reply.status, reply.json["outcome"]) == (400, "not_applied")
    assert "a transaction compares" in reply.json["message"]
    assert node.group.store.revision == revision
    assert node.group.store.leases.ids(0, 9) == [1]
    assert (await node.ask(method, path, body=body)).status == 200


@pytest.mark.parametrize(("method", "path"), WITHOUT_FIELDS)
async def test_a_field_that_nobody_would_look_at_is_refused(node: Served, method: str, path: str) -> None:
    await prepare(node)
    for body in (b'{"ttl":60}', b"[]", b"ttl=60", b'{"force":true}'):
        reply = await node.ask(method, path, body=body)
        assert (reply.status, reply.json["outcome"]) == (400, "not_applied")
    assert '"ttl"; this request takes none' in (await node.ask(method, path, body=b'{"ttl":60}')).json["message"]
    assert node.group.changes == []
    assert node.group.store.leases.ids(0, 9) == [1]
    assert (await node.ask(method, path, body=b" {} ")).status == 200


async def test_a_part_of_a_value_is_not_stored_as_the_whole(node: Served) -> None:
    for _ in range(2):  # the second time these header lines would be known
        reply = await node.ask("PUT", "/v1/kv/a", {"Content-Range": "bytes 0-0/5"}, b"x")
        assert (reply.status, reply.json["outcome"]) == (400, "not_applied")
    assert (await node.ask("GET", "/v1/kv/a")).status == 404


@pytest.mark.parametrize("path", ["/n4", "?id=n4"])
async def test_a_member_that_is_to_go_is_named_once(node: Served, path: str) -> None:
    for named in ("n1", "n4"):
        reply = await node.ask("DELETE", ADMIN + "/members" + path, body=json.dumps({"id": named}).encode())
        assert (reply.status, "name it once" in reply.json["message"]) == (400, True)
    assert node.group.changes == []


async def test_fields_of_another_change_of_members_are_unknown(node: Served) -> None:
    added = await node.ask("POST", ADMIN + "/members", body=b'{"id":"n4","raft":"h:7","force":true}')
    removed = await node.ask("DELETE", ADMIN + "/members/n4", body=b'{"learner":true}')
    assert (added.status, removed.status) == (400, 400)
    assert node.group.changes == []


async def test_an_empty_cursor_begins_a_listing(node: Served) -> None:
    """As a client sends it that fills in all parameters: the page names the revision to watch from, as any first."""
    await node.ask("PUT", "/v1/kv/a", body=b"x")
    assert (await node.ask("GET", "/v1/kv?cursor=")).json == (await node.ask("GET", "/v1/kv")).json


@pytest.mark.parametrize(
    ("path", "field"),
    [("/leader/transfer", "to"), ("/drain", "node"), ("/members", "id"), ("/members", "raft")],
)
async def test_a_long_name_is_not_repeated_whole(node: Served, path: str, field: str) -> None:
    document = {"id": "n4", field: "n" * 50_000 + ":1"} if path == "/members" else {field: "n" * 50_000}
    reply = await node.ask("POST", ADMIN + path, body=json.dumps(document).encode())
    assert reply.status == 400
    assert len(reply.body) < 400
