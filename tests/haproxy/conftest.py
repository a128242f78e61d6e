"""A ready cluster behind HAProxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.balancer import Balancer
from tests.cluster import Cluster


@pytest.fixture
def balancer(cluster: Cluster, tmp_path: Path) -> Iterator[Balancer]:
    """HAProxy in front of `cluster`, once it has found every node and who leads."""
    balancer = Balancer(tmp_path / "haproxy", {node.id: node.http for node in cluster.nodes.values()})
    try:
        balancer.start()
        balancer.settles_on(cluster.leader())
        balancer.has_up("writes", cluster.nodes)
        balancer.has_up("stale", cluster.nodes)
        yield balancer
    finally:
        balancer.close()
