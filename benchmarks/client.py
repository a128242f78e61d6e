"""What the Python client costs, in CPU time for each call, and what one process gets: `python -m benchmarks.client`.

A cluster of three on loopback, and one `Client` with so many tasks that each make one call after another. The client
shares the machine with the nodes, so the rate is that of all four processes; the CPU time is of the client alone, and
beside it that of the three nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from benchmarks.contenders import cpu_s
from benchmarks.report import table
from kvnode.client import Client
from tests.cluster import Cluster

TASKS: Final = (1, 32, 64, 256)
VALUE: Final = b"v" * 100
WARM_S: Final = 0.5
HEAD: Final = ["call", "tasks", "calls/s", "client CPU µs", "nodes CPU µs", "p50 ms", "p99 ms"]

Call = Callable[[Client, str], Awaitable[object]]
CALLS: Final[dict[str, Call]] = {
    "put": lambda client, key: client.put(key, VALUE),
    "get": lambda client, key: client.get(key),
}


async def measure(cluster: Cluster, call: Call, tasks: int, seconds: float) -> list[str]:
    """The figures of one row."""
    took_s: list[float] = []
    clock = time.perf_counter

    async def one(client: Client, number: int) -> None:
        count = 0
        while (began := clock()) < until:
            await call(client, f"task{number}/{count % 100}")
            took_s.append(clock() - began)
            count += 1

    async with Client([cluster.url(name) for name in cluster.nodes]) as client:
        await asyncio.gather(
            *(client.put(f"task{task}/{count}", VALUE) for task in range(tasks) for count in range(100))
        )
        for span_s in (WARM_S, seconds):
            took_s.clear()
            began, until = clock(), clock() + span_s
            before = time.process_time(), sum(cpu_s(cluster.pid(name)) for name in cluster.nodes)
            await asyncio.gather(*(one(client, number) for number in range(tasks)))
            own, nodes = time.process_time(), sum(cpu_s(cluster.pid(name)) for name in cluster.nodes)
    calls = len(took_s)
    cuts = statistics.quantiles(took_s, n=100)
    return [
        f"{calls / (clock() - began):,.0f}",
        f"{(own - before[0]) / calls * 1e6:.0f}",
        f"{(nodes - before[1]) / calls * 1e6:.0f}",
        f"{cuts[49] * 1e3:.2f}",
        f"{cuts[98] * 1e3:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="for each row (default 4)")
    parser.add_argument("--tasks", type=int, nargs="*", default=TASKS, metavar="N", help="default 1 32 64 256")
    options = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)).start() as cluster:
        cluster.wait_ready(30)
        for name, call in CALLS.items():
            for tasks in options.tasks:
                figures = asyncio.run(measure(cluster, call, tasks, options.seconds))
                rows.append([name, str(tasks), *figures])
                print(*rows[-1], flush=True)
    print()
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
