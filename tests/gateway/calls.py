"""Calls of etcd's gateway on a served group."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from typing import Any

from kvnode.state.commands import LEVEL, TOKEN_PUT
from tests.http.serving import Served, Wire
from tests.http.single import SingleGroup


def leveled() -> SingleGroup:
    """A group that etcd's API is served on."""
    group = SingleGroup()
    group.store.apply([LEVEL, 1])
    group.watches.restart()
    return group


def token(group: SingleGroup, token_id: str, role: str, *prefixes: str) -> None:
    """A token whose secret is its role."""
    digest = hashlib.sha256(role.encode()).digest()
    group.store.apply([TOKEN_PUT, [b"", [token_id, role, role, digest, 1, list(prefixes), 0, b"", 0]]])
    assert group.store.tokens.get(token_id) is not None


def b64(text: str | bytes) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def plain(text: str) -> str:
    return b64decode(text).decode()


async def call(node: Served, path: str, document: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    body = b"" if document is None else json.dumps(document).encode()
    reply = await node.ask("POST", f"/v3/{path}", headers, body)
    return reply.status, reply.json


async def keep_alive(node: Served, *leases: str, token: str = "") -> list[Any]:
    """What is answered to each, each in a chunk of its own."""
    body = "".join(json.dumps({"ID": lease}) for lease in leases).encode()
    async with node.connect() as wire:
        shown = f"Authorization: {token}\r\n" if token else ""
        head = f"POST /v3/lease/keepalive HTTP/1.1\r\nHost: n\r\n{shown}Content-Length: {len(body)}\r\n\r\n"
        wire.send(head.encode() + body)
        assert (await wire.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        stream, found = Watching(wire), []
        while (message := await stream.message()) is not None:
            found.append(message["result"])
        assert (await wire.ask("GET", "/livez")).status == 200  # the connection goes on
    return found


def error(code: int, message: str) -> dict[str, object]:
    return {"error": message, "code": code, "message": message}


async def put(node: Served, key: str, value: str | bytes = "v", **fields: Any) -> Any:
    status, answer = await call(node, "kv/put", {"key": b64(key), "value": b64(value), **fields})
    assert status == 200, answer
    return answer


class Watching:
    """One stream, message by message."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    async def begin(self, *requests: Any, headers: dict[str, str] | None = None) -> None:
        body = "".join(map(json.dumps, requests)).encode()
        lines = {"Host": "node", "Content-Length": str(len(body)), **(headers or {})}
        head = "POST /v3/watch HTTP/1.1\r\n" + "".join(f"{name}: {text}\r\n" for name, text in lines.items())
        self.wire.send(head.encode() + b"\r\n" + body)
        got = (await self.wire.reader.readuntil(b"\r\n\r\n")).lower()
        assert got.startswith(b"http/1.1 200"), got
        assert b"transfer-encoding: chunked" in got

    async def message(self) -> Any:
        """The next one; None where the stream ends."""
        size = int(await self.wire.reader.readuntil(b"\r\n"), 16)
        data = (await self.wire.reader.readexactly(size + 2))[:-2]
        assert not data or data.endswith(b"\n")
        return json.loads(data) if data else None

    async def result(self) -> Any:
        return (await self.message())["result"]


def create(key: str = "", end: str | bytes | None = None, **fields: Any) -> dict[str, Any]:
    where = (
        {"key": b64(key or "\0"), "range_end": b64("\0")} if end is None else {"key": b64(key), "range_end": b64(end)}
    )
    return {"create_request": where | fields}
