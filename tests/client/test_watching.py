"""One sequence of changes out of streams that end where they should not."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from kvnode import errors
from kvnode.client import Client, watching
from tests.cli.scripted import Asked, Reply, always, say_nothing, scripted
from tests.cluster import free_ports

GONE = b'event: compacted\ndata: {"oldest_revision":9,"message":"Forgotten."}\n\n'


def stream(text: bytes, revision: int = 0) -> Reply:
    return Reply(200, text, {"Kvnode-Revision": str(revision), "Content-Type": "text/event-stream"})


def delete(key: str, revision: int, *, last: bool = True) -> bytes:
    identity = b"id: %d\n" % revision if last else b""
    return identity + b'event: delete\ndata: {"key":"%b","mod_revision":%d}\n\n' % (key.encode(), revision)


async def told(client: Client, count: int, from_revision: int | None = None) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    async with aclosing(client.watch("", from_revision=from_revision)) as events:  # type: ignore[type-var]
        async for event in events:
            found.append((event.key, event.revision))
            if len(found) == count:
                break
    return found


async def test_a_revision_that_a_break_cut_through_is_told_once() -> None:
    broken = stream(delete("a", 1) + delete("b", 2, last=False) + b'id: 2\nevent: delete\ndata: {"key":"c"')
    whole = stream(delete("b", 2, last=False) + delete("c", 2), 1)
    async with (
        scripted(always(broken)) as first,
        scripted(always(whole)) as second,
        Client([first.url, second.url], 5) as client,
    ):
        assert await told(client, 3) == [("a", 1), ("b", 2), ("c", 2)]
    assert second.asked[0].raw_path == "/v1/watch?prefix=&from_revision=2"


async def test_a_watch_from_now_goes_on_from_where_it_began_though_nothing_came() -> None:
    async with (
        scripted(always(stream(b": heartbeat\nid: 7\n\n", 4))) as idle,
        scripted(always(stream(delete("a", 8), 7))) as other,
        Client([idle.url, other.url], 5) as client,
    ):
        assert await told(client, 1) == [("a", 8)]
    assert [idle.asked[0].raw_path, other.asked[0].raw_path] == [
        "/v1/watch?prefix=",
        "/v1/watch?prefix=&from_revision=8",
    ]


async def test_what_one_node_forgot_another_may_know_and_what_all_forgot_is_an_error() -> None:
    async def knows(asked: Asked) -> Reply:
        return stream(delete("a", 5), 4) if "from_revision=5" in asked.raw_path else stream(GONE, 5)

    async with (
        scripted(always(stream(b": on\n\n" + GONE, 4))) as forgetful,
        scripted(knows) as other,
        Client([forgetful.url, other.url], 5) as client,
    ):
        assert await told(client, 1, 5) == [("a", 5)]
        with pytest.raises(errors.Compacted) as raised:
            await told(client, 2, 5)
    assert raised.value.oldest_revision == 9


async def test_a_node_that_only_says_that_it_forgot_does_not_keep_a_watch_waiting_for_another() -> None:
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"
    async with scripted(always(stream(b": on\n\n" + GONE, 4))) as node, Client([node.url, dead], 0.5) as client:
        with pytest.raises((errors.Compacted, errors.Unavailable)):
            await told(client, 1, 5)


async def test_a_node_that_does_not_begin_to_answer_is_left_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "HEAD_S", 0.3)
    async with (
        scripted(say_nothing) as frozen,
        scripted(always(stream(delete("a", 1)))) as well,
        Client([frozen.url, well.url], 5) as client,
    ):
        async with asyncio.timeout(10):
            assert await told(client, 1, 1) == [("a", 1)]


NO_LEADER = Reply(503, b'{"error":"no_leader","message":"None."}')


@pytest.mark.parametrize("reply", [NO_LEADER, Reply(503, b"<html></html>"), None])
async def test_a_watch_waits_for_a_leader_longer_than_a_call_would(
    reply: Reply | None, caplog: pytest.LogCaptureFixture
) -> None:
    replies = [reply] * 6

    async def script(asked: Asked) -> Reply | None:
        return replies.pop() if replies else stream(delete("a", 1))

    async with scripted(script) as node, Client([node.url], 0.1) as client:
        async with asyncio.timeout(30):
            assert await told(client, 1, 1) == [("a", 1)]
    assert [each.name for each in caplog.records if each.name != "aiohttp.server"] == [
        "kvnode.client"
    ]  # once, not for each try
