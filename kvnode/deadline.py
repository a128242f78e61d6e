"""The deadline of the request that is being carried out, where its sender said how long it waits (`Kvnode-Timeout`).

A context variable, as the request's id is (`trace`): the rooms between HTTP and Raft need not hand it through. Nothing
here costs a request without the header more than a look at this variable.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Final

# By the loop's clock, and a margin earlier than the sender gives up, so that the answer is there in time.
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)

# The engine looks at its deadlines every 25 ms: a request with less time than that would be answered too late.
LEAST_S: Final = 0.03


def remaining_s(standard_s: float) -> float:
    """How long the request may take from now on: `standard_s`, or less where its sender waits less; may be negative."""
    asked = deadline.get()
    return standard_s if asked is None else min(standard_s, asked - asyncio.get_running_loop().time())
