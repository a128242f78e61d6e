"""What every page of figures says about itself: when, on what, with which command; and its tables."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from kvnode import __version__

DOCS = Path(__file__).resolve().parent.parent / "docs"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def spread(values: Sequence[float], unit: str = "s") -> tuple[str, str, str]:
    """(median, least, most) of times in seconds, shown in `unit` (s or ms); dashes where there is none."""
    if not values:
        return "-", "-", "-"
    return show_time(statistics.median(values), unit), show_time(min(values), unit), show_time(max(values), unit)


def show_time(seconds: float, unit: str = "s") -> str:
    return f"{seconds * 1000:.0f} ms" if unit == "ms" else f"{seconds:.2f} s"


def machine() -> str:
    """One sentence on the machine, nothing that identifies it."""
    model, memory_gib = platform.processor() or platform.machine(), 0.0
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        memory_gib = int(Path("/proc/meminfo").read_text().split()[1]) / 1_048_576
    memory = f", {memory_gib:.0f} GiB of memory" if memory_gib else ""
    return f"{os.cpu_count()} cores ({model}{memory}), {platform.system()} {platform.release()}"


def preamble(command: str, versions: Sequence[str], load_before: float) -> str:
    """The facts under the title of a page. `load_before` is the load average when the run began."""
    said = (f"kvnode {__version__}", f"Python {platform.python_version()}", *versions)
    facts = (
        ("measured", f"{datetime.now(UTC):%Y-%m-%d}, by `{command}`"),
        ("machine", f"{machine()}; nodes and clients share it"),
        ("versions", ", ".join(said)),
        ("load average", f"{load_before:.1f} before the run, {os.getloadavg()[0]:.1f} at its end"),
    )
    return "\n".join(f"- {name}: {fact}" for name, fact in facts)


def publish(name: str, text: str) -> None:
    """Prints a page and writes it to docs/."""
    print(text, flush=True)
    DOCS.mkdir(exist_ok=True)
    (DOCS / name).write_text(text)
