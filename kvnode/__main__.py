"""`python -m kvnode` is `kvnode`."""

from __future__ import annotations

from kvnode.cli import main

main()
