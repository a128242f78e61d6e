"""Many schedules of whole nodes: `python -m tests.virtual.fuzz --schedules 200 --seed 0`; `make fuzz` calls it.

A finding prints its seed, its steps and what nodes logged; `--schedules 1 --seed SEED` (with the same `--mix`) repeats
exactly that run, to the message.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections import Counter

from tests.virtual.schedule import MIXES, Outcome, run_schedule


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.virtual.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=200, metavar="N", help="how many (default 200)")
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help="of processor time; then begin no more")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first seed; each run takes the next")
    parser.add_argument("--mix", choices=list(MIXES), help="the faults to draw from; drawn from the seed by default")
    parser.add_argument("--go-on", action="store_true", help="beyond the first finding")
    parser.add_argument("--verbose", action="store_true", help="one line for each schedule")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    totals: Counter[str] = Counter()
    findings: list[Outcome] = []
    for seed in range(options.seed, options.seed + options.schedules):
        if options.seconds and time.process_time() > options.seconds:
            break
        outcome = run_schedule(seed, options.mix)
        totals.update(schedules=1, seconds=round(outcome.seconds), operations=outcome.operations)
        totals.update(answered=outcome.answered, faults=outcome.faults)
        if options.verbose:
            print(f"seed {seed} {outcome.mix} {outcome.fingerprint} {outcome.operations} {outcome.finding or ''}")
        if outcome.finding is not None:
            findings.append(outcome)
            took_s = time.perf_counter() - began
            print(f"seed {seed} ({outcome.mix}) after {took_s:.0f} s: {outcome.finding}", file=sys.stderr)
            if not options.go_on:
                print(report(run_schedule(seed, options.mix, logged=True)), file=sys.stderr)
                break
    took_s = time.perf_counter() - began
    print(
        f"{totals['schedules']} schedules of whole nodes from seed {options.seed} in {took_s:.0f} s "
        f"({totals['schedules'] / took_s:.2f}/s): {len(findings)} findings; {totals['seconds']} virtual seconds, "
        f"{totals['faults']} faults, {totals['operations']} operations, {totals['answered']} acknowledged writes"
    )
    return 1 if findings else 0


def report(outcome: Outcome) -> str:
    """What is needed to understand a finding."""
    lines = "\n".join(sorted((f"  {line}" for line in (*outcome.steps, *outcome.logged)), key=lambda line: line[:10]))
    return f"schedule of seed {outcome.seed}, {outcome.mix}:\n{lines}\nseed {outcome.seed}: {outcome.finding}"


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of names are walked in the order of their hashes, which each process would draw for itself.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.virtual.fuzz", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that had not begun when their schedule ended
    code = main()
    sys.stdout.flush()
    os._exit(code)  # nothing that is left of ended processes has anything to say
