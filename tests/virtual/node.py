"""One member: the real `RaftGroup` and HTTP application in a process of its own, on a disk that outlives it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvnode import errors
from kvnode.http.app import create_server
from kvnode.http.budget import Budgets
from kvnode.http.checks import is_ready
from kvnode.http.probes import LeaderProbe
from kvnode.node.group import RaftGroup
from kvnode.node.settings import RaftSettings
from kvnode.node.status import is_leader
from kvnode.state.commands import FEATURE_LEVEL
from tests.simulation.disk import MemoryDisk
from tests.virtual.disk import Device, Mounted
from tests.virtual.process import Process

if TYPE_CHECKING:
    from kvnode.node.engine import Engine
    from tests.virtual.cluster import Cluster

RAFT, HTTP = 7001, 8001
ELECTION_S = (0.6, 1.2)
HEARTBEAT_S = 0.1
PROBE_S = 0.5
DRIFT = 2e-4  # of a clock that nobody disciplines, in seconds for each second
TRANSFER_S = 2.0
SECRET = b"the cluster's own"


class Node:
    """A machine: its disk stays, its process comes and goes. `join`: how it is let into a running cluster."""

    def __init__(self, cluster: Cluster, name: str, peers: Mapping[str, tuple[str, int]], join: Any = None) -> None:
        self.cluster, self.name, self.peers, self.join = cluster, name, peers, join
        self.world = cluster.world
        self.rate = 1.0 + cluster.world.draw.uniform(-DRIFT, DRIFT)
        self.boot_s = cluster.world.draw.uniform(10.0, 1e5)
        self.group: RaftGroup | None = None
        self.new_disk()
        self.removed = False  # somebody has asked for that, and it may be so
        self.process: Process | None = None
        self.starts = 0
        self.refused_to_start = ""
        self.wanted = False  # up, as far as the schedule is concerned
        self.leaving = False  # on its way out, in good order
        self.level = FEATURE_LEVEL  # of its version

    @property
    def url(self) -> str:
        return f"http://{self.name}:{HTTP}"

    @property
    def up(self) -> bool:
        return self.process is not None and not self.process.ended

    @property
    def started(self) -> bool:
        return self.group is not None and self.group._engine is not None

    @property
    def has_forgotten(self) -> bool:
        """It has lost its directory, and no cluster has let it in again: it is right to do nothing."""
        engine = None if self.group is None else self.group._engine
        return engine is not None and (engine.memory.fresh or engine.memory.lost)

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        assert not self.up
        self.starts += 1
        if self.started:
            assert self.group is not None
            self.former = self.group._engine
        self.group = None
        self.wanted, self.leaving, self.refused_to_start = True, False, ""
        self.cluster.network.host_up(self.name)
        self.process = Process(self.world, self.cluster.network, self.name, self.rate, self.boot_s)
        self.device.crashed = self.kill
        self.world.trace("starts", self.name)
        self.process.spawn(self._main(self.process))

    async def _main(self, process: Process) -> None:
        """`server.serve` without its signals and its listeners' sockets."""
        loop = asyncio.get_running_loop()
        settings = RaftSettings(
            node_id=self.name,
            listen=(self.name, RAFT),
            peers=self.peers,
            http_url=self.url,
            data_dir=Path("/nowhere") / self.name,
            secret=SECRET,
            election_timeout_min_s=ELECTION_S[0],
            election_timeout_max_s=ELECTION_S[1],
            heartbeat_s=HEARTBEAT_S,
            join=self.join,
            host=process.host,
            disk=lambda path: Mounted(process, self.device),  # type: ignore[arg-type,return-value]
            feature_level=self.level,
        )
        self.group = group = RaftGroup(settings)
        group.is_ready = is_ready
        self.cluster.judge.attach(self, group)
        server = create_server(
            group,
            node_id=self.name,
            leader_probe=LeaderProbe(group, PROBE_S),
            probe_timeout_s=PROBE_S,
            version="0",
            budgets=Budgets(process.host.clock),
            wall_clock=process.wall_clock,
        )
        await loop.create_server(lambda: server("10.0.0.1"), self.name, HTTP)
        try:
            await group.start()
        except errors.StartupError as error:
            self.refused_to_start = error.message
            process.end(f"could not start: {error.message}")
            return
        assert group._engine is not None
        self.cluster.judge.remembers(self.name, group._engine, self.former)
        group._engine._compaction.bounds = self.cluster.log_bounds
        fatal = await group.fatal
        process.end(f"had to stop: {fatal.message}")

    def new_disk(self) -> None:
        """An empty one."""
        self.former: Engine | None = None  # of the process before this one, on the same disk
        self.group = None
        directory = MemoryDisk()
        directory.draw = random.Random(f"{self.world.seed} disk {self.name} {self.world.number()}")
        self.device = Device(directory)

    def durable_bytes(self) -> dict[str, int]:
        """By file: the bytes that the disk must give back, and that a start finds altered if it does not."""
        group, files = self.group, self.device.directory.files()
        assert group is not None
        assert group._segments is not None
        durable = {name: len(files[name]) for name in files if name.startswith("snapshot-") and name[-5:] != ".part"}
        segments, noted = group._segments._segments, group._segments._noted
        durable |= {segment.name: segment.bytes for segment in segments}
        # Behind that, one turned bit is found as well, but for the edge of a block (`storage/tail.py`).
        durable[segments[-1].name] = max(
            segments[-1].told_bytes, noted.bytes if noted.number == segments[-1].number else 0
        )
        return durable

    def kill(self) -> None:
        """The process ends (SIGKILL); what the kernel has taken is written."""
        if self.up:
            assert self.process is not None
            self.device.directory.kill()
            self.process.end("killed")

    def power_off(self) -> None:
        """The machine ends with all that is not on its disk, and says goodbye to nobody."""
        if self.up:
            assert self.process is not None
            self.device.directory.crash(self.world.draw)
            self.process.end("power lost", silently=True)

    def stop(self) -> None:
        """SIGTERM: as `server` does it, without what balancers need."""
        if self.up and not self.leaving:
            assert self.process is not None
            assert self.group is not None
            self.leaving = True
            self.process.spawn(self._stop(self.process, self.group))

    async def _stop(self, process: Process, group: RaftGroup) -> None:
        group.begin_drain()
        if is_leader(group.status()):
            try:
                async with asyncio.timeout(TRANSFER_S + 0.5):
                    await group.transfer(None, TRANSFER_S)
            except (errors.KvnodeError, TimeoutError):
                pass
        await asyncio.sleep(0.2)
        await group.stop()
        process.end("stopped")
