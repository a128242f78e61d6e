"""The short chaos run: a minute in all. `make chaos` is the long one; KVNODE_CHAOS_SEED gives this one another seed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.history import load
from tests.chaos.run import Options, run


@pytest.mark.timeout(150)
def test_nothing_is_lost_under_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("KVNODE_CHAOS_SEED", "3"))
    report = run(Options(tmp_path, seed, seconds=25.0, pace=0.5))
    with capsys.disabled():
        print(f"\n{report}")  # shown when all is well, too: what could not be broken here is part of the verdict
    assert not report.findings, f"seed {seed}, everything is kept in {tmp_path}\n{report}"
    # A run in which little happened has shown little.
    assert len(report.diary.faults) >= 8
    writes = sum(operation.outcome == "ok" and operation.writes for operation in report.operations)
    assert writes >= 500
    assert len({operation.node for operation in report.operations if operation.outcome == "ok"}) == 3
    assert report.terms >= 3
    assert load(tmp_path / "history.jsonl") == report.operations


def test_the_run_finds_what_is_wrong(tmp_path: Path) -> None:
    """Reads that claim to be linearizable and are not, on a follower that is cut off: same clients, same checker."""
    # Many clients, because one that writes on the node that is cut off waits there and reads nothing any more.
    what = {"consistency": "stale", "faults": ("isolate follower",)}
    try:
        report = run(Options(tmp_path, 1, seconds=6.0, clients=36, disks=False, **what))  # type: ignore[arg-type]
    except ValueError as why:
        pytest.skip(f"links cannot be cut here: {why}")
    assert any("violation" in finding for finding in report.findings), str(report)
    assert "NOT ALL IS WELL" in str(report)
