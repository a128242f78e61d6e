"""`python -m tests.mutants [WORD…]`: applies each mutant (of that name) in a copy, and runs what must find it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent.parent
KILLED_S = 180.0  # a mutant that lives longer has survived
COPIED = ("kvnode", "tests", "pyproject.toml", "Makefile", "docs", "haproxy", "deploy", "README.md")


def main(words: list[str]) -> int:
    survived = 0
    for mutant in MUTANTS:
        if all(word in mutant.name for word in words):
            began = time.monotonic()
            verdict = run(mutant)
            survived += verdict.startswith("survived")
            print(f"{mutant.name}: {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if survived else 0


def run(mutant: Mutant) -> str:
    """`killed` with the line that says how, or `survived`."""
    with tempfile.TemporaryDirectory(prefix="kvnode-mutant-") as directory:
        for name in COPIED:
            source, target = ROOT / name, Path(directory) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, target)
        apply(mutant, Path(directory))
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": directory}
        process = subprocess.Popen(
            [sys.executable, *mutant.command],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=KILLED_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return "survived: nothing was found in time"
    if process.returncode == 0:
        return "survived"
    telling = [line for line in printed.splitlines() if line.startswith(("seed ", "FAILED ", "E  ", "ERROR "))]
    return f"killed: {telling[0] if telling else printed[-300:]}"


def apply(mutant: Mutant, root: Path) -> None:
    file = root / mutant.file
    source = file.read_text()
    if source.count(mutant.before) != 1:
        raise SystemExit(f"{mutant.name}: what it changes stands {source.count(mutant.before)} times in {mutant.file}")
    file.write_text(source.replace(mutant.before, mutant.after))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
