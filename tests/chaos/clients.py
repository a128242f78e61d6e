"""Clients of the cluster: each talks to one node, does one thing at a time and writes down what it was told.

The HTTP client is its own, on a bare stream, because the history needs one distinction that libraries blur: a request
that never left (a definite failure) and one that left and was not answered (nobody knows). It never retries.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.chaos.history import ABSENT, Operation, Outcome, Recorder
from tests.cluster import Cluster, key_path

CONNECT_DEADLINE_S = 1.0
ANSWER_DEADLINE_S = 7.0  # longer than a node's own deadlines: what it knows, it gets to say
KEY_LIFE = 500  # operations on a key before its slot takes a fresh one


class NotSent(Exception):
    """No connection: the request never left."""


class Unanswered(Exception):
    """The request, or a part of it, has left, and no answer came back whole."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One keep-alive connection, opened when needed. One request at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: str = "", timeout_s: float = ANSWER_DEADLINE_S
    ) -> Reply:
        """`headers` are whole lines. Raises NotSent or Unanswered."""
        reader, writer = await self._open()
        try:
            async with asyncio.timeout(timeout_s):
                head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
                reply = await _read_reply(reader)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self.close()
            raise Unanswered(repr(error)) from error
        if reply.headers.get("connection") == "close":
            self.close()
        return reply

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and (self._streams[0].at_eof() or self._streams[1].is_closing()):
            self.close()
        if self._streams is None:
            try:
                async with asyncio.timeout(CONNECT_DEADLINE_S):
                    self._streams = await asyncio.open_connection(*self._address, limit=1 << 21)
            except (OSError, TimeoutError) as error:
                raise NotSent(repr(error)) from error
        return self._streams


async def _read_reply(reader: asyncio.StreamReader) -> Reply:
    status_line = await reader.readuntil(b"\r\n")
    status = int(status_line.split()[1])
    headers: dict[str, str] = {}
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return Reply(status, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


# --- values ---------------------------------------------------------------------------------------------------------


def encode(value: str, size_bytes: int) -> bytes:
    """A value's name, over and over: a torn or mixed value cannot be taken for a whole one."""
    unit = f"{value}|".encode()
    return unit * max(1, size_bytes // len(unit))


def decode(body: bytes) -> str:
    value = body.partition(b"|")[0].decode(errors="replace")
    whole = body == f"{value}|".encode() * body.count(b"|")
    return value if whole and body else f"damaged: {body[:60]!r}"


# --- what an answer means -------------------------------------------------------------------------------------------


def told(operation: Operation, reply: Reply) -> Operation:
    """The operation with its outcome. ValueError for an answer that the node must never give."""
    status = reply.status
    if status == 200:
        return _done(operation, reply)
    if status >= 500 and status not in (503, 504, 507):
        raise ValueError(f"status {status}: {reply.body[:200]!r}")
    document: dict[str, Any] = json.loads(reply.body)
    error, outcome = document.get("error"), document.get("outcome")
    if operation.kind == "get":
        if error == "key_not_found":
            return replace(operation, outcome="ok", revision=ABSENT)
        return replace(operation, outcome="failed")
    if (outcome == "unknown") != (status == 504) or outcome not in ("unknown", "not_applied"):
        raise ValueError(f"status {status} with outcome {outcome!r}: {reply.body[:200]!r}")
    if error == "precondition_failed":
        return replace(operation, outcome="refused", revision=_tag(reply) or ABSENT)
    if error == "key_not_found":
        return replace(operation, outcome="refused", revision=ABSENT)
    meaning: Outcome = "unknown" if outcome == "unknown" else "failed"
    return replace(operation, outcome=meaning)


def _done(operation: Operation, reply: Reply) -> Operation:
    if operation.kind == "get":
        store_revision = int(reply.headers["kvnode-revision"])
        found = decode(reply.body)
        return replace(operation, outcome="ok", found=found, revision=_tag(reply), store_revision=store_revision)
    revision = json.loads(reply.body)["revision"]
    if int(reply.headers["kvnode-revision"]) != revision or (operation.kind == "put" and _tag(reply) != revision):
        raise ValueError(f"body and headers do not agree on the revision: {reply}")
    return replace(operation, outcome="ok", revision=revision)


def _tag(reply: Reply) -> int | None:
    return int(reply.headers["etag"].strip('"')) if "etag" in reply.headers else None


# --- the load -------------------------------------------------------------------------------------------------------


class Load:
    """What all clients share: the keys of the moment, what was last seen of them, and the history.

    The first slot keeps its key for the whole run, so that one history goes through every fault; the others take a
    fresh key now and then, so that many begin, are fought over, and are looked at again at the end.
    """

    def __init__(
        self, cluster: Cluster, recorder: Recorder, slots: int, seed: int, pause_s: float, consistency: str
    ) -> None:
        self._cluster = cluster
        self._recorder = recorder
        self._chance = random.Random(f"load {seed}")
        self._pause_s = pause_s
        self._consistency = consistency
        self._uses = [0] * slots
        self._seen: dict[str, int] = {}  # each key's last known revision, ABSENT for none
        self.keys: set[str] = set()
        self.complaints: list[str] = []  # answers that no node may give
        self.stopping = False

    async def client(self, number: int, node: str) -> None:
        """One client, until `stopping`."""
        connection = Connection(self._cluster.nodes[node].http)
        try:
            while not self.stopping:
                operation = await self.perform(connection, self._choose(number, node))
                refused = operation.outcome in ("failed", "unknown")
                await asyncio.sleep(max(self._pause_s, 0.05 if refused else 0.0) * self._chance.uniform(0.5, 1.5))
        finally:
            connection.close()

    async def ballast(self, number: int, node: str, bytes_per_s: float, size_bytes: int = 262_144) -> None:
        """Large values, so that the log outgrows its bound, is compacted, and followers fetch snapshots."""
        connection = Connection(self._cluster.nodes[node].http)
        written = 0
        try:
            while not self.stopping:
                written += 1
                put = self._operation(number, node, "put", f"ballast/{number}/{written % 4}", f"b{number}.{written}")
                await self.perform(connection, put, size_bytes)
                await asyncio.sleep(size_bytes / bytes_per_s)
        finally:
            connection.close()

    async def perform(self, connection: Connection, operation: Operation, size_bytes: int = 0) -> Operation:
        """Sends one operation and records how it ended."""
        operation = self._recorder.invoke(replace(operation, began=time.monotonic()))
        headers = ""
        if operation.expect is not None:
            headers = "If-None-Match: *\r\n" if operation.expect == ABSENT else f'If-Match: "{operation.expect}"\r\n'
        body = encode(operation.value, size_bytes) if operation.value is not None else b""
        path = key_path(operation.key) + (f"?consistency={self._consistency}" if operation.kind == "get" else "")
        self.keys.add(operation.key)
        try:
            reply = await connection.request(operation.kind.upper(), path, body, headers)
            operation = told(operation, reply)
        except NotSent:
            operation = replace(operation, outcome="failed")
        except Unanswered:
            operation = replace(operation, outcome="failed" if operation.kind == "get" else "unknown")
        except (ValueError, KeyError) as error:
            self.complaints.append(f"{operation}: {error!r}")
        if operation.outcome != "unknown":
            operation = replace(operation, ended=time.monotonic())
        if operation.certain and operation.revision is not None:
            gone = operation.kind == "delete" and operation.outcome == "ok"
            self._seen[operation.key] = ABSENT if gone else operation.revision
        self._recorder.end(operation)
        return operation

    def _choose(self, number: int, node: str) -> Operation:
        chance = self._chance
        slot = chance.randrange(len(self._uses))
        self._uses[slot] += 1
        key = f"key/{slot}/{self._uses[slot] // KEY_LIFE if slot else 0}"
        seen = self._seen.get(key)
        value = f"{number}.{sum(self._uses)}"
        dice = chance.random()
        if dice < 0.40:
            return self._operation(number, node, "get", key)
        if dice < 0.65:
            return self._operation(number, node, "put", key, value)
        if dice < 0.90:  # compare-and-set on what anybody was last told, or on something wrong now and then
            right = seen is not None and chance.random() < 0.9
            return self._operation(number, node, "put", key, value, seen if right else chance.choice([ABSENT, 1]))
        expect = seen if seen != ABSENT and chance.random() < 0.5 else None
        return self._operation(number, node, "delete", key, None, expect)

    def _operation(
        self,
        client: int,
        node: str,
        kind: Literal["put", "delete", "get"],
        key: str,
        value: str | None = None,
        expect: int | None = None,
    ) -> Operation:
        return Operation(number=-1, client=client, node=node, kind=kind, key=key, began=0.0, value=value, expect=expect)

    async def read_everything(self, node: str, number: int) -> None:
        """The last word on every key, through one node; AssertionError where it does not answer."""
        connection = Connection(self._cluster.nodes[node].http)
        for key in sorted(self.keys):
            operation = await self.perform(connection, self._operation(number, node, "get", key))
            assert operation.outcome == "ok", f"after everything was undone, {node} does not answer: {operation}"
        connection.close()
