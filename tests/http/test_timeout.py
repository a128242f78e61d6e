"""Kvnode-Timeout: the answer comes before the sender gives up, and says what is certain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from kvnode.deadline import deadline
from kvnode.errors import NoLeader
from kvnode.state.results import Result
from tests.http.serving import Served, serve
from tests.http.single import SingleGroup

PATHS = [
    ("PUT", "/v1/kv/k"), ("GET", "/v1/kv/k"), ("DELETE", "/v1/kv/k"), ("GET", "/v1/kv"), ("POST", "/v1/txn"),
    ("POST", "/v1/batch"), ("POST", "/v1/leases"), ("GET", "/v1/watch"), ("POST", "/admin/api/v1/leader/transfer"),
    ("GET", "/admin/api/v1/cluster"),
]  # fmt: skip


class Waiting(SingleGroup):
    """A group in which nothing comes to an end, and which notes how long each request may take."""

    def __init__(self) -> None:
        super().__init__()
        self.left_s_of: list[float] = []

    def _note(self) -> None:
        ends_at = deadline.get()
        assert ends_at is not None
        self.left_s_of.append(ends_at - time.monotonic())

    def propose(self, command: bytes, deadline_s: float = 5.0) -> asyncio.Future[Result]:
        self._note()
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(self.left_s_of[-1], _refuse, future)
        return future

    def read_index(self) -> asyncio.Future[int | None] | None:
        self._note()
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.05, future.set_result, None)
        return future

    async def read_barrier(self, waited_s: float = 0.0) -> None:
        self._note()
        await asyncio.sleep(60)

    async def transfer(self, to: str | None, timeout_s: float = 5.0) -> tuple[str, int]:
        self._note()
        await asyncio.sleep(60)
        raise AssertionError


def _refuse(future: asyncio.Future[Result]) -> None:
    if not future.done():
        future.set_exception(NoLeader("There is none."))


@pytest.fixture
async def waiting() -> AsyncIterator[Served]:
    async with serve(Waiting()) as served:
        yield served


@pytest.mark.parametrize("text", ["", "0", "0.0", "0.099", "-1", "nan", "inf", "1e3", "5s", "1,5", "٣", "100000", "x"])
async def test_what_is_no_number_of_seconds_is_refused_on_every_path(node: Served, text: str) -> None:
    for method, path in PATHS:
        reply = await node.ask(method, path, {"Kvnode-Timeout": text.encode().decode("latin-1")})
        assert (reply.status, reply.json["error"]) == (400, "bad_request"), (method, path)
        assert "Kvnode-Timeout" in reply.json["message"]
    assert node.group.proposals == 0


async def test_two_of_them_are_refused(node: Served) -> None:
    async with node.connect() as wire:
        wire.send(b"GET /v1/kv/k HTTP/1.1\r\nHost: n\r\nKvnode-Timeout: 1\r\nKvnode-Timeout: 2\r\n\r\n")
        assert (await wire.reply()).status == 400


async def test_a_probe_does_not_look_at_it(node: Served) -> None:
    for path in ("/admin/healthz", "/admin/healthz/leader", "/healthz", "/livez", "/readyz"):
        assert (await node.ask("GET", path, {"Kvnode-Timeout": "soon"})).status == 200


async def test_what_is_done_in_time_is_answered_as_ever(node: Served) -> None:
    assert (await node.ask("PUT", "/v1/kv/k", {"Kvnode-Timeout": "2.5"}, b"v")).status == 200
    for text in ("1", "0.1", "0.5", "0.500", "10.0", "7.5", "99999.999"):
        assert (await node.ask("GET", "/v1/kv/k", {"Kvnode-Timeout": text})).status == 200, text
    read = await node.ask("GET", "/v1/kv/k", {"Kvnode-Timeout": "99999.999"})
    assert (read.status, read.body) == (200, b"v")
    assert "kvnode-timeout" not in read.headers


ENDLESS: list[tuple[str, str, bytes | None, int]] = [
    ("PUT", "/v1/kv/k", b"v", 503),
    ("GET", "/v1/kv/k", None, 503),
    ("HEAD", "/v1/kv/k", None, 503),
    ("GET", "/v1/kv?limit=3", None, 503),
    ("POST", "/v1/txn", b"{}", 503),
    ("POST", "/v1/leases/7/keepalive", b"", 503),
    # Nothing in this group knows what became of a transfer: it is in doubt.
    ("POST", "/admin/api/v1/leader/transfer", b"", 504),
]


@pytest.mark.alone  # of times: the sender shares the node's loop here
@pytest.mark.parametrize("followed", [False, True])
async def test_the_answer_is_there_before_the_sender_gives_up(waiting: Served, followed: bool) -> None:
    # A request with an id goes aiohttp's own way through the connection, others the short one.
    headers = {"Kvnode-Timeout": "3.0"} | ({"X-Request-Id": "r"} if followed else {})

    async def ask(method: str, path: str, body: bytes | None, status: int) -> None:
        began_at = time.monotonic()
        reply = await waiting.ask(method, path, headers, body)
        took_s = time.monotonic() - began_at
        assert reply.status == status, path
        assert 0.05 < took_s < 3.0, path
        if method in ("PUT", "POST"):
            assert reply.json["outcome"] == ("not_applied" if status == 503 else "unknown")
        if status == 503:
            assert reply.headers["kvnode-timeout"] == "honoured"

    await asyncio.gather(*(ask(*each) for each in ENDLESS))
    assert isinstance(waiting.group, Waiting)
    assert all(0.1 < left_s < 3.0 for left_s in waiting.group.left_s_of)


async def test_a_long_poll_ends_in_time(node: Served) -> None:
    began_at = time.monotonic()
    reply = await node.ask("GET", "/v1/watch?key=k&wait=30s", {"Kvnode-Timeout": "3"})
    assert (reply.status, reply.json["events"]) == (200, [])
    assert time.monotonic() - began_at < 3.0


async def test_a_body_that_does_not_come_in_time_is_refused_for_sure(node: Served) -> None:
    async with node.connect() as wire:
        wire.send(b"PUT /v1/kv/k HTTP/1.1\r\nHost: n\r\nContent-Length: 9\r\nKvnode-Timeout: 0.4\r\n\r\nhalf")
        reply = await wire.reply()
    assert (reply.status, reply.json["outcome"]) == (408, "not_applied")
    assert node.group.proposals == 0


async def test_the_next_request_of_a_connection_has_a_deadline_of_its_own(waiting: Served) -> None:
    async with waiting.connect() as wire:
        await wire.ask("PUT", "/v1/kv/k", {"Kvnode-Timeout": "0.2"}, b"v")
        await wire.ask("PUT", "/v1/kv/k", {"Kvnode-Timeout": "0.6"}, b"v")
    assert isinstance(waiting.group, Waiting)
    first_s, second_s = waiting.group.left_s_of
    assert first_s < 0.2 < second_s


async def test_a_loop_that_is_late_turns_no_definite_answer_into_a_doubt(node: Served) -> None:
    async with node.connect() as wire:
        wire.send(b"PUT /v1/kv/k HTTP/1.1\r\nHost: n\r\nContent-Length: 9\r\nKvnode-Timeout: 0.4\r\n\r\nhalf")
        loop = asyncio.get_running_loop()
        loop.call_at(loop.time() + 0.3, time.sleep, 0.2)  # past all deadlines of the request
        reply = await wire.reply()
    assert (reply.status, reply.json["outcome"]) == (408, "not_applied")
