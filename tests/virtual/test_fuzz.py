"""The fuzz run, in short; and that a seed means the same run each time."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

# Sets of names are walked in the order of their hashes, which a process draws for itself unless it is told.
ENVIRONMENT = os.environ | {"PYTHONHASHSEED": "0"}


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.virtual.fuzz", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
        check=False,
    )


@pytest.mark.timeout(300)
def test_a_few_schedules_of_every_fault_keep_every_promise() -> None:
    run = fuzz("--schedules", "6", "--seed", "0")
    assert run.returncode == 0, run.stderr
    found = re.search(r"(\d+) schedules of whole nodes .* 0 findings", run.stdout)
    assert found, run.stdout
    assert found[1] == "6"


@pytest.mark.timeout(300)
def test_a_seed_repeats_a_run_to_the_message() -> None:
    one, other = (fuzz("--schedules", "2", "--seed", "3", "--verbose").stdout.splitlines()[:2] for _ in range(2))
    assert one == other
    assert re.fullmatch(r"seed 3 \w+ [0-9a-f]{32} \d+ ", one[0]), one[0]
