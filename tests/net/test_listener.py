"""Who is turned away before HTTP begins, and in which words."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from kvnode.net import listener
from kvnode.net.listener import SocketListener, bound
from kvnode.net.proxies import Proxies

LOOPBACK = Proxies((ipaddress.ip_network("127.0.0.0/8"),), prefaced=True)


@pytest.fixture
async def refused() -> asyncio.Queue[str]:
    return asyncio.Queue()


@pytest.fixture
async def connect(refused: asyncio.Queue[str]) -> AsyncIterator[Callable[[], socket.socket]]:
    """Connects to a reception that believes every address of this machine, and has two places for newcomers."""
    sockets = await bound("127.0.0.1", 0)
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(sockets[0].getsockname()))
        opened[-1].setblocking(False)
        return opened[-1]

    def turned_away(address: str, why: str) -> None:
        refused.put_nowait(why)

    door = SocketListener(sockets, lambda _: asyncio.Protocol(), None, LOOPBACK, turned_away, newcomers_max=2)
    yield connect
    await door.stop()
    for each in opened:
        each.close()


async def _closed(connection: socket.socket) -> None:
    async with asyncio.timeout(5):
        try:
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""
        except ConnectionResetError:
            pass


async def test_a_balancer_that_says_nothing_is_named_as_such(
    connect: Callable[[], socket.socket], refused: asyncio.Queue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "PREFACE_S", 0.05)
    await _closed(connect())
    assert await refused.get() == "it is a trusted proxy and sent no PROXY header within 0.05 s"


async def test_a_balancer_that_breaks_off_is_named_as_such(
    connect: Callable[[], socket.socket], refused: asyncio.Queue[str]
) -> None:
    breaking_off = connect()
    breaking_off.send(b"PROXY")
    breaking_off.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    breaking_off.close()  # by a reset
    assert await refused.get() == "it went away before it had said who its client is"


async def test_the_oldest_newcomer_makes_room_for_the_newest(
    connect: Callable[[], socket.socket], refused: asyncio.Queue[str]
) -> None:
    oldest, younger, newest = connect(), connect(), connect()
    await _closed(oldest)
    assert await refused.get() == "it was the oldest of 2 that had proved nothing"
    for staying in (younger, newest):
        with pytest.raises(BlockingIOError):
            staying.recv(1)


async def test_the_last_of_a_burst_does_not_wait_for_a_turn_of_the_loop_for_each_before_it() -> None:
    taken = 0

    def protocol(address: str) -> asyncio.Protocol:
        nonlocal taken
        taken += 1
        return asyncio.Protocol()

    sockets = await bound("127.0.0.1", 0)
    clients = [socket.create_connection(sockets[0].getsockname()) for _ in range(200)]
    door = SocketListener(sockets, protocol, None, None, lambda *_: None)
    turns = 0
    while taken < len(clients) and turns < 1_000:
        await asyncio.sleep(0)
        turns += 1
    await door.stop()
    for client in clients:
        client.close()
    assert taken == len(clients)
    assert turns < len(clients) / 4
