"""CPU time of etcd's calls beside that of `/v1`'s for the same work, in one run: `python -m benchmarks.gateway`.

One cluster of three on loopback is asked in turns, slice by slice, by the same `wrk`: the same keys and values, first
in kvnode's words and then in etcd's. The CPU seconds of the three processes are divided by the requests; the ratio is
taken for each pair of slices, as in `cost.py`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.contenders import READY_S
from benchmarks.cost import FILL_S, Side, Slice, change
from benchmarks.report import table
from benchmarks.workloads import GATEWAY, Row
from tests.cluster import PROJECT

# By name: in kvnode's words, and in etcd's.
PAIRS: Final = {
    "put, 64 clients": (Row("PUT", "put", 64), Row("put", f"{GATEWAY}put", 64)),
    "read, 64 clients": (Row("GET", "get", 64), Row("range", f"{GATEWAY}range", 64)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--slice-s", type=int, default=2)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed, and it sends the requests: on Debian and Ubuntu, apt-get install wrk.")
    with tempfile.TemporaryDirectory(prefix="kvnode-gateway-") as name:
        folder = Path(name)
        side = Side("now", PROJECT, folder)
        try:
            side.cluster.start(READY_S)
            side.measure(Row("fill", "put", 64), folder, FILL_S, in_order=True)
            found = _in_turns(side, folder, options.rounds, options.slice_s)
        finally:
            side.cluster.close()
    lines = [
        [
            pair,
            *change([own.all_s for own, _ in slices], [etcds.all_s for _, etcds in slices]),
            *change([own.leader_s for own, _ in slices], [etcds.leader_s for _, etcds in slices]),
        ]
        for pair, slices in found.items()
    ]
    head = ["CPU µs for each request", "all: /v1", "/v3", "more", "quartiles", "leader: /v1", "/v3", "more", ""]
    print(f"\nMedians of {options.rounds} pairs of slices of {options.slice_s} s, in turns.\n")
    print(table(head, lines))


def _in_turns(side: Side, folder: Path, rounds: int, slice_s: int) -> dict[str, list[tuple[Slice, Slice]]]:
    found: dict[str, list[tuple[Slice, Slice]]] = {pair: [] for pair in PAIRS}
    for turn in range(rounds):
        for pair, rows in PAIRS.items():
            slices = {row.work: side.measure(row, folder, slice_s) for row in (rows if turn % 2 else rows[::-1])}
            found[pair].append((slices[rows[0].work], slices[rows[1].work]))
    return found


if __name__ == "__main__":
    main()
