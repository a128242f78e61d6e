"""CPU time for each request, of this checkout beside an earlier commit, in one run: `make cost BASE=REV`.

Both run as clusters of three on loopback and are asked in turns, slice by slice, by the same `wrk`. While one is asked
the other is stopped (SIGSTOP): an idle cluster ticks, and takes the caches and now and then a processor from the one
that is measured. The CPU seconds of the three processes, divided by the requests, hold on a noisy machine where a rate
does not: what others use of the machine changes the rate by half and this figure by a few percent. The ratio is taken
for each pair of slices, so that a machine that slows down for a minute slows both sides of a pair; the quartiles of
these ratios say how far a single pair can be trusted, and `±` how far their median can.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.contenders import READY_S, cpu_s
from benchmarks.report import table
from benchmarks.workloads import GATEWAY, Row, command, script
from tests.cluster import PROJECT, Cluster

ROWS: Final = (
    Row("PUT, 64 clients", "put", 64),
    Row("PUT, 256 clients", "put", 256),
    Row("PUT on a follower, 64 clients", "put", 64, target="follower"),
    Row("linearizable GET, 64 clients", "get", 64),
    Row("etcd's own put, 64 clients", f"{GATEWAY}put", 64),
    Row("leader probe, 16 clients", "probe", 16),
    Row("PUT, 1 client", "put", 1),
)
FILL_S: Final = 4
SECRET: Final = "a secret of thirty-two characters"  # frames between nodes are authenticated as off loopback


@dataclass(frozen=True, slots=True)
class Slice:
    """CPU seconds for each request: of all three nodes, and of the leader."""

    all_s: float
    leader_s: float
    per_s: float


class Side:
    """One cluster of three, run from the source tree `source`."""

    def __init__(self, name: str, source: Path, folder: Path) -> None:
        self.name = name
        # Without PYTHONSAFEPATH, `python -m` would take kvnode from the working directory, on both sides.
        env = {"PYTHONPATH": str(source), "PYTHONSAFEPATH": "1", "KVNODE_CLUSTER_SECRET": SECRET}
        self.cluster = Cluster(folder / name, env=env)

    def measure(self, row: Row, folder: Path, slice_s: int, in_order: bool = False) -> Slice:
        cluster = self.cluster
        leader = cluster.leader(READY_S)
        asked = leader if row.target == "leader" else next(name for name in cluster.nodes if name != leader)
        file = folder / f"{row.work}-{in_order}.lua"
        if not file.exists():
            file.write_text(script("kvnode", row, in_order))
        asking = command(row, [cluster.nodes[asked].http], file, slice_s)
        before = self._cpu_s()
        done = subprocess.run(asking, capture_output=True, text=True, check=True, timeout=slice_s + 30)
        used = {name: spent - before[name] for name, spent in self._cpu_s().items()}
        figures = json.loads(done.stdout.splitlines()[-1])
        requests = figures["requests"] - figures["failed"]
        assert requests > 0, f"{self.name}: no request of the row '{row.name}' succeeded"
        return Slice(sum(used.values()) / requests, used[leader] / requests, requests * 1e6 / figures["us"])

    def rest(self) -> None:
        """Takes no time of the machine until `wake`."""
        for name in self.cluster.nodes:
            self.cluster.freeze(name)

    def wake(self) -> None:
        """Goes on. Every clock has passed the election timeout meanwhile, so that another node may lead now."""
        for name in self.cluster.nodes:
            self.cluster.thaw(name)
        self.cluster.wait_ready(READY_S)

    def _cpu_s(self) -> dict[str, float]:
        return {name: cpu_s(self.cluster.pid(name)) for name in self.cluster.nodes}


def export(revision: str, folder: Path) -> Path:
    """The tree of a commit, as files."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(PROJECT), "archive", revision], capture_output=True, timeout=60)
    if archive.returncode:
        sys.exit(f"There is no commit {revision} here: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True, timeout=60)
    return folder


def compare(sides: list[Side], folder: Path, rows: list[Row], rounds: int, slice_s: int) -> list[list[str]]:
    found: dict[str, list[tuple[Slice, Slice]]] = {row.name: [] for row in rows}
    for turn in range(rounds):
        for row in rows:
            # Who begins changes, so that neither always finds the caches of the other's run.
            slices: dict[str, Slice] = {}
            for side in sides if turn % 2 else sides[::-1]:
                side.wake()
                slices[side.name] = side.measure(row, folder, slice_s)
                side.rest()
            found[row.name].append((slices["base"], slices["now"]))
            print(f"{row.name}: " + _words(*found[row.name][-1]), flush=True)
    return [[name, *_cells(pairs)] for name, pairs in found.items()]


def _words(base: Slice, now: Slice) -> str:
    change = f"{base.all_s * 1e6:.1f} -> {now.all_s * 1e6:.1f} µs, {now.all_s / base.all_s - 1:+.1%}"
    return f"{change}; {base.per_s:,.0f} -> {now.per_s:,.0f} per second"


def _cells(pairs: list[tuple[Slice, Slice]]) -> list[str]:
    return [
        *change([base.all_s for base, _ in pairs], [now.all_s for _, now in pairs]),
        *change([base.leader_s for base, _ in pairs], [now.leader_s for _, now in pairs]),
    ]


def change(base: list[float], now: list[float]) -> list[str]:
    """Both medians in µs; the median of the ratios, how far that can be trusted, and their quartiles."""
    ratios = [n / b - 1 for b, n in zip(base, now, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    # The standard error of a median of normal values, 1.25 sigma / sqrt(n), with sigma by the quartiles: an outlier
    # counts for as little as in the median itself.
    error = 1.25 * (high - low) / 1.35 / len(ratios) ** 0.5
    return [
        f"{statistics.median(base) * 1e6:.1f}",
        f"{statistics.median(now) * 1e6:.1f}",
        f"{middle:+.1%} ± {error:.1%}",
        f"{low:+.1%} … {high:+.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--slice-s", type=int, default=2)
    parser.add_argument("--rows", help="parts of the names of the rows to measure, with | between", default="")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed, and it sends the requests: on Debian and Ubuntu, apt-get install wrk.")
    rows = [row for row in ROWS if any(part in row.name for part in options.rows.split("|"))]
    with tempfile.TemporaryDirectory(prefix="kvnode-cost-") as name, ExitStack() as stack:
        folder = Path(name)
        sides = [Side("base", export(options.base, folder / "source"), folder), Side("now", PROJECT, folder)]
        for side in sides:
            stack.callback(side.cluster.close)
            side.cluster.start(READY_S)
            side.measure(Row("fill", "put", 64), folder, FILL_S, in_order=True)
            side.rest()
        lines = compare(sides, folder, rows, options.rounds, options.slice_s)
    head = ["CPU µs for each request", "all: base", "now", "change", "quartiles", "leader: base", "now", "change", ""]
    print(f"\nBase {options.base}; medians of {options.rounds} pairs of slices of {options.slice_s} s, in turns.\n")
    print(table(head, lines))


if __name__ == "__main__":
    main()
