"""`kvnode bench`: what a cluster does under load, measured from where its clients are."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click
import uvloop

from kvnode.cli.access import access
from kvnode.cli.calls import Finite, complain, finish, output_option, print_json, url_option, urls_in
from kvnode.cli.command import Command
from kvnode.cli.keys import shown
from kvnode.config.values import Malformed, duration
from kvnode.tools.bench import bounds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from kvnode.tools.bench.load import Load, Plan
    from kvnode.tools.bench.run import Audience, Report, Run
    from kvnode.tools.bench.workload import Name, Workload

INTERRUPTED: Final = 130
BUSY_SHARE: Final = 0.9  # of a processor, from which on the generator measures itself
DURATION_S: Final = 10.0
WORKLOADS: Final = ("put", "get", "mixed", "probe", "batch")
SHOWN: Final = ("p50", "p90", "p99", "p99.9", "max")


def _duration(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else duration(text, bounds.DURATION_S_MIN, bounds.DURATION_S_MAX)
    except Malformed as problem:
        raise click.BadParameter(str(problem)) from None


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("name", metavar="[put|get|mixed|probe|batch]", type=click.Choice(WORKLOADS), default="put")
@click.option("-c", "--clients", metavar="N", type=click.IntRange(1, bounds.CLIENTS_MAX), default=64, help="At once.")
@click.option("--duration", "duration_s", metavar="TIME", callback=_duration, help="Such as 30s or 2m.  [default: 10s]")
@click.option("-n", "--requests", metavar="N", type=click.IntRange(1, bounds.REQUESTS_MAX), help="End after so many.")
@click.option("--rate", metavar="N", type=Finite(0.1, bounds.RATE_MAX), help="Requests a second, at most.")
@click.option(
    "--value-size",
    "value_bytes",
    metavar="BYTES",
    type=click.IntRange(0, bounds.VALUE_BYTES_MAX),
    default=100,
    help="Of each value; random bytes.",
)
@click.option(
    "--keys",
    metavar="N",
    type=click.IntRange(1, bounds.KEYS_MAX),
    default=10_000,
    help="Each request takes any of so many.",
)
@click.option(
    "--consistency", type=click.Choice(["linearizable", "stale"]), default="linearizable", help="Of get and mixed."
)
@click.option(
    "--reads", "reads_percent", metavar="PERCENT", type=click.IntRange(0, 100), default=80, help="How much of mixed."
)
@click.option(
    "--batch-size",
    metavar="N",
    type=click.IntRange(1, bounds.BATCH_SIZE_MAX),
    default=100,
    help="Writes in each batch.",
)
@click.option("--leader", "leader_only", is_flag=True, help="Only where the leader is; probe always goes there.")
@click.option("--prefix", metavar="TEXT", default="kvnode-bench/", help="Of the keys; each run adds a name of its own.")
@click.option("--keep", is_flag=True, help="Leave the keys there.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=Finite(0.1, 600),
    default=10.0,
    help="For one request.",
)
@output_option
@url_option
def bench(
    name: Name,
    output: str,
    url: str,
    clients: int,
    duration_s: float | None,
    requests: int | None,
    rate: float | None,
    timeout_s: float,
    leader_only: bool,
    prefix: str,
    keep: bool,
    consistency: str,
    **sizes: int,
) -> int:
    """Put load on the cluster and measure it: put, get, mixed, probe or batch.

    Clients are spread evenly over the URLs; each has one request at a time, and rests for 0.1 s after one that failed.
    It ends after --duration, or after --requests, which have an hour where no duration is given. Latencies are those
    of what succeeded; with --rate they count from when the request was due.

    It writes to the cluster that it is pointed at: keys that nobody else has, deleted afterwards. Ctrl-C ends it early,
    with what was measured so far; a second Ctrl-C leaves the keys. Exit codes: 0 no request failed, 1 some did.

    The load comes from one Python process, good for some 20,000 to 40,000 requests a second on a core of its own. It
    says so where it was the limit itself: run several then, best on other machines.
    """
    from kvnode.tools.bench.load import Plan  # aiohttp, not worth loading to print --help
    from kvnode.tools.bench.run import Run
    from kvnode.tools.bench.workload import Workload

    if duration_s is None:
        duration_s = DURATION_S if requests is None else bounds.DURATION_S_MAX
    root = f"{prefix}{secrets.token_hex(4)}/"
    workload = Workload(name, root, stale=consistency == "stale", **sizes)
    _check(workload)
    plan = Plan(clients, duration_s, requests, rate, timeout_s)
    urls, shown = urls_in(url), access()

    async def measure() -> Report:
        with _audience(plan) as audience:
            run = Run(workload, plan, audience)
            with _stopped_by_signals(run):
                return await run.go(urls, shown, leader_only or name == "probe", keep)

    try:
        report = finish(measure(), uvloop.new_event_loop)
    except asyncio.CancelledError:  # before there was anything to measure
        return INTERRUPTED
    if output == "json":
        print_json(report.as_json())
    else:
        _print(report)
    _remark(report)
    if report.tally.failed or report.left:
        return 1
    return INTERRUPTED if report.interrupted else 0


def _check(workload: Workload) -> None:
    try:
        too_long = len(workload.root.encode()) > bounds.ROOT_BYTES_MAX
    except UnicodeEncodeError:
        raise click.UsageError("--prefix is not UTF-8 text") from None
    if too_long:
        raise click.UsageError("--prefix is over 1,000 bytes")
    if workload.keys * workload.value_bytes > bounds.STORED_BYTES_MAX:
        raise click.UsageError("--keys times --value-size is over 1 GiB, all of which every node holds in memory")
    if workload.name == "batch" and workload.batch_body_bytes > bounds.BATCH_BYTES_MAX:
        raise click.UsageError("a batch is over 8 MiB; lower --batch-size or --value-size")


@contextmanager
def _stopped_by_signals(run: Run) -> Iterator[None]:
    """The first one ends the load, the second one everything."""
    loop, task, seen = asyncio.get_running_loop(), asyncio.current_task(), []

    def signalled() -> None:
        seen.append(True)
        if len(seen) == 1:
            run.stop()
        elif task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


# --- what is printed --------------------------------------------------------------------------------


def _print(report: Report) -> None:
    workload, plan = report.workload, report.plan
    said = [workload.name, f"{plan.clients} client{'' if plan.clients == 1 else 's'}"]
    if workload.has_keys:
        said += [f"{workload.keys:,} keys", f"{workload.value_bytes:,}-byte values"]
    if workload.name == "batch":
        said.append(f"{workload.batch_size} in each batch")
    if workload.reads_keys:
        said.append("stale reads" if workload.stale else "linearizable reads")
    print(f"{', '.join(said)}, {report.elapsed_s:.1f} s{', interrupted' if report.interrupted else ''}")
    names = ("", "requests/s", "requests", "failed", *(f"{name} ms" for name in SHOWN))
    print(" ".join(f"{name:>10}" for name in names).rstrip())
    for kind, outcomes in report.tally.by_kind.items():
        found = outcomes.as_json(report.elapsed_s)
        latency = (f"{found['latency_ms'][name]:.2f}" if found["latency_ms"] else "-" for name in SHOWN)
        cells = (kind, f"{found['requests_per_s']:,.0f}", f"{found['requests']:,}", f"{found['failed']:,}", *latency)
        print(" ".join(f"{cell:>10}" for cell in cells))
    if workload.name == "batch":
        print(f"{report.writes_per_s:,.0f} writes/s")
    for code, count in report.tally.total().errors.most_common():
        print(f"failed: {shown(code)} {count:,}")
    if report.kept:
        print(f"kept: the keys that begin with {shown(workload.root)}")


def _remark(report: Report) -> None:
    if report.left is not None:
        complain(report.left)
    if report.busy_share > BUSY_SHARE:
        complain(
            f"The load generator used {report.busy_share:.0%} of a processor, so the cluster may do more: run several "
            "at once, best on other machines."
        )


class _Silent:
    """Satisfies run.Audience."""

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        return lambda more: None

    def load(self, load: Load) -> None:
        pass


class _Bar:
    """Satisfies run.Audience: one line on stderr, redrawn when there is news; a thread of its own would cost load."""

    def __init__(self, bar: Progress, plan: Plan) -> None:
        self._bar = bar
        self._plan = plan
        self._task: TaskID | None = None
        self._seen = (0.0, 0)

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        task = self._next(name, total)

        def step(more: int) -> None:
            self._bar.update(task, advance=more)
            self._bar.refresh()

        return step

    def load(self, load: Load) -> None:
        requests = load.tally.succeeded + load.tally.failed
        if self._task is None or not self._bar.tasks[-1].fields["measuring"]:
            self._next("measuring", 1, measuring=True)
        assert self._task is not None
        elapsed_s, before = self._seen
        rate = (requests - before) / max(load.elapsed_s - elapsed_s, 1e-9)
        self._seen = (load.elapsed_s, requests)
        latencies = load.tally.total().latencies
        now = f"{rate:,.0f}/s  p50 {latencies.percentile_ms(0.5):.1f} ms  p99 {latencies.percentile_ms(0.99):.1f} ms"
        if load.tally.failed:
            now += f"  {load.tally.failed:,} failed"
        done = max(load.elapsed_s / self._plan.duration_s, requests / (self._plan.requests or float("inf")))
        self._bar.update(self._task, completed=min(done, 1.0), now=now)
        self._bar.refresh()

    def _next(self, name: str, total: int, measuring: bool = False) -> TaskID:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=total, now="", measuring=measuring)
        return self._task


@contextmanager
def _audience(plan: Plan) -> Iterator[Audience]:
    """On stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        yield _Bar(bar, plan)
