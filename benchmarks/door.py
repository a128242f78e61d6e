"""What tokens, rights, limits and TLS cost a request: `python -m benchmarks.door`, with the development dependencies.

One node for each way, asked in turns by the same closed loop. Prints the requests per second of each way and the CPU
time of its node for each request, beside those of a node that asks for nothing, or for a token alone: the median over
the rounds of the ratio within a round, with the quartiles of these ratios. While one is asked the others are stopped.
`--fsync never` and a cluster of one: with a disk and followers a PUT costs several times as much, and the share of what
is measured here is smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import ssl
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.contenders import READY_S, cpu_s
from tests.certificates import Authority
from tests.cluster import Cluster

TOKEN: Final = "the-first-token-of-this-cluster"
PREFIXES: Final = ["shop/", "team/", "a/"]
NOTHING: Final = "nothing asked"
RESTRICTED: Final = "token, 3 prefixes"
LIMITED: Final = "token, limits"
ENCRYPTED: Final = "token, TLS"
BASE: Final = {RESTRICTED: "token", LIMITED: "token", ENCRYPTED: "token"}  # what each is compared with, else NOTHING
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


async def drive(address: tuple[str, int], raw: bytes, tls: ssl.SSLContext | None, seconds: float) -> tuple[float, int]:
    """Requests per second, and requests."""
    loop, tally, began = asyncio.get_running_loop(), [0], time.perf_counter()
    loops = [Loop(raw, began + seconds, tally) for _ in range(CONNECTIONS)]
    for each in loops:
        await loop.create_connection(lambda each=each: each, *address, ssl=tls)  # type: ignore[misc]
    await asyncio.gather(*(each.done for each in loops))
    return tally[0] / (time.perf_counter() - began), tally[0]


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
            NOTHING: ([], ""),
            "nothing asked, again": ([], ""),
            "token": ([], TOKEN),
            RESTRICTED: ([], TOKEN),
            LIMITED: (limits, TOKEN),
            ENCRYPTED: (encrypted, TOKEN),
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
            cluster.put("a/a", b"x" * 100)
        tokens = {way: cluster.token for way, cluster in clusters.items()}
        wanted = json.dumps({"name": "shop", "role": "write", "prefixes": PREFIXES}).encode()
        made = clusters[RESTRICTED].request("n1", "POST", "/admin/api/v1/tokens", wanted)
        tokens[RESTRICTED] = made.json()["token"]
        for cluster in clusters.values():
            cluster.freeze("n1")
        requests = {
            "stale GET": b"GET /v1/kv/a%%2Fa?consistency=stale HTTP/1.1\r\nHost: localhost\r\n%b\r\n",
            "PUT": b"PUT /v1/kv/a%%2Fa HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n%b\r\nabc",
        }
        for name, pattern in requests.items():
            rates: dict[str, list[float]] = {way: [] for way in ways}
            costs_us: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, cluster in random.sample(list(clusters.items()), len(clusters)):
                    credential = b"Authorization: Bearer %b\r\n" % tokens[way].encode() if tokens[way] else b""
                    cluster.thaw("n1")
                    cluster.wait_ready(READY_S)
                    before_s = cpu_s(cluster.pid("n1"))
                    work = drive(cluster.nodes["n1"].http, pattern % credential, cluster.tls, options.seconds)
                    rate, count = uvloop.run(work)
                    rates[way].append(rate)
                    costs_us[way].append((cpu_s(cluster.pid("n1")) - before_s) / count * 1e6)
                    cluster.freeze("n1")
            for way in ways:
                base = BASE.get(way, NOTHING)
                ratios = [own / other - 1 for own, other in zip(costs_us[way], costs_us[base], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                print(
                    f"{name:10} {way:20} {statistics.median(rates[way]):8,.0f}/s"
                    f" {statistics.median(costs_us[way]):6.1f} µs of CPU"
                    f"  {middle:+6.1%} of '{base}' ({low:+.1%} … {high:+.1%})",
                    flush=True,
                )
    finally:
        for cluster in clusters.values():
            cluster.close()


if __name__ == "__main__":
    main()
