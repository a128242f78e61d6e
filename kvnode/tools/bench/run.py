"""A run from its first key to its last: what is needed is set, the load goes, and its keys are taken away again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import quote

from kvnode.client import Access, Client
from kvnode.errors import KvnodeError, NoLeader, OutcomeUnknown
from kvnode.tools.bench.keys import fill, remove
from kvnode.tools.bench.load import Load, Plan
from kvnode.tools.bench.place import place
from kvnode.tools.bench.tally import Tally
from kvnode.tools.bench.workload import Workload

LEADER_PROBE: Final = "/admin/healthz/leader"
PROBE_S: Final = 2.0
CLEAN_S: Final = 300.0


class Audience(Protocol):
    """Who is shown how far it is."""

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        """What is being done, of how many keys; to be called with how many more are done."""

    def load(self, load: Load) -> None:
        """Four times a second."""


@dataclass
class Report:
    """What came of it. `deleted` keys; where some may be left, `left` says why."""

    workload: Workload
    plan: Plan
    urls: Sequence[str]
    tally: Tally
    elapsed_s: float = 0.0
    busy_s: float = 0.0
    interrupted: bool = False
    deleted: int = 0
    kept: bool = False
    left: str | None = None

    @property
    def busy_share(self) -> float:
        """Of the time, this process used a processor; near 1 it has measured itself."""
        return self.busy_s / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def writes_per_s(self) -> float:
        """Of batches, each write that they are made of."""
        writes = {"put": 1, "batch": self.workload.batch_size}
        done = sum(each.succeeded * writes.get(kind, 0) for kind, each in self.tally.by_kind.items())
        return done / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        workload, plan = self.workload, self.plan
        given: dict[str, Any] = {"workload": workload.name, "urls": list(self.urls), "clients": plan.clients}
        if workload.has_keys:
            given |= {"prefix": workload.root, "keys": workload.keys, "value_bytes": workload.value_bytes}
        if workload.reads_keys:
            given["consistency"] = "stale" if workload.stale else "linearizable"
        if workload.name == "batch":
            given["batch_size"] = workload.batch_size
        found = {
            "interrupted": self.interrupted,
            "elapsed_s": round(self.elapsed_s, 3),
            **self.tally.total().as_json(self.elapsed_s),
            "writes_per_s": round(self.writes_per_s, 1),
            "operations": {kind: each.as_json(self.elapsed_s) for kind, each in self.tally.by_kind.items()},
            "generator_busy": round(self.busy_share, 3),
            "deleted": self.deleted,
            "kept": self.kept,
            "keys_may_be_left": self.left is not None,
        }
        return given | found


class Run:
    """One run; `stop` may be called at any time, and leads to an early but orderly end."""

    def __init__(self, workload: Workload, plan: Plan, audience: Audience) -> None:
        self._workload = workload
        self._plan = plan
        self._audience = audience
        self._load: Load | None = None
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True
        if self._load is not None:
            self._load.stop()

    async def go(self, urls: Sequence[str], access: Access, leader_only: bool, keep: bool) -> Report:
        """Raises what the cluster refuses its first keys with; from then on the report tells.

        Being cancelled it returns at once what it has measured, and leaves its keys.
        """
        workload, plan = self._workload, self._plan
        async with Client(urls, plan.timeout_s, access=access) as client:
            if leader_only:
                urls = [await _leading(client, urls)]
            report = Report(workload, plan, urls, Tally(workload.kinds), kept=keep and workload.has_keys)
            if workload.has_keys:
                await self._set_first(client)
            try:
                try:
                    await self._measure(client, report, access)
                except KvnodeError as e:
                    await self._remove_keys(client, report)
                    e.message += f" {report.left}" if report.left else ""
                    raise
                await self._remove_keys(client, report)
            except asyncio.CancelledError:
                report.interrupted = True
                if workload.has_keys and not keep:
                    report.left = f"It was ended before the keys that begin with {workload.root!r} were deleted."
            return report

    async def _set_first(self, client: Client) -> None:
        """Whoever may not write, or has no cluster there, is told so once, in one sentence."""
        key = self._workload.key(0)
        try:
            await client.put(key, self._workload.value)
        except OutcomeUnknown as e:
            e.message += f" The key {key!r} may be set."
            raise

    async def _measure(self, client: Client, report: Report, access: Access) -> None:
        workload, plan, audience = self._workload, self._plan, self._audience
        if workload.reads_keys:
            await fill(client, workload, lambda: not self._stopped, audience.phase("setting keys", workload.keys))
            # A linearizable read waits until its node has all of them, which stale reads there could miss.
            path = f"/v1/kv/{quote(workload.key(0), safe='')}"
            await asyncio.gather(*(client.look(url, path, plan.timeout_s) for url in report.urls))
        if not self._stopped:
            load = self._load = Load(plan, workload, [place(url, access) for url in report.urls])
            report.tally = load.tally
            try:
                await load.run(audience.load)
            finally:
                report.elapsed_s, report.busy_s = load.elapsed_s, load.busy_s
        report.interrupted = self._stopped

    async def _remove_keys(self, client: Client, report: Report) -> None:
        workload = self._workload
        if report.kept or not workload.has_keys:
            return
        begins = f"begin with {workload.root!r}"
        try:
            async with asyncio.timeout(CLEAN_S):
                report.deleted = await remove(client, workload, self._audience.phase("deleting keys", workload.keys))
        except KvnodeError as e:
            report.left = f"The keys that {begins} could not all be deleted: {e.message}"
        except TimeoutError:
            report.left = f"The keys that {begins} were not all deleted within {CLEAN_S:g} s."
        else:
            if report.tally.is_in_doubt:
                report.left = f"Writes of unknown outcome may have set keys again that {begins}."


async def _leading(client: Client, urls: Sequence[str]) -> str:
    """The first URL whose node leads, confirmed by a majority. Raises NoLeader, or why none can be asked."""
    heard = False
    for url in urls:
        answer = await client.look(url, LEADER_PROBE, PROBE_S)
        if answer is not None and answer.status == 200:
            return url
        heard = heard or answer is not None
    if not heard:
        await client.cluster()
    raise NoLeader("None of the URLs is the leader's, or its leader probe is off: name all nodes with --url.")
