"""Many random schedules: `python -m tests.simulation.fuzz --schedules 5000 --seed 0`; `make fuzz` calls it.

One line when all is well. Otherwise the first failing seed with its schedule and what was found, and the exit
status 1; `--schedules 1 --seed SEED` repeats exactly that run (with the same `--disk-faults` and `--members`).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from tests.simulation.schedule import Outcome, run_schedule


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", "--runs", type=int, default=3_000, metavar="N", help="how many (default 3000)")
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help="of processor time; then begin no more")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first seed; each run takes the next")
    parser.add_argument("--go-on", action="store_true", help="beyond the first finding")
    parser.add_argument(
        "--disk-faults",
        choices=("some", "all", "none"),
        default="some",
        help="the schedules in which disks fail, fill up and rot as well: every second one by default",
    )
    parser.add_argument(
        "--members",
        choices=("some", "all", "none"),
        default="some",
        help="the schedules in which nodes join, are promoted and are removed: every second one by default",
    )
    options = parser.parse_args(arguments)
    members = {"some": None, "all": True, "none": False}[options.members]
    disk_faults = {"some": None, "all": True, "none": False}[options.disk_faults]
    logging.getLogger("kvnode").setLevel(logging.ERROR)  # of full disks and the like, which are meant to happen
    began = time.perf_counter()
    totals: Counter[str] = Counter()
    first: Outcome | None = None
    findings: Counter[str] = Counter()
    for seed in range(options.seed, options.seed + options.schedules):
        if options.seconds and time.process_time() > options.seconds:
            break
        outcome = run_schedule(seed, disk_faults, members)
        totals.update(
            schedules=1, steps=len(outcome.steps), writes=outcome.writes, reads=outcome.reads, terms=outcome.terms
        )
        totals.update(accidents=outcome.accidents, changes=outcome.changes)
        if outcome.finding is not None:
            first = first or outcome
            findings[outcome.finding.split(" ")[0]] += 1
            print(f"seed {seed}: {outcome.finding}", file=sys.stderr)
            if not options.go_on:
                break
    if first is not None:
        print(report(first), file=sys.stderr)
    took_s = time.perf_counter() - began
    print(
        f"{totals['schedules']} schedules of replicas from seed {options.seed} in {took_s:.0f} s "
        f"({totals['schedules'] / took_s:.2f}/s): "
        f"{sum(findings.values())} findings; {totals['steps']} steps, {totals['terms']} leaderships, "
        f"{totals['writes']} acknowledged writes, {totals['reads']} confirmed reads, "
        f"{totals['accidents']} accidents of disks, {totals['changes']} changes of members"
    )
    return 1 if findings else 0


def report(outcome: Outcome) -> str:
    """What is needed to understand a finding: the seed, every step, and where it broke."""
    steps = "\n".join(f"  {number:4} {step}" for number, step in enumerate(outcome.steps, 1))
    return f"schedule of seed {outcome.seed}:\n{steps}\n{outcome.trace}seed {outcome.seed}: {outcome.finding}"


if __name__ == "__main__":
    sys.exit(main())
