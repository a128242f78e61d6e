"""The page of a node's metrics, for Prometheus and for what reads OpenMetrics.

`prometheus_client` renders it and asks the system about the process. None of its own counters is used: theirs take a
lock and a dictionary for each addition. The numbers are plain ones (`kvnode.metrics.meters`), read when the page is.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kvnode.metrics.families import Reading, families


class MetricsPage:
    """One node's page. May be rendered in any thread."""

    def __init__(self, version: str) -> None:
        self._build = {"version": version, "python": platform.python_version()}
        self._process = ProcessCollector(registry=None)

    def render(self, reading: Reading, accept: str) -> tuple[str, bytes]:
        """(Content-Type, text) in the form that the Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Read(reading, self._build))
        registry.register(self._process)
        return content_type, encode(registry)


class _Read(Collector):
    def __init__(self, reading: Reading, build: dict[str, str]) -> None:
        self._reading = reading
        self._build = build

    def collect(self) -> Iterator[Metric]:
        yield from families(self._reading, self._build)
