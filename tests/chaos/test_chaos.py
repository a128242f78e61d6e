"""The short chaos run: half a minute. `make chaos` is the long one; KVNODE_CHAOS_SEED gives this one another seed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.chaos import ledger
from tests.chaos.history import load
from tests.chaos.run import Options, run

# What takes its time (snapshots, recoveries) is for long runs.
BRIEF = (
    "kill leader", "kill follower", "freeze leader", "restart", "transfer", "isolate leader", "deafen leader",
    "half-open links", "cut one link", "disk full", "leader's disk hangs", "member added", "member replaced",
    "clients cut off",
)  # fmt: skip


@pytest.mark.timeout(150)
def test_nothing_is_lost_under_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("KVNODE_CHAOS_SEED", "3"))
    options = Options(tmp_path, seed, seconds=14.0, pace=0.3, restores=1, batch_writes_per_s=1_000.0, faults=BRIEF)
    report = run(options)
    with capsys.disabled():
        print(f"\n{report}")  # shown when all is well, too: what could not be broken here is part of the verdict
    assert not report.findings, f"seed {seed}, everything is kept in {tmp_path}\n{report}"
    # A run in which little happened has shown little.
    assert len(report.diary.faults) >= 4
    writes = sum(operation.outcome == "ok" and operation.writes for operation in report.operations)
    assert writes >= 50
    assert report.acknowledged >= 2_000
    assert report.leases >= 3
    assert report.holdings >= 3
    assert all(told > 100 for told, _, _ in report.watches.values())
    assert report.restores
    assert len({operation.node for operation in report.operations if operation.outcome == "ok"}) == 3
    assert report.terms >= 2
    assert load(tmp_path / "history.jsonl") == report.operations
    for _ in range(2):
        ledger.record(report, "make chaos", 0.5, tmp_path)
    text = (tmp_path / "CHAOS.md").read_text()
    assert f"All 2 runs together, of {2 * round(report.load_s) / 60:.0f} minutes" in text  # lines have whole seconds
    assert f"**{2 * report.acknowledged:,} acknowledged writes**, none lost, none done twice" in text
    first, second = (json.loads(line) for line in (tmp_path / ledger.RUNS).read_text().splitlines())
    assert first == second
    bad = {**first, "findings": ["one"]}
    assert "with findings in 1 of the runs" in ledger.page([first, bad], "", "")
    text = ledger.page([first, {**bad, "explained": "the checker was wrong"}], "", "")
    assert "none lost, none done twice" in text
    assert "the checker was wrong" in text


def test_the_run_finds_what_is_wrong(tmp_path: Path) -> None:
    """Reads that claim to be linearizable and are not, on a follower that is cut off: same clients, same checker."""
    # Many clients, because one that writes on the node that is cut off waits there and reads nothing any more.
    what = {"consistency": "stale", "faults": ("isolate follower",)}
    try:
        report = run(Options(tmp_path, 1, seconds=6.0, clients=36, disks=False, batch_writes_per_s=0.0, **what))  # type: ignore[arg-type]
    except ValueError as why:
        pytest.skip(f"links cannot be cut here: {why}")
    assert any("violation" in finding for finding in report.findings), str(report)
    assert "NOT ALL IS WELL" in str(report)
