"""What was broken when, and whether a majority could have taken a write: without one, nobody is owed an answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.chaos.disk import HangingDisk, SmallDisk
from tests.chaos.network import Links
from tests.cluster import Cluster


@dataclass
class Fault:
    """One fault that happened. Times are monotonic, in seconds; `ended` once everything was undone."""

    kind: str
    what: str
    began: float
    ended: float = 0.0


@dataclass
class Diary:
    """What the nemesis did: `outages` are the times during which no majority was up and connected."""

    faults: list[Fault] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)


class Majority:
    """Watches whether a majority is started, awake, connected and has room on its disks; keeps the diary's outages."""

    def __init__(
        self,
        cluster: Cluster,
        links: Links | None,
        full: Mapping[str, SmallDisk],
        hanging: Mapping[str, HangingDisk],
        diary: Diary,
    ) -> None:
        self._cluster = cluster
        self._links = links
        self._full = full
        self._hanging = hanging
        self._diary = diary
        self._lost_at: float | None = None
        self.starting: set[str] = set()  # spawned, and not known to have finished starting
        self.newcomers: set[str] = set()  # on their way into the cluster or out of it: they may count, and may not

    def judge(self) -> None:
        """Notes when a majority was lost and when it was there again, by what was done to the nodes."""
        self.starting -= {name for name in self.starting if self._has_started(name)}
        unfit = {name for name, disk in self._full.items() if disk.full}
        unfit |= {name for name, disk in self._hanging.items() if disk.hung}
        able = set(self._cluster.awake()) - unfit - self.starting - self.newcomers
        needed = len(self._cluster.nodes) // 2 + 1
        exists = any(sum(self._connected(one, other) for other in able) >= needed for one in able)
        now = time.monotonic()
        if not exists and self._lost_at is None:
            self._lost_at = now
        elif exists and self._lost_at is not None:
            self._diary.outages.append((self._lost_at, now))
            self._lost_at = None

    def wait(self, timeout_s: float) -> None:
        """Returns once there is one again, or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self._lost_at is not None and time.monotonic() < deadline:
            self.judge()

    def _connected(self, one: str, other: str) -> bool:
        return one == other or self._links is None or self._links.connected(one, other)

    def _has_started(self, name: str) -> bool:
        return self._cluster.probe(name, "/healthz", timeout_s=0.2) == 200
