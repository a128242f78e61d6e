"""The request that is being carried out: its X-Request-Id, on its way through one node and on to the leader.

A request that is not traced pays one read of this variable.
"""

from __future__ import annotations

import logging
import secrets
from contextvars import ContextVar
from typing import Final

REQUEST_ID_CHARS_MAX: Final = 128

# Set for as long as a request that has an id is being answered. Log lines of that time carry it (`logs`).
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# One line for each request, and on a leader for each that was forwarded to it: with --log-requests alone.
log: Final = logging.getLogger("kvnode.requests")


def accepted(text: str) -> bool:
    """Whether this may stand in a log line and in a header as it is."""
    return 1 <= len(text) <= REQUEST_ID_CHARS_MAX and text.isascii() and text.isprintable()


def made() -> str:
    """A fresh one: 64 random bits."""
    return secrets.token_hex(8)
