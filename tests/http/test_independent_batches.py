"""POST /v1/batch with `"independent": true`: calls that know nothing of each other, each as if it had come alone."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from kvnode.errors import NoLeader
from kvnode.http.batch import READ_BYTES_MAX
from kvnode.state.commands import LEVEL
from tests.http.serving import Reply, Served, serve
from tests.http.single import SingleGroup
from tests.http.test_rights import FIRST, bearer, put_token


async def send(node: Served, *operations: Any, headers: dict[str, str] | None = None) -> Reply:
    body = json.dumps({"operations": operations, "independent": True}).encode()
    return await node.ask("POST", "/v1/batch", headers, body)


async def results(node: Served, *operations: Any, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    reply = await send(node, *operations, headers=headers)
    assert reply.status == 200, reply
    found: list[dict[str, Any]] = reply.json["results"]
    return found


def put(key: str, text: str, **more: Any) -> dict[str, Any]:
    return {"put": {"key": key, "text": text, **more}}


async def test_what_is_wrong_with_one_is_its_own_outcome(node: Served) -> None:
    wrong = [{"put": {"key": "a"}}, {"get": {"key": ""}}, {"move": {"key": "a"}}, 7, put("k", "", idempotency_key="")]
    wrong.append({"get": {"key": "a", "consistency": "sometimes"}})
    fine, *refused, last = await results(node, put("a", "1"), *wrong, put("b", "2"))
    assert (fine["key"], fine["version"], last["key"], last["revision"]) == ("a", 1, "b", fine["revision"] + 1)
    assert {(each["error"], each["outcome"]) for each in refused} == {("bad_request", "not_applied")}
    assert len(refused) == len(wrong)


@pytest.mark.parametrize("independent", [1, "true", None])
async def test_only_true_and_false_say_so(node: Served, independent: object) -> None:
    body = json.dumps({"operations": [put("a", "1")], "independent": independent}).encode()
    assert (await node.ask("POST", "/v1/batch", None, body)).status == 400
    assert node.group.proposals == 0


async def test_other_batches_are_as_they_were(node: Served) -> None:
    for operation in ({"get": {"key": "a"}}, put("a", "1", idempotency_key="k")):
        body = json.dumps({"operations": [operation], "independent": False}).encode()
        assert (await node.ask("POST", "/v1/batch", None, body)).status == 400
    assert node.group.proposals == 0


@pytest.mark.parametrize("together_first", [True, False])
async def test_a_write_has_one_outcome_together_and_alone(node: Served, together_first: bool) -> None:
    """Under its own key: so a client that got no answer to a batch may send each write of it again by itself."""

    async def together() -> int:
        (outcome,) = await results(node, put("a", "1", content_type="x/y", idempotency_key="once"))
        return int(outcome["revision"])

    async def alone() -> int:
        headers = {"Idempotency-Key": "once", "Content-Type": "x/y"}
        return int((await node.ask("PUT", "/v1/kv/a", headers, b"1")).json["revision"])

    first, second = (together, alone) if together_first else (alone, together)
    assert await first() == await second()
    assert (await node.ask("GET", "/v1/kv/a")).headers["etag"] == '"1"'
    (other,) = await results(node, put("a", "2", idempotency_key="once"))
    assert other["error"] == "idempotency_key_reused"
    delete = {"delete": {"key": "a", "idempotency_key": "twice"}}
    assert [each["deleted"] for each in await results(node, delete, delete)] == [1, 1]
    assert (await node.ask("DELETE", "/v1/kv/a", {"Idempotency-Key": "twice"})).status == 200


async def test_reads_beside_writes(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", {"Content-Type": "x/y"}, b"\xff")
    leased = (await node.ask("PUT", "/v1/kv/b?ttl=60", None, b"")).json["lease"]
    first, written, second, missing = await results(
        node, {"get": {"key": "a"}}, put("c", "3"), {"get": {"key": "b", "consistency": "stale"}}, {"get": {"key": "z"}}
    )
    assert first == {
        "key": "a", "value": b64encode(b"\xff").decode(), "create_revision": 1, "mod_revision": 1, "version": 1,
        "revision": first["revision"], "content_type": "x/y",
    }  # fmt: skip
    assert written["version"] == 1
    assert (second["value"], second["lease"], second["ttl"]) == ("", leased, 60)
    assert (missing["error"], missing["key"]) == ("key_not_found", "z")


async def test_a_read_that_cannot_be_answered_leaves_the_others_their_outcome(
    node: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.ask("PUT", "/v1/kv/a", None, b"1")

    async def nobody(waited_s: float = 0.0) -> None:
        raise NoLeader("None.")

    monkeypatch.setattr(node.group, "read_barrier", nobody)
    stale, linearizable, written = await results(
        node, {"get": {"key": "a", "consistency": "stale"}}, {"get": {"key": "a"}}, put("b", "2")
    )
    assert stale["mod_revision"] == 1
    assert linearizable["error"] == "no_leader"
    assert written["version"] == 1


async def test_an_answer_has_no_more_than_a_megabyte_of_values(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", None, b"x" * (READ_BYTES_MAX // 2))
    one, two, *_ = await results(node, *[{"get": {"key": "a"}}] * 8)
    assert len(one["value"]) > READ_BYTES_MAX // 2
    assert (two["error"], two["outcome"]) == ("too_large", "not_applied")


async def test_rights_are_asked_for_each() -> None:
    group = SingleGroup()
    group.store.apply([LEVEL, 1])
    put_token(group, "reader", "read")
    put_token(group, "writer", "write", ("app/",))
    async with serve(group, token=FIRST) as node:
        assert (await send(node, {"get": {"key": "app/1"}}, headers=bearer("reader"))).status == 403
        own, other, hidden = await results(
            node, put("app/1", "1"), put("other", "1"), {"get": {"key": "other"}}, headers=bearer("writer")
        )
    assert own["version"] == 1
    assert [each["error"] for each in (other, hidden)] == ["forbidden"] * 2
