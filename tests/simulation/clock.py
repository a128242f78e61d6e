"""Simulated time and chance for the core, which takes both from module globals."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pysyncobj.syncobj as core


class Clock:
    """Monotonic seconds that pass only when the simulation says so.

    `rate` is that of the node that is running: clocks of different nodes drift apart. `creep_s` passes at
    each reading, for a core that waits for time to pass inside a loop (R18).
    """

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.rate = 1.0
        self.creep_s = 0.0

    def read(self) -> float:
        self.now_s += self.creep_s
        return self.now_s * self.rate

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


class _NoPoller:
    """The core asks its poller on every tick; a simulation has no descriptors to ask about."""

    def poll(self, timeout_s: float) -> None:
        pass


@contextmanager
def simulated(clock: Clock, seed: int) -> Iterator[None]:
    """Within it, every core reads `clock` and draws its election timeouts from `seed`."""
    chance = random.getstate()
    random.seed(seed)
    try:
        with patched(core, monotonicTime=clock.read, createPoller=lambda kind: _NoPoller()):
            yield
    finally:
        random.setstate(chance)


@contextmanager
def patched(owner: Any, **values: Any) -> Iterator[None]:
    """Within it, these attributes of `owner` are others."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
