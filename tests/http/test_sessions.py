"""Sessions: whose they are, what they may, and that they and all that goes on under them end with their reason."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from kvnode.state.commands import LEVEL, TOKEN_CREATE, TOKEN_REVOKE
from tests.http.serving import Served, serve, until
from tests.http.test_door import FIRST, READER, with_reader

TOKENS = "/admin/api/v1/tokens"
SESSION = "/admin/api/v1/session"
ROTATE = "/admin/api/v1/session-key/rotate"
WITH_FIRST = {"Authorization": f"Bearer {FIRST}"}
ENDS = ("revoked", "ended", "rotated", "renewed")  # the ways in which a session's reason ends
ENDS_WITHIN_S = 2.0


async def began(node: Served, bearer: dict[str, str]) -> dict[str, str]:
    reply = await node.ask("POST", SESSION, bearer)
    assert reply.status == 200, reply.body
    return {"Cookie": reply.headers["set-cookie"].partition(";")[0]}


async def end(node: Served, how: str, cookie: dict[str, str], token: str = "ab12") -> None:
    if how == "revoked":
        assert (await node.ask("DELETE", f"{TOKENS}/{token}", WITH_FIRST)).status == 200
    elif how == "ended":
        assert (await node.ask("DELETE", SESSION, cookie)).json == {"ended": True}
    elif how == "rotated":
        assert (await node.ask("POST", ROTATE, WITH_FIRST, b'{"grace_s":0}')).status == 200
    else:
        node.server.app.renew_token("another-first-token-of-this-cluster")


def origin_of(how: str) -> dict[str, str]:
    """The token whose session ends so: a node's first one is in no list."""
    return WITH_FIRST if how == "renewed" else READER


@pytest.mark.parametrize("how", ENDS)
async def test_a_session_ends_with_its_reason_at_once(how: str) -> None:
    async with serve(with_reader(), token=FIRST) as node, node.connect() as wire:
        cookie, other = await began(node, origin_of(how)), await began(node, WITH_FIRST)
        for each in (cookie, other):
            assert (await wire.ask("GET", "/v1/kv", each)).status == 200
            assert (await wire.ask("GET", SESSION, each)).status == 200
        await end(node, how, cookie)
        for method, target in (
            ("GET", "/v1/kv"),
            ("GET", SESSION),
            ("POST", TOKENS),
            ("POST", SESSION),
        ):
            reply = await wire.ask(method, target, cookie)
            assert (reply.status, reply.json["error"]) == (401, "unauthorized"), (method, target)
        lives_on = how in ("revoked", "ended")
        assert (await wire.ask("GET", "/v1/kv", other)).status == (200 if lives_on else 401)


@pytest.mark.parametrize(
    ("by", "how"), [*(("session", how) for how in ENDS), ("token", "revoked"), ("token", "renewed")]
)
async def test_streams_and_long_polls_end_with_what_let_them_in(by: str, how: str) -> None:
    group = with_reader()
    async with serve(group, token=FIRST) as node, node.connect() as stream, node.connect() as poll:
        cookie = await began(node, origin_of(how))
        line = "\r\n".join(f"{name}: {text}" for name, text in (cookie if by == "session" else origin_of(how)).items())
        stream.send(f"GET /v1/watch?prefix= HTTP/1.1\r\nHost: n\r\n{line}\r\n\r\n".encode())
        assert (await stream.reader.readuntil(b"\n\n")).startswith(b"HTTP/1.1 200")
        poll.send(f"GET /v1/watch?prefix=&wait=30s HTTP/1.1\r\nHost: n\r\n{line}\r\n\r\n".encode())
        await until(lambda: len(group.watches) == 2)
        await end(node, how, cookie)
        async with asyncio.timeout(ENDS_WITHIN_S):
            ending = await stream.reader.read(-1)
            assert (await poll.reply()).status == 401
        assert b'"reason":"revoked"' in ending
        assert group.watches.ended["revoked"] == 2
        assert len(group.watches) == 0


@pytest.mark.parametrize("how", ENDS)
async def test_nothing_is_delivered_between_the_end_and_the_next_look(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnode.http.stream.REVIEW_S", 1_000.0)
    group = with_reader()
    async with serve(group, token=FIRST) as node, node.connect() as stream, node.connect() as poll:
        cookie = await began(node, origin_of(how))
        head = f"HTTP/1.1\r\nHost: n\r\nCookie: {cookie['Cookie']}\r\n\r\n"
        stream.send(f"GET /v1/watch?prefix= {head}".encode())
        assert (await stream.reader.readuntil(b"\n\n")).startswith(b"HTTP/1.1 200")
        poll.send(f"GET /v1/watch?prefix=&wait=30s {head}".encode())
        await until(lambda: len(group.watches) == 2)
        await asyncio.sleep(0.6)  # past the first look, which is as soon as a stream is there
        await end(node, how, cookie)
        bearer = WITH_FIRST if how != "renewed" else {"Authorization": "Bearer another-first-token-of-this-cluster"}
        assert (await node.ask("PUT", "/v1/kv/a", bearer, b"a secret")).status == 200
        async with asyncio.timeout(ENDS_WITHIN_S):
            told = await stream.reader.read(-1)
            reply = await poll.reply()
        assert b'"reason":"revoked"' in told
        assert b"event: put" not in told
        assert (reply.status, reply.json["error"]) == (401, "unauthorized")


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("target", ["POST /admin/api/v1/tokens", "PUT /v1/kv/a", "POST /v1/batch", "POST /v1/txn"])
async def test_a_body_that_comes_after_the_end_changes_nothing(how: str, target: str) -> None:
    """The head of a request is let in; its last byte may take half a minute."""
    group = with_reader()
    group.store.apply([TOKEN_CREATE, ["cd34", "writer", "full", hashlib.sha256(b"x").digest(), 1]])
    async with serve(group, token=FIRST) as node, node.connect() as wire:
        cookie = await began(node, WITH_FIRST if how == "renewed" else {"Authorization": "Bearer kvnode_cd34_x"})
        head = f"{target} HTTP/1.1\r\nHost: n\r\nCookie: {cookie['Cookie']}\r\nContent-Type: application/json\r\n"
        wire.send(f"{head}Content-Length: 29\r\n\r\n".encode() + b'{"name":"mine",')
        await until(lambda: any(each._request_in_progress for each in node.server.connections))
        await end(node, how, cookie, "cd34")
        proposals = group.proposals
        wire.send(b'"role":"full"}')
        reply = await wire.reply()
        assert (reply.status, reply.json["error"]) == (401, "unauthorized")
        assert group.proposals == proposals


async def test_a_read_that_waited_for_a_leader_is_not_for_those_who_may_no_longer_read() -> None:
    group = with_reader()
    group.store.apply([1, "a", b"a secret", "", None])
    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def barrier(waited_s: float = 0.0) -> None:
        await waiting

    group.read_barrier = barrier  # type: ignore[method-assign]
    group.holds = lambda index: False  # type: ignore[method-assign]
    async with serve(group, token=FIRST) as node:
        for target in ("/v1/kv/a", "/v1/kv?prefix="):
            async with node.connect() as wire:
                head = f"GET {target} HTTP/1.1\r\nHost: n\r\nAuthorization: {READER['Authorization']}\r\n\r\n"
                wire.send(head.encode())
                await asyncio.sleep(0.05)
                token = group.store.tokens.get("ab12")
                assert token is not None
                group.store.apply([TOKEN_REVOKE, "ab12"])
                waiting.set_result(None)
                reply = await wire.reply()
                assert reply.status == 401
                assert b"secret" not in reply.body
                group.store.apply([TOKEN_CREATE, list(token.packed)])
                waiting = asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("reads", [True, False])
async def test_a_backup_is_cut_off_within_two_seconds(reads: bool) -> None:
    group = with_reader()
    group.store.apply([TOKEN_CREATE, ["cd34", "backups", "full", hashlib.sha256(b"x").digest(), 1]])
    for number in range(24):
        group.store.apply([1, f"k{number}", bytes([number]) * 1_000_000, "", None])
    async with serve(group, token=FIRST) as node, node.connect() as wire:
        wire.send(b"GET /admin/api/v1/backup HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer kvnode_cd34_x\r\n\r\n")
        await wire.reader.readuntil(b"\r\n\r\n")
        group.store.apply([TOKEN_REVOKE, "cd34"])
        if not reads:  # what it was sent stays in the socket; the node lets go of it all the same
            async with asyncio.timeout(ENDS_WITHIN_S):
                await until(lambda: not node.server.connections)
        async with asyncio.timeout(ENDS_WITHIN_S):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await wire.reader.readuntil(b"\r\n0\r\n\r\n")


async def test_a_cookie_of_an_open_node_is_worth_nothing_once_tokens_are_on() -> None:
    group = with_reader()
    async with serve(group) as node:
        anonymous = await began(node, {})
        assert (await node.ask("GET", SESSION, anonymous)).json == {"subject": "admin"}
        assert (await node.ask("DELETE", SESSION, anonymous)).status == 200
        assert (await node.ask("GET", SESSION, anonymous)).status == 401
        anonymous = await began(node, {})
    async with serve(group, token=FIRST) as node:
        for method, target in (
            ("GET", SESSION),
            ("GET", "/v1/kv"),
            ("PUT", "/v1/kv/a"),
            ("POST", TOKENS),
        ):
            assert (await node.ask(method, target, anonymous)).status == 401
        mine = await began(node, WITH_FIRST)
    async with serve(group) as node:
        assert (await node.ask("GET", SESSION, mine)).status == 401, "here is no such token"
    async with serve(group, token=FIRST) as node:
        assert (await node.ask("GET", SESSION, mine)).status == 200


async def test_a_session_ends_with_its_cluster() -> None:
    """One that is made of a backup may have the same key and tokens, and knows nothing of what was ended."""
    group = with_reader()
    async with serve(group, token=FIRST) as node:
        cookie = await began(node, READER)
        group.becomes(cluster_id="another")
        assert (await node.ask("GET", "/v1/kv", cookie)).status == 401
        group.becomes(cluster_id="c")
        assert (await node.ask("GET", "/v1/kv", cookie)).status == 200


async def test_a_session_says_whose_it_is_and_may_no_more() -> None:
    async with serve(with_reader(), token=FIRST) as node:
        reader, first = await began(node, READER), await began(node, WITH_FIRST)
        assert (await node.ask("GET", SESSION, reader)).json == {
            "subject": "reader",
            "token": "ab12",
            "role": "read_only",
        }
        assert (await node.ask("GET", SESSION, first)).json["token"] == "first"
        assert (await node.ask("PUT", "/v1/kv/a", reader, b"1")).status == 403
        assert (await node.ask("PUT", "/v1/kv/a", first, b"1")).status == 200
        for each in (reader, first):
            refused = await node.ask("POST", SESSION, each)
            assert (refused.status, refused.json["error"]) == (403, "forbidden")
        assert (await node.ask("DELETE", SESSION, READER)).json == {"ended": True}, "there was none to end"
        assert (await node.ask("GET", SESSION, reader)).status == 200


async def test_below_the_level_that_can_note_it_the_end_of_a_session_is_refused() -> None:
    """Rather than said to be done: other nodes would go on taking the cookie."""
    group = with_reader(level=0)
    async with serve(group, token=FIRST) as node:
        cookie = await began(node, READER)
        reply = await node.ask("DELETE", SESSION, cookie)
        assert (reply.status, reply.json["error"], reply.json["outcome"]) == (503, "unavailable", "not_applied")
        assert "rotate" in reply.json["message"]
        assert "set-cookie" not in reply.headers
        assert (await node.ask("GET", SESSION, cookie)).status == 200
        group.store.apply([LEVEL, 1])
        assert (await node.ask("DELETE", SESSION, cookie)).status == 200
        late = await node.ask("GET", SESSION, cookie)
        assert late.status == 401
        assert "session has ended" in late.json["message"]
        assert "sign in again" in late.json["message"]


async def test_the_audit_log_names_what_was_made_and_ended_and_by_which_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kvnode.audit")
    async with serve(with_reader(), token=FIRST) as node:
        cookie = await began(node, WITH_FIRST)
        json = {"Content-Type": "application/json"}
        made = await node.ask("POST", TOKENS, {**cookie, **json}, b'{"name":"ops","role":"full"}')
        assert (await node.ask("DELETE", f"{TOKENS}/{made.json['id']}", cookie)).status == 200
        await end(node, "ended", cookie)
    lines = [record.getMessage() for record in caplog.records]
    session = lines[0].rpartition(" ")[2].rstrip(".")
    who = f"session {session} of token first (the node's own --token-file) at 127.0.0.1"
    token = made.json["id"]
    assert lines == [
        f"token first (the node's own --token-file) at 127.0.0.1: POST {SESSION}: 200: began session {session}.",
        f"{who}: POST {TOKENS}: 200: made token {token} (ops, full).",
        f"{who}: DELETE {TOKENS}/{token}: 200: revoked token {token} (ops, full).",
        f"{who}: DELETE {SESSION}: 200: ended session {session}.",
    ]
    assert made.json["token"] not in "".join(lines)
    assert caplog.records[1].fields["session"] == session  # type: ignore[attr-defined]
