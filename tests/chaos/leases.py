"""Leases and their times: never over early, and over within a bound; and locks, whose fencing tokens only rise."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kvnode import errors
from kvnode.client import Client
from tests.chaos.clients import JSON, Connections, NotSent, Reply, Unanswered
from tests.chaos.prober import Claim
from tests.cluster import Cluster
from tests.relays import Link

TTL_S = (1, 3)
LATE_S = 3.0  # after its time, on a leader that is confirmed all the while
SILENT_S = 1.0  # between two confirmations of a leader that led all the while
GONE_DEADLINE_S = 40.0


@dataclass
class Lease:
    """One key that leaves by itself. Times are monotonic, in seconds."""

    key: str
    ttl_s: int
    renewed: float  # when the last renewal that was answered with 200 left: the time began no earlier
    asked: float  # when the last answer to any renewal came, or was given up: the time began no later, but for a leader
    held_at: float = 0.0  # a read that found the key began
    gone_at: float | None = None  # a read that did not find it had ended


@dataclass
class Holding:
    """One client that had a lock: it knew so from `began` to `ended`."""

    lock: str
    token: int
    began: float
    ended: float

    def __str__(self) -> str:
        return f"{self.lock} [{self.began:.4f}, {self.ended:.4f}] with token {self.token}"


class Leaseholders:
    """Clients of leases and of locks; they write down what they saw."""

    def __init__(self, cluster: Cluster, detours: Sequence[Link], seed: int) -> None:
        self._addresses = {node.id: node.http for node in cluster.nodes.values()}
        self._urls = [cluster.url(name) for name in cluster.nodes]
        self._detours = [f"http://127.0.0.1:{link.port}" for link in detours]
        self._chance = random.Random(f"leases {seed}")
        self.leases: list[Lease] = []
        self.ids: list[int] = []  # of all leases, as they were granted
        self.holdings: list[Holding] = []
        self.acknowledged = 0
        self.complaints: list[str] = []
        self.stopping = False

    # --- leases ---------------------------------------------------------------------------------------

    async def lease(self, number: int) -> None:
        """One lease after another: granted, kept alive for a while or not at all, and looked at until it is over."""
        connections = Connections(self._addresses)
        try:
            while not self.stopping:
                await self._one_lease(connections, f"lease/{number}")
                await asyncio.sleep(0.1)
        finally:
            connections.close()

    async def _one_lease(self, connections: Connections, key: str) -> None:
        ttl_s = self._chance.randint(*TTL_S)
        began = time.monotonic()
        granted = await self._ask(connections, "POST", "/v1/leases", {"ttl": ttl_s})
        if granted is None or granted.status != 200:
            return
        number = json.loads(granted.body)["id"]
        self.ids.append(number)
        key = f"{key}/{number}"
        lease = Lease(key, ttl_s, began, time.monotonic())
        put = await self._ask(connections, "PUT", f"/v1/kv/{key}?lease={number}", None)
        if put is None or put.status != 200:
            return
        self.leases.append(lease)
        until = began + self._chance.choice([0.0, 2.0, 6.0])
        alive = True
        while alive and time.monotonic() < until and not self.stopping:
            sent = time.monotonic()
            kept = await self._ask(connections, "POST", f"/v1/leases/{number}/keepalive", {})
            lease.asked = time.monotonic()
            if kept is not None and kept.status == 200:
                lease.renewed = sent
            alive = kept is None or kept.status != 404
            await self._look(connections, lease)
            await asyncio.sleep(ttl_s / 4)
        deadline = time.monotonic() + GONE_DEADLINE_S
        while lease.gone_at is None and time.monotonic() < deadline:
            await self._look(connections, lease)
            await asyncio.sleep(0.05)

    async def _look(self, connections: Connections, lease: Lease) -> None:
        began = time.monotonic()
        seen = await self._ask(connections, "GET", f"/v1/kv/{lease.key}", None)
        if seen is not None and seen.status == 200:
            lease.held_at = began
        elif seen is not None and seen.status == 404:
            lease.gone_at = time.monotonic()

    async def _ask(self, connections: Connections, method: str, path: str, body: Any) -> Reply | None:
        """The answer of any node; None where there is none."""
        name = self._chance.choice(sorted(self._addresses))
        data, headers = (b"", "") if body is None else (json.dumps(body).encode(), JSON)
        try:
            reply = await connections[name].request(method, path, data, headers, timeout_s=5.0)
        except (NotSent, Unanswered):
            return None
        self.acknowledged += method != "GET" and reply.status == 200
        if reply.status not in (200, 404, 429, 503, 504, 507):
            self.complaints.append(f"{method} {path}: {reply.status} {reply.body[:200]!r}")
        return reply

    # --- locks ----------------------------------------------------------------------------------------

    async def contend(self, lock: str, detour: bool) -> None:
        """Takes the lock with the client library again and again, and holds it for a while.

        One that takes the detours is cut off with them, while those that do not may take the lock from it.
        """
        async with Client(self._detours if detour else self._urls, 5.0) as client:
            while not self.stopping:
                held = client.lock(lock, ttl_s=self._chance.randint(1, 3))
                try:
                    if not await held.acquire(wait_s=3.0):
                        continue
                except errors.KvnodeError:
                    await asyncio.sleep(0.2)
                    continue
                self.acknowledged += 1
                now = time.monotonic()
                holding = Holding(lock, held.token, now, now)
                self.holdings.append(holding)
                until = now + self._chance.choice([0.05, 0.5, 8.0])
                while held.held and time.monotonic() < until:
                    holding.ended = time.monotonic()
                    await asyncio.sleep(0.02)
                with suppress(errors.KvnodeError):
                    await held.release()


def broken_leases(leases: Iterable[Lease], claims: Sequence[Claim]) -> list[str]:
    """Every lease that was over early, or that was there long after its time under one leader all the while.

    A new leader begins the time of all leases anew; so the time that is held against a lease is that of one term.
    """
    found = []
    reigns = list(_reigns(claims))
    for lease in leases:
        if lease.gone_at is not None and lease.gone_at < lease.renewed + lease.ttl_s:
            early_s = lease.renewed + lease.ttl_s - lease.gone_at
            found.append(f"{lease.key} was gone {early_s:.3f} s before its {lease.ttl_s} s were over: {lease}")
        for began, ended in reigns:
            over = max(began, lease.asked) + lease.ttl_s + LATE_S
            if over < min(ended, lease.held_at):
                found.append(
                    f"{lease.key} was still there {lease.held_at - over + LATE_S:.3f} s after its time: {lease}"
                )
                break
    return found


def _reigns(claims: Sequence[Claim]) -> Iterable[tuple[float, float]]:
    """The times during which one node was confirmed as the leader of one term again and again.

    A leader that was frozen for a moment is silent for as long, though the probe that it answers then began before: its
    clock of leases stood still with it.
    """
    began = ended = 0.0
    term: int | None = None
    for claim in sorted(claims, key=lambda each: each.ended):
        if claim.term != term or claim.ended - ended > SILENT_S:
            if term is not None:
                yield began, ended
            term, began = claim.term, claim.ended
        ended = claim.ended
    if term is not None:
        yield began, ended


def broken_ids(ids: Iterable[int]) -> list[str]:
    """Every id of a lease that was given twice."""
    return [f"the id of a lease was given {count} times: {each}" for each, count in Counter(ids).items() if count > 1]


def broken_tokens(holdings: Iterable[Holding]) -> list[str]:
    """Every pair of holders of one lock at one time, and every token that is not higher than the one before."""
    found = []
    last: dict[str, Holding] = {}
    for holding in sorted(holdings, key=lambda each: (each.began, each.ended)):
        before = last.get(holding.lock)
        if before is not None and holding.token <= before.token:
            found.append(f"the token did not rise: {before} and then {holding}")
        if before is not None and holding.began < before.ended:
            found.append(f"two holders at one time: {before} and {holding}")
        last[holding.lock] = holding
    return found
