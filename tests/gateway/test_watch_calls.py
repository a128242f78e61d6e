"""etcd's watch beyond what the recordings hold: how streams end, who may, and what is never in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvnode.errors import NoLeader
from kvnode.http.gateway import watch
from kvnode.state.commands import TOKEN_REVOKE
from tests.gateway.calls import Watching, create, leveled, plain, put, token
from tests.http.serving import Served, serve, until
from tests.http.single import SingleGroup

FIRST = "the-first-token-of-this-cluster"


@pytest.fixture
async def node() -> AsyncIterator[Served]:
    async with serve(leveled()) as served:
        yield served


@asynccontextmanager
async def watching(node: Served) -> AsyncIterator[Watching]:
    async with asyncio.timeout(20), node.connect() as wire:
        yield Watching(wire)


async def test_a_range_that_is_no_prefix_shows_its_own_keys_alone(node: Served) -> None:
    for key, end, shown in (
        ("b", "d", ["b", "c"]),
        ("aa", "ac", ["aa", "ab"]),
        ("c", "\0", ["c", "d", "é"]),
        ("a", b"a\xff", ["a", "aa", "ab"]),
    ):
        async with watching(node) as stream:
            await stream.begin(create(key, end))
            assert (await stream.result())["created"] is True
            for name in ("a", "aa", "ab", "ac", "b", "c", "d", "é"):
                if name != "ac" or end not in (b"a\xff",):
                    await put(node, name)
            got: list[str] = []
            while len(got) < len(shown):
                got += [plain(event["kv"]["key"]) for event in (await stream.result())["events"]]
            assert got == shown


async def test_watches_of_one_key_in_different_forms_do_not_share_their_texts(node: Served) -> None:
    await put(node, "a", "1")
    plainly, before = create("a", "b"), create("a", "b", prev_kv=True)
    async with watching(node) as stream, node.connect() as events:
        events.send(b"GET /v1/watch?prefix=a HTTP/1.1\r\nHost: n\r\n\r\n")
        await events.reader.readuntil(b"id: ")
        await stream.begin(plainly, before, create("a", "b", filters=["NOPUT"]))
        for _ in range(3):
            await stream.result()
        await put(node, "a", "2")
        shown = {message.get("watch_id", "0"): message for message in [await stream.result(), await stream.result()]}
        assert [plain(shown[each]["events"][0]["kv"]["value"]) for each in ("0", "1")] == ["2", "2"]
        assert "prev_kv" not in shown["0"]["events"][0]
        assert plain(shown["1"]["events"][0]["prev_kv"]["value"]) == "1"
        text = await events.reader.readuntil(b"event: put\ndata: ")
        assert text
        assert json.loads(await events.reader.readline())["key"] == "a"


async def test_the_forgotten_past_is_canceled_with_the_revision_to_go_on_from(node: Served) -> None:
    for number in range(5):
        await put(node, "a", str(number))
    node.group.watches.history.reset(node.group.store.revision - 2)
    oldest = node.group.watches.history.oldest
    async with watching(node) as stream:
        await stream.begin(create(start_revision=1))
        assert (await stream.result())["created"] is True
        message = await stream.result()
        assert (message["canceled"], message["compact_revision"]) == (True, str(oldest))
        assert "revision" not in message["header"]
    async with watching(node) as stream:
        await stream.begin(create(start_revision=oldest))
        assert "canceled" not in await stream.result()


async def test_a_stream_ends_when_its_token_is_revoked() -> None:
    group = leveled()
    token(group, "ab", "read")
    async with serve(group, token=FIRST, heartbeat_s=0.4) as node:
        async with watching(node) as stream:
            await stream.begin(create(), headers={"Authorization": "kvnode_ab_read"})
            assert (await stream.result())["created"] is True
            group.store.apply([TOKEN_REVOKE, "ab"])
            ended = (await asyncio.wait_for(stream.message(), 2.0))["error"]
            assert (ended["grpc_code"], ended["message"]) == (16, "etcdserver: invalid auth token")
            assert await stream.message() is None
        assert len(group.watches) == 0


async def test_keys_of_others_are_canceled_as_they_are_created() -> None:
    group = leveled()
    token(group, "ab", "read", "app/")
    async with serve(group, token=FIRST) as node, watching(node) as stream:
        await stream.begin(create(), create("app/", "app0"), headers={"Authorization": "kvnode_ab_read"})
        refused, taken = await stream.result(), await stream.result()
        assert (refused["watch_id"], refused["created"], refused["canceled"]) == ("-1", True, True)
        assert refused["cancel_reason"] == ("rpc error: code = PermissionDenied desc = etcdserver: permission denied")
        assert (taken["created"], "canceled" in taken) == (True, False)
        reply = await node.ask("POST", "/v3/watch", None, b"{}")
        assert (reply.status, reply.json["message"]) == (400, "etcdserver: user name is empty")


async def test_a_node_that_stops_says_so_and_ends_the_stream(node: Served) -> None:
    async with watching(node) as stream:
        await stream.begin(create())
        await stream.result()
        node.group.begin_drain()
        ended = (await stream.message())["error"]
        assert (ended["grpc_code"], ended["http_code"], ended["http_status"]) == (14, 503, "Service Unavailable")
        assert ended["message"] == "etcdserver: server stopped"
        assert await stream.message() is None


async def test_silence_is_silent_but_for_the_progress_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(leveled(), heartbeat_s=0.04) as node:
        async with watching(node) as stream:
            await stream.begin(create())
            await stream.result()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.wire.reader.read(1), 0.5)  # ten heartbeats of /v1 and more
        monkeypatch.setattr(watch, "PROGRESS_S", 0.1)
        async with watching(node) as stream:
            await stream.begin(create(progress_notify=True, watch_id=7), create("a", "b"))
            await stream.result()
            await stream.result()
            told = await stream.result()
            assert told == {"header": told["header"], "watch_id": "7"}
            assert int(told["header"]["revision"]) == node.group.store.revision


async def test_a_client_that_goes_leaves_nothing_behind(node: Served) -> None:
    async with watching(node) as stream:
        await stream.begin(create(), create("a", "b"), create("c", "\0"))
        for _ in range(3):
            await stream.result()
        assert len(node.group.watches) == 3
    await until(lambda: len(node.group.watches) == 0)


async def test_a_client_that_does_not_read_is_cut_off_and_costs_a_bounded_log(node: Served) -> None:
    async with watching(node) as stream:
        await stream.begin(create())
        await stream.result()
        stream.wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(16):
            await put(node, "a", b"x" * 1_000_000)
        await until(lambda: len(node.group.watches) == 0 or bool(node.group.watches.ended))
        assert node.group.watches.ended["slow"] == 1


async def test_http_1_0_gets_the_messages_without_chunks(node: Served) -> None:
    async with node.connect() as wire, asyncio.timeout(10):
        body = json.dumps(create()).encode()
        wire.send(b"POST /v3/watch HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = await wire.reader.readuntil(b"\r\n\r\n")
        assert b"chunked" not in head
        assert json.loads(await wire.reader.readline())["result"]["created"] is True


async def test_a_cut_off_node_begins_a_watch_at_what_it_knows() -> None:
    class Silent(SingleGroup):
        async def read_barrier(self, waited_s: float = 0.0) -> None:
            raise NoLeader("No leader is known.")

    group = Silent()
    group.store.apply([13, 1])
    group.watches.restart()
    async with serve(group) as node, watching(node) as stream:
        await stream.begin(create())
        assert (await stream.result())["created"] is True
