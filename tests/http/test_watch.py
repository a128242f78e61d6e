"""GET /v1/watch as bytes on a connection: events, resuming, heartbeats, long polls, and every refusal."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvnode.http import stream
from kvnode.watch import hub
from tests.http.serving import DEADLINE_S, Served, Wire, serve
from tests.http.single import SingleGroup


class Events:
    """A stream being read, block by block."""

    def __init__(self, wire: Wire, head: str) -> None:
        self._wire = wire
        self.head = head

    async def block(self) -> str:
        async with asyncio.timeout(DEADLINE_S):
            return (await self._wire.reader.readuntil(b"\n\n")).decode()[:-1]

    async def next(self) -> dict[str, Any]:
        """The next event; comments are passed over."""
        while True:
            lines = [line.partition(": ") for line in (await self.block()).splitlines() if not line.startswith(":")]
            fields: dict[str, Any] = {name: text for name, _, text in lines}
            if "data" in fields:
                return fields | {"data": json.loads(fields["data"])}

    async def ended(self) -> bool:
        return await self._wire.closed()


@asynccontextmanager
async def watching(node: Served, query: str = "", **headers: str) -> AsyncIterator[Events]:
    async with node.connect() as wire:
        lines = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
        wire.send(f"GET /v1/watch?{query} HTTP/1.1\r\nHost: n\r\n{lines}\r\n".encode())
        async with asyncio.timeout(DEADLINE_S):
            head = (await wire.reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 200 "), head
        events = Events(wire, head)
        opening = re.fullmatch(r": watching from revision (\d+) on\nid: (\d+)\n", await events.block())
        assert opening is not None
        assert int(opening[1]) == int(opening[2]) + 1, "a stream that breaks now would not go on where it began"
        yield events


async def watchers(node: Served, count: int) -> None:
    for _ in range(1_000):
        if len(node.group.watches) == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(node.group.watches)} watchers, not {count}")


async def put(node: Served, key: str, value: bytes = b"v") -> None:
    assert (await node.ask("PUT", f"/v1/kv/{key}", body=value)).status == 200


async def test_the_head_comes_before_anything_happens(node: Served) -> None:
    await put(node, "a")
    async with watching(node, "prefix=") as events:
        lines = [line.lower() for line in events.head.split("\r\n")]
        assert "content-type: text/event-stream; charset=utf-8" in lines
        assert "cache-control: no-store" in lines
        assert "connection: close" in lines
        assert "kvnode-node: n1" in lines
        assert "kvnode-revision: 1" in lines
        assert not [line for line in lines if line.startswith("content-length")]


async def test_an_event_says_what_a_listing_would(node: Served) -> None:
    async with watching(node, "prefix=a/") as events:
        await put(node, "b")
        await put(node, "a/%0A%C3%A9", b"\x00\xff\n")
        await node.ask("DELETE", "/v1/kv/a/%0A%C3%A9")
        event = await events.next()
        assert (event["id"], event["event"]) == ("2", "put")
        data = event["data"]
        assert b64decode(data.pop("value")) == b"\x00\xff\n"
        assert data.pop("content_type") == ""
        assert data == {"key": "a/\né", "create_revision": 2, "mod_revision": 2, "version": 1}
        assert await events.next() == {"id": "3", "event": "delete", "data": {"key": "a/\né", "mod_revision": 3}}


async def test_one_key_is_not_its_prefix(node: Served) -> None:
    async with watching(node, "key=a") as events:
        for key in ("ab", "a/", "a"):
            await put(node, key)
        assert (await events.next())["data"]["key"] == "a"


async def test_a_stream_goes_on_from_a_revision_or_from_the_last_id(node: Served) -> None:
    for number in range(6):
        await put(node, f"k{number % 2}")
    async with watching(node, "key=k1&from_revision=3") as events:
        assert [(await events.next())["id"] for _ in range(2)] == ["4", "6"]
    async with watching(node, "key=k1&from_revision=1", Last_Event_ID="4") as events:
        assert "kvnode-revision: 4" in events.head.lower()
        await put(node, "k1")
        assert [(await events.next())["id"] for _ in range(2)] == ["6", "7"]


async def test_the_id_of_a_revision_with_several_changes_is_on_the_last_of_them(node: Served) -> None:
    store, watches = node.group.store, node.group.watches
    async with watching(node) as events:
        assert store.changes is not None
        store.revision = 1
        store.changes += [(2, "a", 1, b"", b""), (3, "b", 1, b"", b"")]
        watches.publish()
        assert await events.next() == {"event": "delete", "data": {"key": "a", "mod_revision": 1}}
        assert await events.next() == {"event": "expire", "id": "1", "data": {"key": "b", "mod_revision": 1}}


async def test_what_is_forgotten_is_said_so_and_the_stream_ends(node: Served) -> None:
    node.group.watches.history.reset(7)
    node.group.store.revision = 7
    async with watching(node, "from_revision=7") as events:
        event = await events.next()
        assert (event["event"], event["data"]["oldest_revision"]) == ("compacted", 8)
        assert "id" not in event
        assert await events.ended()
    reply = await node.ask("GET", "/v1/watch?from_revision=7&wait=1s")
    assert (reply.status, reply.json["error"], reply.json["oldest_revision"]) == (410, "compacted", 8)


async def test_heartbeats_carry_the_id_up_to_which_there_was_nothing_to_tell() -> None:
    async with serve(SingleGroup(), heartbeat_s=0.2) as node, watching(node, "key=quiet") as events:
        assert await events.block() == ": heartbeat\n"
        await put(node, "other")
        blocks = [await events.block() for _ in range(3)]
        assert ": heartbeat\nid: 1\n" in blocks
        await put(node, "quiet")
        while (block := await events.block()).startswith(": heartbeat"):
            pass
        assert block.startswith("id: 2\nevent: put\n")


async def test_draining_ends_streams_and_long_polls_with_where_to_go_on(node: Served) -> None:
    async with node.connect() as polling, watching(node, "key=quiet") as events:
        polling.send(b"GET /v1/watch?wait=60s HTTP/1.1\r\nHost: n\r\n\r\n")
        await watchers(node, 2)
        node.group.store.revision = 5
        node.group.watches.history.reset(5)
        node.group.begin_drain()
        event = await events.next()
        assert (event["event"], event["id"]) == ("end", "5")
        assert (event["data"]["reason"], event["data"]["from_revision"]) == ("shutting_down", 6)
        assert await events.ended()
        page = (await polling.reply()).json
        assert (page["events"], page["from_revision"]) == ([], 6)
    reply = await node.ask("GET", "/v1/watch")
    assert (reply.status, reply.json["error"]) == (503, "shutting_down")


async def test_a_client_that_left_is_not_watched_for(node: Served) -> None:
    async with watching(node), node.connect() as polling:
        polling.send(b"GET /v1/watch?wait=60s HTTP/1.1\r\nHost: n\r\n\r\n")
        await watchers(node, 2)
    await watchers(node, 0)


async def test_a_client_that_does_not_read_is_cut_off_with_where_to_go_on(node: Served) -> None:
    async with node.connect() as wire, watching(node, "prefix=k") as healthy:
        wire.send(b"GET /v1/watch?prefix=k HTTP/1.1\r\nHost: n\r\n\r\n")
        await watchers(node, 2)
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        count = 0
        while not any(watcher.ending for watcher in node.group.watches._watchers):
            await put(node, "k", b"x" * 100_000)
            assert (await healthy.next())["id"] == str(count := count + 1)
            assert count < 300, "nobody was cut off after 30 MB"  # 4 MiB, and what the kernel keeps for two sockets
        await watchers(node, 1)


async def test_a_client_that_reads_late_still_sees_how_its_stream_ended(
    node: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LAST_WORD_S", 20.0)
    async with node.connect() as wire:
        wire.send(b"GET /v1/watch?prefix=k HTTP/1.1\r\nHost: n\r\n\r\n")
        await wire.reader.readuntil(b"\n\n")
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        [watcher] = node.group.watches._watchers
        while watcher.ending is None:
            await put(node, "k", b"x" * 100_000)
        wire.reader._transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(DEADLINE_S):
            text = (await wire.reader.read(-1)).decode()
    *told, last = text.rstrip("\n").split("\n\n")
    ids = [int(block.partition("id: ")[2].partition("\n")[0]) for block in told if "event: put" in block]
    assert ids == list(range(1, len(ids) + 1))
    assert last.startswith(f"id: {len(ids)}\nevent: end\n")
    assert f'"from_revision":{len(ids) + 1}' in last
    assert '"reason":"slow"' in last


async def test_a_node_without_a_leader_sends_its_watchers_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LEADERLESS_S", 0.1)
    async with serve(SingleGroup(), heartbeat_s=0.2) as node, watching(node) as events:
        node.group.becomes(leader_id=None)
        assert (await events.next())["data"]["reason"] == "no_leader"
        assert await events.ended()


async def test_a_long_poll_answers_what_there_is_or_waits_for_it(node: Served) -> None:
    await put(node, "a")
    await put(node, "b")
    page = (await node.ask("GET", "/v1/watch?prefix=&from_revision=1&wait=30s")).json
    assert [(each["event"], each["key"], each["mod_revision"]) for each in page["events"]] == [
        ("put", "a", 1),
        ("put", "b", 2),
    ]
    assert (page["revision"], page["from_revision"]) == (2, 3)
    async with node.connect() as wire:
        wire.send(b"GET /v1/watch?key=c&from_revision=3&wait=30s HTTP/1.1\r\nHost: n\r\n\r\n")
        await watchers(node, 1)
        await put(node, "b")
        await put(node, "c")
        reply = await wire.reply()
        assert [each["key"] for each in reply.json["events"]] == ["c"]
        assert reply.headers["kvnode-revision"] == "4"
        # The connection goes on, and so does the watch.
        empty = (await wire.ask("GET", "/v1/watch?key=c&from_revision=5&wait=50ms")).json
        assert empty == {"events": [], "revision": 4, "from_revision": 5}
    assert len(node.group.watches) == 0


async def test_over_the_bound_of_watchers_is_a_plain_503(node: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "WATCHERS_MAX", 1)
    async with watching(node):
        reply = await node.ask("GET", "/v1/watch")
        assert (reply.status, reply.json["error"], reply.headers["retry-after"]) == (503, "overloaded", "1")


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("key=", "key"),
        ("key=a&prefix=b", "exclude"),
        ("key=" + "k" * 1_025, "longer"),
        ("prefix=" + "%C3%A9" * 513, "longer"),
        ("prefix=%FF", "UTF-8"),
        ("from_revision=0", "from_revision"),
        ("from_revision=-1", "from_revision"),
        ("from_revision=x", "from_revision"),
        ("from_revision=", "from_revision"),
        ("from_revision=%D9%A1", "from_revision"),
        ("from_revision=" + "9" * 19, "from_revision"),
        ("from_revision=2", "still to come"),
        ("from_revision=1&from_revision=2", "more than once"),
        ("wait=30", "wait"),
        ("wait=-1s", "wait"),
        ("wait=61s", "wait"),
        ("wait=", "wait"),
        ("consistency=eventual", "consistency"),
    ],
)
async def test_bad_input_is_a_plain_400_before_anything_is_streamed(node: Served, query: str, word: str) -> None:
    reply = await node.ask("GET", f"/v1/watch?{query}")
    assert (reply.status, reply.json["error"]) == (400, "bad_request")
    assert word in reply.json["message"]
    assert len(node.group.watches) == 0


async def test_a_bad_last_event_id_is_a_plain_400(node: Served) -> None:
    for text in ("x", "-1", "1.5", ""):
        reply = await node.ask("GET", "/v1/watch", {"Last-Event-ID": text})
        assert (reply.status, reply.json["error"]) == (400, "bad_request")


async def test_a_node_that_loads_its_data_is_not_watched_yet(node: Served) -> None:
    node.group.becomes(started=False)
    assert (await node.ask("GET", "/v1/watch?consistency=stale")).status == 503


async def test_a_stale_watch_asks_no_leader_and_waits_for_what_is_to_come(node: Served) -> None:
    node.group.raises = AssertionError("a barrier was taken")
    async with watching(node, "prefix=&from_revision=2&consistency=stale") as events:
        node.group.raises = None
        await put(node, "a")
        await put(node, "b")
        assert (await events.next())["data"]["key"] == "b"
