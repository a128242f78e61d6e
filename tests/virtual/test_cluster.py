"""Whole nodes in virtual time: the ordinary things work there."""

from __future__ import annotations

from typing import Any

from tests.virtual.cluster import simulated
from tests.virtual.workload import Workload


def test_three_nodes_elect_a_leader_and_serve_clients() -> None:
    with simulated(1) as cluster:
        cluster.start()
        cluster.await_leader()
        clients = cluster.process("clients")

        async def use() -> Any:
            async with cluster.client() as client:
                await client.put("a", b"1", idempotency_key="x")
                return (await client.get("a")).value

        assert cluster.run(clients, use()) == b"1"


def test_a_busy_cluster_without_faults_keeps_every_promise() -> None:
    with simulated(2) as cluster:
        cluster.start()
        cluster.await_leader()
        workload = Workload(cluster)
        workload.begin(3, 0.05)
        cluster.world.pass_s(10.0)
        workload.finish(20.0)
        cluster.judge.check()
        assert workload.answered > 100
        assert cluster.judge.probes > 50
        assert any(len(watch.events) > 50 for watch in cluster.judge.watches)
        assert len(cluster.judge.holdings) > 2
        assert len(cluster.judge.renewals) > 5
