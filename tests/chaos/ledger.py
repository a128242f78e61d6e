"""All runs together: one line for each in docs/chaos-runs.jsonl, and docs/CHAOS.md, which adds them up."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.report import DOCS, preamble, table
from kvnode import __version__
from tests.chaos.report import Report

RUNS = "chaos-runs.jsonl"
PAGE = """# Runs of faults

Real nodes under load, real faults, and the question whether anything was lost, done twice, or said that was not so.

All {runs} runs together, of {minutes:.0f} minutes and {faults} faults: **{writes:,} acknowledged writes**, {lost}.

{table}

Each run is a line of [chaos-runs.jsonl](chaos-runs.jsonl), which `make chaos` adds.

## The latest run

{preamble}

```
{report}
```

## What a run does

Clients put, compare and set, read and delete the same few keys, some of them by transactions on three keys at a time;
some writes carry an idempotency key and are sent again, through other nodes, until they are settled. Others write
batches of hundreds, hold leases, and take turns at locks. Watches go from node to node. After each 200 of a
leader probe a write goes through that node. Meanwhile nodes are killed with -9, frozen and restarted, links are cut in
both directions or in one, slowed down and broken by halves, clients that hold locks are cut off, disks are full or
hang, members are added, removed and replaced, and the whole cluster is killed and recovered from one directory. Between
times of faults the cluster goes back: by a backup that is restored into it, or into a new one, or by a recovery from a
member that was away while others were acknowledged writes.

The verdict:

- What each client asked and was told is linearizable, key by key (Wing and Gong's search), the keys of a transaction as
  one.
- Each acknowledged write was carried out once, one in doubt at most once, a refused one never: by `version` of keys
  with one writer, and by what watches were told.
- Every watch was told every change once, in order, the same as all others; `compacted` only where numbers leapt.
- No lease was over early, or later than three seconds after its time under one leader. No id of a lease is given twice.
- The tokens of each lock rise, and it has one holder at a time. So they do over a recovery and a restore.
- One leader in a term; none is confirmed after a newer one; and no node says for longer than 2.5 s that it leads while
  writes through it fail, unless its link is slow.
- When it went back, the content is what it was then, and revisions and lease ids are above all that were given.
- In the end all nodes hold the same, and end with exit code 0.

"Unavailable" is a time in which no write was acknowledged. A seed repeats the choice of faults, not their timing.
"""


def record(report: Report, command: str, load_before: float, folder: Path = DOCS) -> None:
    """Adds the run to the others, and writes the page anew."""
    path = folder / RUNS
    with path.open("a") as file:
        file.write(json.dumps(_entry(report, command)) + "\n")
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    (folder / "CHAOS.md").write_text(page(runs, str(report), preamble(command, (), load_before)))


def page(runs: list[dict[str, Any]], report: str, facts: str) -> str:
    """The text of docs/CHAOS.md."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["where"], []).append(run)
    kinds: Counter[str] = Counter()
    for run in runs:
        kinds.update(run["faults"])
    bad = sum(_unexplained(run) for run in runs)
    head = ("where", "runs", "minutes", "faults", "operations", "acknowledged writes", "with findings")
    rows = [
        (
            where,
            str(len(those)),
            f"{sum(run['seconds'] for run in those) / 60:.0f}",
            f"{sum(sum(run['faults'].values()) for run in those):,}",
            f"{sum(run['operations'] for run in those):,}",
            f"{sum(run['acknowledged'] for run in those):,}",
            str(sum(_unexplained(run) for run in those)),
        )
        for where, those in groups.items()
    ]
    by_kind = ", ".join(
        f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda each: (-each[1], each[0]))
    )
    explained = [f"Seed {run['seed']}: {run['explained']}" for run in runs if "explained" in run]
    return PAGE.format(
        runs=len(runs),
        minutes=sum(run["seconds"] for run in runs) / 60,
        faults=sum(kinds.values()),
        writes=sum(run["acknowledged"] for run in runs),
        lost="none lost, none done twice" if not bad else f"with findings in {bad} of the runs",
        table="\n\n".join([table(head, rows), f"Faults by kind: {by_kind}.", *explained]),
        preamble=facts,
        report=report,
    )


def _unexplained(run: dict[str, Any]) -> bool:
    """It has findings, and nobody has written into its line, as `explained`, why they were the checker's own fault."""
    return bool(run["findings"]) and "explained" not in run


def _entry(report: Report, command: str) -> dict[str, Any]:
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "version": __version__,
        "command": command,
        "seed": report.seed,
        "where": report.where,
        "seconds": round(report.load_s),
        "operations": len(report.operations) + report.batch_writes,
        "acknowledged": report.acknowledged,
        "faults": dict(Counter(fault.kind for fault in report.diary.faults)),
        "restores": len(report.restores),
        "notes": report.notes,
        "findings": [finding[:300] for finding in report.findings[:20]],
        "verdict": report.verdict,
    }
