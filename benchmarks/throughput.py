"""Requests per second and latencies, kvnode beside etcd and beside aiohttp doing nothing, in one run.

`make bench [ETCD=PATH]`, or `python -m benchmarks.throughput [--rounds 5] [--slice-s 3] [--only kvnode]
[--rows PUT,probe] [--etcd PATH]`. All systems are up throughout, three nodes each, every write on disk before it is
answered; they are asked in turns, slice by slice, by the same `wrk`, and the CPU time of their processes is read before
and after. Then a second kvnode cluster, which holds a million keys more, is asked in turns with a fresh one, for what
the size of the store costs. Writes docs/THROUGHPUT.md and docs/throughput.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import bulk, plot, report
from benchmarks.contenders import NO_ETCD, Contender, Etcd, Kvnode, cpu_s
from benchmarks.workloads import Row, System, command, rows, script, spread
from tests.balancer import HAPROXY, Balancer
from tests.cluster import PROJECT, free_ports, request, wait_until

FILL_S: Final = 6  # for 10,000 keys
READY_S: Final = 20.0
LADEN_KEYS: Final = 1_000_000
LADEN_ROWS: Final = (  # asked for what the size of the store costs
    "PUT, 1 client",
    "PUT, 64 clients",
    "PUT, 256 clients",
    "bulk load, batches of 100, 8 clients",
    "linearizable GET, 64 clients, leader",
    "stale GET, 64 clients, follower",
)
_PAGE: Final = "THROUGHPUT.md"


@dataclass(frozen=True, slots=True)
class Slice:
    """What one run of wrk found. `done` counts writes, which is more than requests where one holds many.

    `all_s` and `leader_s`: CPU time that all processes of the system, and its leader, used meanwhile.
    """

    done: float
    seconds: float
    p50_s: float
    p99_s: float
    failed: int
    all_s: float
    leader_s: float

    @property
    def per_s(self) -> float:
        return self.done / self.seconds


class Idle:
    """The process that does nothing but HTTP."""

    def __init__(self) -> None:
        self.address = ("127.0.0.1", free_ports(1)[0])
        command = [sys.executable, "-m", "benchmarks.idle_aiohttp", str(self.address[1])]
        self._process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(PROJECT)})
        wait_until(self._answers, READY_S, "aiohttp")

    def cpu_s(self) -> float:
        return cpu_s(self._process.pid)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        try:
            return request(self.address, "GET", "/").status == 200
        except OSError:
            return False


class Systems:
    """Everything that is measured in turns, running, and where each kind of request goes."""

    def __init__(self, stack: ExitStack, folder: Path, names: Sequence[System]) -> None:
        self.names = list(names)
        self._clusters: dict[str, Contender] = {}
        for name, kind in (("kvnode", Kvnode), ("etcd", Etcd), ("laden", Kvnode)):
            if name in names:
                cluster = self._clusters[name] = kind(folder / name)
                stack.callback(cluster.close)
                cluster.start()
        if "laden" in names:
            laden = self._clusters["laden"]
            bulk.load(laden.address(laden.leader()), LADEN_KEYS, 80)
        if "aiohttp" in names:
            self._idle = Idle()
            stack.callback(self._idle.close)
        self._balancer: Balancer | None = None
        if HAPROXY is not None and "kvnode" in names and "laden" not in names:
            kvnode = self._clusters["kvnode"]
            self._balancer = Balancer(folder / "haproxy", {node: kvnode.address(node) for node in kvnode.ids})
            stack.callback(self._balancer.close)

    def takes(self, system: System, row: Row) -> bool:
        if "laden" in self.names:
            return row.name in LADEN_ROWS
        if system not in row.systems or system not in self.names:
            return False
        return row.target != "haproxy" or (system == "kvnode" and self._balancer is not None)

    @contextmanager
    def balanced(self, row: Row) -> Iterator[None]:
        """HAProxy runs for the rows that are asked through it alone: its checks would be in the way of the others."""
        if row.target != "haproxy" or self._balancer is None:
            yield
            return
        address = self._balancer.start().address
        wait_until(lambda: request(address, "PUT", "/v1/kv/bench/000000", b"v").status == 200, READY_S, "a leader")
        yield
        self._balancer.close()

    def addresses(self, system: System, row: Row) -> list[tuple[str, int]]:
        """Asked before each slice: whoever leads may have changed."""
        if system == "aiohttp":
            return [self._idle.address]
        if row.target == "haproxy":
            assert self._balancer is not None
            return [self._balancer.address]
        cluster, leader = self._clusters[system], self.leader(system)
        if row.target == "all":
            return [cluster.address(node) for node in cluster.ids]
        return [cluster.address(leader if row.target == "leader" else next(n for n in cluster.ids if n != leader))]

    def leader(self, system: System) -> str:
        return "" if system == "aiohttp" else self._clusters[system].leader()

    def cpu_s(self, system: System) -> dict[str, float]:
        """By node; aiohttp alone counts as the leader of one."""
        return {"": self._idle.cpu_s()} if system == "aiohttp" else self._clusters[system].cpu_s()


class Run:
    """All slices of all rows; `slices[row name][system]` are those of one cell."""

    def __init__(self, systems: Systems, folder: Path, slice_s: int) -> None:
        self._systems = systems
        self._folder = folder
        self._slice_s = slice_s
        self.slices: dict[str, dict[System, list[Slice]]] = defaultdict(lambda: defaultdict(list))

    def round(self, asked: Sequence[Row]) -> None:
        for row in asked:
            for system in self._systems.names:
                if self._systems.takes(system, row):
                    with self._systems.balanced(row):
                        found = self.measure(system, row, self._slice_s)
                    self.slices[row.name][system].append(found)
                    print(
                        f"{row.name}: {system} {found.per_s:,.0f}/s, p50 {found.p50_s * 1000:.2f} ms, "
                        f"p99 {found.p99_s * 1000:.2f} ms, CPU {found.all_s / found.done * 1e6:.0f} µs, leader "
                        f"{found.leader_s / found.done * 1e6:.0f} µs, failed {found.failed}",
                        flush=True,
                    )

    def fill(self, system: System) -> None:
        """Every key is there, and everything has run once."""
        self.measure(system, Row("fill", "put", 64), FILL_S, in_order=True)

    def measure(self, system: System, row: Row, slice_s: int, in_order: bool = False) -> Slice:
        addresses, leader = self._systems.addresses(system, row), self._systems.leader(system)
        file = self._folder / f"{system}-{row.work.replace(' ', '-')}-{row.value_bytes}-{in_order}-{row.target}.lua"
        if not file.exists():
            file.write_text(script(system, row, in_order) + (spread(addresses) if len(addresses) > 1 else ""))
        asking, before = command(row, addresses, file, slice_s), self._systems.cpu_s(system)
        done = subprocess.run(asking, capture_output=True, text=True, check=True, timeout=slice_s + 30)
        used = {node: spent - before[node] for node, spent in self._systems.cpu_s(system).items()}
        if done.stderr:
            sys.exit(f"wrk could not run the row '{row.name}': {done.stderr}")
        figures = json.loads(done.stdout.splitlines()[-1])
        latencies = figures["p50_us"] / 1e6, figures["p99_us"] / 1e6
        writes = max(1, figures["requests"]) * row.writes_per_request
        return Slice(
            *(writes, figures["us"] / 1e6, *latencies, figures["failed"], sum(used.values()), used[leader]),
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """One system in one row: medians of the slices, and CPU time for each request over all of them."""

    per_s: float
    p50_s: float
    p99_s: float
    failed: int
    all_us: float
    leader_us: float

    @classmethod
    def of(cls, slices: Sequence[Slice]) -> Cell:
        return cls(
            statistics.median(each.per_s for each in slices),
            statistics.median(each.p50_s for each in slices),
            statistics.median(each.p99_s for each in slices),
            sum(each.failed for each in slices),
            sum(each.all_s for each in slices) / sum(each.done for each in slices) * 1e6,
            sum(each.leader_s for each in slices) / sum(each.done for each in slices) * 1e6,
        )


Cells = dict[str, dict[System, Cell]]


def measured(names: Sequence[System], asked: Sequence[Row], options: argparse.Namespace) -> Cells:
    """All of these systems at once, with nothing else beside them."""
    with tempfile.TemporaryDirectory(prefix="kvnode-bench-") as folder, ExitStack() as stack:
        run = Run(Systems(stack, Path(folder), names), Path(folder), options.slice_s)
        for system in names:
            run.fill(system)
        for _ in range(options.rounds):
            run.round(asked)
        return cells_of(run)


def cells_of(run: Run) -> Cells:
    return {name: {system: Cell.of(found) for system, found in each.items()} for name, each in run.slices.items()}


def table(cells: Cells) -> str:
    def lines() -> Iterator[list[str]]:
        for name, cell in cells.items():
            kvnode, etcd, idle = cell.get("kvnode"), cell.get("etcd"), cell.get("aiohttp")
            yield [
                name,
                *_figures(kvnode),
                *_figures(etcd),
                f"**{kvnode.per_s / etcd.per_s:.1f}x**" if kvnode and etcd else "-",
                f"**{kvnode.all_us / etcd.all_us:.2f}x**" if kvnode and etcd else "-",
                *([*_figures(idle)[:1], f"{idle.all_us:.0f}"] if idle else ["-", "-"]),
            ]

    head = [
        "",
        *("kvnode /s", "p50", "p99", "CPU µs, all / leader"),
        *("etcd /s", "p50", "p99", "CPU µs, all / leader"),
        *("rate, kvnode : etcd", "CPU, kvnode : etcd"),
        *("aiohttp alone /s", "CPU µs"),
    ]
    return report.table(head, list(lines()))


def laden_table(cells: Cells) -> str:
    def lines() -> Iterator[list[str]]:
        for name, cell in cells.items():
            if "laden" in cell and "kvnode" in cell:
                few, many = cell["kvnode"], cell["laden"]
                yield [name, *_figures(few), *_figures(many), f"{100 * many.per_s / few.per_s:.0f} %"]

    few = ("10,000 keys /s", "p50", "p99", "CPU µs, all / leader")
    many = ("1,010,000 keys /s", "p50", "p99", "CPU µs, all / leader")
    return report.table(["", *few, *many, "of the rate"], list(lines()))


def _figures(cell: Cell | None) -> list[str]:
    if cell is None:
        return ["-", "-", "-", "-"]
    failed = f" ({cell.failed} failed)" if cell.failed else ""
    times = f"{cell.p50_s * 1000:.2f} ms", f"{cell.p99_s * 1000:.1f} ms"
    return [f"{cell.per_s:,.0f}{failed}", *times, f"{cell.all_us:.0f} / {cell.leader_us:.0f}"]


def page(cells: Cells, sizes: Cells, options: argparse.Namespace, load_before: float) -> str:
    asked = f"make bench{' ETCD=PATH' if options.etcd else ''}"
    versions = [text for text in (Etcd.version(), _version("wrk", "-v")) if text]
    return f"""# Throughput and latency

{report.preamble(asked, versions, load_before)}
- slices: {options.rounds} of {options.slice_s} s for each figure, the systems in turns; medians of the slices

![requests per second](throughput.svg)

{table(cells)}

All run at once, three nodes each on loopback, and only one is asked at a time. Every write is on the disks of a
majority before it is answered, in both. Values have 80 bytes where nothing else is said, keys are drawn from 10,000.
CPU is user and system time of the nodes' processes for each request, of all three and of the leader: where the machine
is shared a rate scatters, and this does not. The clients' and HAProxy's own time is not in it.

etcd is asked through its JSON gateway, since that is its HTTP: what its clients over gRPC pay is not measured here.
The rows "etcd's own …" send the same bytes to both, of the gateway (`/v3/kv/…`), which kvnode speaks as well. "aiohttp
alone" reads the request and answers a few bytes, the ordinary way of an aiohttp server: what a node does beyond that it
saves elsewhere (`http/connection.py`). A batch counts as the writes that it holds. The leader probe asks a majority
each time; etcd's is `/health`, which reads through a quorum as well.

## What the size of the store costs

{laden_table(sizes)}

Afterwards a cluster that held a million keys more was asked in turns with another that did not.
"""


def _version(program: str, flag: str) -> str | None:
    if shutil.which(program) is None:
        return None
    said = subprocess.run([program, flag], capture_output=True, text=True, timeout=10).stdout
    return " ".join(said.split()[:2]) or None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slice-s", type=int, default=3)
    parser.add_argument("--only", choices=("kvnode", "etcd", "aiohttp"))
    parser.add_argument("--rows", help="parts of the names of the rows to measure, with commas between", default="")
    parser.add_argument("--etcd", help="another etcd than the installed one: its executable, or the folder with it")
    parser.add_argument("--dry", action="store_true", help="print the page and leave docs/ as it is")
    options = parser.parse_args()
    if options.etcd:
        Etcd.use(options.etcd)
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed, and it asks the questions here: on Debian and Ubuntu, apt-get install wrk.")
    names: list[System] = [options.only] if options.only else ["kvnode", "etcd", "aiohttp"]
    if "etcd" in names and Etcd.version() is None:
        print(NO_ETCD)
        names.remove("etcd")
    asked = [row for row in rows() if any(part in row.name for part in options.rows.split(","))]
    load_before = os.getloadavg()[0]
    cells = measured(names, asked, options)
    sized = [row for row in asked if row.name in LADEN_ROWS]
    sizes = {} if options.only or not sized else measured(["kvnode", "laden"], sized, options)
    text = page(cells, sizes, options, load_before)
    if options.dry:
        print(text)
    else:
        report.publish(_PAGE, text)
        plot.draw({name: {system: cell.per_s for system, cell in each.items()} for name, each in cells.items()})


if __name__ == "__main__":
    main()
