"""Values, conditions, consistency, limits."""

from __future__ import annotations

import gzip

import pytest

from kvnode.state.limits import VALUE_BYTES_MAX
from tests.http.serving import Served

MIB = VALUE_BYTES_MAX


async def test_put_get_head_delete(node: Served) -> None:
    put = await node.ask("PUT", "/v1/kv/a", {"Content-Type": "text/x; a=b"}, b"one")
    assert put.json == {"key": "a", "revision": 1, "version": 1, "created": True}
    assert (put.headers["etag"], put.headers["kvnode-revision"]) == ('"1"', "1")
    await node.ask("PUT", "/v1/kv/other", body=b"")
    again = await node.ask("PUT", "/v1/kv/a", {"Content-Type": "text/x; a=b"}, b"two")
    assert again.json == {"key": "a", "revision": 3, "version": 2, "created": False}
    got = await node.ask("GET", "/v1/kv/a")
    assert (got.status, got.body, got.headers["content-type"]) == (200, b"two", "text/x; a=b")
    assert (got.headers["etag"], got.headers["kvnode-revision"]) == ('"3"', "3")
    assert got.headers["x-content-type-options"] == "nosniff"
    head = await node.ask("HEAD", "/v1/kv/a")
    varying = {"date"}
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in got.headers.items() if k not in varying
    }
    deleted = await node.ask("DELETE", "/v1/kv/a")
    assert deleted.json == {"deleted": 1, "revision": 4}
    assert deleted.headers["kvnode-revision"] == "4"
    missing = await node.ask("DELETE", "/v1/kv/a")
    assert (missing.status, missing.json["error"], missing.json["outcome"]) == (404, "key_not_found", "not_applied")
    gone = await node.ask("GET", "/v1/kv/a")
    assert (gone.status, gone.json["error"]) == (404, "key_not_found")
    assert "outcome" not in gone.json
    assert (await node.ask("HEAD", "/v1/kv/a")).status == 404


async def test_any_bytes_and_none_at_all_are_a_value(node: Served) -> None:
    for value in (b"", b"\0\xff\r\n\r\n", bytes(range(256)) * 300):
        await node.ask("PUT", "/v1/kv/a", body=value)
        got = await node.ask("GET", "/v1/kv/a")
        assert got.body == value
        assert got.headers["content-type"] == "application/octet-stream"
    assert (await node.ask("PUT", "/v1/kv/nothing")).status == 200  # a PUT without any body


async def test_conditional_puts(node: Served) -> None:
    created = await node.ask("PUT", "/v1/kv/a", {"If-None-Match": "*"}, b"1")
    assert (created.status, created.headers["etag"]) == (200, '"1"')
    refused = await node.ask("PUT", "/v1/kv/a", {"If-None-Match": "*"}, b"2")
    assert (refused.status, refused.headers["etag"]) == (412, '"1"')
    assert (refused.json["error"], refused.json["outcome"]) == ("precondition_failed", "not_applied")
    assert (await node.ask("PUT", "/v1/kv/a", {"If-Match": '"1"'}, b"2")).status == 200
    stale = await node.ask("PUT", "/v1/kv/a", {"If-Match": '"1"'}, b"3")
    assert (stale.status, stale.headers["etag"]) == (412, '"2"')
    assert (await node.ask("PUT", "/v1/kv/a", {"If-Match": '"9", W/"x", "2"'}, b"3")).status == 200
    assert (await node.ask("PUT", "/v1/kv/a", {"If-Match": "*"}, b"4")).status == 200
    for never in ('W/"4"', '"04"', '"0"', '"x,y"', '""', '"999999999999999999999999"'):
        assert (await node.ask("PUT", "/v1/kv/a", {"If-Match": never}, b"5")).status == 412, never
    absent = await node.ask("PUT", "/v1/kv/b", {"If-Match": "*"}, b"1")
    assert absent.status == 412
    assert "etag" not in absent.headers
    assert (await node.ask("PUT", "/v1/kv/b", {"If-Match": '"0"'}, b"1")).status == 412
    assert (await node.ask("GET", "/v1/kv/a")).body == b"4"


async def test_several_lines_of_a_condition_are_one_list(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"1")
    async with node.connect() as wire:
        wire.send(b'DELETE /v1/kv/a HTTP/1.1\r\nHost: x\r\nIf-Match: "7"\r\nIf-Match: "1"\r\n\r\n')
        assert (await wire.reply()).status == 200


async def test_conditional_deletes(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"1")
    refused = await node.ask("DELETE", "/v1/kv/a", {"If-Match": '"5"'})
    assert (refused.status, refused.headers["etag"]) == (412, '"1"')
    assert (await node.ask("DELETE", "/v1/kv/b", {"If-Match": "*"})).status == 412
    assert (await node.ask("DELETE", "/v1/kv/a", {"If-Match": '"1"'})).status == 200


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("PUT", {"If-Match": "12"}),
        ("PUT", {"If-Match": '"1" "2"'}),
        ("PUT", {"If-Match": ", ".join(f'"{i}"' for i in range(1, 18))}),
        ("PUT", {"If-None-Match": '"1"'}),
        ("PUT", {"If-Match": "*", "If-None-Match": "*"}),
        ("DELETE", {"If-None-Match": "*"}),
        ("GET", {"If-None-Match": "12"}),
    ],
)
async def test_a_condition_that_cannot_be_kept_is_refused(node: Served, method: str, headers: dict[str, str]) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"1")
    reply = await node.ask(method, "/v1/kv/a", headers)
    assert (reply.status, reply.json["error"]) == (400, "bad_request")
    assert node.group.store.revision == 1


async def test_conditional_gets(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"1")
    async with node.connect() as wire:
        for tags in ('"1"', 'W/"1"', '"7", "1"', "*"):
            reply = await wire.ask("GET", "/v1/kv/a", {"If-None-Match": tags})
            assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", '"1"')
        assert (await wire.ask("GET", "/v1/kv/a", {"If-None-Match": '"2"'})).body == b"1"
        assert (await wire.ask("HEAD", "/v1/kv/a", {"If-None-Match": '"1"'})).status == 304
        failed = await wire.ask("GET", "/v1/kv/a", {"If-Match": '"2"'})
        assert (failed.status, failed.headers["etag"]) == (412, '"1"')
        assert (await wire.ask("GET", "/v1/kv/a", {"If-Match": '"1"'})).status == 200
        assert (await wire.ask("GET", "/v1/kv/b", {"If-None-Match": "*"})).status == 404


async def test_a_stale_read_asks_nobody_and_says_how_far_behind_it_is(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"1")
    node.group.raises = RuntimeError("nobody must be asked")
    node.group.becomes(role="follower", leader_id=None, leader_commit_index=12)
    for target in ("/v1/kv/a?consistency=stale", "/v1/kv?consistency=stale"):
        reply = await node.ask("GET", target)
        assert (reply.status, reply.headers["kvnode-applied-lag"]) == (200, "5")
        assert "kvnode-leader" not in reply.headers
    node.group.becomes(started=False)
    assert (await node.ask("GET", "/v1/kv/a?consistency=stale")).json["error"] == "starting"


async def test_a_linearizable_read_waits_for_the_barrier(node: Served) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"1")
    assert "kvnode-applied-lag" not in (await node.ask("GET", "/v1/kv/a?consistency=linearizable")).headers
    node.group.raises = RuntimeError("asked")
    for target in ("/v1/kv/a", "/v1/kv/a?consistency=linearizable", "/v1/kv", "/v1/kv/missing"):
        assert (await node.ask("GET", target)).status == 500


@pytest.mark.parametrize(
    "query", ["consistency=weak", "consistency=stale&consistency=stale", "consistency=%ff", "consistency=%", "a&" * 80]
)
async def test_a_bad_query_is_refused(node: Served, query: str) -> None:
    await node.ask("PUT", "/v1/kv/a", body=b"1")
    reply = await node.ask("GET", f"/v1/kv/a?{query}")
    assert (reply.status, reply.json["error"]) == (400, "bad_request")


async def test_a_promise_that_cannot_be_kept_is_not_made(node: Served) -> None:
    for target in ("/v1/kv/a?ttl=5", "/v1/kv/a?lease=1"):
        reply = await node.ask("DELETE", target, {}, b"")
        assert (reply.status, reply.json["outcome"]) == (400, "not_applied")
    assert (await node.ask("GET", "/v1/kv/a?revision=1")).status == 400
    assert node.group.proposals == 0


# --- bounds ----------------------------------------------------------------------------------------


async def test_a_value_of_one_mebibyte_is_taken_and_one_byte_more_is_not(node: Served) -> None:
    assert (await node.ask("PUT", "/v1/kv/a", body=b"x" * MIB)).status == 200
    assert (await node.ask("GET", "/v1/kv/a")).body == b"x" * MIB
    over = await node.ask("PUT", "/v1/kv/a", body=b"x" * (MIB + 1))
    assert (over.status, over.json["error"], over.json["outcome"]) == (413, "too_large", "not_applied")


async def test_the_bound_holds_for_bodies_without_a_length(node: Served) -> None:
    async with node.connect() as wire:
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        start = b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        wire.send(start + chunk * 16 + b"0\r\n\r\n")
        assert (await wire.reply()).status == 200
        wire.send(start + chunk * 16 + b"1\r\nx\r\n0\r\n\r\n")
        over = await wire.reply()
        assert (over.status, over.json["error"]) == (413, "too_large")
    assert node.group.proposals == 1


async def test_a_large_body_is_refused_before_it_is_sent(node: Served) -> None:
    async with node.connect() as wire:
        wire.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1048577\r\n\r\n")
        reply = await wire.reply()
        assert (reply.status, reply.headers["connection"]) == (413, "close")


async def test_a_client_that_asks_first_is_invited_once(node: Served) -> None:
    async with node.connect() as wire:
        for _ in range(2):
            wire.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            assert (await wire.reply()).status == 100
            wire.send(b"value")
            assert (await wire.reply()).status == 200
    assert node.group.store.get("a").value == b"value"  # type: ignore[union-attr]


async def test_a_compressed_body_is_refused_and_not_unpacked(node: Served) -> None:
    reply = await node.ask("PUT", "/v1/kv/a", {"Content-Encoding": "gzip"}, gzip.compress(b"v"))
    assert (reply.status, reply.json["error"]) == (415, "unsupported_media_type")
    assert (await node.ask("PUT", "/v1/kv/a", {"Content-Encoding": "identity"}, b"v")).status == 200


async def test_a_content_type_is_bounded_and_printable(node: Served) -> None:
    assert (await node.ask("PUT", "/v1/kv/a", {"Content-Type": "x" * 256}, b"v")).status == 200
    assert (await node.ask("GET", "/v1/kv/a")).headers["content-type"] == "x" * 256
    for bad in ("x" * 257, "text/é", "text/\tx"):
        reply = await node.ask("PUT", "/v1/kv/a", {"Content-Type": bad}, b"v")
        assert (reply.status, reply.json["error"]) == (400, "bad_request"), bad


async def test_a_content_type_from_elsewhere_forges_no_header(node: Served) -> None:
    node.group.store.apply([1, "a", b"v", "text/x\r\nSet-Cookie: y", None])
    reply = await node.ask("GET", "/v1/kv/a")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert "set-cookie" not in reply.headers


async def test_a_body_with_broken_chunks_is_a_bad_request(node: Served) -> None:
    async with node.connect() as wire:
        wire.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
        wire.send(b"cdeXX\r\nzz\r\n")
        reply = await wire.reply()
        assert (reply.status, reply.json["error"]) == (400, "bad_request")
        assert await wire.closed()
    assert node.group.proposals == 0


async def test_a_client_that_leaves_amid_its_body_writes_nothing(
    node: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with node.connect() as wire:
        wire.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        await wire.writer.drain()
    assert (await node.ask("GET", "/v1/kv/a")).status == 404
    assert node.group.proposals == 0
    assert not caplog.records
