"""`python -m tests.mutants [WORD…]`: applies each mutant (of that name) in a copy, and runs what must find it.

First those of `table.py`, each with a command of its own, then those of `fuzzed.py`, which have both programs of `make
fuzz`. `--fuzzed`: the latter alone. `--write`: notes what became of those in `tests/mutants/fuzzed.json`, and makes
`docs/MUTANTS.md` of it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.mutants.fuzzed import FUZZED
from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS

ROOT = Path(__file__).parent.parent.parent
KILLED_S = 180.0  # of processor time, so that other work on the machine counts for nothing: longer, and it has survived
REPLICAS_S = 20.0  # of these for the simulation of replicas, whose schedules are many; the rest is for whole nodes
WALL_TIMES = 8  # so many times as long on the clock, at the most
RESULTS, PAGE = Path(__file__).parent / "fuzzed.json", ROOT / "docs" / "MUTANTS.md"
COPIED = ("kvnode", "tests", "pyproject.toml", "Makefile", "docs", "haproxy", "deploy", "README.md")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`program` and `seed` repeat the finding; both empty of a mutant that survived, or that a test has found."""

    killed: bool
    finding: str
    seconds: float  # of processor time
    program: str = ""
    seed: int | None = None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mutants whose names have all of these")
    parser.add_argument("--fuzzed", action="store_true", help="only those that `make fuzz` alone must find")
    parser.add_argument("--write", action="store_true", help="notes the outcome of those, and writes docs/MUTANTS.md")
    parser.add_argument("--missing", action="store_true", help="of those, only what is not noted as found yet")
    options = parser.parse_args(arguments)
    found = {name for name, verdict in noted().items() if verdict["killed"]} if options.missing else set()
    survived = 0
    for mutant in (*(() if options.fuzzed else MUTANTS), *FUZZED):
        if all(word in mutant.name for word in options.words) and mutant.name not in found:
            verdict = run(mutant)
            survived += not verdict.killed
            word = "killed" if verdict.killed else "survived"
            print(f"{mutant.name}: {word} ({verdict.seconds:.0f} s): {verdict.finding}", flush=True)
            if options.write and not mutant.command:
                note(mutant, verdict)
    return 1 if survived else 0


def run(mutant: Mutant) -> Verdict:
    """Applied in a copy of the project."""
    with tempfile.TemporaryDirectory(prefix="kvnode-mutant-") as directory:
        for name in COPIED:
            source, target = ROOT / name, Path(directory) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, target)
        apply(mutant, Path(directory))
        if mutant.command:
            return _verdict(mutant.command, directory, KILLED_S)
        first = _verdict(_program("simulation", REPLICAS_S), directory, REPLICAS_S)
        if first.killed:
            return first
        left_s = KILLED_S - first.seconds
        second = _verdict(_program("virtual", left_s), directory, left_s)
        return Verdict(second.killed, second.finding, first.seconds + second.seconds, second.program, second.seed)


def _program(name: str, seconds: float) -> tuple[str, ...]:
    """One of the two that `make fuzz` runs."""
    return ("-m", f"tests.{name}.fuzz", "--schedules", "1000000", "--seconds", f"{seconds:.0f}")


def _verdict(command: tuple[str, ...], directory: str, for_s: float) -> Verdict:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": directory}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=WALL_TIMES * for_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return Verdict(False, "nothing was found in time", for_s)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode == 0:
        return Verdict(False, "nothing was found", took_s)
    telling = [line for line in printed.splitlines() if line.startswith(("seed ", "FAILED ", "E  ", "ERROR "))]
    finding = telling[0] if telling else printed[-300:]
    seed = re.match(r"seed (\d+)(?: \(\w+\))?(?: after \d+ s)?: (.*)", finding)
    if seed is None:
        return Verdict(True, finding, took_s)
    return Verdict(True, seed[2], took_s, command[1], int(seed[1]))


def apply(mutant: Mutant, root: Path) -> None:
    file = root / mutant.file
    source = file.read_text()
    if source.count(mutant.before) != 1:
        raise SystemExit(f"{mutant.name}: what it changes stands {source.count(mutant.before)} times in {mutant.file}")
    file.write_text(source.replace(mutant.before, mutant.after))


def note(mutant: Mutant, verdict: Verdict) -> None:
    results = noted()
    results[mutant.name] = asdict(verdict)
    known = {name: results[name] for name in (each.name for each in FUZZED) if name in results}
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    PAGE.write_text(page({name: Verdict(**fields) for name, fields in known.items()}))


def noted() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def page(verdicts: dict[str, Verdict]) -> str:
    """What became of each, as Markdown."""
    rooms = {mutant.name: mutant.file.removeprefix("kvnode/") for mutant in FUZZED}
    killed = sum(verdict.killed for verdict in verdicts.values())
    lines = [
        "# Small faults that `make fuzz` must find",
        "",
        f"`tests/mutants/fuzzed.py` has {len(FUZZED)} small faults, chosen before the first was tried.",
        "`make mutants` puts each into a copy of the source, and runs both programs of `make fuzz` on that, for three",
        f"minutes of processor time at most. Of {len(verdicts)} that were tried, {killed} were found.",
        "`make mutants MUTANTS_ARGS='--fuzzed --write'` makes this page.",
        "",
        "`replicas` is `tests.simulation.fuzz`, `nodes` is `tests.virtual.fuzz`. The seconds are of processor time.",
        "",
        "| fault | in | found by | seed | s | as |",
        "|---|---|---|--:|--:|---|",
    ]
    for name, verdict in verdicts.items():
        program = {"tests.simulation.fuzz": "replicas", "tests.virtual.fuzz": "nodes"}.get(verdict.program, "")
        seed = "" if verdict.seed is None else verdict.seed
        found = verdict.finding.replace("|", "/")[:100] if verdict.killed else "**not found**"
        lines.append(f"| {name} | `{rooms[name]}` | {program} | {seed} | {verdict.seconds:.0f} | {found} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
