"""The bars of docs/throughput.svg. Needs matplotlib, which `make bench` installs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.report import DOCS

_COLOURS: Final = {"kvnode": "#1a7f5a", "etcd": "#4169a8", "aiohttp": "#bbbbbb"}
_NAMES: Final = {"kvnode": "kvnode", "etcd": "etcd (JSON gateway)", "aiohttp": "aiohttp doing nothing"}


def draw(per_s: Mapping[str, Mapping[str, float]]) -> None:
    """`per_s[row][system]`, in requests per second: a group of horizontal bars for each row that etcd is in."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = [
        (name, {system: cells[system] for system in _COLOURS if system in cells})
        for name, cells in per_s.items()
        if "etcd" in cells
    ]
    figure, axes = pyplot.subplots(figsize=(9, 0.75 * len(rows) + 1))
    for place, (_, cells) in enumerate(reversed(rows)):
        for offset, system in enumerate(reversed(cells)):
            y = place + 0.26 * (offset - (len(cells) - 1) / 2)
            axes.barh(y, cells[system], 0.24, color=_COLOURS[system])
            axes.text(cells[system], y, f" {cells[system]:,.0f}", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)], fontsize=9)
    axes.set_xlabel("requests per second, more is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=[pyplot.Rectangle((0, 0), 1, 1, color=_COLOURS[each], label=_NAMES[each]) for each in _COLOURS])
    figure.tight_layout()
    figure.savefig(DOCS / "throughput.svg", metadata={"Date": None})
