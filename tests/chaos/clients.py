"""Clients of the cluster: each talks to one node, does one thing at a time and writes down what it was told.

The HTTP client is its own, on a bare stream, because the history needs one distinction that libraries blur: a request
that never left (a definite failure) and one that left and was not answered (nobody knows). It never retries; a client
whose write carries an idempotency key does, through one node after another, and writes down one operation.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.chaos.chronicle import Change, Chronicle
from tests.chaos.history import ABSENT, Operation, Outcome, Recorder, Way
from tests.cluster import Cluster, key_path

CONNECT_DEADLINE_S = 1.0
ANSWER_DEADLINE_S = 7.0  # longer than a node's own deadlines: what it knows, it gets to say
KEY_LIFE = 500  # operations on a key before its slot takes a fresh one
SETTLE_S = 20.0  # for how long a write that is in doubt is sent again under its idempotency key
# A client that gives up early sends again what is still under way, or done: that is what the key is for.
PATIENCE_S = (0.05, 0.3, ANSWER_DEADLINE_S)
MEMBERS = ("a", "b", "c")  # of the keys that a transaction holds together
JSON = "Content-Type: application/json\r\n"


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


class Connections:
    """One to each node, opened when needed."""

    def __init__(self, addresses: Mapping[str, tuple[str, int]]) -> None:
        self._open = {name: Connection(address) for name, address in addresses.items()}

    def __getitem__(self, name: str) -> Connection:
        return self._open[name]

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()


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


# --- what is asked, and what an answer means ------------------------------------------------------------------------


def asked(operation: Operation, size_bytes: int, consistency: str) -> tuple[str, str, bytes, str]:
    """(method, path, body, headers) of the operation."""
    if "txn" in operation.way:
        return "POST", "/v1/txn", json.dumps(_transaction(operation)).encode(), JSON
    headers = ""
    if operation.expect is not None:
        headers = "If-None-Match: *\r\n" if operation.expect == ABSENT else f'If-Match: "{operation.expect}"\r\n'
    body = encode(operation.value, size_bytes) if operation.value is not None else b""
    path = key_path(operation.key) + (f"?consistency={consistency}" if operation.kind == "get" else "")
    return operation.kind.upper(), path, body, headers


def members(operation: Operation) -> list[str]:
    """The keys that the operation is about."""
    return [f"{operation.key}/{each}" for each in MEMBERS] if "txn" in operation.way else [operation.key]


def _transaction(operation: Operation) -> dict[str, Any]:
    keys = members(operation)
    reads = [{"get": {"key": key}} for key in keys]
    if operation.kind == "get":
        return {"success": reads}
    if operation.kind == "put":
        text = encode(operation.value or "", 0).decode()
        writes: list[dict[str, Any]] = [{"put": {"key": key, "text": text}} for key in keys]
    else:
        writes = [{"delete": {"key": key}} for key in keys]
    if operation.expect:
        compare: list[dict[str, Any]] = [{"key": key, "mod_revision": operation.expect} for key in keys]
    elif operation.expect == ABSENT or operation.kind == "delete":
        compare = [{"key": key, "exists": operation.kind == "delete"} for key in keys]
    else:
        compare = []
    return {"compare": compare, "success": writes, "failure": reads}


def told(operation: Operation, reply: Reply) -> Operation:
    """The operation with its outcome. ValueError for an answer that the node must never give."""
    status = reply.status
    if status == 200:
        return _concluded(operation, reply) if "txn" in operation.way else _done(operation, reply)
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
    if status < 500 and status != 429:
        raise ValueError(f"status {status}: {reply.body[:200]!r}")
    meaning: Outcome = "unknown" if outcome == "unknown" else "failed"
    return replace(operation, outcome=meaning)


def _done(operation: Operation, reply: Reply) -> Operation:
    if operation.kind == "get":
        store_revision = int(reply.headers["kvnode-revision"])
        found = decode(reply.body)
        return replace(operation, outcome="ok", found=found, revision=_tag(reply), store_revision=store_revision)
    document = json.loads(reply.body)
    revision = document["revision"]
    if int(reply.headers["kvnode-revision"]) != revision or (operation.kind == "put" and _tag(reply) != revision):
        raise ValueError(f"body and headers do not agree on the revision: {reply}")
    return replace(operation, outcome="ok", revision=revision, version=document.get("version"))


def _concluded(operation: Operation, reply: Reply) -> Operation:
    """Of a transaction; ValueError where it was carried out by halves, or read what no transaction can have left."""
    document = json.loads(reply.body)
    (kind,) = {name for result in document["results"] for name in result}
    results = [result[kind] for result in document["results"]]
    if kind != "get":
        (version,) = {result.get("version") for result in results}
        return replace(operation, outcome="ok", revision=document["revision"], version=version)
    seen = {(each.get("value"), each.get("mod_revision"), each.get("version")) for each in results}
    if len(seen) != 1:
        raise ValueError(f"keys that are written together are not the same: {reply.body[:600]!r}")
    value, revision, _ = seen.pop()
    if operation.kind != "get":
        return replace(operation, outcome="refused", revision=revision or ABSENT)
    found = None if value is None else decode(b64decode(value))
    store_revision = document["revision"]
    return replace(operation, outcome="ok", found=found, revision=revision or ABSENT, store_revision=store_revision)


def changes(operation: Operation) -> tuple[Change, ...]:
    """What a watch tells of the operation once it was carried out."""
    return tuple((operation.kind, key, operation.value or "") for key in members(operation))


def _tag(reply: Reply) -> int | None:
    return int(reply.headers["etag"].strip('"')) if "etag" in reply.headers else None


# --- the load -------------------------------------------------------------------------------------------------------


class Load:
    """What all clients share: the keys of the moment, what was last seen of them, and the history.

    The first slot keeps its key for the whole run, so that one history goes through every fault; the others take a
    fresh key now and then, so that many begin, are fought over, and are looked at again at the end.
    """

    def __init__(
        self,
        cluster: Cluster,
        recorder: Recorder,
        chronicle: Chronicle,
        slots: int,
        seed: int,
        pause_s: float,
        consistency: str,
    ) -> None:
        self._addresses = {node.id: node.http for node in cluster.nodes.values()}
        self._recorder = recorder
        self._chronicle = chronicle
        self._chance = random.Random(f"load {seed}")
        self._pause_s = pause_s
        self._consistency = consistency
        self._uses = [0] * slots
        self._ballast = 0
        self._seen: dict[str, int] = {}  # each key's last known revision, ABSENT for none
        self.keys: dict[str, Way] = {}
        self.complaints: list[str] = []  # answers that no node may give
        self.stopping = False

    async def client(self, number: int, node: str) -> None:
        """One client, until `stopping`."""
        connections = Connections(self._addresses)
        try:
            while not self.stopping:
                operation = await self.perform(connections, self._choose(number, node))
                refused = operation.outcome in ("failed", "unknown")
                await asyncio.sleep(max(self._pause_s, 0.05 if refused else 0.0) * self._chance.uniform(0.5, 1.5))
        finally:
            connections.close()

    async def ballast(self, number: int, node: str, bytes_per_s: float, size_bytes: int = 262_144) -> None:
        """Large values, so that the log outgrows its bound, is compacted, and followers fetch snapshots."""
        connections = Connections(self._addresses)
        try:
            while not self.stopping:
                self._ballast += 1
                key, value = f"ballast/{number}/{self._ballast % 4}", f"b{number}.{self._ballast}"
                await self.perform(connections, self._operation(number, node, "put", key, value), size_bytes)
                await asyncio.sleep(size_bytes / bytes_per_s)
        finally:
            connections.close()

    async def perform(self, connections: Connections, operation: Operation, size_bytes: int = 0) -> Operation:
        """Sends one operation, again where it carries a key and is in doubt, and records how it ended."""
        operation = self._recorder.invoke(replace(operation, began=time.monotonic()))
        self.keys[operation.key] = "txn" if "txn" in operation.way else "plain"
        if "keyed" in operation.way:
            operation = await self._settled(connections, operation)
        else:
            operation = await self._once(connections[operation.node], operation, size_bytes)
        if operation.outcome != "unknown":
            operation = replace(operation, ended=time.monotonic())
        if operation.certain and operation.revision is not None:
            gone = operation.kind == "delete" and operation.outcome == "ok"
            self._seen[operation.key] = ABSENT if gone else operation.revision
        if operation.kind != "get":
            self._tell(operation)
        self._recorder.end(operation)
        return operation

    async def _once(
        self,
        connection: Connection,
        operation: Operation,
        size_bytes: int,
        more: str = "",
        timeout_s: float = ANSWER_DEADLINE_S,
    ) -> Operation:
        method, path, body, headers = asked(operation, size_bytes, self._consistency)
        try:
            return told(operation, await connection.request(method, path, body, headers + more, timeout_s))
        except NotSent:
            return replace(operation, outcome="failed")
        except Unanswered:
            return replace(operation, outcome="failed" if operation.kind == "get" else "unknown")
        except (ValueError, KeyError) as error:
            self.complaints.append(f"{operation}: {error!r}")
            return operation

    async def _settled(self, connections: Connections, operation: Operation) -> Operation:
        """A definite failure settles a write only where no earlier try was in doubt."""
        names = list(self._addresses)
        turn, doubtful, until = names.index(operation.node), False, operation.began + SETTLE_S
        key = f"Idempotency-Key: {operation.number}.{operation.value or operation.kind}\r\n"
        patience_s = self._chance.choice(PATIENCE_S)
        while True:
            tried = await self._once(connections[names[turn % len(names)]], operation, 0, key, patience_s)
            patience_s = ANSWER_DEADLINE_S
            doubtful = doubtful or tried.outcome == "unknown"
            if tried.certain or not doubtful:
                return tried
            if time.monotonic() > until:
                return operation
            turn += 1
            await asyncio.sleep(0.1)

    def _tell(self, operation: Operation) -> None:
        if operation.outcome == "ok" and operation.revision is not None:
            self._chronicle.acknowledged(operation.revision, changes(operation), operation.version or 0)
        elif operation.outcome == "unknown":
            self._chronicle.doubtful(changes(operation))

    def _choose(self, number: int, node: str) -> Operation:
        chance = self._chance
        slot = chance.randrange(len(self._uses))
        self._uses[slot] += 1
        key = f"key/{slot}/{self._uses[slot] // KEY_LIFE if slot else 0}"
        seen = self._seen.get(key)
        value = f"{number}.{sum(self._uses)}"
        # Every third slot is for transactions alone: reading three keys one by one would prove nothing.
        together, keyed = slot % 3 == 2, chance.random() < 0.3
        way: Way = ("keyed txn" if keyed else "txn") if together else "keyed" if keyed else "plain"
        dice = chance.random()
        if dice < 0.40:
            return self._operation(number, node, "get", key, way="txn" if together else "plain")
        if dice < 0.65:
            return self._operation(number, node, "put", key, value, way=way)
        if dice < 0.90:  # compare-and-set on what anybody was last told, or on something wrong now and then
            right = seen is not None and chance.random() < 0.9
            return self._operation(
                number, node, "put", key, value, seen if right else chance.choice([ABSENT, 1]), way=way
            )
        expect = seen if seen != ABSENT and chance.random() < 0.5 else None
        return self._operation(number, node, "delete", key, None, expect, way=way)

    def _operation(
        self,
        client: int,
        node: str,
        kind: Literal["put", "delete", "get"],
        key: str,
        value: str | None = None,
        expect: int | None = None,
        *,
        way: Way = "plain",
    ) -> Operation:
        what = {"client": client, "node": node, "kind": kind, "key": key, "value": value, "expect": expect, "way": way}
        return Operation(number=-1, began=0.0, **what)  # type: ignore[arg-type]

    async def read_everything(self, node: str, number: int) -> None:
        """The last word on every key, through one node; AssertionError where it does not answer."""
        connections = Connections(self._addresses)
        for key, way in sorted(self.keys.items()):
            operation = await self.perform(connections, self._operation(number, node, "get", key, way=way))
            assert operation.outcome == "ok", f"after everything was undone, {node} does not answer: {operation}"
        connections.close()
