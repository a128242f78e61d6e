"""Snapshots, restarts, memory and catching up with 1,000,000 keys of 100 bytes in three real nodes.

`make bench-million`, or `python -m benchmarks.millionkeys [--keys 1000000]`. Writes docs/MILLION.md. The snapshots are
those that nodes take by themselves: the log is filled with overwrites until each has taken one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from benchmarks import report
from tests.cluster import PROJECT, Cluster, wait_until

LOAD_DEADLINE_S: Final = 900.0
SNAPSHOT_DEADLINE_S: Final = 180.0
READY_S: Final = 120.0
SNAPSHOT_LINE: Final = re.compile(r"Snapshot at index \d+ \((\d+) bytes\); the log begins at (\d+)")
# Overwrites of one key fill the log until it is compacted: big, to get there soon, but none that is itself a pause.
BULK_BYTES: Final = 32_768
BULK_WRITES: Final = 3_000
BULK_WRITES_WITHOUT_SNAPSHOT: Final = 500  # too few to fill a log that has just been compacted
COMPACTIONS_MAX: Final = 5
# Random writes: a minute that begins with the log half full, so that each node takes a snapshot within it.
RANDOM_S: Final = 60.0
FEW_KEYS: Final = 10_000
BULK_WRITES_HALF: Final = 1_000
CONNECTIONS: Final = 32


class Tool:
    """One of this package's programs in a process of its own; its lines are kept as they come."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._reader.join(10)

    def wait(self, timeout_s: float) -> None:
        assert self._process.wait(timeout_s) == 0, self.lines[-3:]
        self._reader.join(10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(line.rstrip() for line in iter(self._process.stdout.readline, ""))


class Pauses:
    """What the probes of all nodes saw."""

    def __init__(self, cluster: Cluster) -> None:
        self._tools = {node: Tool("pause", _address(cluster, node)) for node in cluster.nodes}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tool in self._tools.values():
            tool.__exit__()

    def longest(self, since: float) -> dict[str, float]:
        """The longest answer of each node that was asked for after `since`; seconds, 0.0 where none was long."""
        return {node: max(self._samples(node, since), default=0.0) for node in self._tools}

    def above(self, limit_s: float, since: float) -> int:
        return sum(took_s > limit_s for node in self._tools for took_s in self._samples(node, since))

    def _samples(self, node: str, since: float) -> list[float]:
        pairs = (line.split() for line in list(self._tools[node].lines))
        return [float(took_s) for moment, took_s in pairs if float(moment) >= since]


def snapshots(cluster: Cluster, node: str) -> list[tuple[int, int]]:
    """(bytes, where the log begins since) of each snapshot that a node has said it took."""
    return [(int(size), int(first)) for size, first in SNAPSHOT_LINE.findall(cluster.log(node))]


def rss_bytes(cluster: Cluster, node: str) -> int:
    status = Path(f"/proc/{cluster.pid(node)}/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


class Run:
    """The whole measurement; `rows` are what it found: (what, figure)."""

    def __init__(self, cluster: Cluster, keys: int) -> None:
        self.cluster = cluster
        self.keys = keys
        self.rows: list[tuple[str, str]] = []
        self.all = ",".join(_address(cluster, node) for node in cluster.nodes)

    def note(self, what: str, figure: str) -> None:
        self.rows.append((what, figure))
        print(f"{what}: {figure} (load average {os.getloadavg()[0]:.1f})", flush=True)

    def go(self) -> None:
        self.loop_alone()
        self.begin()
        few = self.random_writes(FEW_KEYS)
        self.load()
        self.memory()
        many = self.random_writes(self.keys)
        self.note("… CPU for each beside that with few keys", f"{(many / few - 1) * 100:+.0f} %")
        self.snapshot_at_rest()
        self.snapshot_under_load()
        self.restarts()
        self.catching_up()

    def loop_alone(self) -> None:
        """What a snapshot itself does to the loop beside it: one process, nothing else on the machine."""
        with Tool("looplag", "--keys", str(self.keys)) as tool:
            tool.wait(LOAD_DEADLINE_S)
        idle, rested, restless = (f"{float(line) * 1000:.0f} ms" for line in tool.lines)
        self.note("one process alone: the loop's longest delay, idle", idle)
        self.note("… beside a snapshot", rested)
        self.note("… beside a snapshot that never rests (not a node's way: for comparison)", restless)

    def begin(self) -> None:
        cluster = self.cluster
        cluster.start(READY_S)
        self._empty = {node: rss_bytes(cluster, node) for node in cluster.nodes}
        with Tool("load", self.all, "--keys", str(FEW_KEYS)) as tool:
            tool.wait(LOAD_DEADLINE_S)

    def random_writes(self, keys: int) -> float:
        """A minute of writes to any of `keys` keys, all that there are; CPU seconds of all nodes for each."""
        self._fill_the_log()
        for _ in range(BULK_WRITES_HALF):
            self._overwrite()
        before = self._snapshot_counts()
        with self._writes(self.all, keys) as tool:
            time.sleep(3.0)  # the generator's own start
            first, began_s, began_at = len(tool.lines), self._cpu_s(), time.monotonic()
            time.sleep(RANDOM_S)
            lines, cpu_s = tool.lines[first:], self._cpu_s() - began_s
            took_s = time.monotonic() - began_at
        cost_s = cpu_s / (sum(int(line.split()[1]) for line in lines) / len(lines) * took_s)
        after = self._snapshot_counts()
        taken = ", ".join(str(after[node] - before[node]) for node in self.cluster.nodes)
        self.note(f"a minute of random writes over {keys:,} keys", f"{_throughput(lines)}")
        self.note("… CPU of all nodes for each; snapshots meanwhile", f"{cost_s * 1_000_000:.0f} µs; {taken}")
        return cost_s

    def _cpu_s(self) -> float:
        """Of all nodes, since they began."""
        stats = (Path(f"/proc/{self.cluster.pid(node)}/stat").read_text() for node in self.cluster.nodes)
        fields = (stat.rpartition(")")[2].split() for stat in stats)
        return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")

    def load(self) -> None:
        began_at = time.monotonic()
        with Tool("load", self.all, "--keys", str(self.keys)) as tool:
            tool.wait(LOAD_DEADLINE_S)
        took_s = time.monotonic() - began_at
        self.note("loading, 128 connections", f"{took_s:.0f} s, {self.keys / took_s:,.0f} writes/s")

    def memory(self) -> None:
        """Once the log is short, so that it is the keys that are counted."""
        self._fill_the_log()
        per_key = [(rss_bytes(self.cluster, node) - self._empty[node]) / self.keys for node in self.cluster.nodes]
        rss = [rss_bytes(self.cluster, node) / 1_048_576 for node in self.cluster.nodes]
        self.note("resident memory of each node", ", ".join(f"{mib:,.0f} MiB" for mib in rss))
        self.note("of it for each key", f"{min(per_key):.0f} to {max(per_key):.0f} bytes")

    def snapshot_at_rest(self) -> None:
        with Pauses(self.cluster) as pauses:
            time.sleep(1.0)  # the probes' own start
            began_at = time.monotonic()
            time.sleep(10.0)
            self.note("longest answer of /admin/healthz, nothing going on, 10 s", _milliseconds(pauses, began_at))
            began_at = time.monotonic()
            for _ in range(BULK_WRITES_WITHOUT_SNAPSHOT):
                self._overwrite()
            self.note("… while one client fills the log", _milliseconds(pauses, began_at))
            began_at = time.monotonic()
            self._fill_the_log()
            self.note("… and while each node takes a snapshot then", _milliseconds(pauses, began_at))
            self.note("… answers over 50 ms meanwhile", str(pauses.above(0.05, began_at)))
        self.note("a snapshot", f"{snapshots(self.cluster, 'n1')[-1][0] / 1_048_576:.0f} MiB")

    def snapshot_under_load(self) -> None:
        with Pauses(self.cluster) as pauses, self._writes(self.all, self.keys) as tool:
            time.sleep(2.0)
            began_at, quiet = time.monotonic(), self._snapshot_counts()
            time.sleep(10.0)
            if self._snapshot_counts() == quiet:
                self.note("longest answer of /admin/healthz under writes, 10 s", _milliseconds(pauses, began_at))
            began_at, first = time.monotonic(), len(tool.lines)
            self._fill_the_log()
            self.note("… and while each node takes a snapshot", _milliseconds(pauses, began_at))
            self.note("… answers over 50 ms meanwhile", str(pauses.above(0.05, began_at)))
            self.note("writes meanwhile", _throughput(tool.lines[first:]))

    def restarts(self) -> None:
        cluster = self.cluster
        follower = cluster.followers()[0]
        cluster.kill(follower)
        began_at = time.monotonic()
        cluster.restart(follower, READY_S)
        self.note("one node killed with -9: start to ready", f"{time.monotonic() - began_at:.1f} s")
        for node in cluster.nodes:
            cluster.kill(node)
        began_at = time.monotonic()
        cluster.start(READY_S)
        self.note("all three killed with -9: start to every node ready", f"{time.monotonic() - began_at:.1f} s")

    def catching_up(self) -> None:
        cluster = self.cluster
        leader, (away, other) = cluster.leader(), cluster.followers()
        last_index = max(member["match_index"] or 0 for member in cluster.status(leader)["members"])
        cluster.kill(away)
        with self._writes(f"{_address(cluster, leader)},{_address(cluster, other)}", self.keys) as tool:
            for _ in range(COMPACTIONS_MAX):  # until what the follower needs next is in no log any more
                self._fill_the_log(nodes=[leader, other])
                if snapshots(cluster, leader)[-1][1] > last_index:
                    break
            assert snapshots(cluster, leader)[-1][1] > last_index
            first = len(tool.lines)
            time.sleep(5.0)
            self.note("a follower is away, the log is compacted; writes go on", _throughput(tool.lines[first:]))
            first, began_at = len(tool.lines), time.monotonic()
            cluster.spawn(away)
            installed = "Installed the snapshot"
            wait_until(lambda: installed in cluster.log(away), READY_S, "a snapshot on the follower that was away")
            installed_s = time.monotonic() - began_at
            wait_until(lambda: cluster.is_ready(away), READY_S, "the follower that was away ready")
            self.note(
                "it is back: start to snapshot installed, to ready",
                f"{installed_s:.1f} s, {time.monotonic() - began_at:.1f} s",
            )
            self.note("writes meanwhile", _throughput(tool.lines[first:]))

    def _writes(self, addresses: str, keys: int) -> Tool:
        return Tool("load", addresses, "--keys", str(keys), "--endless", "--connections", str(CONNECTIONS))

    def _snapshot_counts(self) -> dict[str, int]:
        return {node: len(snapshots(self.cluster, node)) for node in self.cluster.nodes}

    def _fill_the_log(self, nodes: Sequence[str] = ()) -> None:
        """Overwrites one big key until each node has taken one more snapshot."""
        cluster, nodes = self.cluster, nodes or list(self.cluster.nodes)
        before = self._snapshot_counts()

        def taken() -> bool:
            return all(len(snapshots(cluster, node)) > before[node] for node in nodes)

        for number in range(BULK_WRITES):
            if number % 100 == 0 and taken():
                break
            self._overwrite()
        wait_until(taken, SNAPSHOT_DEADLINE_S, "a snapshot on every node")

    def _overwrite(self) -> None:
        self.cluster.put("bulk", bytes(BULK_BYTES), timeout_s=30.0)


def _address(cluster: Cluster, node: str) -> str:
    return "{}:{}".format(*cluster.nodes[node].http)


def _milliseconds(pauses: Pauses, since: float) -> str:
    """The longest of each node; short ones are not told apart."""
    return ", ".join(f"{took_s * 1000:.0f} ms" if took_s else "< 4 ms" for took_s in pauses.longest(since).values())


def _throughput(lines: Sequence[str]) -> str:
    """From the load generator's lines: mean, the slowest second, and how many answers were not 200."""
    seconds = [(int(acknowledged), int(other)) for _, acknowledged, other in (line.split() for line in lines)]
    if not seconds:
        return "less than a second"
    mean = sum(acknowledged for acknowledged, _ in seconds) / len(seconds)
    failed = sum(other for _, other in seconds)
    return f"{mean:,.0f}/s, slowest second {min(seconds)[0]:,}, not acknowledged at first {failed}"


def page(run: Run, load_before: float) -> str:
    return f"""# One million keys

{report.preamble("make bench-million", [], load_before)}
- data: {run.keys:,} keys of 13 bytes with values of 100 bytes, three nodes on loopback, every option at its default

{report.table(["", "figure"], run.rows)}

Figures of three nodes stand in the order n1, n2, n3. The three share the machine's cores with the load generator and
the probes: three snapshots at once are three busy threads. Each probe is a process that asks one node for
`/admin/healthz` every 2 ms, which takes the event loop and nothing else.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--dry", action="store_true", help="print the page and leave docs/ as it is")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="kvnode-million-") as folder,
        Cluster(Path(folder), env={"PYTHONDONTWRITEBYTECODE": ""}) as cluster,
    ):
        run = Run(cluster, options.keys)
        run.go()
    text = page(run, load_before)
    print(text) if options.dry else report.publish("MILLION.md", text)


if __name__ == "__main__":
    main()
