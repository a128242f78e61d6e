"""Failures reach the client as one sentence with a code and, for writes, an outcome; nothing else leaks."""

from __future__ import annotations

import logging

import pytest

from kvnode import errors
from tests.http.serving import Served

DEFINITE_503 = [
    errors.NoLeader,
    errors.NotLeader,
    errors.Unverified,
    errors.Overloaded,
    errors.ShuttingDown,
    errors.Starting,
    errors.Unavailable,
]


@pytest.mark.parametrize("error", DEFINITE_503)
async def test_a_definite_503_may_be_sent_again(node: Served, error: type[errors.Unavailable]) -> None:
    node.group.raises = error("Nothing was done.")
    write = await node.ask("PUT", "/v1/kv/a", body=b"v")
    assert (write.status, write.headers["retry-after"]) == (503, "1")
    assert write.json == {"error": error.code, "message": "Nothing was done.", "outcome": "not_applied"}
    read = await node.ask("GET", "/v1/kv/a")
    assert (read.status, read.headers["retry-after"]) == (503, "1")
    assert read.json == {"error": error.code, "message": "Nothing was done."}
    assert read.headers["kvnode-leader"] == "n1"


async def test_an_unknown_outcome_is_504_without_an_invitation_to_retry(node: Served) -> None:
    node.group.raises = errors.OutcomeUnknown("Nobody can tell.")
    reply = await node.ask("DELETE", "/v1/kv/a")
    assert reply.status == 504
    assert "retry-after" not in reply.headers
    assert reply.json == {"error": "outcome_unknown", "message": "Nobody can tell.", "outcome": "unknown"}


async def test_a_full_disk_is_507(node: Served) -> None:
    node.group.raises = errors.DiskFull("The disk is full.")
    reply = await node.ask("PUT", "/v1/kv/a", body=b"v")
    assert (reply.status, reply.json["error"], reply.json["outcome"]) == (507, "disk_full", "not_applied")


@pytest.mark.parametrize(
    "error", [RuntimeError("/secret/path"), errors.Fatal("/secret/path"), TimeoutError(), OSError(28, "/secret/path")]
)
async def test_the_unexpected_goes_to_the_log_and_not_to_the_client(
    node: Served, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    node.group.raises = error
    with caplog.at_level(logging.ERROR, "kvnode.http"):
        write = await node.ask("PUT", "/v1/kv/a", body=b"v")
        read = await node.ask("GET", "/v1/kv/a")
    assert (write.status, write.json["error"], write.json["outcome"]) == (500, "internal", "unknown")
    assert (read.status, read.json["error"]) == (500, "internal")
    assert "outcome" not in read.json
    assert b"secret" not in write.body + read.body
    assert b"Traceback" not in write.body + read.body
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error, error]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(500)) + b"\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"PUT /v1/kv/a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_one_json_sentence_and_an_end(
    node: Served, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with node.connect() as wire:
        wire.send(raw)
        reply = await wire.reply()
        assert reply.status == 400
        assert reply.json["error"] == "bad_request"
        assert "\n" not in reply.json["message"]
        assert reply.headers["connection"] == "close"
        assert reply.headers["kvnode-node"] == "n1"
        assert await wire.closed()
    assert not caplog.records


async def test_http_1_0_and_connection_headers(node: Served) -> None:
    async with node.connect() as wire:
        wire.send(b"GET /admin/healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await wire.reply()).headers["connection"] == "keep-alive"
        wire.send(b"GET /admin/healthz HTTP/1.0\r\n\r\n")
        assert (await wire.reply()).headers["connection"] == "close"
        assert await wire.closed()
    async with node.connect() as wire:
        assert "connection" not in (await wire.ask("GET", "/admin/healthz")).headers
        assert (await wire.ask("GET", "/admin/healthz", {"Connection": "close"})).headers["connection"] == "close"
        assert await wire.closed()


async def test_pipelined_requests_are_answered_in_order(node: Served) -> None:
    async with node.connect() as wire:
        wire.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1" * 40)
        assert [(await wire.reply()).json["version"] for _ in range(40)] == list(range(1, 41))
