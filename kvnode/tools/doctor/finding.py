"""What an examination finds: one plain sentence, which says what to do where something is to be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`problem`: a node does not start, does not serve or may lose data. `warning`: worth knowing, or to be mended."""

    check: str
    level: Level
    message: str


def ok(check: str, message: str) -> Finding:
    return Finding(check, "ok", message)


def warning(check: str, message: str) -> Finding:
    return Finding(check, "warning", message)


def problem(check: str, message: str) -> Finding:
    return Finding(check, "problem", message)
