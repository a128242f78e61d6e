"""What a Raft group needs to be told before it starts; and why each figure is what it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvnode.host import Host
from kvnode.net.tls import MutualCertificate
from kvnode.state.commands import FEATURE_LEVEL
from kvnode.storage.disk import Directory, Disk
from kvnode.storage.flusher import Fsync
from kvnode.storage.identity import Invitation

HostPort = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RaftSettings:
    """Handed to `RaftGroup`; times in seconds, addresses as (host, port).

    `peers` names every member of the first cluster, this node included, with its Raft address.
    `join`: instead of `peers`, gets the invitation of the cluster to join; called at the first start alone.
    `certificate` None: peers speak without TLS.
    `cluster_id` None: derived from `peers`, which all members are first started with alike.

    `peers_0_1`: talk to nodes of kvnode 0.1 as well, whose frames nothing protects: for a rolling upgrade from there.
    `feature_level`: the highest that this node says it knows (`feature_level.py`); lower only in the simulation.
    `host`, `disk`: the machine, and how `data_dir` is opened on it. Raises StartupError.
    `session_keys`: those that this node was given, the newest first; none: the cluster makes its own.

    Election timeout: drawn anew from [min, max) each time. The minimum is several heartbeats, so that one
    lost heartbeat is no election; the spread is wide against a round trip, so that two candidates rarely
    collide (Raft §9.3). A leader that hears no majority for the maximum steps down.
    """

    node_id: str
    listen: HostPort
    peers: Mapping[str, HostPort]
    http_url: str
    data_dir: Path
    secret: bytes = b""
    cluster_id: str | None = None
    fsync: Fsync = "always"
    election_timeout_min_s: float = 0.6
    election_timeout_max_s: float = 1.2
    heartbeat_s: float = 0.1
    session_keys: tuple[bytes, ...] = ()
    join: Callable[[], Awaitable[Invitation]] | None = None
    certificate: MutualCertificate | None = None
    peers_0_1: bool = False
    feature_level: int = FEATURE_LEVEL
    host: Host = field(default_factory=Host)
    disk: Callable[[Path], Disk] = Directory
