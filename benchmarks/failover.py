"""How long writes stop when the leader dies, freezes or hands over, and when everything dies: kvnode beside etcd.

`make bench-failover`, or `python -m benchmarks.failover [--rounds 10] [--only kvnode]`. The two take turns, a fresh
cluster of three each time, and the other one is not running meanwhile. Writes docs/FAILOVER.md.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.contenders import NO_ETCD, Contender, Etcd, Kvnode
from benchmarks.writer import Attempt, Writer
from tests.cluster import wait_until

RETRY_S: Final = 0.3
FAULT_DEADLINE_S: Final = 40.0
RECOVERY_WRITERS: Final = 12
RECOVERY_LOAD_S: Final = 3.0


@dataclass
class Figures:
    """One contender's, over all rounds. Times in seconds, by what was measured."""

    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    waiting: dict[str, list[Attempt]] = field(default_factory=lambda: defaultdict(list))
    acknowledged: int = 0
    lost: int = 0


def one_round(contender: Contender, figures: Figures) -> None:
    contender.start()
    leader = contender.leader()
    _outage(contender, figures, "kill", leader, lambda: contender.kill(leader))
    contender.start()

    leader = contender.leader()
    _outage(contender, figures, "freeze", leader, lambda: contender.freeze(leader))
    contender.thaw(leader)
    contender.start()

    _transfer(contender, figures)
    _recovery(contender, figures)


def _outage(contender: Contender, figures: Figures, fault: str, leader: str, strike: Callable[[], None]) -> None:
    """The leader is struck while two clients write on one follower: a patient one, and one that gives up soon."""
    follower = random.choice([node for node in contender.ids if node != leader])
    patient, hasty = writers = _start_writers(contender, [follower, follower], [15.0, RETRY_S])
    struck_at = time.monotonic()
    strike()
    _await_writes(writers, struck_at)
    for writer, who in ((patient, ""), (hasty, " hasty")):
        gap = writer.gap(struck_at)
        figures.times[fault + who].append(gap[1] - struck_at)
        figures.waiting[fault + who].append(writer.first_in(gap))


def _transfer(contender: Contender, figures: Figures) -> None:
    """From the leader to another node, while a client writes on the third: it stays on a follower throughout."""
    leader = contender.leader()
    to, follower = random.sample([node for node in contender.ids if node != leader], 2)
    (writer,) = writers = _start_writers(contender, [follower], [15.0])
    began_at = time.monotonic()
    contender.transfer(to)
    ended_at = time.monotonic()
    _await_writes(writers, ended_at)
    before, after = writer.gap(began_at)
    figures.times["transfer"].append(after - before)
    figures.times["transfer call"].append(ended_at - began_at)
    figures.waiting["transfer"].append(writer.first_in((before, after)))


def _recovery(contender: Contender, figures: Figures) -> None:
    """Every node killed under load and started again; every acknowledged write is looked for."""
    nodes = [contender.ids[i % len(contender.ids)] for i in range(RECOVERY_WRITERS)]
    writers = _start_writers(contender, nodes, [2.0] * RECOVERY_WRITERS)
    time.sleep(RECOVERY_LOAD_S)
    for node in contender.ids:
        contender.kill(node)
    for writer in writers:
        writer.end()
    began_at = time.monotonic()
    contender.start()
    figures.times["recovery"].append(time.monotonic() - began_at)
    acknowledged = {each.key for writer in writers for each in writer.acknowledged()}
    figures.acknowledged += len(acknowledged)
    figures.lost += len(acknowledged - contender.keys())


def _start_writers(contender: Contender, nodes: Sequence[str], timeouts_s: Sequence[float]) -> list[Writer]:
    """Writers that have begun to be acknowledged; returns at a random moment between two heartbeats."""
    writers = []
    for number, (node, timeout_s) in enumerate(zip(nodes, timeouts_s, strict=True)):
        name = f"{time.monotonic_ns()}-{number}"
        writers.append(Writer(name, contender.address(node), contender.put, timeout_s))
        writers[-1].start()
    wait_until(lambda: all(len(each.acknowledged()) >= 20 for each in writers), FAULT_DEADLINE_S, "the first writes")
    time.sleep(random.uniform(0.5, 1.0))
    return writers


def _await_writes(writers: Sequence[Writer], since: float) -> None:
    """Until every client is served again; a little longer, in case that was not the end of it."""
    wait_until(lambda: all(each.has_resumed(since) for each in writers), FAULT_DEADLINE_S, "writes after a fault")
    time.sleep(0.5)
    for writer in writers:
        writer.end()


# --- what is shown ------------------------------------------------------------------------------------------

ROWS: Final = (
    ("kill", "s", "`kill -9` of the leader, to the next acknowledged write on a follower"),
    ("kill hasty", "s", f"… for a client that gives up after {RETRY_S:g} s and tries again"),
    ("freeze", "s", "`SIGSTOP` of the leader, the same"),
    ("freeze hasty", "s", f"… for a client that gives up after {RETRY_S:g} s and tries again"),
    ("transfer", "ms", "planned transfer: longest time without an acknowledged write on a follower"),
    ("transfer call", "ms", "planned transfer: the call itself"),
    ("recovery", "s", "all three killed with -9 under load: start to every node ready"),
)
FATES: Final = (
    ("kill", "waiting on the follower when the leader was killed"),
    ("freeze", "waiting on the follower when the leader was frozen"),
    ("transfer", "waiting on the follower during a planned transfer"),
)


def page(
    figures: dict[str, Figures], rounds: int, command: str, versions: Sequence[str], load_before: float, notes: str
) -> str:
    names = list(figures)
    head = ["", *(f"{name} {what}" for name in names for what in ("median", "least", "most"))]
    rows = [
        [what, *(cell for name in names for cell in report.spread(figures[name].times[key], unit))]
        for key, unit, what in ROWS
    ]
    fates = [[what, *(_fate(figures[name].waiting[key]) for name in names)] for key, what in FATES]
    kept = [
        ["acknowledged before all were killed", *(f"{figures[name].acknowledged:,}" for name in names)],
        ["of these lost", *(str(figures[name].lost) for name in names)],
    ]
    return f"""# Failover

{report.preamble(command, versions, load_before)}
- rounds: {rounds}, each with fresh clusters of three on loopback, one system at a time, every option at its default
{notes}
{report.table(head, rows)}

The write that was in flight (a client that waits 15 s for its answer), and when it was answered:

{report.table(["the write", *names], fates)}

"unknown" is an answer, or none, that leaves open whether the write was applied; "refused": it was not and never
will be.

{report.table(["recovery", *names], kept)}

Each client is one keep-alive connection to one follower, in a closed loop, values of 100 bytes; etcd is asked through
its JSON gateway. The outage is counted from the signal to the end of the longest gap between two acknowledgements.
"""


def _fate(attempts: Sequence[Attempt]) -> str:
    """Such as `10 of 10 answered (0.21 s)`; the time is the median's."""
    parts = []
    for outcome, word in (("acknowledged", "answered"), ("refused", "refused"), ("unknown", "unknown")):
        times = [each.ended_at - each.began_at for each in attempts if each.outcome == outcome]
        if times:
            parts.append(f"{len(times)} of {len(attempts)} {word} ({report.spread(times)[0]})")
    return ", ".join(parts) or "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=("kvnode", "etcd"))
    parser.add_argument("--etcd", help="another etcd than the installed one: its executable, or the folder with it")
    parser.add_argument("--dry", action="store_true", help="print the page and leave docs/ as it is")
    options = parser.parse_args()
    if options.etcd:
        Etcd.use(options.etcd)
    load_before, version = os.getloadavg()[0], Etcd.version()
    kinds: list[type[Kvnode] | type[Etcd]] = [Kvnode, *([Etcd] if version else [])]
    kinds = [kind for kind in kinds if options.only in (None, kind.name)]
    if version is None:
        print(NO_ETCD, flush=True)
    figures = {kind.name: Figures() for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="kvnode-failover-") as folder:
        for number in range(1, options.rounds + 1):
            for kind in kinds:
                contender = kind(Path(folder) / f"{kind.name}-{number}")
                try:
                    one_round(contender, figures[kind.name])
                finally:
                    contender.close()
                latest = {key: round(times[-1], 3) for key, times in figures[kind.name].times.items()}
                print(f"round {number} {kind.name}: {latest}, load average {os.getloadavg()[0]:.1f}", flush=True)
                for key, attempts in figures[kind.name].waiting.items():
                    if attempts[-1].outcome != "acknowledged" and "hasty" not in key:
                        print(f"    {key}: the write in flight: {attempts[-1]}", flush=True)
    notes = "" if version else f"- {NO_ETCD}\n"
    command = f"make bench-failover{' ETCD=PATH' if options.etcd else ''}"
    text = page(figures, options.rounds, command, [version] if version else [], load_before, notes)
    print(text) if options.dry else report.publish("FAILOVER.md", text)


if __name__ == "__main__":
    main()
