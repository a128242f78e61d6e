"""Requests per second and latencies, kvnode beside etcd and beside aiohttp doing nothing, in one run.

`make bench`, or `python -m benchmarks.throughput [--rounds 5] [--slice-s 3] [--only kvnode] [--rows PUT,probe]`. All
systems are up throughout, three nodes each, every write on disk before it is answered; they are asked in turns,
slice by slice, by the same `wrk`. Then a second kvnode cluster, which holds a million keys more, is asked in turns with
a fresh one, for what the size of the store costs. Writes docs/THROUGHPUT.md and docs/throughput.svg.
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
from benchmarks.contenders import Contender, Etcd, Kvnode
from benchmarks.workloads import Row, System, rows, script
from tests.balancer import HAPROXY, Balancer
from tests.cluster import PROJECT, free_ports, request, wait_until

FILL_S: Final = 6  # for 10,000 keys
READY_S: Final = 20.0
LADEN_KEYS: Final = 1_000_000
_PAGE: Final = "THROUGHPUT.md"


@dataclass(frozen=True, slots=True)
class Slice:
    """What one run of wrk found. `per_s` counts writes, which is more than requests where one holds many."""

    per_s: float
    p50_s: float
    p99_s: float
    failed: int


class Idle:
    """The process that does nothing but HTTP."""

    def __init__(self) -> None:
        self.address = ("127.0.0.1", free_ports(1)[0])
        command = [sys.executable, "-m", "benchmarks.idle_aiohttp", str(self.address[1])]
        self._process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(PROJECT)})
        wait_until(self._answers, READY_S, "aiohttp")

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
            return row.target != "haproxy" and row.value_bytes == 80
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

    def address(self, system: System, row: Row) -> tuple[str, int]:
        """Asked before each slice: whoever leads may have changed."""
        if system == "aiohttp":
            return self._idle.address
        if row.target == "haproxy":
            assert self._balancer is not None
            return self._balancer.address
        cluster = self._clusters[system]
        leader = cluster.leader()
        return cluster.address(leader if row.target == "leader" else next(n for n in cluster.ids if n != leader))


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
                        f"p99 {found.p99_s * 1000:.2f} ms, failed {found.failed}",
                        flush=True,
                    )

    def fill(self, system: System) -> None:
        """Every key is there, and everything has run once."""
        self.measure(system, Row("fill", "put", 64), FILL_S, in_order=True)

    def measure(self, system: System, row: Row, slice_s: int, in_order: bool = False) -> Slice:
        file = self._folder / f"{system}-{row.work.replace(' ', '-')}-{row.value_bytes}-{in_order}.lua"
        if not file.exists():
            file.write_text(script(system, row, in_order))
        host, port = self._systems.address(system, row)
        command = ["wrk", "--threads", "1", "--connections", str(row.clients), "--duration", f"{slice_s}s"]
        command += ["--timeout", "10s", "--latency", "--script", str(file), f"http://{host}:{port}/"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=slice_s + 30)
        if done.stderr:
            sys.exit(f"wrk could not run the row '{row.name}': {done.stderr}")
        figures = json.loads(done.stdout.splitlines()[-1])
        per_s = figures["requests"] * 1e6 / figures["us"] * row.writes_per_request
        return Slice(per_s, figures["p50_us"] / 1e6, figures["p99_us"] / 1e6, figures["failed"])


@dataclass(frozen=True, slots=True)
class Cell:
    """The medians of one system in one row."""

    per_s: float
    p50_s: float
    p99_s: float
    failed: int

    @classmethod
    def of(cls, slices: Sequence[Slice]) -> Cell:
        return cls(
            statistics.median(each.per_s for each in slices),
            statistics.median(each.p50_s for each in slices),
            statistics.median(each.p99_s for each in slices),
            sum(each.failed for each in slices),
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
                f"{idle.per_s:,.0f}" if idle else "-",
                f"{100 * kvnode.per_s / idle.per_s:.0f} %" if kvnode and idle else "-",
            ]

    head = [
        "",
        "kvnode /s",
        "p50",
        "p99",
        "etcd /s",
        "p50",
        "p99",
        "kvnode : etcd",
        "aiohttp alone /s",
        "kvnode's share",
    ]
    return report.table(head, list(lines()))


def laden_table(cells: Cells) -> str:
    def lines() -> Iterator[list[str]]:
        for name, cell in cells.items():
            if "laden" in cell and "kvnode" in cell:
                few, many = cell["kvnode"], cell["laden"]
                yield [name, *_figures(few), *_figures(many), f"{100 * many.per_s / few.per_s:.0f} %"]

    return report.table(["", "10,000 keys /s", "p50", "p99", "1,010,000 keys /s", "p50", "p99", "of it"], list(lines()))


def _figures(cell: Cell | None) -> list[str]:
    if cell is None:
        return ["-", "-", "-"]
    failed = f" ({cell.failed} failed)" if cell.failed else ""
    return [f"{cell.per_s:,.0f}{failed}", f"{cell.p50_s * 1000:.2f} ms", f"{cell.p99_s * 1000:.1f} ms"]


def page(cells: Cells, sizes: Cells, options: argparse.Namespace, load_before: float) -> str:
    versions = [text for text in (Etcd.version(), _version("wrk", "-v")) if text]
    return f"""# Throughput and latency

{report.preamble("make bench", versions, load_before)}
- slices: {options.rounds} of {options.slice_s} s for each figure, the systems in turns; medians of the slices

![requests per second](throughput.svg)

{table(cells)}

All run at once, three nodes each on loopback, and only one is asked at a time. Every write is on the disks of a
majority before it is answered, in both. Values have 80 bytes where nothing else is said, keys are drawn from 10,000.
etcd is asked through its JSON gateway, since that is its HTTP. "aiohttp alone" reads the request and answers a few
bytes, the ordinary way of an aiohttp server: what a node does beyond that it saves elsewhere (`http/connection.py`). A
batch counts as the writes that it holds. The leader probe asks a majority each time; etcd's is `/health`, which reads
through a quorum as well.

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
    parser.add_argument("--dry", action="store_true", help="print the page and leave docs/ as it is")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed, and it asks the questions here: on Debian and Ubuntu, apt-get install wrk.")
    names: list[System] = [options.only] if options.only else ["kvnode", "etcd", "aiohttp"]
    if "etcd" in names and Etcd.version() is None:
        print("etcd is not installed (Debian and Ubuntu: apt-get install etcd-server): measured without it.")
        names.remove("etcd")
    asked = [row for row in rows() if any(part in row.name for part in options.rows.split(","))]
    load_before = os.getloadavg()[0]
    cells = measured(names, asked, options)
    sizes = {} if options.only else measured(["kvnode", "laden"], asked, options)
    text = page(cells, sizes, options, load_before)
    if options.dry:
        print(text)
    else:
        report.publish(_PAGE, text)
        plot.draw({name: {system: cell.per_s for system, cell in each.items()} for name, each in cells.items()})


if __name__ == "__main__":
    main()
