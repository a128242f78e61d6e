"""What the client sends again, what it never does, and that a key arrives as it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote

import pytest

from kvnode import client, errors
from kvnode.client import Access, Client, calls
from kvnode.client.fetching import fetch
from tests.certificates import Authority
from tests.cli.scripted import Asked, Reply, Script, always, break_off, say_nothing, scripted
from tests.cluster import free_ports

PUT = Reply(200, b'{"key":"k","revision":5,"version":2,"created":false}')
Ask = Callable[[str, Access], Awaitable[object]]
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


TOO_MANY = Reply(429, b'{"error":"too_many_requests","message":"Too many.","outcome":"not_applied"}')


async def test_a_keyed_write_that_is_one_too_many_waits_and_a_read_does_not() -> None:
    replies = iter([TOO_MANY, PUT, TOO_MANY])

    async def script(asked: Asked) -> Reply:
        return next(replies)

    async with scripted(script) as node, scripted(always(PUT)) as other, Client([node.url, other.url], 5) as c:
        await c.put("k", b"v")
        with pytest.raises(errors.TooManyRequests):
            await c.get("k")
    assert len(node.asked) == 3
    assert node.asked[0].headers["Idempotency-Key"] == node.asked[1].headers["Idempotency-Key"]
    assert not other.asked
    async with scripted(always(TOO_MANY)) as node, Client(node.url, 0.5) as c:
        with pytest.raises(errors.TooManyRequests):
            await c.put("k", b"v")


def silent_after(*replies: Reply) -> Script:
    """Gives these answers, and then none."""
    left = iter(replies)

    async def script(asked: Asked) -> Reply:
        reply = next(left, None)
        return await say_nothing(asked) if reply is None else reply

    return script


def after(delay_s: float, reply: Reply) -> Script:
    async def script(asked: Asked) -> Reply:
        await asyncio.sleep(delay_s)
        return reply

    return script


def as_told(reply: Reply) -> Script:
    """As a node without a majority answers: a moment before the time that it is given is over."""
    honoured = Reply(reply.status, reply.body, {"Kvnode-Timeout": "honoured"})

    async def script(asked: Asked) -> Reply:
        await asyncio.sleep(min(1.0, float(asked.headers["Kvnode-Timeout"]) - 0.05))
        return honoured

    return script


async def test_every_request_says_how_long_the_client_waits_for_it() -> None:
    replies = iter([NO_LEADER, NO_LEADER, PUT])

    async def script(asked: Asked) -> Reply:
        return next(replies)

    async with scripted(script) as node, Client([node.url], 5) as c:
        await c.put("k", b"v")
    given = [float(asked.headers["Kvnode-Timeout"]) for asked in node.asked]
    assert given == sorted(given, reverse=True)
    assert 3.0 < given[-1] < given[0] <= 5.0


@pytest.mark.parametrize("timeout_s", [0.7, 1.5, 2.6])
async def test_a_cluster_without_a_leader_is_certain_to_the_last(timeout_s: float) -> None:
    async with scripted(as_told(NO_LEADER)) as node, Client([node.url], timeout_s) as c:
        began = asyncio.get_running_loop().time()
        with pytest.raises(errors.NoLeader):
            await c.put("k", b"v")
        assert asyncio.get_running_loop().time() - began <= timeout_s


async def test_no_try_is_begun_that_an_older_node_could_not_answer_in_time() -> None:
    # It answers after its own time, whatever it is told: a second try would be cut off.
    async with scripted(after(0.6, NO_LEADER)) as node, Client([node.url], 1) as c:
        with pytest.raises(errors.NoLeader):
            await c.put("k", b"v")
    assert len(node.asked) == 1


async def test_a_refusal_stays_certain_when_the_node_is_gone_afterwards() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        server.close()
        body = NO_LEADER.body
        writer.write(b"HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with Client([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"], 1) as c:
        with pytest.raises(errors.Unavailable):
            await c.put("k", b"v")


async def test_a_try_that_got_out_after_a_refusal_is_in_doubt() -> None:
    async with scripted(silent_after(NO_LEADER)) as node, Client([node.url], 1) as c:
        with pytest.raises(errors.OutcomeUnknown):
            await c.put("k", b"v")
    assert len(node.asked) == 2


async def test_a_balancers_own_503_settles_no_write() -> None:
    async with scripted(always(Reply(503, b"<html></html>"))) as balancer, Client([balancer.url], 1) as c:
        with pytest.raises(errors.OutcomeUnknown):
            await c.transfer()
        with pytest.raises(errors.Unavailable):
            await c.get("k")


async def test_refused_connections_are_tried_again_until_somebody_listens() -> None:
    port = free_ports(1)[0]

    async def node_comes_up() -> None:
        await asyncio.sleep(0.7)
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        servers.append(server)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(PUT.body), PUT.body))
        writer.close()

    servers: list[asyncio.Server] = []
    starting = asyncio.create_task(node_comes_up())
    async with Client([f"http://127.0.0.1:{port}"], 10) as c:
        assert await c.put("k", b"v") == client.Put(5, 2, False)
    await starting
    servers[0].close()


@pytest.mark.parametrize("url", ["", "http://kvnode.invalid:8001"])
async def test_nothing_that_answers_is_unreachable_once_the_time_is_over(url: str) -> None:
    began = asyncio.get_running_loop().time()
    async with Client([url or nobody(), nobody()], 0.5) as c:
        with pytest.raises(client.Unreachable) as caught:
            await c.put("k", b"v")
    assert caught.value.outcome == "not_applied"
    assert 0.2 < asyncio.get_running_loop().time() - began < 5


async def test_a_host_that_takes_no_connection_leaves_no_doubt() -> None:
    # Its backlog is full: the connection is never made, and the time for it runs out.
    with socket.socket() as full, contextlib.ExitStack() as held:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        async with Client([f"http://127.0.0.1:{full.getsockname()[1]}"], 0.6) as c:
            with pytest.raises(client.Unreachable):
                await c.transfer()


UNKNOWN: list[Script] = [
    break_off,
    always(Reply(504, b'{"error":"outcome_unknown","message":"x","outcome":"unknown"}')),
    always(Reply(500, b'{"error":"internal","message":"x","outcome":"unknown"}')),
    always(Reply(503, b'{"error":"shutting_down","message":"x","outcome":"unknown"}')),
    always(Reply(502)),
    always(Reply(503, b"<html>a balancer's own page</html>")),
]


@pytest.mark.parametrize("script", UNKNOWN)
async def test_a_write_of_unknown_outcome_goes_to_the_next_node_under_the_same_key(script: Script) -> None:
    async with scripted(script) as broken, scripted(always(PUT)) as well, Client([broken.url, well.url], 5) as c:
        await c.put("k", b"v", content_type="x/y", if_match=3)
        await c.delete("k")
    # One each: aiohttp, left to itself, sends a PUT or DELETE again when the connection breaks.
    assert [asked.method for asked in broken.asked] == ["PUT", "DELETE"]
    for first, again in zip(broken.asked, well.asked, strict=True):
        for name in ("Idempotency-Key", "If-Match", "Content-Type"):
            assert first.headers.get(name) == again.headers.get(name)
        assert (first.method, first.raw_path, first.body) == (again.method, again.raw_path, again.body)
        assert len(first.headers["Idempotency-Key"]) == 32
    assert broken.asked[0].headers["Idempotency-Key"] != broken.asked[1].headers["Idempotency-Key"]


@pytest.mark.parametrize("script", UNKNOWN)
async def test_a_transfer_of_unknown_outcome_is_sent_once_and_to_one_node(script: Script) -> None:
    async with scripted(script) as broken, scripted(always(PUT)) as well, Client([broken.url, well.url], 5) as c:
        with pytest.raises(errors.OutcomeUnknown):
            await c.transfer("n1")
    assert (len(broken.asked), well.asked) == (1, [])


async def test_a_write_is_sent_again_to_a_node_that_comes_back() -> None:
    replies = iter([None, None, NO_LEADER, PUT])

    async def script(asked: Asked) -> Reply | None:
        return next(replies)

    async with scripted(script) as node, Client([nobody(), node.url], 5) as c:
        await c.put("k", b"v", idempotency_key="mine")
    assert [asked.headers["Idempotency-Key"] for asked in node.asked] == ["mine"] * 4


@pytest.mark.parametrize(
    "later",
    [
        NO_LEADER,
        Reply(507, b'{"error":"disk_full","message":"x","outcome":"not_applied"}'),
        Reply(400, b'{"error":"bad_request","message":"x","outcome":"not_applied"}'),
    ],
)
async def test_a_doubt_outlasts_a_later_attempt_that_certainly_failed(later: Reply) -> None:
    async with scripted(break_off) as broken, scripted(always(later)) as node, Client([broken.url, node.url], 1) as c:
        with pytest.raises(errors.OutcomeUnknown):
            await c.put("k", b"v")


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(404, b'{"error":"key_not_found","message":"x"}'), errors.KeyNotFound),
        (Reply(412, b'{"error":"precondition_failed","message":"x"}'), errors.PreconditionFailed),
        (Reply(400, b'{"error":"idempotency_key_reused","message":"x"}'), errors.IdempotencyKeyReused),
    ],
)
async def test_what_the_cluster_decided_settles_a_doubt(reply: Reply, error: type[errors.KvnodeError]) -> None:
    async with scripted(break_off) as broken, scripted(always(reply)) as node, Client([broken.url, node.url], 5) as c:
        with pytest.raises(error):
            await c.delete("k")


async def test_a_write_in_doubt_is_not_repeated_beyond_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "RESEND_S", 0.5)
    async with scripted(break_off) as node, Client([node.url], 60) as c:
        with pytest.raises(errors.OutcomeUnknown):
            await asyncio.wait_for(c.put("k", b"v"), 10)
    assert len(node.asked) > 1


async def test_a_frozen_node_leaves_time_to_ask_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "ATTEMPT_S", 0.3)
    async with scripted(say_nothing) as frozen, scripted(always(PUT)) as well, Client([frozen.url, well.url], 20) as c:
        assert await asyncio.wait_for(c.put("k", b"v"), 10) == client.Put(5, 2, False)


async def test_a_node_that_did_not_answer_is_asked_last_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "ATTEMPT_S", 0.3)
    async with scripted(say_nothing) as frozen, scripted(always(PUT)) as well, Client([frozen.url, well.url], 20) as c:
        for _ in range(3):
            await asyncio.wait_for(c.put("k", b"v"), 10)
        assert (len(frozen.asked), len(well.asked)) == (1, 3)
        monkeypatch.setattr(calls, "SILENT_S", 0.0)  # and is first again once that is over
        c._calls._silent_until[frozen.url] = 0.0
        await asyncio.wait_for(c.put("k", b"v"), 10)
    assert len(frozen.asked) == 2


@pytest.mark.parametrize("key", ["", "k" * 65, "é", "a\r\nb"])
async def test_an_idempotency_key_that_no_node_takes_never_leaves(key: str) -> None:
    async with Client([nobody()]) as c:
        with pytest.raises(errors.BadRequest, match="idempotency key"):
            await c.put("k", b"v", idempotency_key=key)


async def test_a_read_goes_to_the_next_node_whatever_went_wrong() -> None:
    found = Reply(200, b"v", {"ETag": '"3"', "Kvnode-Revision": "9", "Content-Type": "text/plain"})
    async with (
        scripted(break_off) as broken,
        scripted(always(Reply(504))) as lost,
        scripted(always(found)) as well,
        Client([broken.url, lost.url, well.url], 5) as c,
    ):
        assert await c.get("k") == client.Item("k", b"v", "text/plain", 3, 9)


async def test_what_one_node_forgot_of_a_key_another_may_know() -> None:
    found = Reply(200, b"v", {"ETag": '"3"', "Kvnode-Revision": "3", "Content-Type": "text/plain"})
    gone = Reply(410, b'{"error":"compacted","message":"x","oldest_revision":7}')
    async with scripted(always(gone)) as young, scripted(always(found)) as old:
        async with Client([young.url, old.url], 5) as c:
            assert (await c.get("k", revision=3)).value == b"v"
        async with Client([young.url], 5) as c:
            with pytest.raises(errors.Compacted) as caught:
                await c.get("k", revision=3)
    assert caught.value.oldest_revision == 7


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
        for key in ("\udcff", ""):
            with pytest.raises(errors.BadRequest):
                await c.get(key)


async def test_watches_show_the_token_as_every_other_call_does() -> None:
    told = b'{"key":"k","value":"","content_type":"","create_revision":1,"mod_revision":1,"version":1}'
    stream = Reply(200, b": here\n\nid: 1\nevent: put\ndata: %b\n\n" % told, {"Kvnode-Revision": "0"})
    async with scripted(always(stream)) as node, Client([node.url], 5, access=Access("tok")) as c:
        async with asyncio.timeout(5):
            async for event in c.watch("k"):
                assert event.key == "k"
                break
    assert {asked.headers.get("Authorization") for asked in node.asked} == {"Bearer tok"}


ONE_REFUSED = b'{"results":[{"error":"no_leader","message":"None.","outcome":"not_applied"}]}'
ONE_UNKNOWN = b'{"results":[{"error":"outcome_unknown","message":"x","outcome":"unknown"}]}'


@pytest.mark.parametrize("first", [Reply(200, ONE_UNKNOWN), None])
async def test_a_write_of_a_batch_that_was_in_doubt_stays_so_when_it_is_refused_later(first: Reply | None) -> None:
    async def script(asked: Asked) -> Reply | None:
        return first if len(node.asked) == 1 else Reply(200, ONE_REFUSED)

    async with scripted(script) as node, Client([node.url], 0.6) as c:  # type: ignore[arg-type]
        (became,) = await c.batch([client.put("k", b"v")])
    assert len(node.asked) > 1
    assert isinstance(became, errors.OutcomeUnknown)


async def test_a_write_of_a_batch_that_was_refused_is_in_doubt_when_no_answer_comes_to_it_later() -> None:
    async def script(asked: Asked) -> Reply | None:
        return Reply(200, ONE_REFUSED) if len(node.asked) == 1 else None

    async with scripted(script) as node, Client([node.url], 0.6) as c:  # type: ignore[arg-type]
        (became,) = await c.batch([client.put("k", b"v")])
    assert len(node.asked) > 1
    assert isinstance(became, errors.OutcomeUnknown)


async def _by_call(url: str, access: Access) -> object:
    async with Client([url], 5, access=access) as c:
        return await c.put("k", b"v")


async def _by_fetching(url: str, access: Access) -> object:
    return [piece async for piece in fetch([url], "/admin/api/v1/backup", access)]


async def _by_watching(url: str, access: Access) -> object:
    async with Client([url], 0.1, access=access) as c:
        return [event async for event in c.watch("k")]


@pytest.mark.parametrize("ask", [_by_call, _by_fetching, _by_watching])
async def test_tls_that_fails_is_named_and_not_taken_for_silence(ask: Ask, tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    theirs.sign("n1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(theirs.folder / "n1.pem", theirs.folder / "n1-key.pem")
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)
    async with server, scripted(always(PUT)) as plain:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(errors.Unavailable, match=r"certificate that .* not to be trusted \(.*--cacert"):
            await ask(url, Access("", ours.ca))
        with pytest.raises(errors.Unavailable, match="does not speak TLS"):
            await ask(plain.url.replace("http:", "https:"), Access("", ours.ca))


async def test_a_long_answer_that_never_began_was_broken_off() -> None:
    async with scripted(break_off) as node:
        with pytest.raises(errors.Unavailable, match="broke off before it answered"):
            await _by_fetching(node.url, Access())
    with pytest.raises(errors.Unavailable, match="Nothing answers"):
        await _by_fetching(nobody(), Access())
