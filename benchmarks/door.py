"""What tokens, limits and TLS cost a request: `python -m benchmarks.door`, with the development dependencies.

One node for each way, all at once, asked in turns by the same closed loop, so that what else happens on the machine
happens to all of them; differences of a few percent are noise all the same (two nodes that ask for nothing differ as
much). `--fsync never`: a disk would hide the difference. Prints the median requests per second of
each way, and what a request costs more than on a node that asks for nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import ssl
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from tests.certificates import Authority
from tests.cluster import Cluster

TOKEN: Final = "the-first-token-of-this-cluster"
CONNECTIONS: Final = 16


class Loop(asyncio.Protocol):
    """One connection: the next request when the answer to the one before has come."""

    def __init__(self, raw: bytes, until: float, tally: list[int]) -> None:
        self.raw, self.until, self.tally = raw, until, tally
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self.raw)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        assert data.startswith(b"HTTP/1.1 200"), data[:200]  # answers are small: one comes in one piece
        self.tally[0] += 1
        if time.perf_counter() < self.until:
            self.transport.write(self.raw)  # type: ignore[attr-defined]
        elif not self.done.done():
            self.transport.close()
            self.done.set_result(None)


async def drive(address: tuple[str, int], raw: bytes, tls: ssl.SSLContext | None, seconds: float) -> float:
    loop, tally, began = asyncio.get_running_loop(), [0], time.perf_counter()
    loops = [Loop(raw, began + seconds, tally) for _ in range(CONNECTIONS)]
    for each in loops:
        await loop.create_connection(lambda each=each: each, *address, ssl=tls)  # type: ignore[misc]
    await asyncio.gather(*(each.done for each in loops))
    return tally[0] / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder) / "certificates")
        authority.sign("n1")
        encrypted = [f"--tls-cert={authority.folder}/n1.pem", f"--tls-key={authority.folder}/n1-key.pem"]
        limits = ["--rate-limit=1000000", "--max-connections-per-client=1000", "--trusted-proxies=192.0.2.1"]
        ways: dict[str, tuple[list[str], str]] = {
            "nothing asked": ([], ""),
            "token": ([], TOKEN),
            "token, limits": (limits, TOKEN),
            "token, TLS": (encrypted, TOKEN),
        }
        measure(ways, authority, Path(folder), options)


def measure(
    ways: dict[str, tuple[list[str], str]], authority: Authority, folder: Path, options: argparse.Namespace
) -> None:
    clusters: dict[str, Cluster] = {}
    try:
        for way, (args, token) in ways.items():
            tls = authority.client() if any("tls" in arg for arg in args) else None
            env = {"KVNODE_TOKEN": token} if token else {}
            where = folder / way.replace(" ", "-")
            cluster = Cluster(where, size=1, args=[*args, "--fsync", "never"], env=env, tls=tls, token=token)
            clusters[way] = cluster.start()
            cluster.put("a", b"x" * 100)
        requests = {
            "stale GET": b"GET /v1/kv/a?consistency=stale HTTP/1.1\r\nHost: localhost\r\n%b\r\n",
            "PUT": b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n%b\r\nabc",
        }
        for name, pattern in requests.items():
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, cluster in random.sample(list(clusters.items()), len(clusters)):
                    credential = b"Authorization: Bearer %b\r\n" % cluster.token.encode() if cluster.token else b""
                    work = drive(cluster.nodes["n1"].http, pattern % credential, cluster.tls, options.seconds)
                    rates[way].append(uvloop.run(work))
            base = statistics.median(rates["nothing asked"])
            for way, measured in rates.items():
                median = statistics.median(measured)
                cost_us = 1e6 / median - 1e6 / base
                print(f"{name:10} {way:14} {median:8,.0f}/s  {cost_us:+6.1f} µs  {median / base - 1:+6.1%}", flush=True)
    finally:
        for cluster in clusters.values():
            cluster.close()


if __name__ == "__main__":
    main()
