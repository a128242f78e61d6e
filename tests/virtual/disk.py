"""A disk that takes its time: the simulated directory, whose calls wait in virtual time, hang, and end the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.disk import MemoryDisk
from tests.virtual.threads import Gone

if TYPE_CHECKING:
    from tests.virtual.process import Process

CALL_S = (0.000002, 0.0001)
SYNC_S = (0.0002, 0.003)
SYNCS = frozenset(("sync", "sync_directory", "truncate", "settle"))


class Device:
    """A machine's disk, through all processes that use it. `hung_until`: no call ends before."""

    def __init__(self, directory: MemoryDisk) -> None:
        self.directory = directory
        self.hung_until = 0.0
        self.waiting: list[Callable[[], None]] = []
        self.slow = 1.0
        self.crash_at: int | None = None  # how many calls from now on the process ends in the middle of one
        self.crashed: Callable[[], None] = lambda: None

    def hang(self, until: float) -> None:
        self.hung_until = until

    def thaw(self) -> None:
        """It answers again, also what was asked meanwhile."""
        self.hung_until = 0.0
        waiting, self.waiting = self.waiting, []
        for wake in waiting:
            wake()


class Mounted:
    """`Disk` for one process: what its threads ask takes time, and nothing is answered to a process that has ended."""

    def __init__(self, process: Process, device: Device) -> None:
        self._process, self._device = process, device

    def __getattr__(self, name: str) -> Callable[..., object]:
        call = getattr(self._device.directory, name)

        def waiting(*arguments: object) -> object:
            self._wait(name)
            return call(*arguments)

        setattr(self, name, waiting)
        return waiting

    def space(self) -> tuple[int, int]:
        self._wait("space")
        return (0, 1 << 30) if self._device.directory.full else (1 << 29, 1 << 30)

    def where(self, name: str) -> str:
        return f"memory/{name}"

    def close(self) -> None:
        pass

    def _wait(self, kind: str) -> None:
        process, device = self._process, self._device
        world = process.world
        if process.ended:
            raise Gone
        if device.crash_at is not None:
            device.crash_at -= 1
            if device.crash_at <= 0:
                device.crash_at = None
                device.crashed()
                raise Gone
        if process.threads.inside:
            process.threads.sleep(device.slow * world.draw.uniform(*(SYNC_S if kind in SYNCS else CALL_S)))
            while (left_s := device.hung_until - world.now) > 0:
                process.threads.wait(lambda: device.hung_until <= world.now, device.waiting, left_s)
        elif device.hung_until > world.now:
            process.stall(device.hung_until - world.now)  # the loop itself waits for the disk
            device.waiting.append(process.go_on)
