"""A request is answered the same whichever way it takes: at once where it came whole, by aiohttp's task where not."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from functools import partial
from typing import cast

import pytest

from kvnode.http import app, budget, connection
from kvnode.http.budget import Reads
from kvnode.http.connection import Connection
from tests.http.serving import Reply, Served, Wire, serve, until
from tests.http.single import SingleGroup

REQUESTS = [
    b"PUT /v1/kv/a HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\n\r\none",
    b"GET /v1/kv/a HTTP/1.1\r\nHost: n\r\n\r\n",
    b"GET /v1/kv/a?consistency=stale HTTP/1.1\r\nHost: n\r\n\r\n",
    b"GET /v1/kv/missing HTTP/1.1\r\nHost: n\r\n\r\n",
    b"PUT /v1/kv/b HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n",
    b"GET /v1/kv/b HTTP/1.1\r\nHost: n\r\nX-Request-Id: abc\r\n\r\n",
    b"DELETE /v1/kv/b HTTP/1.1\r\nHost: n\r\n\r\n",
    b'PUT /v1/kv/a HTTP/1.1\r\nHost: n\r\nIf-Match: "99"\r\nContent-Length: 0\r\n\r\n',
    b"POST /v1/kv/a HTTP/1.1\r\nHost: n\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /admin/healthz/leader HTTP/1.1\r\nHost: n\r\n\r\n",
    b"GET /readyz HTTP/1.1\r\nHost: n\r\n\r\n",
    b"GET /v1/kv HTTP/1.1\r\nHost: n\r\n\r\n",
]


def told(reply: Reply) -> tuple[int, dict[str, str], bytes]:
    return reply.status, {name: value for name, value in reply.headers.items() if name != "date"}, reply.body


async def replies(wire: Wire, pieces: list[bytes]) -> list[tuple[int, dict[str, str], bytes]]:
    """One reply for each request: `pieces` are sent one after another, each in a packet of its own."""
    for piece in pieces:
        wire.send(piece)
        await wire.writer.drain()
        await asyncio.sleep(0)  # lets the server read what there is: the pieces stay apart
    return [told(await wire.reply()) for _ in REQUESTS]


async def test_whole_cut_and_pipelined_requests_get_the_same_answers() -> None:
    seen = []
    for way in ("whole", "cut", "pipelined"):
        async with serve(SingleGroup()) as node, node.connect() as wire:
            if way == "whole":
                answers = []
                for request in REQUESTS:
                    wire.send(request)
                    answers.append(told(await wire.reply()))
            elif way == "cut":
                answers = []
                for request in REQUESTS:
                    for at in range(0, len(request), 7):
                        wire.send(request[at : at + 7])
                        await asyncio.sleep(0.001)
                    answers.append(told(await wire.reply()))
            else:
                answers = await replies(wire, [b"".join(REQUESTS)])
            seen.append(answers)
    assert seen[0] == seen[1] == seen[2]
    assert [status for status, _, _ in seen[0]] == [200, 200, 200, 404, 200, 200, 200, 412, 405, 200, 200, 200]


async def test_most_requests_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what makes them cheap: nobody would notice if none did."""
    at_once = []
    short_way, known = Connection._at_once, Connection._is_known

    def counted(self: Connection, waiter: asyncio.Future[None], data: bytes) -> bool:
        at_once.append(short_way(self, waiter, data))
        return at_once[-1]

    def counted_known(self: Connection, data: bytes) -> bool:
        if known(self, data):
            at_once.append(True)
            return True
        return False

    monkeypatch.setattr(Connection, "_at_once", counted)
    monkeypatch.setattr(Connection, "_is_known", counted_known)
    async with serve(SingleGroup()) as node, node.connect() as wire:
        for _ in range(10):
            assert (await wire.ask("PUT", "/v1/kv/a", body=b"v")).status == 200
            assert (await wire.ask("GET", "/v1/kv/a")).status == 200
            assert (await wire.ask("GET", "/admin/healthz/leader")).status == 200
    assert at_once == [True] * 30


async def test_what_comes_while_one_is_answered_waits_for_its_turn() -> None:
    group = SingleGroup()
    group.confirms = asyncio.get_running_loop().create_future()
    async with serve(group) as node, node.connect() as wire:
        wire.send(b"GET /admin/healthz/leader HTTP/1.1\r\nHost: n\r\n\r\n")
        async with asyncio.timeout(5):
            await group.asked.wait()
        wire.send(REQUESTS[0] + REQUESTS[1])
        group.confirms.set_result(True)
        assert (await wire.reply()).body == b"ok\n"
        assert (await wire.reply()).json["revision"] == 1
        assert (await wire.reply()).body == b"one"
        assert (await wire.ask("GET", "/v1/kv/a")).body == b"one"


async def test_a_connection_ends_when_its_client_asks_for_that(node: Served) -> None:
    async with node.connect() as wire:
        reply = await wire.ask("GET", "/admin/healthz", {"Connection": "close"})
        assert reply.headers["connection"] == "close"
        assert await wire.closed()
    async with node.connect() as wire:
        wire.send(b"GET /admin/healthz HTTP/1.0\r\n\r\n")
        assert (await wire.reply()).headers["connection"] == "close"
        assert await wire.closed()
    async with node.connect() as wire:
        wire.send(b"GET /admin/healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await wire.reply()).headers["connection"] == "keep-alive"
        assert (await wire.ask("GET", "/admin/healthz")).status == 200


async def test_a_client_that_reads_slowly_gets_all_of_a_large_value(node: Served) -> None:
    value = bytes(range(256)) * 4_096
    assert (await node.ask("PUT", "/v1/kv/large", body=value)).status == 200
    async with node.connect() as wire:
        for _ in range(8):
            wire.send(b"GET /v1/kv/large HTTP/1.1\r\nHost: n\r\n\r\n")
        await asyncio.sleep(0.05)  # the answers are more than the sockets between hold
        for _ in range(8):
            assert (await wire.reply()).body == value


async def test_a_stop_waits_for_what_is_being_answered() -> None:
    group = SingleGroup()
    group.confirms = confirms = asyncio.get_running_loop().create_future()
    async with serve(group) as node, node.connect() as wire, node.connect() as idle:
        assert (await idle.ask("GET", "/admin/healthz")).status == 200
        wire.send(b"GET /admin/healthz/leader HTTP/1.1\r\nHost: n\r\n\r\n")
        async with asyncio.timeout(5):
            await group.asked.wait()
        node.server.pre_shutdown()
        stopping = asyncio.create_task(node.server.shutdown(5.0))
        await asyncio.sleep(0)
        assert not stopping.done()
        confirms.set_result(True)
        assert (await wire.reply()).body == b"ok\n"
        assert await wire.closed()
        assert await idle.closed()
        async with asyncio.timeout(5):
            await stopping


async def test_a_client_that_leaves_is_not_missed() -> None:
    group = SingleGroup()
    group.confirms = confirms = asyncio.get_running_loop().create_future()
    async with serve(group) as node:
        async with node.connect() as wire:
            wire.send(b"GET /admin/healthz/leader HTTP/1.1\r\nHost: n\r\n\r\n")
            async with asyncio.timeout(5):
                await group.asked.wait()
        confirms.set_result(True)
        assert (await node.ask("GET", "/admin/healthz/leader")).status == 200


async def test_a_stop_ends_what_does_not_end_by_itself() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    class Endless(SingleGroup):
        async def read_barrier(self, waited_s: float = 0.0) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    async with serve(Endless()) as node, node.connect() as wire:
        wire.send(b"GET /v1/kv/a?consistency=linearizable HTTP/1.1\r\nHost: n\r\n\r\n")
        async with asyncio.timeout(5):
            await begun.wait()
        node.server.pre_shutdown()
        await node.server.shutdown(0.1)
        async with asyncio.timeout(5):
            await ended.wait()
        assert await wire.closed()


async def test_half_a_head_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch, node: Served) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    async with node.connect() as slow, node.connect() as brisk, node.connect() as silent:
        slow.send(b"GET /v1/kv/a HT")
        brisk.send(b"GET /admin/heal")
        await asyncio.sleep(0.01)
        brisk.send(b"thz HTTP/1.1\r\nHost: n\r\n\r\n")
        assert (await brisk.reply()).status == 200
        assert await slow.closed()
        assert await silent.closed()  # a connection that says nothing holds a place as well
        # Who was in time is still welcome, however long it rests between two requests.
        assert (await brisk.ask("GET", "/admin/healthz")).status == 200


async def test_an_idle_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection.IDLE_S == 75
    monkeypatch.setattr(app, "IDLE_S", 0.2)
    async with serve(SingleGroup()) as node, node.connect() as wire:
        for _ in range(2):
            assert (await wire.ask("GET", "/admin/healthz")).status == 200
            await asyncio.sleep(0.1)
        assert await wire.closed()


def lines(count: int, value: bytes = b"y" * 8_000) -> bytes:
    return b"".join(b"x%d: %b\r\n" % (number, value) for number in range(count))


HEAD = b"GET /admin/healthz HTTP/1.1\r\nHost: n\r\n"


async def test_a_head_is_bounded_as_a_whole(node: Served) -> None:
    whole, begun = HEAD + lines(5) + b"\r\n", (HEAD + lines(5))[:33_000]
    for asked, piece_bytes in [(whole, len(whole)), (begun, len(begun)), (begun, 5_000)]:
        async with node.connect() as wire:
            assert (await wire.ask("GET", "/admin/healthz", {f"x{n}": "y" * 8_000 for n in range(4)})).status == 200
            for at in range(0, len(asked), piece_bytes):
                wire.send(asked[at : at + piece_bytes])
                await asyncio.sleep(0.001)
            reply = await wire.reply()
            assert (reply.status, reply.json["error"]) == (400, "bad_request")
            assert await wire.closed()


async def test_a_long_head_behind_a_request_is_answered_behind_it(node: Served) -> None:
    async with node.connect() as wire:
        wire.send(HEAD + b"\r\n" + HEAD + lines(5) + b"\r\n")
        assert (await wire.reply()).status == 200
        assert (await wire.reply()).status == 400
        assert await wire.closed()


async def test_what_follows_chunks_is_bounded_as_a_head_is(node: Served) -> None:
    chunked = b"PUT /v1/kv/a HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with node.connect() as wire:
        wire.send(chunked + b"3\r\none\r\n0\r\n" + lines(3) + b"\r\n")
        assert (await wire.reply()).status == 200
    async with node.connect() as wire:
        wire.send(chunked + b"0\r\n")
        for number in range(7):
            wire.send(lines(1).replace(b"x0", b"x%d" % number))
            await asyncio.sleep(0.001)
        with suppress(ConnectionError):
            assert await wire.closed()


async def test_chunks_are_no_head_however_small_they_are(node: Served) -> None:
    """60,000 bytes in chunks of one, in pieces that end anywhere: 300 KB that are no body, and none of them kept."""
    body = b"1\r\nx\r\n" * 60_000 + b"0\r\n\r\n"
    async with node.connect() as wire:
        wire.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 7_001):
            wire.send(body[at : at + 7_001])
            await asyncio.sleep(0)
        assert (await wire.reply()).status == 200
        assert (await wire.ask("GET", "/v1/kv/a")).body == b"x" * 60_000


async def test_a_body_that_follows_its_head_at_once_is_no_head(monkeypatch: pytest.MonkeyPatch, node: Served) -> None:
    """aiohttp's task begins a turn of the loop after the head came, and pieces of the body may come before it."""
    seen = []
    count = Connection._count

    def noting(self: Connection, size: int, requests: int) -> None:
        count(self, size, requests)
        seen.append(self._head_bytes)

    monkeypatch.setattr(Connection, "_count", noting)
    async with node.connect() as wire:
        served: list[Connection] = list(node.server.connections)  # type: ignore[arg-type]
        (served_one,) = served
        served_one.data_received(b"PUT /v1/kv/a HTTP/1.1\r\nHost: n\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(2):
            served_one.data_received(b"x" * 50_000)
        assert (await wire.reply()).status == 200
    assert seen
    assert set(seen) == {0}


@pytest.mark.parametrize("length", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
async def test_a_body_without_room_is_refused_and_read_to_its_end(node: Served, length: bytes) -> None:
    """A reset in the middle of it would say less: the client could not know that nothing was written."""
    budget = node.server.app.budgets.bodies
    spent = budget.hold_anyway(budget.limit)
    body = b"x" * 1_000_000 if b"Content" in length else b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n0\r\n\r\n"
    for piece_bytes in (len(body), 50_000):
        async with node.connect() as wire:
            wire.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: n\r\n" + length + b"\r\n\r\n" + body[:10_000])
            for at in range(10_000, len(body), piece_bytes):
                wire.send(body[at : at + piece_bytes])
                await wire.writer.drain()
                await asyncio.sleep(0.001)
            reply = await wire.reply()
            assert (reply.status, reply.json["error"], reply.json["outcome"]) == (503, "overloaded", "not_applied")
    spent.release()
    async with node.connect() as wire:
        assert (await wire.ask("PUT", "/v1/kv/a", None, b"x" * 1_000_000)).status == 200
    assert budget.in_use == 0


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No turn of the loop has time for a large read when it comes."""
    now = Reads.now

    def never(self: Reads) -> bool:
        return now(self) and self._working

    monkeypatch.setattr(Reads, "now", never)


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("piece_bytes", [1_000_000, 5_000])
async def test_what_waits_for_its_turn_keeps_its_order(node: Served, piece_bytes: int) -> None:
    values = [bytes([97 + number]) * 150_000 for number in range(4)]
    requests = b"".join(
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n%b" % (len(value), value)
        + b"GET /v1/kv/a HTTP/1.1\r\nHost: n\r\n\r\n"
        for value in values
    )
    async with node.connect() as wire:
        for at in range(0, len(requests), piece_bytes):
            wire.send(requests[at : at + piece_bytes])
            await asyncio.sleep(0)
        for value in values:
            assert (await wire.reply()).status == 200
            assert (await wire.reply()).body == value
        assert node.server.app.budgets.bodies.in_use == 0


@pytest.mark.usefixtures("busy")
async def test_what_waits_for_its_turn_goes_with_its_client(node: Served) -> None:
    budget = node.server.app.budgets.bodies
    async with node.connect():
        await until(lambda: bool(node.server.connections))
        (served,) = node.server.connections
        served.data_received(HEAD + lines(1) + b"\r\n")
        assert budget.in_use > 8_000
        assert cast(Connection, served).idle_since is None
        cast(Connection, served).connection_lost(None)
        assert budget.in_use == 0
    await asyncio.sleep(0.01)
    assert budget.cut == 0


@pytest.mark.usefixtures("busy")
async def test_what_would_wait_without_room_ends_its_connection(node: Served) -> None:
    budget = node.server.app.budgets.bodies
    spent = budget.hold_anyway(budget.limit)
    async with node.connect() as wire:
        wire.send(HEAD + lines(1) + b"\r\n")
        with suppress(ConnectionError):
            assert await wire.closed()
    assert budget.cut == 1
    async with node.connect() as wire:  # what is small waits for nothing
        assert (await wire.ask("GET", "/livez")).status == 200
    spent.release()
    assert budget.in_use == 0


async def test_large_reads_share_the_turns_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "READS_TURN_S", 0.0)
    reads = Reads()
    done: list[int] = []
    assert reads.now()
    for number in range(3):
        assert not reads.now()
        reads.wait(partial(done.append, number))
    for number in range(3):
        await asyncio.sleep(0)
        assert done == list(range(number + 1))
        assert not reads.now()  # nobody passes those that wait, nor takes more than its turn
    await asyncio.sleep(0)
    assert reads.now()


async def test_a_body_whose_answer_is_out_is_not_kept(node: Served) -> None:
    """A watch whose own body goes on arriving holds nothing of it, and the body behind another request counts."""
    budget = node.server.app.budgets.bodies
    async with node.connect() as wire:
        wire.send(b"GET /v1/watch?prefix=a HTTP/1.1\r\nHost: n\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000)
        await wire.reader.readuntil(b": watching")
        (served,) = node.server.connections
        for _ in range(8):
            wire.send(b"x" * 100_000)
            await asyncio.sleep(0.01)
        body = cast(Connection, served)._newest
        assert body is not None
        await until(lambda: body.total_bytes == 801_000)
        assert body._size == 0
        assert budget.in_use < 8_000
    async with node.connect() as wire:
        wire.send(HEAD + b"\r\nPUT /v1/kv/a HTTP/1.1\r\nHost: n\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000)
        assert (await wire.reply()).status == 200
        await asyncio.sleep(0.01)
        assert budget.in_use > 50_000
        wire.send(b"x" * 50_000)
        assert (await wire.reply()).status == 200
        assert (await wire.ask("GET", "/v1/kv/a")).body == b"x" * 100_000


async def test_half_a_body_goes_with_its_client(node: Served) -> None:
    """Without the garbage collector, which may not come for minutes."""
    gc.collect()
    gc.disable()
    try:
        async with node.connect() as wire:
            wire.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: n\r\nContent-Length: 1000000\r\n\r\n")
            for _ in range(5):
                wire.send(b"x" * 150_000)
                await asyncio.sleep(0.01)
            wire.writer.transport.abort()
        await until(lambda: not node.server.connections)
        await asyncio.sleep(0.05)
        kept = [each for each in gc.get_objects() if type(each) is list and any(map(is_large, each))]
        assert not kept
    finally:
        gc.enable()


def is_large(value: object) -> bool:
    return type(value) is bytes and len(value) > 10_000 and value[:100] == b"x" * 100
