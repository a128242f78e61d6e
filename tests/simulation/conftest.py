"""A cluster on the real replicas, and the same on the bare core, each on a clock of its own that is taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.simulation.clock import Clock, simulated
from tests.simulation.cluster import Cluster
from tests.simulation.stock import StockCluster


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with simulated(clock, seed=0):
        yield clock


@pytest.fixture
def make_simulation() -> Iterator[Callable[..., Cluster]]:
    """Makes simulated clusters (with `Cluster`'s options), each on a clock of its own."""
    with ExitStack() as stack:

        def make(ids: str = "ABC", **options: Any) -> Cluster:
            return stack.enter_context(Cluster.simulated(ids, **options))

        yield make


@pytest.fixture
def make_stock(clock: Clock) -> Callable[..., StockCluster]:
    """Makes clusters of the bare core."""

    def make(ids: str = "ABC", **options: Any) -> StockCluster:
        return StockCluster(ids, clock=clock, **options)

    return make
