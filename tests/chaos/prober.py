"""Who says it leads, and when: every node's leader probe, asked without a pause for the whole run.

The rule: once a probe was answered 200 in some term, no probe that begins later is answered 200 in an older term; and
a term has one leader. "Later" is by the prober's clock, so two probes that overlap prove nothing about each other: the
one that was sent first may have waited at a frozen node's door for seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple

from tests.chaos.clients import Connection, NotSent, Unanswered
from tests.cluster import LEADER_PROBE, Cluster

PAUSE_S = 0.03


class Claim(NamedTuple):
    """One 200. Times are monotonic, in seconds."""

    began: float
    ended: float
    node: str
    term: int

    def __str__(self) -> str:
        return f"[{self.began:.4f}, {self.ended:.4f}] {self.node} in term {self.term}"


class Prober:
    """`claims` are all confirmations of leadership that were seen; `asked` counts the probes that were answered."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.claims: list[Claim] = []
        self.asked = 0
        self.stopping = False

    async def watch(self, node: str) -> None:
        connection = Connection(self._cluster.nodes[node].http)
        try:
            while not self.stopping:
                began = time.monotonic()
                try:
                    reply = await connection.request("GET", LEADER_PROBE)
                except (NotSent, Unanswered):
                    await asyncio.sleep(PAUSE_S)
                    continue
                self.asked += 1
                if reply.status == 200:
                    self.claims.append(Claim(began, time.monotonic(), node, int(reply.headers["kvnode-term"])))
                await asyncio.sleep(PAUSE_S)
        finally:
            connection.close()


def broken_claims(claims: Iterable[Claim]) -> list[str]:
    """Every way in which the rule was broken; none is what a run hopes for."""
    found: list[str] = []
    leaders: dict[int, Claim] = {}
    asked = sorted(claims)
    for claim in asked:
        first = leaders.setdefault(claim.term, claim)
        if first.node != claim.node:
            found.append(f"two leaders in one term: {first} and {claim}")
    told = sorted(asked, key=lambda claim: claim.ended)
    newest, ended = told[0] if told else None, 0
    for claim in asked:
        while told[ended].ended < claim.began:
            newest = max(newest or told[ended], told[ended], key=lambda one: one.term)
            ended += 1
        if ended and newest is not None and newest.term > claim.term:
            found.append(f"an older term was confirmed after a newer one: {newest} and then {claim}")
    return found
