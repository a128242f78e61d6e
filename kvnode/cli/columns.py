"""Rows of a listing: in columns under their names on a terminal, parted by tabs and without names to a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for row in (names, *rows):
        print("  ".join(field.ljust(width) for field, width in zip(row, widths, strict=True)).rstrip())
