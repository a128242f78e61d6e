"""A tiny HTTP server that answers as told and remembers what it was asked; for answers that no healthy node gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

Script = Callable[["Asked"], Awaitable["Reply | None"]]


@dataclass(frozen=True)
class Asked:
    method: str
    raw_path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Scripted:
    """`url` and everything it was asked, in order."""

    url: str
    asked: list[Asked]


def always(reply: Reply) -> Script:
    async def script(asked: Asked) -> Reply:
        return reply

    return script


async def break_off(asked: Asked) -> None:
    """Closes the connection without an answer."""
    return None


async def say_nothing(asked: Asked) -> Reply:
    await asyncio.sleep(3_600)
    raise AssertionError


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Scripted]:
    asked: list[Asked] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(Asked(request.method, request.raw_path, request.headers, await request.read()))
        reply = await script(asked[-1])
        if reply is None:
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        return web.Response(status=reply.status, body=reply.body, headers=reply.headers)

    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Scripted(f"http://127.0.0.1:{runner.addresses[0][1]}", asked)
    finally:
        await runner.cleanup()
