"""What cannot be meant is one sentence, at once, and nothing is sent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kvnode import client, errors
from kvnode.client import Client, SyncClient, delete, get, put, when
from tests.cli.scripted import Reply, always, scripted

PUT = Reply(200, b'{"key":"k","revision":5,"version":2,"created":false}')
URL = "http://127.0.0.1:9"
NAN, INFINITE = float("nan"), float("inf")
Call = Callable[[Any], Awaitable[Any]]

# What is wrong, and what Python calls it.
CALLS: list[tuple[Call, type[Exception]]] = [
    (lambda c: c.put("k", None), TypeError),
    (lambda c: c.put("k", 5), TypeError),
    (lambda c: c.put("k", "text"), TypeError),
    (lambda c: c.put("k", ["a"]), TypeError),
    (lambda c: c.put(b"k", b"v"), TypeError),
    (lambda c: c.put(None, b"v"), TypeError),
    (lambda c: c.put("", b"v"), ValueError),
    (lambda c: c.put("k", b"v", ttl=0), ValueError),
    (lambda c: c.put("k", b"v", ttl=1.5), TypeError),
    (lambda c: c.put("k", b"v", ttl=True), TypeError),
    (lambda c: c.put("k", b"v", lease="7"), TypeError),
    (lambda c: c.put("k", b"v", if_match="3"), TypeError),
    (lambda c: c.put("k", b"v", idempotency_key=7), TypeError),
    (lambda c: c.get(b"k"), TypeError),
    (lambda c: c.get(7), TypeError),
    (lambda c: c.get("k", revision=0), ValueError),
    (lambda c: c.delete(b"k"), TypeError),
    (lambda c: c.delete_prefix(""), ValueError),
    (lambda c: c.delete_prefix(None), TypeError),
    (lambda c: c.list(b"p"), TypeError),
    (lambda c: c.list(limit="5"), TypeError),
    (lambda c: c.count(None), TypeError),
    (lambda c: c.txn(timeout_s=NAN), ValueError),
    (lambda c: c.leases.grant("60"), TypeError),
    (lambda c: c.leases.keep_alive(None), TypeError),
    (lambda c: c.leases.revoke(-1), ValueError),
    (lambda c: c.lock("x").acquire(-1), ValueError),
    (lambda c: c.lock("x").acquire(NAN), ValueError),
    (lambda c: c.lock("x").acquire("1"), TypeError),
]
MADE: list[tuple[Callable[[], Any], type[Exception]]] = [
    (lambda: Client([]), ValueError),
    (lambda: Client("127.0.0.1:8001"), ValueError),
    (lambda: Client([b"http://127.0.0.1:8001"]), TypeError),  # type: ignore[list-item]
    (lambda: Client(None), TypeError),  # type: ignore[arg-type]
    (lambda: Client(5), TypeError),  # type: ignore[arg-type]
    (lambda: Client(URL, -1), ValueError),
    (lambda: Client(URL, 0), ValueError),
    (lambda: Client(URL, NAN), ValueError),
    (lambda: Client(URL, INFINITE), ValueError),
    (lambda: Client(URL, "10"), TypeError),  # type: ignore[arg-type]
    (lambda: Client(URL, None), TypeError),  # type: ignore[arg-type]
    (lambda: SyncClient(URL, NAN), ValueError),
    (lambda: Client(URL).lock(b"x"), TypeError),  # type: ignore[arg-type]
    (lambda: Client(URL).lock("x", ttl_s=0), ValueError),
    (lambda: Client(URL).lock("x", value="text"), TypeError),  # type: ignore[arg-type]
    (lambda: Client(URL).watch(b"p"), TypeError),  # type: ignore[arg-type]
    (lambda: Client(URL).watch(from_revision="1"), TypeError),  # type: ignore[arg-type]
    (lambda: put("k", None), TypeError),  # type: ignore[arg-type]
    (lambda: put(b"k", b"v"), TypeError),  # type: ignore[arg-type]
    (lambda: get(b"k"), TypeError),  # type: ignore[arg-type]
    (lambda: delete(5), TypeError),  # type: ignore[arg-type]
    (lambda: when("k", value="text"), TypeError),  # type: ignore[arg-type]
]


def is_sentence(error: BaseException) -> bool:
    text = str(error)
    return text.endswith(".") and "\n" not in text and len(text) < 200


async def test_a_call_that_cannot_be_meant_is_refused_before_it_is_sent() -> None:
    async with scripted(always(PUT)) as node, Client(node.url) as c:
        for number, (call, kind) in enumerate(CALLS):
            with pytest.raises(errors.BadRequest) as caught:
                await call(c)
            assert isinstance(caught.value, kind), number
            assert is_sentence(caught.value), number
    assert node.asked == []


@pytest.mark.parametrize("number", range(len(MADE)))
def test_what_cannot_be_made_is_refused(number: int) -> None:
    make, kind = MADE[number]
    with pytest.raises(errors.BadRequest) as caught:
        make()
    assert isinstance(caught.value, kind)
    assert is_sentence(caught.value)


async def test_one_url_is_one_node_and_values_are_bytes_of_any_kind() -> None:
    async with scripted(always(PUT)) as node, Client(node.url) as c:
        for value in (b"v", bytearray(b"v"), memoryview(b"v"), b""):
            await c.put("k", value)
    assert [asked.body for asked in node.asked] == [b"v", b"v", b"v", b""]


async def test_a_call_outside_of_the_context_says_so() -> None:
    c = Client(URL)
    for state in ("not open", "closed"):
        with pytest.raises(client.WrongState, match=f"is {state}: use it inside"):
            await c.get("k")
        with pytest.raises(client.WrongState, match=f"is {state}"):
            await anext(c.watch())
        if state == "not open":
            async with c:
                with pytest.raises(client.WrongState, match="open already"):
                    await c.__aenter__()


def test_a_sync_call_outside_of_the_context_says_so() -> None:
    c = SyncClient(URL)
    for state in ("not open", "closed"):
        for call in (lambda: c.get("k"), lambda: c.leases.grant(5), lambda: next(c.watch()), lambda: c.lock("x")):
            with pytest.raises(client.WrongState, match=f"is {state}: use it inside"):
                call()
        if state == "not open":
            with c, pytest.raises(client.WrongState, match="open already"):
                c.__enter__()


async def test_a_client_of_another_loop_says_so() -> None:
    caught: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(c.get("k"))  # type: ignore[arg-type]
        except errors.KvnodeError as e:
            caught.append(e)

    async with Client(URL) as c:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join, 10)
    assert isinstance(caught[0], client.WrongState)
    assert "another event loop" in str(caught[0])


async def test_a_forked_child_is_refused_at_once_and_leaves_its_parents_connections_alone() -> None:
    """The child ends as a program does, with everything freed, while the parent watches and holds a lock."""
    found = Reply(200, b"v", {"ETag": '"3"', "Kvnode-Revision": "9", "Content-Type": "text/plain"})
    async with scripted(always(found)) as node:
        assert await asyncio.to_thread(fork_and_ask, node.url) == b"refused at once, at ease"


def fork_and_ask(url: str) -> bytes:
    program = """
import os, sys
from kvnode import client
told = b""
with client.SyncClient(sys.argv[1], 5) as c:
    assert c.get("k").value == b"v"
    pid = os.fork()
    if pid == 0:
        try:
            c.get("k")
        except client.WrongState as e:
            os.write(1, b"refused at once, ")
        sys.exit(0)  # through the context's end, and with all that the interpreter frees
    os.waitpid(pid, 0)
    assert c.get("k").value == b"v"
os.write(1, b"at ease")
"""
    # Python 3.12 and later warn of a fork beside threads, which is what is tried here.
    python = [sys.executable, "-W", "ignore:This process:DeprecationWarning"]
    done = subprocess.run([*python, "-c", program, url], capture_output=True, timeout=20, check=False)
    assert done.stderr == b"", done.stderr
    return done.stdout
