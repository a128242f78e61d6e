"""`make chaos`: real nodes under load, real faults, and the question whether anything was lost.

    python -m tests.chaos.run --seconds 180 --seed 7

Prints the verdict and its figures; on a finding it keeps the history and the nodes' logs, says where, and exits with 1.
As root the nodes are in network namespaces of their own, so that links can be cut and members added, and some of them
are on file systems of their own, so that disks can be full and can hang. Otherwise they are on loopback and dial each
other through relays (`--links relays`), which cut, slow down and break by halves; the verdict says what was left out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.chaos import checker
from tests.chaos.batches import Batches
from tests.chaos.chronicle import Chronicle
from tests.chaos.clients import Load
from tests.chaos.disk import HangingDisk, SmallDisk, private_mounts
from tests.chaos.history import Recorder
from tests.chaos.leases import Leaseholders, broken_ids, broken_leases, broken_tokens
from tests.chaos.ledger import record
from tests.chaos.members import Changes
from tests.chaos.nemesis import Nemesis
from tests.chaos.network import Impossible, Links, Network, NetworkedCluster, Relays
from tests.chaos.prober import Prober, broken_claims, broken_promises
from tests.chaos.report import Report, gaps, returns_s
from tests.chaos.restores import Restores, agreed_content
from tests.chaos.watches import Follower, Mover, Watched, broken_watches
from tests.cluster import Cluster, free_ports
from tests.relays import Link, RelayedCluster

RECOVERY_DEADLINE_S = 60.0
WATCHES_DEADLINE_S = 60.0
LEASEHOLDERS, CONTENDERS = 4, 4
WATCHED = "key/"  # what the watch of some keys is of
SECRET = "a secret for the nodes of one run"


@dataclass(frozen=True)
class Options:
    """`pace` below 1 packs more and shorter faults into the same time. `folder` is where everything is kept."""

    folder: Path
    seed: int
    seconds: float = 180.0
    clients: int = 8
    keys: int = 6
    pause_s: float = 0.02
    writers: int = 4
    batch_writes_per_s: float = 3_000.0
    ballast_bytes_per_s: float = 4_000_000.0  # the log is compacted every 15 s or so
    pace: float = 1.0
    nodes: int = 3
    links: str = "namespaces"  # or "relays", or "none"
    disks: bool = True
    restores: int = 0  # of what was before, between as many and one times of faults
    consistency: str = "linearizable"
    faults: tuple[str, ...] = ()


def run(options: Options) -> Report:
    """One run, from nothing to the verdict; whatever happens, no process, namespace or mount is left behind."""
    with ExitStack() as stack:
        report = Report(options.seed, "")
        names = [f"n{number}" for number in range(1, options.nodes + 1)]
        cluster, links, changes = _cluster(options, names, stack, report)
        full, hanging = _disks(options, names, stack, report)
        for name, disk in (full | hanging).items():
            cluster.nodes[name].data_dir = disk.folder / "data"
        stack.enter_context(cluster).start(30.0)
        for disk in hanging.values():
            stack.callback(disk.thaw)  # before the processes are killed: in the kernel no signal reaches them
        detours = [
            Link(port, node.http) for port, node in zip(free_ports(len(names)), cluster.nodes.values(), strict=True)
        ]
        for link in detours:
            stack.callback(link.close)
        nemesis = Nemesis(cluster, options.seed, links, full, hanging, changes, detours, options.pace, options.faults)
        clients = _clients(options, cluster, detours)
        asyncio.run(_drive(options, cluster, clients, nemesis, changes, report))
        for name in cluster.nodes:
            report.snapshots["written"] += cluster.log(name).count(" Snapshot at index ")
            report.snapshots["installed from a leader"] += cluster.log(name).count("Installed the snapshot")
    (options.folder / "report.txt").write_text(report.details())
    return report


def _cluster(
    options: Options, names: list[str], stack: ExitStack, report: Report
) -> tuple[Cluster, Links | None, Changes | None]:
    """The cluster, not started yet, and what can be done to its links and its members."""
    size, where = len(names), f"{len(names)} nodes on loopback"
    if options.links == "namespaces":
        spare = f"n{size + 1}"
        try:
            network = stack.enter_context(Network([*names, spare]))
        except Impossible as why:
            report.notes.append(f"links were relays, and members stayed: {why}")
        else:
            report.where = f"{size} nodes, each in a network namespace of its own"
            cluster = NetworkedCluster(options.folder, size, network=network)
            return cluster, network, Changes(cluster, spare)
    if options.links == "none":
        report.where = where
        report.notes.append("no link was cut, and members stayed: --links none")
        return Cluster(options.folder, size, env={"KVNODE_CLUSTER_SECRET": SECRET}), None, None
    report.where = f"{where}, with relays between them"
    relayed = RelayedCluster(options.folder, size, env={"KVNODE_CLUSTER_SECRET": SECRET})
    return relayed, Relays(relayed), None


def _disks(
    options: Options, names: list[str], stack: ExitStack, report: Report
) -> tuple[dict[str, SmallDisk], dict[str, HangingDisk]]:
    """Two disks that can be full, and for less than half of the nodes one that can hang."""
    full: dict[str, SmallDisk] = {}
    hanging: dict[str, HangingDisk] = {}
    if not options.disks:
        report.notes.append("no disk was full, and none hung: --no-disks")
        return full, hanging
    try:
        for name in names[:2]:
            full[name] = SmallDisk(options.folder / f"disk-{name}")
            stack.callback(full[name].close)
        for name in names[2 : 2 + len(names) // 2]:
            hanging[name] = HangingDisk(options.folder / f"disk-{name}")
            stack.callback(hanging[name].close)
    except OSError as why:
        report.notes.append(f"not every disk could be full or hang: {why}")
    return full, hanging


# --- the run ------------------------------------------------------------------------------------------------------


@dataclass
class Clients:
    """Everybody who asks something of the cluster, and what they were told."""

    recorder: Recorder
    chronicle: Chronicle
    load: Load
    batches: Batches
    holders: Leaseholders
    prober: Prober
    complete: list[Watched]
    partial: list[Watched]
    movers: list[Mover]
    follower: Follower

    def tasks(self, options: Options, nodes: list[str]) -> Iterator[Coroutine[Any, Any, None]]:
        """Those who are at work while there are faults."""
        for number in range(options.clients):
            yield self.load.client(number, nodes[number % len(nodes)])
        for number, node in enumerate(nodes):
            yield self.prober.watch(node)
            yield self.prober.believe(node)
            if options.ballast_bytes_per_s > 0:
                yield self.load.ballast(number, node, options.ballast_bytes_per_s / len(nodes))
        for number in range(options.writers if options.batch_writes_per_s > 0 else 0):
            yield self.batches.write(number)
        for number in range(LEASEHOLDERS):
            yield self.holders.lease(number)
        for number in range(CONTENDERS):
            yield self.holders.contend(f"lock{number // 2}", detour=number % 2 == 0)

    def stop(self, stopping: bool = True) -> None:
        for each in (self.load, self.batches, self.holders, self.prober):
            each.stopping = stopping  # type: ignore[attr-defined]

    def told(self, revision: int) -> bool:
        """Every watch was told all that there is."""
        ends = [watch.revisions[WATCHED][-1:] for watch in (self.complete[0], *self.partial)]
        return all(watch.at >= revision for watch in self.complete) and all(end == ends[0] for end in ends)


def _clients(options: Options, cluster: Cluster, detours: Sequence[Link]) -> Clients:
    seed = options.seed
    recorder, chronicle = Recorder(options.folder / "history.jsonl"), Chronicle()
    complete = [Watched(name, "", chronicle) for name in ("moved", "followed")]
    partial = [Watched("moved, of some keys", WATCHED, chronicle)]
    for watched in (complete[0], *partial):
        watched.revisions[WATCHED] = []
    return Clients(
        recorder,
        chronicle,
        Load(cluster, recorder, chronicle, options.keys, seed, options.pause_s, options.consistency),
        Batches(cluster, chronicle, options.writers, options.batch_writes_per_s, seed),
        Leaseholders(cluster, detours, seed),
        Prober(cluster, chronicle),
        complete,
        partial,
        [Mover(cluster, watched, seed) for watched in (complete[0], *partial)],
        Follower(cluster, complete[1]),
    )


async def _drive(
    options: Options, cluster: Cluster, clients: Clients, nemesis: Nemesis, changes: Changes | None, report: Report
) -> None:
    """Load and faults together, then quiet and the last word of every node; a restore, and again; then judgement."""
    restores = Restores(cluster, changes, clients.chronicle, options.folder, clients.holders.ids)
    report.diary = nemesis.diary
    spans: list[tuple[float, float]] = []
    async with asyncio.TaskGroup() as watching:
        watches = [watching.create_task(mover.run()) for mover in clients.movers]
        watches.append(watching.create_task(clients.follower.run()))
        try:
            for part in range(options.restores + 1):
                if part:
                    await restores.restore()
                    clients.prober.era = restores.clusters
                spans.append(await _part(options, cluster, nemesis, clients, report))
                await _last_words(cluster, clients, report)
        except (AssertionError, OSError, HTTPException) as finding:
            report.findings.append(str(finding))
        for task in watches:
            task.cancel()
    try:
        codes = await asyncio.to_thread(cluster.stop)
        assert set(codes.values()) == {0}, f"exit codes on SIGTERM: {codes}"
    except AssertionError as finding:
        report.findings.append(str(finding))
    report.operations = clients.recorder.close()
    report.keys = len(clients.load.keys)
    for began, ended in spans:
        report.load_s += ended - began
        report.gaps += gaps(report.operations, report.diary, began, ended)
    report.gaps.sort(key=lambda gap: -gap.length_s)
    report.returns_s = returns_s(report.operations, report.diary)
    report.restores = restores.done
    leaps = restores.leaps + (changes.leaps if changes is not None else [])
    _judge(clients, leaps, report)


async def _part(
    options: Options, cluster: Cluster, nemesis: Nemesis, clients: Clients, report: Report
) -> tuple[float, float]:
    """One time of load and faults: when it began and when it ended."""
    began = time.monotonic()
    clients.stop(False)
    async with asyncio.TaskGroup() as tasks:
        for each in clients.tasks(options, list(cluster.nodes)):
            tasks.create_task(each)
        try:
            await _faults(options, nemesis, cluster, report)
        finally:
            clients.stop()
            ended = time.monotonic()
    return began, ended


async def _last_words(cluster: Cluster, clients: Clients, report: Report) -> None:
    """What every node has in the end; AssertionError where they do not agree, or do not answer."""
    for number, node in enumerate(cluster.first):
        await clients.load.read_everything(node, 1_000 + number)
    content = await asyncio.to_thread(agreed_content, cluster)
    report.revision = content.revision
    for key, tally in clients.batches.tallies.items():
        value, version = content.items.get(key, (None, 0))
        tally.found(value, version, "the store")
    deadline = time.monotonic() + WATCHES_DEADLINE_S
    while not clients.told(report.revision) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def _faults(options: Options, nemesis: Nemesis, cluster: Cluster, report: Report) -> None:
    """Faults for as long as was asked, and then the time that the cluster takes to be well again."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(options.seconds / (options.restores + 1), nemesis.stop)
    try:
        await asyncio.to_thread(nemesis.run)
        undone = time.monotonic()
        await asyncio.to_thread(cluster.wait_ready, RECOVERY_DEADLINE_S)
        report.recovered_s = time.monotonic() - undone
    except (AssertionError, Impossible, OSError) as finding:
        report.findings.append(str(finding))
    finally:
        timer.cancel()
        nemesis.stop()


def _judge(clients: Clients, leaps: list[tuple[int, int]], report: Report) -> None:
    began = time.monotonic()
    load, batches, holders, prober = clients.load, clients.batches, clients.holders, clients.prober
    chronicle = clients.chronicle
    for verdict in checker.check(report.operations):
        report.findings.append(f"{verdict.result}: {verdict.explanation}")
    complaints = [*load.complaints, *holders.complaints]
    report.findings += [f"an answer that no node may give: {complaint}" for complaint in complaints]
    report.findings += batches.findings()
    report.findings += broken_claims(prober.claims)
    report.findings += broken_promises(prober.writes, prober.claims, report.diary)
    report.findings += broken_leases(holders.leases, prober.claims)
    report.findings += broken_tokens(holders.holdings)
    report.findings += broken_ids(holders.ids)
    report.findings += broken_watches(clients.complete, clients.partial, leaps, report.revision)
    unseen = [(gap.first, gap.last) for watch in clients.complete[:1] for gap in watch.gaps]
    report.findings += chronicle.conclude(unseen)
    report.checked_s = time.monotonic() - began
    report.probes, report.claims = prober.asked, len(prober.claims)
    report.probe_writes = Counter(write.outcome for write in prober.writes)
    report.terms = len({claim.term for claim in prober.claims})
    report.acknowledged = chronicle.acknowledgements + holders.acknowledged
    report.batch_writes = batches.acknowledged
    report.leases, report.holdings = len(holders.leases), len(holders.holdings)
    report.watches = {
        watch.name: (watch.told, watch.moves, len(watch.gaps)) for watch in clients.complete + clients.partial
    }


# --- the command --------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="how long faults are made (default 180)")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000, help="of the choices (default: any)")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--keys", type=int, default=6, help="keys that are fought over at a time (default 6)")
    parser.add_argument("--batch-writes-per-s", type=float, default=3_000.0, help="asked for, in batches of 400")
    parser.add_argument("--pace", type=float, default=1.0, help="stretches every pause and every fault")
    parser.add_argument("--faults", type=lambda text: tuple(text.split(",")), default=(), help="kinds, with commas")
    parser.add_argument("--nodes", type=int, default=3, choices=(3, 5, 7))
    parser.add_argument("--links", default="namespaces", choices=("namespaces", "relays", "none"))
    parser.add_argument(
        "--restores", type=int, default=3, help="of what was before, between times of faults (default 3)"
    )
    parser.add_argument("--no-disks", dest="disks", action="store_false", help="no disks that are full or hang")
    parser.add_argument(
        "--consistency", default="linearizable", choices=("linearizable", "stale"), help="stale: see it find something"
    )
    parser.add_argument("--keep", action="store_true", help="keep the history and the logs whatever the verdict")
    parser.add_argument(
        "--no-page", dest="page", action="store_false", help="leave docs/CHAOS.md and docs/chaos-runs.jsonl alone"
    )
    words = sys.argv[1:] if arguments is None else arguments
    given = vars(parser.parse_args(words))
    keep, page = given.pop("keep"), given.pop("page")
    load_before = os.getloadavg()[0]
    private_mounts()
    folder = Path(tempfile.mkdtemp(prefix="kvnode-chaos-"))
    # A SIGTERM unwinds as Ctrl-C does: nothing may be left behind.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    print(f"chaos: seed {given['seed']}, {given['seconds']:g} s; Ctrl-C stops it", flush=True)
    try:
        report = run(Options(folder=folder, **given))
    except KeyboardInterrupt:
        print(f"stopped before there was a verdict; what there is of the history is in {folder}", file=sys.stderr)
        return 130
    print(report)
    if page:
        seeded = [*words, *([] if "--seed" in words else ["--seed", str(report.seed)])]
        record(report, f"make chaos CHAOS_ARGS='{' '.join(seeded)}'", load_before)
    if report.findings or keep:
        print(f"history, logs and a report of every fault are kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
