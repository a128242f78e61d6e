"""Requests whose head was known: answered as the parser's are, and no head is known that the parser did not see."""

from __future__ import annotations

import asyncio
import random
import re
import sys
from typing import Any

import pytest

from kvnode.http import connection, heads
from kvnode.http.app import LeaderProbe, Server, create_server
from kvnode.http.connection import Connection
from tests.http.single import SingleGroup

HOST = b"Host: localhost\r\n"
AGENT = b"User-Agent: a client\r\nAccept: */*\r\n"
STATED = b'If-None-Match: "1"\r\n'
KEYED = b"Idempotency-Key: k\r\n"
ONE = b"one"


def message(line: bytes, lines: bytes = HOST, body: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if body or line.startswith(b"PUT") else b""
    return line + b" HTTP/1.1\r\n" + lines + length + b"\r\n" + body


class Taken(asyncio.Transport):
    """What a connection writes, without a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def writelines(self, pieces: Any) -> None:
        self.written += b"".join(pieces)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits to be written."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def is_closing(self) -> bool:
        return self.ended

    def close(self) -> None:
        self.ended = True

    abort = close

    def pause_reading(self) -> None:
        """All that comes is handed over by the test."""

    resume_reading = pause_reading


def server() -> Server:
    group = SingleGroup()
    probe = LeaderProbe(group, 0.5)
    return create_server(group, node_id="n1", leader_probe=probe, probe_timeout_s=0.5, version="1", names=())


async def connected(to: Server) -> tuple[Connection, Taken]:
    made, transport = to("127.0.0.1"), Taken()
    assert isinstance(made, Connection)
    made.connection_made(transport)
    await asyncio.sleep(0)
    return made, transport


async def settle() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


async def exchanged(to: Server, *pieces: bytes) -> bytes:
    """All that is answered to these pieces on one connection, without the times."""
    made, transport = await connected(to)
    for piece in pieces:
        if not transport.ended:
            made.data_received(piece)
            await settle()
    await settle()
    made.connection_lost(None)
    return re.sub(rb"Date: [^\r]*", b"Date:", transport.written)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What has gone through the parser."""
    seen: list[bytes] = []
    received = connection.Arrivals.data_received

    def noted(self: Connection, data: bytes) -> None:
        seen.append(data)
        received(self, data)

    monkeypatch.setattr(connection.Arrivals, "data_received", noted)
    return seen


async def test_a_head_is_parsed_once_for_all_connections(parsed: list[bytes]) -> None:
    at = server()
    get, put = message(b"GET /v1/kv/a", HOST + AGENT), message(b"PUT /v1/kv/a", HOST + AGENT, ONE)
    answered = await exchanged(at, put, get)
    assert parsed == [put, get]
    again = await exchanged(at, message(b"PUT /v1/kv/b", HOST + AGENT, b"two"), message(b"GET /v1/kv/b", HOST + AGENT))
    assert parsed == [put, get]
    assert answered.endswith(ONE)
    assert again.endswith(b"two")


@pytest.mark.parametrize(
    "lines",
    [
        STATED,
        2 * KEYED,
        b"idempotency-key: k\r\n",
        b"Idempotency-Key:  k\r\n",
        b"Cookie: a=b\r\n",
        b"X-Request-Id: r\r\n",
        b"Connection: close\r\n",
    ],
)
async def test_what_changes_or_is_secret_is_not_kept(parsed: list[bytes], lines: bytes) -> None:
    at, asked = server(), message(b"GET /v1/kv/a", HOST + lines)
    await exchanged(at, asked)
    await exchanged(at, asked)
    assert parsed == [asked, asked]


@pytest.mark.parametrize("lines", [(b"", HOST + AGENT), (HOST, AGENT), (HOST + AGENT, b"")])
async def test_a_head_is_known_whatever_its_idempotency_key(parsed: list[bytes], lines: tuple[bytes, bytes]) -> None:
    before, behind = lines
    at = server()
    puts = [
        message(b"PUT /v1/kv/a", before + b"Idempotency-Key: %b\r\n" % key + behind, ONE)
        for key in (b"1", b"2", b"a b", b"2", b"x" * 64)
    ]
    answered = await exchanged(at, *puts)
    assert parsed == puts[:1]
    assert re.findall(rb'"version":(\d)', answered) == [b"1", b"2", b"3", b"2", b"4"]
    assert not any(b"dempotency" in kept for kept in at.app.heads._kept)
    await exchanged(at, message(b"PUT /v1/kv/a", HOST + AGENT, ONE))  # the same head, and no key
    assert parsed == puts[:1]
    for long_or_empty in (b"x" * 65, b""):
        raw = message(b"PUT /v1/kv/a", before + b"Idempotency-Key: %b\r\n" % long_or_empty + behind, ONE)
        assert b"HTTP/1.1 400" in await exchanged(at, raw)
    other = message(b"PUT /v1/kv/a", before + b"Idempotency-Key: 2\r\n" + behind, b"two")
    assert b"idempotency_key_reused" in await exchanged(at, other)


async def test_the_end_of_another_head_is_not_kept(parsed: list[bytes]) -> None:
    """`Host: localhost` would stand for the lines of both pieces."""
    at, known = server(), message(b"GET /v1/kv/a")
    begun = b"GET /v1/kv/a HTTP/1.1\r\nOrigin: http://evil.example\r\nX: "
    await exchanged(at, begun, known)
    await exchanged(at, known)
    assert parsed == [begun, known, known]


async def test_a_client_whose_head_is_always_new_is_not_learned_for_ever() -> None:
    at = server()
    pieces = [message(b"GET /v1/kv/a", HOST + b"Time: %d\r\n" % n) for n in range(connection.UNKNOWN_MAX + 50)]
    await exchanged(at, *pieces)
    assert len(at.app.heads._kept) == connection.UNKNOWN_MAX


async def test_no_more_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "KEPT_MAX", 3)
    at = server()
    for n in range(9):
        await exchanged(at, message(b"GET /v1/kv/a", HOST + b"Time: %d\r\n" % n))
    assert [key.split(b"\r\n")[1] for key in at.app.heads._kept] == [b"Time: 6", b"Time: 7", b"Time: 8"]
    await exchanged(at, message(b"GET /v1/kv/a", HOST + b"Long: %b\r\n" % (b"x" * heads.BYTES_MAX)))
    assert len(at.app.heads._kept) == 3


REQUESTS = [
    *(message(line) for line in (b"GET /v1/kv/a", b"GET /v1/kv/a?consistency=stale", b"HEAD /v1/kv/a", b"GET /none")),
    *(
        message(b"DELETE /v1/kv/b"),
        message(b"GET /v1/kv/%C3%A9"),
        message(b"GET /v1/kv/%ZZ"),
        message(b"POST /v1/kv/a"),
    ),
    *(message(b"PUT /v1/kv/" + key, HOST, value) for key in (b"a", b"b") for value in (ONE, b"two", b"", b"x" * 3000)),
    *(message(b"GET /v1/kv/a", HOST + AGENT), message(b"PUT /v1/kv/a", HOST + AGENT, b"three")),
    *(message(b"GET /v1/kv/a", HOST + STATED), message(b"GET /v1/kv/a?", HOST), message(b"GET /admin/healthz/leader")),
    *(
        message(b"GET /v1/kv/a?x=1"),
        message(b"GET /admin/healthz/leader?x=1"),
        message(b"GET http://localhost/v1/kv/a"),
    ),
    *(message(b"GET /v1/kv/a", b"Host: evil.example\r\n"), message(b"PUT /v1/kv/a", b"Host: evil.example\r\n", ONE)),
    *(message(b"GET /v1/kv/a", HOST + b"Origin: http://evil.example\r\n"),),
    *(message(b"PUT /v1/kv/a", HOST + b"Origin: http://evil.example\r\n", ONE),),
    *(message(b"PUT /v1/kv/a", HOST + b"Kvnode-Timeout: 2.5\r\n", ONE), message(b"GET /v1/kv/a", HOST, b"a body")),
    *(message(b"PUT /v1/kv/a", HOST + b"Kvnode-Timeout: no\r\n", ONE),),
    *(
        message(line, HOST + key, ONE)
        for line in (b"PUT /v1/kv/a", b"PUT /v1/kv/b", b"DELETE /v1/kv/b", b"GET /v1/kv/a")
        for key in (KEYED, b"Idempotency-Key: other\r\n", b"Idempotency-Key: \r\n", 2 * KEYED, STATED + KEYED)
    ),
    *(message(b"PUT /v1/kv/a", HOST + KEYED + b"Kvnode-Timeout: 2.5\r\n", value) for value in (ONE, b"two")),
    message(b"PUT /v1/kv/a", HOST + b"X: y\r\n " + KEYED, ONE),
    message(b"POST /v1/batch", HOST + KEYED, b'{"operations":[{"delete":{"key":"a"}}]}'),
    message(b"POST /v1/leases", HOST + KEYED, b'{"ttl":9}'),
    message(b"POST /v1/txn", HOST + b"Content-Type: application/json\r\n", b'{"success":[{"get":{"key":"a"}}]}'),
    b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /v1/kv/a HTTP/1.0\r\nHost: localhost\r\n\r\n",
    b"GET /v1/kv/a HTTP/1.1\r\nhost:localhost\r\n\r\n",
    b"GET /v1/kv/a HTTP/1.1\r\nHost: localhost\n\r\n",
    b"GET /v1/kv/a HTTP/1.1\r\n\r\n",
    b"\r\n" + message(b"GET /v1/kv/a"),
]


@pytest.mark.parametrize("seed", range(40))
async def test_the_answers_are_the_parser_s(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """The same requests on the same connections, in the same pieces: whole ones mostly, as clients send them."""
    draw = random.Random(seed)
    connections = []
    for _ in range(4):
        pieces: list[bytes] = []
        for asked in draw.choices(REQUESTS, k=12):
            if draw.random() < 0.2:
                cuts = sorted(draw.sample(range(1, len(asked)), min(2, len(asked) - 1)))
                pieces += [asked[a:b] for a, b in zip([0, *cuts], [*cuts, len(asked)], strict=True)]
            elif draw.random() < 0.2 and pieces:
                pieces[-1] += asked
            else:
                pieces.append(asked)
        connections.append(pieces)
    at = server()
    now = [await exchanged(at, *pieces) for pieces in connections]
    monkeypatch.setattr(Connection, "_is_known", lambda self, data: False)
    at = server()
    assert now == [await exchanged(at, *pieces) for pieces in connections]
    assert any(b"HTTP/1.1 200" in answers for answers in now)


@pytest.mark.parametrize(
    ("asked", "calls_max"),
    [
        (message(b"GET /v1/kv/a"), 22),
        (message(b"PUT /v1/kv/a", HOST, ONE), 22),
        (message(b"PUT /v1/kv/a", HOST + KEYED, ONE), 34),
        (message(b"GET /admin/healthz/leader"), 27),
    ],
)
async def test_a_request_with_a_known_head_takes_few_calls(asked: bytes, calls_max: int) -> None:
    """In the node's HTTP and in aiohttp, without the group: 18, 18, 30 and 23."""
    at = server()
    made, _ = await connected(at)
    for raw in (message(b"PUT /v1/kv/a", HOST, ONE), asked, asked, asked):
        made.data_received(raw)
        await settle()
    seen: list[str] = []

    def note(frame: Any, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and ("/kvnode/http/" in name or "/aiohttp/" in name):
            seen.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        for _ in range(20):
            made.data_received(asked)
            await settle()
    finally:
        sys.setprofile(None)
    made.connection_lost(None)
    assert len(seen) <= calls_max * 20, seen[-60:]
