"""`Idempotency-Key`: the first answer to the letter, and a plain refusal of what cannot be meant."""

from __future__ import annotations

import pytest

from kvnode.state import idempotency
from kvnode.state.commands import LEVEL
from kvnode.state.limits import OUTCOME_LARGEST_BYTES
from tests.http.serving import Reply, Served, serve
from tests.http.single import SingleGroup

VARYING = {"date"}


def told(reply: Reply) -> tuple[int, dict[str, str], bytes]:
    return reply.status, {k: v for k, v in reply.headers.items() if k not in VARYING}, reply.body


async def test_a_repeated_put_gives_the_first_answer_to_the_letter(node: Served) -> None:
    headers = {"Idempotency-Key": "one", "Content-Type": "text/plain"}
    first = await node.ask("PUT", "/v1/kv/a", headers, b"1")
    await node.ask("PUT", "/v1/kv/a", body=b"2")
    again = await node.ask("PUT", "/v1/kv/a", headers, b"1")
    assert first.json == {"key": "a", "revision": 1, "version": 1, "created": True}
    assert told(again) == told(first)
    assert (await node.ask("GET", "/v1/kv/a")).body == b"2"
    assert node.group.store.revision == 2


async def test_a_repeated_delete_does_not_find_the_key_missing(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"1")
    first = await node.ask("DELETE", "/v1/kv/a", {"Idempotency-Key": "one"})
    again = await node.ask("DELETE", "/v1/kv/a", {"Idempotency-Key": "one"})
    assert first.json == {"deleted": 1, "revision": 2}
    assert told(again) == told(first)
    missing = await node.ask("DELETE", "/v1/kv/a", {"Idempotency-Key": "two"})
    await node.ask("PUT", "/v1/kv/a", body=b"2")
    assert told(await node.ask("DELETE", "/v1/kv/a", {"Idempotency-Key": "two"})) == told(missing)
    assert (missing.status, node.group.store.revision) == (404, 3)


async def test_a_refused_condition_stays_refused(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"1")
    headers = {"Idempotency-Key": "one", "If-None-Match": "*"}
    first = await node.ask("PUT", "/v1/kv/a", headers, b"2")
    await node.ask("DELETE", "/v1/kv/a")
    again = await node.ask("PUT", "/v1/kv/a", headers, b"2")
    assert (first.status, first.headers["etag"]) == (412, '"1"')
    assert told(again) == told(first)


@pytest.mark.parametrize(
    ("method", "target", "headers", "body"),
    [
        ("PUT", "/v1/kv/b", {}, b"1"),
        ("PUT", "/v1/kv/a", {}, b"2"),
        ("PUT", "/v1/kv/a", {"If-Match": '"1"'}, b"1"),
        ("PUT", "/v1/kv/a", {"Content-Type": "text/plain"}, b"1"),
        ("DELETE", "/v1/kv/a", {}, b""),
    ],
)
async def test_another_request_under_the_key_is_a_definite_400(
    node: Served, method: str, target: str, headers: dict[str, str], body: bytes
) -> None:
    await node.ask("PUT", "/v1/kv/a", {"Idempotency-Key": "one"}, b"1")
    reply = await node.ask(method, target, {"Idempotency-Key": "one", **headers}, body)
    assert (reply.status, reply.json["error"], reply.json["outcome"]) == (400, "idempotency_key_reused", "not_applied")
    assert node.group.store.revision == 1


async def test_what_was_never_decided_is_not_remembered(node: Served) -> None:
    node.group.raises = RuntimeError("lost")
    assert (await node.ask("PUT", "/v1/kv/a", {"Idempotency-Key": "one"}, b"1")).status == 500
    node.group.raises = None
    assert (await node.ask("PUT", "/v1/kv/a", {"Idempotency-Key": "one"}, b"1")).status == 200


@pytest.mark.parametrize("key", ["k", "k" * 64, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a b~!"])
async def test_a_key_is_1_to_64_printable_characters(node: Served, key: str) -> None:
    for _ in range(2):
        assert (await node.ask("PUT", "/v1/kv/a", {"Idempotency-Key": key}, b"1")).json["revision"] == 1


@pytest.mark.parametrize("key", ["", "k" * 65, "é", "a\tb"])
async def test_any_other_key_is_refused(node: Served, key: str) -> None:
    for method in ("PUT", "DELETE"):
        reply = await node.ask(method, "/v1/kv/a", {"Idempotency-Key": key}, b"")
        assert (reply.status, reply.json["error"], reply.json["outcome"]) == (400, "bad_request", "not_applied")
        assert "Idempotency-Key" in reply.json["message"]
    assert node.group.proposals == 0


async def test_two_keys_on_one_request_are_refused(node: Served) -> None:
    async with node.connect() as wire:
        wire.send(b"DELETE /v1/kv/a HTTP/1.1\r\nHost: x\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n\r\n")
        assert (await wire.reply()).status == 400
    assert node.group.proposals == 0


async def test_a_client_that_fills_the_window_is_refused_for_certain_and_nobody_else_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency, "OUTCOMES_YOUNG_BYTES_MAX", 256 * 40 + OUTCOME_LARGEST_BYTES)
    group = SingleGroup()
    async with serve(group, token="secret") as node:
        group.store.apply([LEVEL, 1])
        tokens = []
        for name in ("one", "two"):
            made = await node.ask(
                "POST",
                "/admin/api/v1/tokens",
                {"Authorization": "Bearer secret", "Content-Type": "application/json"},
                b'{"name": "%b", "role": "full"}' % name.encode(),
            )
            tokens.append({"Authorization": f"Bearer {made.json['token']}"})
        one, two = tokens
        first = await node.ask("PUT", "/v1/kv/a", {**two, "Idempotency-Key": "mine"}, b"1")
        async with node.connect() as wire:
            replies = [
                await wire.ask("PUT", "/v1/kv/k", {**one, "Idempotency-Key": f"key-{number}"}, b"")
                for number in range(50)
            ]
        taken = [reply for reply in replies if reply.status == 200]
        refused = replies[len(taken)]
        assert 25 <= len(taken) <= 32, "three quarters of 40"
        assert (refused.status, refused.json["error"], refused.json["outcome"]) == (
            429, "too_many_requests", "not_applied",
        )  # fmt: skip
        assert refused.headers["retry-after"] == "1"
        assert "same key" in refused.json["message"]
        assert group.store.revision == replies[0].json["revision"] + len(taken) - 1
        again = await node.ask("PUT", "/v1/kv/k", {**one, "Idempotency-Key": "key-0"}, b"")
        assert told(again) == told(replies[0]), "a repetition is answered"
        assert (await node.ask("PUT", "/v1/kv/k", one, b"")).status == 200, "without a key there is nothing to keep"
        batch = await node.ask(
            "POST",
            "/v1/batch",
            {**one, "Idempotency-Key": "bulk", "Content-Type": "application/json"},
            b'{"operations": [%b]}' % b", ".join([b'{"delete": {"key": "k"}}'] * 20),
        )
        outcomes = [result.get("error") for result in batch.json["results"]]
        assert outcomes[0] is None, "batches count apart from the client's other writes"
        assert outcomes[-1] == "too_many_requests"
        # Another token, from the same address.
        assert told(await node.ask("PUT", "/v1/kv/a", {**two, "Idempotency-Key": "mine"}, b"1")) == told(first)
        assert (await node.ask("PUT", "/v1/kv/b", {**two, "Idempotency-Key": "new"}, b"1")).status == 200
