"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """`before` stands once in `file` and becomes `after`. `command` is Python's arguments, and must then fail; empty:
    both programs of `make fuzz`."""

    name: str
    file: str
    before: str
    after: str
    command: tuple[str, ...] = ()
