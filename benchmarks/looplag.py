"""How long a snapshot stops the event loop beside it, in one process that has the machine to itself.

`python -m benchmarks.looplag [--keys 1000000]`: the real store, snapshot files and pace; a loop that wakes every
millisecond and overwrites a key each time. With three nodes and their clients on two cores, a late answer may as well
be the machine's scheduler; here it is the snapshot alone. Prints the longest delay of a wake-up in seconds, one line
each: idle, beside a snapshot, beside one that never rests.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvloop

from kvnode.configuration import named
from kvnode.node.pace import SNAPSHOT_RESTS, Pace
from kvnode.state.commands import FEATURE_LEVEL, PUT
from kvnode.state.items import Item
from kvnode.state.store import KeyValueStore
from kvnode.storage.disk import Directory
from kvnode.storage.snapshots import Snapshots

EVERY_S: Final = 0.001
IDLE_S: Final = 3.0
STRIDE: Final = 7_919  # a prime: the overwrites are spread over all keys


class Beat:
    """A loop's wake-ups: each changes a key, and is timed."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._keys = len(store)
        self._count = 0
        self.longest_s = 0.0

    async def go_on(self) -> None:
        while True:
            began_at = time.perf_counter()
            await asyncio.sleep(EVERY_S)
            self._count += 1
            key = f"key-{self._count * STRIDE % self._keys:09d}"
            self._store.apply([PUT, key, b"y" * 100, "", None])
            self.longest_s = max(self.longest_s, time.perf_counter() - began_at - EVERY_S)


async def measure(keys: int) -> None:
    store = KeyValueStore()
    store.restore(keys, ((f"key-{n:09d}", Item(b"x" * 100, "", n + 1, n + 1, 1)) for n in range(keys)))
    store.level = FEATURE_LEVEL
    beat = Beat(store)
    beating = asyncio.create_task(beat.go_on())
    await asyncio.sleep(IDLE_S)
    print(f"{beat.longest_s:.6f}", flush=True)
    for rest in (Pace(rests=SNAPSHOT_RESTS).rest, lambda: None):
        beat.longest_s = 0.0
        await asyncio.get_running_loop().run_in_executor(None, _snapshot, store, rest)
        print(f"{beat.longest_s:.6f}", flush=True)
    beating.cancel()


def _snapshot(store: KeyValueStore, rest: Callable[[], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="kvnode-lag-") as folder:
        disk = Directory(Path(folder))
        Snapshots(disk, b"c" * 16, rest).write(1, 1, named("n1"), store.view())
        disk.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    uvloop.run(measure(parser.parse_args().keys))


if __name__ == "__main__":
    main()
