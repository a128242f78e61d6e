"""Who says it leads, and when: every node's leader probe, asked without a pause for the whole run, and then believed.

The rule: once a probe was answered 200 in some term, no probe that begins later is answered 200 in an older term; and
a term has one leader. "Later" is by the prober's clock, so two probes that overlap prove nothing about each other: the
one that was sent first may have waited at a frozen node's door for seconds.

Whoever was told 200 writes through that node, as a balancer would. A write may fail, because a leader may be lost the
moment after; but no node goes on saying 200 for longer than LIE_S while no write goes through it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from tests.chaos.chronicle import Chronicle
from tests.chaos.clients import Connection, NotSent, Unanswered, encode
from tests.chaos.diary import Diary
from tests.cluster import LEADER_PROBE, Cluster, key_path

PAUSE_S = 0.03
WRITE_PAUSE_S = 0.1
SHOWN_MAX = 20
LIE_S = 2.5  # twice the longest election timeout: after one, a leader that cannot write has to say so


class Claim(NamedTuple):
    """One 200. Times are monotonic, in seconds. `era`: how many times a new cluster has been made of a backup."""

    began: float
    ended: float
    node: str
    term: int
    era: int = 0

    def __str__(self) -> str:
        return f"[{self.began:.4f}, {self.ended:.4f}] {self.node} in term {self.term}"


class Write(NamedTuple):
    """One write through a node that had just said 200 in this term. `outcome`: ok, or what the answer said."""

    node: str
    term: int
    began: float
    ended: float
    outcome: str


class Prober:
    """`claims` are all confirmations of leadership that were seen; `asked` counts the probes that were answered."""

    def __init__(self, cluster: Cluster, chronicle: Chronicle) -> None:
        self._addresses = {node.id: node.http for node in cluster.nodes.values()}
        self._chronicle = chronicle
        self._newest: dict[str, Claim] = {}
        self.claims: list[Claim] = []
        self.writes: list[Write] = []
        self.asked = 0
        self.era = 0
        self.stopping = False

    async def watch(self, node: str) -> None:
        connection = Connection(self._addresses[node])
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
                    claim = Claim(began, time.monotonic(), node, int(reply.headers["kvnode-term"]), self.era)
                    self.claims.append(claim)
                    self._newest[node] = claim
                await asyncio.sleep(PAUSE_S)
        finally:
            connection.close()

    async def believe(self, node: str) -> None:
        """Writes through the node whenever its probe has just said 200."""
        connection = Connection(self._addresses[node])
        key = f"probe/{node}"
        try:
            while not self.stopping:
                claim = self._newest.pop(node, None)
                if claim is None:
                    await asyncio.sleep(PAUSE_S / 3)
                    continue
                value, began = f"{node}.{len(self.writes)}", time.monotonic()
                try:
                    reply = await connection.request("PUT", key_path(key), encode(value, 0))
                    told = json.loads(reply.body)
                    outcome = "ok" if reply.status == 200 else str(told["error"])
                except NotSent:
                    continue  # nothing was asked of the node
                except Unanswered:
                    told, outcome = {"outcome": "unknown"}, "unanswered"
                change = (("put", key, value),)
                if outcome == "ok":
                    self._chronicle.acknowledged(told["revision"], change, told["version"])
                elif told["outcome"] == "unknown":
                    self._chronicle.doubtful(change)
                self.writes.append(Write(node, claim.term, began, time.monotonic(), outcome))
                await asyncio.sleep(WRITE_PAUSE_S)
        finally:
            connection.close()


def broken_promises(writes: Iterable[Write], claims: Iterable[Claim], diary: Diary) -> list[str]:
    """Every time in which a node said that it leads, for longer than LIE_S, and no write went through it.

    On a link that was made slow, confirmations pass and values queue up for seconds: that is not held against it.
    """
    found = []
    slow = [(fault.began, fault.ended) for fault in diary.faults if fault.kind.startswith("slow")]
    said: dict[tuple[str, int], list[float]] = {}
    for claim in claims:
        said.setdefault((claim.node, claim.term), []).append(claim.began)
    asked = sorted(writes, key=lambda write: (write.node, write.term, write.began))
    for (node, term), those in groupby(asked, key=lambda write: (write.node, write.term)):
        for failed, group in groupby(those, key=lambda write: write.outcome != "ok"):
            run = list(group)
            began, ended = run[0].began, run[-1].ended
            if not failed or any(first < ended and last > began - 1.0 for first, last in slow):
                continue
            latest = max((at for at in said[node, term] if at <= ended), default=began)
            if latest - began > LIE_S:
                outcomes = ", ".join(sorted({write.outcome for write in run}))
                found.append(
                    f"{node} said for {latest - began:.2f} s from {began:.4f} on that it leads in term {term}, and "
                    f"none of {len(run)} writes went through it ({outcomes})"
                )
    return found


def broken_claims(claims: Iterable[Claim]) -> list[str]:
    """Every way in which the rule was broken, in each era; none is what a run hopes for."""
    found: list[str] = []
    for _, group in groupby(sorted(claims, key=lambda claim: claim.era), key=lambda claim: claim.era):
        found += _broken_in_one_era(sorted(group))
    return found


def _broken_in_one_era(asked: list[Claim]) -> list[str]:
    found: list[str] = []
    leaders: dict[int, Claim] = {}
    for claim in asked:
        first = leaders.setdefault(claim.term, claim)
        if first.node != claim.node:
            found.append(f"two leaders in one term: {first} and {claim}")
    told = sorted(asked, key=lambda claim: claim.ended)
    newest, ended = told[0], 0
    for claim in asked:
        while told[ended].ended < claim.began:
            newest = max(newest, told[ended], key=lambda one: one.term)
            ended += 1
        if ended and newest.term > claim.term:
            found.append(f"an older term was confirmed after a newer one: {newest} and then {claim}")
    return found[:SHOWN_MAX]
