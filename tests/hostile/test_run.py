"""A short run of what `make hostile` does for two minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.run import KINDS, run

pytestmark = pytest.mark.alone


def test_nothing_that_is_sent_or_left_unread_stops_a_cluster(tmp_path: Path) -> None:
    verdict = run(tmp_path, seconds=12, seed=12)
    print(verdict.figures)
    assert verdict.faults == []
    assert {kind.__name__ for kind in KINDS} <= set(verdict.figures["tries"])
    assert verdict.figures["refused_writes"] > 0
