"""What one PUT passes on its way, in figures: the files of all nodes, and the calls on its leader.

Three whole nodes in virtual time, HTTP included, so that no machine is too slow to tell; the client is not counted.
What timers do is none of a PUT's way, and of several lone ones the shortest way counts: no heartbeat fell into it.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from kvnode.client.calls import once
from tests.virtual.scene import Scene, scene_of

CLIENTS: Final = 256
BINARY: Final = {"Content-Type": "application/octet-stream"}
LONE: Final = 12  # of which the shortest way counts
ROUNDS: Final = 4
AFTER_S: Final = 0.02  # until the followers have applied it too


@dataclass
class Way:
    """Files of this package, of all nodes; calls of its functions and the core's, on the leader."""

    files: set[str] = field(default_factory=set)
    calls: int = 0


class _Counting:
    def __init__(self, scene: Scene, leader: str) -> None:
        self._world, self._nodes, self._leader = scene.world, scene.cluster.nodes, leader
        self._timer: FrameType | None = None
        self.way = Way()

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if self._timer is not None:
            if event == "return" and frame is self._timer:
                self._timer = None
            return
        if event != "call":
            return
        if code is asyncio.Handle._run.__code__:
            if type(frame.f_locals["self"]) is asyncio.TimerHandle:
                self._timer = frame
            return
        running, file = self._world.running, code.co_filename
        if running is not None and running.name in self._nodes and ("/kvnode/" in file or "/pysyncobj/" in file):
            self.way.calls += running.name == self._leader
            if "/kvnode/" in file:
                self.way.files.add(file.rpartition("/kvnode/")[2])

    def __enter__(self) -> _Counting:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def lone(seed: int = 1) -> Way:
    """Of a PUT that is alone on its way, from its request to the last node that applies it."""
    ways = []
    with scene_of(seed) as scene:
        for number in range(LONE):
            scene.world.pass_s(0.3)
            with _Counting(scene, "n1") as counting:
                scene.finish(scene.work.put(scene.clients["n1"], f"k{number}"))
                scene.world.pass_s(AFTER_S)
            ways.append(counting.way)
    return min(ways[1:], key=lambda way: way.calls)  # whatever is done once is done in the first


def crowded(seed: int = 1, *, together: bool = False) -> float:
    """Calls on the leader for each PUT, of so many clients at once, each of which waits for its answers. `together`: of
    so many tasks of one client, whose calls travel together.
    """
    with scene_of(seed) as scene:
        client = scene.clients["n1"]

        async def each(number: int, rounds: int) -> None:
            for _ in range(rounds):
                if together:
                    await client.put(f"k{number}", b"v")
                else:
                    await client._calls.call("PUT", f"/v1/kv/k{number}", BINARY | once(None), b"v")

        async def all_of_them(rounds: int) -> None:
            await asyncio.gather(*(each(number, rounds) for number in range(CLIENTS)))

        scene.finish(all_of_them(1), 60.0)
        with _Counting(scene, "n1") as counting:
            scene.finish(all_of_them(ROUNDS), 60.0)
    return counting.way.calls / (CLIENTS * ROUNDS)


def main() -> None:
    way = lone()
    print(f"\na lone PUT: {len(way.files)} files on all nodes, {way.calls} calls on the leader")
    print(f"    {' '.join(sorted(way.files))}")
    print(f"at {CLIENTS} clients: {crowded():.0f} calls on the leader for each PUT")
    print(f"at {CLIENTS} tasks of one client: {crowded(together=True):.0f}")


if __name__ == "__main__":
    main()
