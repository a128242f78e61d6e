"""Watches through HAProxy: silence longer than its timeouts breaks neither a stream nor a long poll."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvnode.client import Client
from kvnode.state.commands import LEVEL
from tests import balancer as balancers
from tests.balancer import Balancer, needs_haproxy
from tests.cluster import free_ports, wait_until
from tests.http.serving import serve
from tests.http.single import SingleGroup

pytestmark = needs_haproxy

FASTER = 20  # than the shipped file: its 15 s for a server's answer are 750 ms here
SILENCE_S = 2.0  # longer than the shrunk timeouts for clients and servers, shorter than that for watches


def shrunk(match: re.Match[str]) -> str:
    return f"{match[1]}{int(match[2]) * 1_000 // FASTER}ms"


def up(balancer: Balancer) -> list[str]:
    states = [balancer.states(backend) for backend in ("watches", "writes")]
    return [node for node in balancer.nodes if any(each[node].startswith("UP") for each in states)]


@pytest.fixture
async def behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[SingleGroup, Balancer]]:
    """One served group with quick heartbeats behind the shipped file, of which only the timeouts are shorter."""
    text = balancers.CONFIG.read_text()
    config = tmp_path / "shipped.cfg"
    config.write_text(re.sub(r"(timeout (?:server|client) )(\d+)s", shrunk, text))
    monkeypatch.setattr(balancers, "CONFIG", config)
    group = SingleGroup()
    async with serve(group, heartbeat_s=10 / FASTER) as served:
        ports = [served.port, *free_ports(2)]
        balancer = Balancer(tmp_path, {f"n{number}": ("127.0.0.1", port) for number, port in enumerate(ports, 1)})
        try:
            await asyncio.to_thread(balancer.start)
            await asyncio.to_thread(
                wait_until, lambda: up(balancer) == ["n1"], 5, "HAProxy finds the one node that runs"
            )
            yield group, balancer
        finally:
            balancer.close()


async def head_of(balancer: Balancer, query: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    reader, writer = await asyncio.open_connection(*balancer.address)
    writer.write(f"GET /v1/watch?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    async with asyncio.timeout(5):
        return reader, writer, await reader.readuntil(b"\r\n\r\n")


async def test_silence_longer_than_the_timeouts_breaks_neither_stream_nor_long_poll(
    behind: tuple[SingleGroup, Balancer],
) -> None:
    group, balancer = behind

    async def poll() -> tuple[float, bytes]:
        began = time.monotonic()
        _, writer, head = await head_of(balancer, f"wait={SILENCE_S}s")
        writer.close()
        return time.monotonic() - began, head

    reader, writer, head = await head_of(balancer, "key=a")
    assert head.startswith(b"HTTP/1.1 200"), head
    polled_s, answer = await poll()
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert polled_s >= SILENCE_S
    async with Client([balancer.url], 5) as client:
        await client.put("a", b"1")
        async with asyncio.timeout(5):
            heard = await reader.readuntil(b"event: put")
    assert heard.count(b": heartbeat") >= 2
    writer.close()
    await asyncio.to_thread(wait_until, lambda: len(group.watches) == 0, 5, "the watch ended with its client")


async def test_silence_longer_than_the_timeouts_does_not_break_etcds_watch(
    behind: tuple[SingleGroup, Balancer],
) -> None:
    """Nothing is sent on it meanwhile, no heartbeat either."""
    group, balancer = behind
    group.store.apply([LEVEL, 1])
    reader, writer = await asyncio.open_connection(*balancer.address)
    body = b'{"create_request":{"key":"YQ=="}}'
    writer.write(b"POST /v3/watch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    async with asyncio.timeout(10):
        await reader.readuntil(b'"created":true}}\n\r\n')
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), SILENCE_S)
        async with Client([balancer.url], 5) as client:
            await client.put("a", b"1")
        assert b'"events":[{"kv":{"key":"YQ=="' in await reader.readuntil(b"}]}}\n\r\n")
    writer.close()
    await asyncio.to_thread(wait_until, lambda: len(group.watches) == 0, 5, "the watch ended with its client")
