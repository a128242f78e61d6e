"""How late the event loop runs its timers: a delay that every request meets."""

from __future__ import annotations

import asyncio
from typing import Final

from kvnode.metrics.meters import Histogram

EVERY_S: Final = 0.1


async def watch_loop_lag(into: Histogram) -> None:
    """Ends by cancellation."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + EVERY_S
        await asyncio.sleep(EVERY_S)
        into.observe(max(0.0, loop.time() - due))
