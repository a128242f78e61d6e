"""What the client sends again, what it never does, and that a key arrives as it is."""

from __future__ import annotations

import json
from urllib.parse import unquote

import pytest

from kvnode import client, errors
from kvnode.client import Client
from tests.cli.scripted import Asked, Reply, Script, always, break_off, scripted
from tests.cluster import free_ports

PUT = Reply(200, b'{"key":"k","revision":5,"version":2,"created":false}')
NO_LEADER = Reply(503, b'{"error":"no_leader","message":"None.","outcome":"not_applied"}')


def nobody() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}"


async def test_a_refused_connection_and_a_definite_503_go_to_the_next_node() -> None:
    async with (
        scripted(always(NO_LEADER)) as leaderless,
        scripted(always(PUT)) as well,
        Client([nobody(), leaderless.url, well.url], 5) as c,
    ):
        assert await c.put("k", b"v") == client.Put(5, 2, False)
    assert (len(leaderless.asked), len(well.asked)) == (1, 1)


async def test_a_definite_503_is_tried_again_until_a_leader_is_found() -> None:
    replies = iter([NO_LEADER, NO_LEADER, PUT])

    async def script(asked: Asked) -> Reply:
        return next(replies)

    async with scripted(script) as node, Client([node.url], 5) as c:
        await c.put("k", b"v")
    assert len(node.asked) == 3


@pytest.mark.parametrize(
    "script",
    [
        break_off,
        always(Reply(504, b'{"error":"outcome_unknown","message":"x","outcome":"unknown"}')),
        always(Reply(500, b'{"error":"internal","message":"x","outcome":"unknown"}')),
        always(Reply(503, b'{"error":"shutting_down","message":"x","outcome":"unknown"}')),
        always(Reply(502)),
    ],
)
async def test_a_write_of_unknown_outcome_is_sent_once_and_to_one_node(script: Script) -> None:
    async with scripted(script) as broken, scripted(always(PUT)) as well, Client([broken.url, well.url], 5) as c:
        for write in (c.put("k", b"v"), c.delete("k"), c.transfer("n1")):
            with pytest.raises(errors.OutcomeUnknown):
                await write
    # One each: aiohttp, left to itself, sends a PUT or DELETE again when the connection breaks.
    assert [asked.method for asked in broken.asked] == ["PUT", "DELETE", "POST"]
    assert well.asked == []


async def test_a_read_goes_to_the_next_node_whatever_went_wrong() -> None:
    found = Reply(200, b"v", {"ETag": '"3"', "Kvnode-Revision": "9", "Content-Type": "text/plain"})
    async with (
        scripted(break_off) as broken,
        scripted(always(Reply(504))) as lost,
        scripted(always(found)) as well,
        Client([broken.url, lost.url, well.url], 5) as c,
    ):
        assert await c.get("k") == client.Item("k", b"v", "text/plain", 3, 9)


async def test_a_precondition_tells_the_present_revision() -> None:
    reply = Reply(412, b'{"error":"precondition_failed","message":"x","outcome":"not_applied"}', {"ETag": '"7"'})
    async with scripted(always(reply)) as node, Client([node.url]) as c:
        with pytest.raises(errors.PreconditionFailed) as caught:
            await c.put("k", b"v", if_match=3)
    assert caught.value.current_revision == 7


async def test_a_transfer_names_its_target_or_leaves_it_open() -> None:
    async with scripted(always(Reply(200, b'{"leader_id":"n2","term":3}'))) as node, Client([node.url]) as c:
        assert await c.transfer("n2") == ("n2", 3)
        await c.transfer()
    assert [json.loads(asked.body) for asked in node.asked] == [{"to": "n2"}, {}]


@pytest.mark.parametrize("key", ["a//b", "a/../b", "..", ".", "a/", "%2F", "é ?#&", "a\x00b"])
async def test_an_odd_key_leaves_the_client_in_one_piece(key: str) -> None:
    async with scripted(always(PUT)) as node, Client([node.url]) as c:
        await c.put(key, b"v")
    raw = node.asked[0].raw_path.removeprefix("/v1/kv/")
    assert "/" not in raw
    assert unquote(raw) == key


async def test_a_key_that_is_no_text_never_leaves() -> None:
    async with Client([nobody()]) as c:
        with pytest.raises(errors.BadRequest):
            await c.get("\udcff")
