"""What a node counts about itself: plain numbers, increased where something happens, read when metrics are requested.

On the way of a write nothing here is locked, named or formatted: one addition for a whole group of writes, one `bisect`
for a duration. `kvnode.metrics` turns the numbers into a page. Each histogram has one writer: the event loop, or the
journal's thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvnode.metrics.recent import Figures, Traffic

# From a fast disk's sync to far beyond an election: the same bounds for all, so that they can be laid over each other.
SECONDS: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 5.0)
COMMANDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048)


class Histogram:
    """How often a value was up to each bound; the last of `counts` is for what is over them all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class RaftMeters:
    """Of one node's part in its group, since the process began. Durations in seconds."""

    __slots__ = (
        "applied",
        "apply_errors",
        "batch_commands",
        "commit_s",
        "forwarded",
        "forwarded_here",
        "forwarded_refused",
        "leader_changes",
        "refused",
        "unknown",
    )

    def __init__(self) -> None:
        # Writes of this node's own clients, by their answer: `refused` never happened, `unknown` may have.
        self.applied = self.refused = self.unknown = 0
        self.apply_errors = 0  # commands of any node that the state machine failed at; a fault in this program
        self.batch_commands = Histogram(COMMANDS)  # writes that travel as one group
        self.commit_s = Histogram(SECONDS)  # from when a group leaves this node's queue until it is applied here
        self.forwarded = self.forwarded_here = 0  # groups sent to a leader; groups that followers sent here
        self.forwarded_refused = 0  # groups of this node that the leader did not take
        self.leader_changes = 0  # to a leader that this node had not followed before; its first one counts


class HttpMeters:
    """Of one node's HTTP server, since the process began."""

    __slots__ = (
        "codes",
        "connections",
        "connections_closed",
        "etcd_calls",
        "figures",
        "loop_lag_s",
        "probe_s",
        "probes",
        "traffic",
    )

    def __init__(self) -> None:
        self.codes = [0] * 600  # answers, by status
        self.probes: Counter[tuple[str, str]] = Counter()  # (probe, result)
        self.probe_s = Histogram(SECONDS)  # the leader probe, the only one that waits for others
        self.loop_lag_s = Histogram(SECONDS)
        self.connections = 0  # of clients, at this moment
        self.connections_closed: Counter[str] = Counter()  # by the limits of connections, by reason
        self.etcd_calls: dict[str, int] = {}  # requests of etcd's API that were let in, by call
        self.traffic = Traffic()  # of the last hour
        self.figures = Figures(SECONDS)  # of the last quarter of an hour


@dataclass(frozen=True, slots=True)
class RaftLevels:
    """What stands where at this moment in a node that has started. Sizes in bytes."""

    proposals_waiting: int
    groups_in_flight: int
    journal_entries: int
    journal_bytes: int
    snapshot_index: int
    snapshot_bytes: int
    snapshots_written: int
    snapshots_failed: int
    snapshots_installed: int
    disk_free_bytes: int
    disk_total_bytes: int
    fsync_s: Histogram
    outstanding_s: dict[str, float]  # by kind: how long the oldest has been outstanding
    outcomes: int  # of keyed writes that are remembered
    outcomes_used: float  # what the young ones take of their window, up to 1.0
    differing: frozenset[str]  # members whose data was found to differ from the majority's
