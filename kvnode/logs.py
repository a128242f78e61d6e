"""Log lines on stderr: text for people, one JSON object a line for programs. Times are UTC, to the millisecond."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from kvnode import trace


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname.lower():7} {_room(record)}: {record.getMessage()}"
        if (request_id := trace.request_id.get()) is not None:
            line += f" [{request_id}]"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    def __init__(self, node_id: str) -> None:
        super().__init__()
        self._node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "node": self._node_id,
            "room": _room(record),
            "message": record.getMessage(),
        }
        if (request_id := trace.request_id.get()) is not None:
            fields["request_id"] = request_id
        fields |= getattr(record, "fields", {})  # what the sentence says, each part under a name of its own
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _room(record: logging.LogRecord) -> str:
    return record.name.removeprefix("kvnode.")


def start(node_id: str, form: Literal["text", "json"], level: str, requests: bool = False) -> None:
    """Sends everything at `level` and above to stderr; other people's libraries only from warning up.

    `requests`: a line for each request as well, whatever the level.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(node_id) if form == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, getattr(logging, level.upper())), force=True)
    logging.getLogger("kvnode").setLevel(level.upper())
    logging.getLogger("kvnode.audit").setLevel(logging.INFO)  # who did what is asked for when it is too late to log it
    trace.log.setLevel(logging.INFO if requests else logging.WARNING)
