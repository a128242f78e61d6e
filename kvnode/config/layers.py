"""One frozen Config for `kvnode serve`, from flags, environment, file and defaults, in this order.

`options.py` has the options. A value that cannot be used is a `StartupError` of one sentence that names the
option, where the value came from, and what to write instead. Nothing here opens a socket or creates a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from kvnode.config import security, values
from kvnode.config.options import Settings
from kvnode.config.security import Security
from kvnode.config.values import HostPort
from kvnode.state.session_keys import keys_of

SESSION_VARIABLE: Final = "KVNODE_SESSION_KEY"
CLUSTER_SIZES: Final = (1, 3, 5, 7)  # an even cluster survives no more failures than the odd one below it

# One lost heartbeat must not be an election: at least three fit into the shortest election timeout.
HEARTBEATS_PER_ELECTION_MIN: Final = 3


@dataclass(frozen=True, slots=True)
class Config:
    """What one node was asked to be. Times in seconds, addresses as (host, port)."""

    node_id: str
    http: HostPort
    raft: HostPort
    peers: Mapping[str, HostPort]
    advertise_http: str
    data_dir: Path
    security: Security
    cluster_id: str | None
    join: tuple[str, ...]
    session_keys: tuple[bytes, ...] = field(repr=False)
    fsync: Literal["always", "interval", "never"]
    leader_probe: bool
    probe_timeout_s: float
    election_timeout_min_s: float
    election_timeout_max_s: float
    heartbeat_s: float
    log_format: Literal["text", "json"]
    log_level: Literal["debug", "info", "warning", "error"]
    log_requests: bool
    otel: bool
    warnings: tuple[str, ...] = ()


def load(flags: Mapping[str, str], environ: Mapping[str, str], file: Path | None = None) -> Config:
    """Builds the Config. `flags` holds only what was given, by option name; raises StartupError."""
    given = Settings(flags, environ, file)
    node_id = given.parse("node-id", values.name)
    http, raft = given.parse("http", values.host_port), given.parse("raft", values.host_port)
    guard = security.load(given, environ, http, raft)
    session = security.secret_of(given, environ, "session-key-file", SESSION_VARIABLE, "session key")
    peers, warnings = _peers(given, node_id, raft)
    election_min_s, election_max_s, heartbeat_s = _timing(given)
    return Config(
        node_id=node_id,
        http=http,
        raft=raft,
        peers=MappingProxyType(peers),
        advertise_http=_advertise_http(given, http, "https" if guard.tls else "http"),
        data_dir=given.parse("data-dir", values.directory) or Path("kvnode-data") / node_id,
        security=guard,
        cluster_id=given.parse("cluster-id", values.name),
        join=given.parse("join", values.base_urls) or (),
        session_keys=keys_of(session),
        fsync=given.parse("fsync", values.choice, ("always", "interval", "never")),
        leader_probe=given.parse("leader-probe", values.switch),
        # A probe that outlives its balancer's patience is no probe: ten seconds is beyond any check interval in use.
        probe_timeout_s=given.parse("probe-timeout", values.duration, 0.01, 10.0),
        election_timeout_min_s=election_min_s,
        election_timeout_max_s=election_max_s,
        heartbeat_s=heartbeat_s,
        log_format=given.parse("log-format", values.choice, ("text", "json")),
        log_level=given.parse("log-level", values.choice, ("debug", "info", "warning", "error")),
        log_requests=given.parse("log-requests", values.switch),
        otel=given.parse("otel", values.switch),
        warnings=(*warnings, *guard.warnings),
    )


def _peers(given: Settings, node_id: str, raft: HostPort) -> tuple[dict[str, HostPort], tuple[str, ...]]:
    if given.get("join") is not None:
        return _joining(given, node_id, raft), ()
    if given.get("advertise-raft") is not None:
        raise given.refused("advertise-raft", "only a node that joins says this; --peers names each member's address")
    if given.get("peers") is None:
        if values.is_any_address(raft[0]):
            raise given.refused(
                "raft", f"others cannot dial this address; name this node's own in --peers {node_id}=HOST:{raft[1]},…"
            )
        return {node_id: raft}, ()
    peers: dict[str, HostPort] = given.parse("peers", values.peers)
    if node_id not in peers:
        raise given.refused(
            "peers", f"this node, {node_id}, is not in the list; add {node_id}=HOST:PORT or set --node-id"
        )
    if len(peers) not in CLUSTER_SIZES:
        advice = (
            "an even one survives no more failures than the next smaller odd one" if len(peers) < 7 else "7 at most"
        )
        raise given.refused("peers", f"a cluster has 1, 3, 5 or 7 members ({advice}), this list has {len(peers)}")
    if peers[node_id][1] == raft[1]:
        return peers, ()
    # Right behind a port mapping, wrong nearly everywhere else.
    dialled, listened = values.show_host_port(peers[node_id]), values.show_host_port(raft)
    return peers, (f"Peers dial this node at {dialled}, Raft listens on {listened}: something must forward the port.",)


def _joining(given: Settings, node_id: str, raft: HostPort) -> dict[str, HostPort]:
    """A node that joins names no peers: the cluster names them to it."""
    if given.get("peers") is not None:
        raise given.refused("join", "a node joins a cluster or is one of a first cluster; give --join or --peers")
    if given.get("cluster-id") is not None:
        raise given.refused("join", "the cluster that is joined has an id; leave --cluster-id out")
    if values.is_any_address(raft[0]) and given.get("advertise-raft") is None:
        raise given.refused("raft", f"others cannot dial this address; add --advertise-raft HOST:{raft[1]}")
    return {node_id: given.parse("advertise-raft", values.host_port) or raft}


def _advertise_http(given: Settings, http: HostPort, scheme: str) -> str:
    url: str | None = given.parse("advertise-http", values.base_url)
    if url is not None:
        return url
    if values.is_any_address(http[0]):
        raise given.refused(
            "http",
            f"others cannot reach this address; add --advertise-http {scheme}://NAME:{http[1]} with a name they reach",
        )
    return f"{scheme}://{values.show_host_port(http)}"


def _timing(given: Settings) -> tuple[float, float, float]:
    """Election timeout's shortest and longest, and the heartbeat; in seconds, and in proportion."""
    # 50 ms is about where scheduling jitter looks like a dead leader; a minute without a leader helps no client.
    shortest_s, longest_s = given.parse("election-timeout", values.duration_range, 0.05, 60.0)
    heartbeat_s = given.parse("heartbeat", values.duration, 0.01, 20.0)
    if heartbeat_s * HEARTBEATS_PER_ELECTION_MIN >= shortest_s:
        limit = f"{shortest_s * 1000 / HEARTBEATS_PER_ELECTION_MIN:g}ms"
        raise given.refused(
            "heartbeat", f"three heartbeats must fit into the shortest election timeout; write one below {limit}"
        )
    return shortest_s, longest_s, heartbeat_s
