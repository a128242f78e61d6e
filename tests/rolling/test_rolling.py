"""No request fails and nothing is lost while all three nodes are restarted, the leader among them."""

from __future__ import annotations

from pathlib import Path

from tests.balancer import Balancer, needs_haproxy
from tests.cluster import Cluster
from tests.rolling.run import lost, roll


@needs_haproxy
async def test_a_rolling_restart_fails_no_request_and_loses_no_write(cluster: Cluster, tmp_path: Path) -> None:
    balancer = Balancer(tmp_path / "haproxy", {node.id: node.http for node in cluster.nodes.values()})
    try:
        balancer.start()
        balancer.settles_on(cluster.leader())
        balancer.has_up("writes", cluster.nodes)
        load, restarts = await roll(cluster, balancer, rate_per_s=50.0)
        assert load.failures == []
        assert lost(cluster, load) == []
        assert sum(restart.led for restart in restarts) >= 1
        assert len(load.acknowledged) > 150
    finally:
        balancer.close()
