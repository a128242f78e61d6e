"""`make rolling`: restarts three nodes behind HAProxy one after the other, under load; nothing may fail or be lost.

    python -m tests.rolling.run [--rate 50] [--rounds 1]

Prints one line for each node and the sum. Exit code 1 where a request failed, a write was lost or a watch missed one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.balancer import HAPROXY, Balancer
from tests.cluster import Cluster
from tests.rolling.load import Load

SETTLE_S = 1.0  # under load between two restarts, as an operator's rollout has it too


@dataclass(frozen=True)
class Restart:
    """One node: seconds from SIGTERM to its end, from its start until the balancer sends to it again."""

    node: str
    led: bool
    stop_s: float
    start_s: float


def one_by_one(cluster: Cluster, balancer: Balancer, name: str) -> Restart:
    """Stops and starts one node, in the order of every rollout: the next one waits until this one is ready."""
    led, began = cluster.leader() == name, time.monotonic()
    code = cluster.terminate(name)
    assert code == 0, f"{name} ended with exit code {code}"
    stopped = time.monotonic()
    cluster.restart(name)
    balancer.has_up("writes", [name])
    return Restart(name, led, stopped - began, time.monotonic() - stopped)


async def roll(cluster: Cluster, balancer: Balancer, rate_per_s: float) -> tuple[Load, list[Restart]]:
    """All nodes, the leader somewhere among them; the load ends once all that it was told was checked."""
    restarts = []
    async with Load(balancer.url, rate_per_s) as load:
        await asyncio.sleep(SETTLE_S)
        for name in cluster.nodes:
            restarts.append(await asyncio.to_thread(one_by_one, cluster, balancer, name))
            await asyncio.sleep(SETTLE_S)
    return load, restarts


def lost(cluster: Cluster, load: Load) -> list[str]:
    """Acknowledged writes that some node does not have, or that the watch was not told of exactly once."""
    missing = []
    for key, value in load.acknowledged.items():
        if cluster.get(key) != value.encode():
            missing.append(f"{key} is lost")
        if load.told.get(key) != value:
            missing.append(f"the watch was not told of {key}")
    return missing + [f"the watch was told twice of {key}" for key in load.told_twice]


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rate", type=float, default=50.0, help="requests a second, half of them writes")
    arguments.add_argument("--rounds", type=int, default=1)
    options = arguments.parse_args()
    if HAPROXY is None:
        print("HAProxy is missing: apt-get install haproxy", file=sys.stderr)
        return 2
    worst = 0
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
            cluster.start()
            balancer = Balancer(Path(folder) / "haproxy", {node.id: node.http for node in cluster.nodes.values()})
            try:
                balancer.start()
                balancer.settles_on(cluster.leader())
                balancer.has_up("writes", cluster.nodes)
                load, restarts = asyncio.run(roll(cluster, balancer, options.rate))
                worst |= show(number + 1, load, restarts, lost(cluster, load))
            finally:
                balancer.close()
    return worst


def show(number: int, load: Load, restarts: list[Restart], missing: list[str]) -> int:
    for each in restarts:
        role = "leader" if each.led else "follower"
        print(f"{number}  {each.node} {role:<8}  stopped in {each.stop_s:.2f} s, back in {each.start_s:.2f} s")
    took = sorted(load.latencies_s)
    print(
        f"{number}  {len(took)} requests at {load.rate_per_s:g}/s, {len(load.acknowledged)} writes acknowledged, "
        f"{len(load.failures)} failed, {len(missing)} lost; median {took[len(took) // 2] * 1000:.1f} ms, "
        f"99 of 100 within {took[len(took) * 99 // 100] * 1000:.0f} ms, slowest {took[-1] * 1000:.0f} ms",
        flush=True,
    )
    for line in (*load.failures, *missing):
        print(f"   {line}")
    return 1 if load.failures or missing else 0


if __name__ == "__main__":
    sys.exit(main())
