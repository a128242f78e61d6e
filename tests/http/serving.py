"""A served group, and a client that sends exactly the bytes it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kvnode.http.app import LeaderProbe, Server, create_server
from tests.http.single import SingleGroup

DEADLINE_S = 10.0


async def until(condition: Callable[[], bool]) -> None:
    """Returns once that holds; TimeoutError after DEADLINE_S."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


class Wire:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def reply(self, *, bodiless: bool = False) -> Reply:
        async with asyncio.timeout(DEADLINE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head.decode().split("\r\n")[:-2]
            status = int(status_line.split(" ")[1])
            headers: dict[str, str] = {}
            for line in lines:
                name, _, value = line.partition(": ")
                assert name.lower() not in headers, f"{name} is there twice"
                headers[name.lower()] = value
            if bodiless or status in (100, 304):
                return Reply(status, headers, b"")
            return Reply(status, headers, await self.reader.readexactly(int(headers["content-length"])))

    async def ask(
        self, method: str, target: str | bytes, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Reply:
        raw = target.encode() if isinstance(target, str) else target
        lines = {"Host": "node", **(headers or {})}
        if body is not None:
            lines.setdefault("Content-Length", str(len(body)))
        head = b"%b %b HTTP/1.1\r\n" % (method.encode(), raw)
        for name, value in lines.items():
            head += f"{name}: {value}\r\n".encode()
        self.send(head + b"\r\n" + (body or b""))
        return await self.reply(bodiless=method == "HEAD")

    async def closed(self) -> bool:
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.read(1) == b""


class Served:
    """The node's HTTP server on a free port of 127.0.0.1, in front of `group`."""

    def __init__(self, group: SingleGroup, port: int, server: Server) -> None:
        self.group = group
        self.port = port
        self.server = server

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Wire]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=4 * 1_048_576)
        try:
            yield Wire(reader, writer)
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass

    async def ask(
        self, method: str, target: str | bytes, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Reply:
        async with self.connect() as wire:
            return await wire.ask(method, target, headers, body)


@asynccontextmanager
async def serve(
    group: SingleGroup,
    *,
    leader_probe: bool = True,
    heartbeat_s: float = 10.0,
    token: str = "",
    names: Collection[str] | None = None,
) -> AsyncIterator[Served]:
    server = create_server(
        group,
        node_id="n1",
        leader_probe=LeaderProbe(group, 0.2) if leader_probe else None,
        probe_timeout_s=0.2,
        version="1.2.3",
        heartbeat_s=heartbeat_s,
        token=token,
        names=names,
    )
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield Served(group, listening.sockets[0].getsockname()[1], server)
    finally:
        listening.close()
        server.pre_shutdown()
        await server.shutdown(1.0)
        await listening.wait_closed()
