"""Watches that move from node to node, and what they must be told: every change once, in order, none missing.

A `Mover` reads the stream itself, leaves each node after some seconds, in the middle of whatever it is told, and goes
on at another by Last-Event-ID or by `from_revision`. A `Follower` is the client library's watch, which moves by itself.
A watch of every key is told every revision, so a number that is left out is a change that was missed.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, cast

from kvnode import errors
from kvnode.client import Client
from kvnode.client.watching import Event
from tests.chaos.chronicle import Change, Chronicle
from tests.chaos.clients import decode
from tests.cluster import Cluster

BLOCK_BYTES_MAX = 1 << 24
CONNECT_S = 1.0
SILENCE_S = 12.0  # a node says something every ten
SHOWN_MAX = 20
EMPTY_REVISION = 1  # of a store in which nothing has been written, as in etcd's
FIRST = (0, EMPTY_REVISION + 1)


@dataclass(frozen=True)
class Gap:
    """Revisions that no node could tell a watch any more: the first and the last. `at` is monotonic, in seconds."""

    first: int
    last: int
    at: float


@dataclass
class Watched:
    """What one watch was told. `prefix` is empty for every key; `at` is the revision that all was told up to."""

    name: str
    prefix: str
    chronicle: Chronicle
    at: int = 0
    told: int = 0
    moves: int = 0
    gaps: list[Gap] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    revisions: dict[str, list[int]] = field(default_factory=dict)  # of each prefix that another watch is of
    _versions: dict[str, int] = field(default_factory=dict)

    def block(self, revision: int, changes: tuple[Change, ...], versions: set[int]) -> None:
        """All changes of one revision."""
        whole = not self.prefix
        if revision <= self.at or (whole and revision != self.at + 1 and (self.at, revision) != FIRST):
            self._complain(f"was told revision {revision} after {self.at}: {changes}")
        self.at = max(self.at, revision)
        self.told += 1
        for kind, key, _ in changes:
            before = self._versions.get(key, -1 if self.gaps else 0)
            if kind != "put":
                if before == 0:
                    self._complain(f"was told at {revision} that {key} went away, which was not there")
                self._versions[key] = 0
            elif before >= 0 and before + 1 not in versions:
                self._complain(f"was told version {versions} of {key} at {revision}, after version {before}")
            else:
                (self._versions[key],) = versions
        for prefix, seen in self.revisions.items():
            if changes[0][1].startswith(prefix):
                seen.append(revision)
        version = max(versions, default=0)
        self.chronicle.told(revision, changes, version)

    def reached(self, revision: int) -> None:
        """The node says that all was told up to here. For a watch of every key that is what it was told of last."""
        if not self.prefix and revision > self.at and revision != EMPTY_REVISION:
            self._complain(f"was told that all is told up to {revision}, and the last was {self.at}")
        self.at = max(self.at, revision)

    def missed(self, first_after: int) -> None:
        """No node knows what came before `first_after`: the watch goes on from there."""
        self.gaps.append(Gap(self.at + 1, first_after - 1, time.monotonic()))
        self.at = first_after - 1
        self._versions.clear()

    def _complain(self, finding: str) -> None:
        if len(self.findings) < SHOWN_MAX:
            self.findings.append(f"the watch {self.name} {finding}")


class Mover:
    """A watch on a bare stream, which moves by force."""

    def __init__(self, cluster: Cluster, watched: Watched, seed: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(f"{watched.name} {seed}")
        self._watched = watched
        self._compacted: set[str] = set()
        self.stopping = False

    async def run(self) -> None:
        """Until `stopping`; the last of it is told by whichever node it is on then."""
        names = list(self._cluster.nodes)
        turn = self._chance.randrange(len(names))
        while not self.stopping:
            name = names[turn % len(names)]
            turn += 1
            before = self._watched.at
            try:
                async with asyncio.timeout(self._chance.uniform(0.5, 5.0)):
                    await self._follow(name)
            except ValueError as refusal:
                self._watched.findings.append(f"the watch {self._watched.name}: {refusal}")
                return
            except (OSError, EOFError, TimeoutError):
                pass
            self._watched.moves += 1
            if self._watched.at > before:
                self._compacted.clear()
            elif len(self._compacted) == len(names):
                await self._begin_again(names)
            if self._watched.at == before:
                await asyncio.sleep(0.1)

    async def _follow(self, name: str) -> None:
        watched, at = self._watched, self._watched.at
        query = f"/v1/watch?prefix={watched.prefix}"
        headers = ""
        if at and self._chance.random() < 0.5:
            headers = f"Last-Event-ID: {at}\r\n"
        else:
            query += f"&from_revision={at + 1}"
        changes: list[Change] = []
        versions: set[int] = set()
        async with aclosing(_stream(self._cluster.nodes[name].http, query, headers)) as blocks:
            async for kind, identity, data in blocks:
                if kind == "compacted":
                    self._compacted.add(name)
                    return
                if kind in ("put", "delete", "expire"):
                    changes.append(_change(kind, data))
                    versions |= {data["version"]} if kind == "put" else set()
                if identity is None:
                    continue
                if changes:
                    watched.block(identity, tuple(changes), versions)
                    changes, versions = [], set()
                else:
                    watched.reached(identity)

    async def _begin_again(self, names: list[str]) -> None:
        for name in names:
            try:
                after = await asyncio.to_thread(_watch_from, self._cluster, name)
            except (OSError, HTTPException, KeyError, ValueError):
                continue
            self._compacted.clear()
            self._watched.missed(after)
            return


class Follower:
    """The client library's watch."""

    def __init__(self, cluster: Cluster, watched: Watched) -> None:
        self._cluster = cluster
        self._watched = watched
        self._changes: list[Change] = []  # of the revision that is being told
        self._versions: set[int] = set()
        self._revision = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        watched = self._watched
        urls = [self._cluster.url(name) for name in self._cluster.nodes]
        async with Client(urls) as client:
            while True:
                try:
                    await self._follow(client)
                except errors.Compacted:
                    listing = client.iterate("", keys_only=True)
                    with suppress(errors.KvnodeError):
                        async for _ in listing:
                            break
                        watched.missed(listing.watch_from or watched.at + 1)
                except errors.Unavailable:  # only where no node answers a watch that begins
                    await asyncio.sleep(0.2)
                except errors.KvnodeError as problem:
                    watched.findings.append(f"the watch {watched.name} ended with {problem!r}")
                    return

    async def _follow(self, client: Client) -> None:
        """The changes of a revision are handed on at once, so a block that is there while others run is whole."""
        self._changes, self._versions, self._revision = [], set(), 0
        looking = asyncio.create_task(self._hand_on_now_and_then())
        events = cast("AsyncGenerator[Event]", client.watch(self._watched.prefix, from_revision=self._watched.at + 1))
        try:
            async with aclosing(events):
                async for event in events:
                    if event.revision != self._revision:
                        self._hand_on()
                        self._revision = event.revision
                    value = decode(event.value) if event.kind == "put" else ""
                    self._changes.append((event.kind, event.key, value))
                    self._versions |= {event.version} if event.kind == "put" else set()
        finally:
            looking.cancel()
            self._hand_on()

    async def _hand_on_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            self._hand_on()

    def _hand_on(self) -> None:
        if self._changes:
            self._watched.block(self._revision, tuple(self._changes), self._versions)
            self._changes, self._versions = [], set()


def broken_watches(
    complete: list[Watched], partial: list[Watched], leaps: list[tuple[int, int]], final: int
) -> list[str]:
    """Everything that is wrong. `leaps`: (last revision of before, first of after) of each recovery and restore.

    A gap is allowed where numbers leapt, and nowhere else: watches are never so far behind that all nodes forget.
    """
    found = [finding for watch in (*complete, *partial) for finding in watch.findings]
    for watch in complete:
        if watch.at < final:
            found.append(f"the watch {watch.name} ends at {watch.at}, the store at {final}")
    for watch in (*complete, *partial):
        for gap in watch.gaps:
            if not any(gap.first <= after and gap.last + 1 >= before for before, after in leaps):
                found.append(f"the watch {watch.name} heard `compacted` for {gap.first} to {gap.last} without a reason")
    for watch in partial:
        gaps = [*watch.gaps, *complete[0].gaps]
        expected = [each for each in complete[0].revisions[watch.prefix] if not _within(each, gaps)]
        told = [each for each in watch.revisions[watch.prefix] if not _within(each, gaps)]
        if expected != told:
            missing, more = sorted(set(expected) - set(told)), sorted(set(told) - set(expected))
            found.append(f"the watch {watch.name} missed the revisions {missing[:20]}, and was told {more[:20]} more")
    return found


def _within(revision: int, gaps: list[Gap]) -> bool:
    return any(gap.first <= revision <= gap.last for gap in gaps)


def _change(kind: str, data: dict[str, Any]) -> Change:
    return kind, data["key"], decode(b64decode(data["value"])) if kind == "put" else ""


def _watch_from(cluster: Cluster, name: str) -> int:
    return int(cluster.request(name, "GET", "/v1/kv?limit=1&keys_only=true", timeout_s=4.0).json()["watch_from"])


async def _stream(
    address: tuple[str, int], target: str, headers: str
) -> AsyncIterator[tuple[str, int | None, dict[str, Any]]]:
    """(event, id, data) of each block that ends; ends with the stream. Raises OSError, EOFError and TimeoutError."""
    async with asyncio.timeout(CONNECT_S):
        reader, writer = await asyncio.open_connection(*address, limit=BLOCK_BYTES_MAX)
    try:
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split()[1])
        if status != 200:
            if status < 500 and status != 429:
                body = await reader.read(1_000)
                raise ValueError(f"{target} was answered with {status}: {body!r}")
            raise EOFError(status)
        while True:
            async with asyncio.timeout(SILENCE_S):
                block = await reader.readuntil(b"\n\n")
            fields: dict[bytes, bytes] = {}
            for line in block[:-2].split(b"\n"):
                name, _, text = line.partition(b": ")
                fields[name] = text
            identity = fields.get(b"id")
            data = json.loads(fields.get(b"data", b"{}"))
            yield fields.get(b"event", b"").decode(), None if identity is None else int(identity), data
    finally:
        writer.transport.abort()
