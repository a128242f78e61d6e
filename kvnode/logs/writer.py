"""Log lines on stderr: text for people, one JSON object a line for programs. Times are UTC, to the millisecond.

A line is made where something happens and written by a thread of its own. stderr may be a pipe whose reader hangs, a
terminal that was stopped with Ctrl-S or a file on a full disk: a node that writes to it from its event loop would stop
with it. So lines wait in a queue of bounded size; what finds no room is left out, counted, and said later.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Final, Literal, TextIO, cast

from kvnode.logs import request_ids
from kvnode.logs.rate_limited import FAULTS

# Control characters (C0, DEL, C1), line and paragraph separators, and what turns the direction of reading.
_ESCAPES: Final = {
    code: f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}

# What a node says in an hour of trouble, and little beside what it holds anyway. A longer line counts as it is.
QUEUE_BYTES_MAX: Final = 4_194_304
# Lines go out together up to what a pipe takes in one piece (PIPE_BUF on Linux), so that no other text comes between.
WRITE_BYTES_MAX: Final = 4_096
# How long the end of the process waits for the lines before it. A reader that is alive takes them in milliseconds.
FLUSH_S: Final = 0.5
# How long a line may hold up the thread that says it, while all before it are out: a write takes some 0.1 ms. So the
# audit line of an answer is out before the answer, also where kill -9 follows. A stderr that hangs costs this once.
TURN_S: Final = 0.005
STDERR: Final = 2

log = logging.getLogger(__name__)
_writer: Writer | None = None  # of this process, as its stderr is


class Writer:
    """Writes lines to a file descriptor, in order, from a thread of its own. `put` waits no longer than it is told to.

    `dropped`: lines that were left out since the process began, because the queue was full or a write failed.
    `writing_since`: when the write began that has not ended, in seconds of the monotonic clock; all others wait for it.
    """

    def __init__(self, descriptor: int, queue_bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self._descriptor = descriptor
        self._queue_bytes_max = queue_bytes_max
        # A signal handler may log while its own thread is inside `put`: the condition's lock is reentrant.
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._bytes = 0  # of the lines that are waiting and of those that are being written
        self._writing = False
        self._torn = False  # a write failed within a line: the next one begins a line of its own
        self._unsaid = 0
        self.dropped = 0
        self.writing_since: float | None = None
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def put(self, line: str, wait_s: float = 0.0) -> None:
        """Queues one line, without its line end; drops it where QUEUE_BYTES_MAX are waiting.

        Waits up to `wait_s` for it to be written, unless others are waiting or being written before it.
        """
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._bytes and self._bytes + len(data) > self._queue_bytes_max:
                self.dropped += 1
                self._unsaid += 1
                return
            idle = not self._lines and not self._writing
            self._append(data)
            self._changed.notify_all()
            if idle and wait_s:
                self._wait(wait_s)

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything is written. False where that takes longer than `timeout_s`."""
        with self._changed:
            return self._wait(timeout_s)

    def _wait(self, timeout_s: float) -> bool:
        return self._changed.wait_for(lambda: not self._lines and not self._writing, timeout_s)

    def _append(self, data: bytes) -> None:
        self._lines.append(data)
        self._bytes += len(data)

    def _run(self) -> None:
        while True:
            data = self._next()
            lost = self._write(data)
            if not lost and self._unsaid and not self._lines:
                self._say_what_was_dropped()
            with self._changed:
                self._bytes -= len(data)
                self._writing = False
                self.writing_since = None
                self.dropped += lost
                self._unsaid += lost
                self._changed.notify_all()

    def _next(self) -> bytes:
        """Waits for lines: as many as go out in one piece, or a longer one alone."""
        with self._changed:
            while not self._lines:
                self._changed.wait()
            taken = [self._lines.popleft()]
            size = len(taken[0])
            while self._lines and size + len(self._lines[0]) <= WRITE_BYTES_MAX:
                taken.append(self._lines.popleft())
                size += len(taken[-1])
            self._writing = True
            self.writing_since = time.monotonic()
            return b"".join(taken)

    def _write(self, data: bytes) -> int:
        """How many lines of it were lost: a stderr that is broken, or on a full disk, takes none or a part."""
        end = b"\n" if self._torn else b""
        whole, done = end + data, 0
        while done < len(whole):
            try:
                done += os.write(self._descriptor, whole[done:])
            except BlockingIOError:
                # Another process has this pipe or terminal too, and made it non-blocking.
                select.select([], [self._descriptor], [], 1.0)
            except OSError:
                if done:
                    self._torn = whole[done - 1 : done] != b"\n"
                return data.count(b"\n", max(0, done - len(end)))
        self._torn = False
        return 0

    def _say_what_was_dropped(self) -> None:
        """Called once stderr takes lines again and all that were waiting are out: there is room for this one."""
        with self._changed:
            count, self._unsaid = self._unsaid, 0
        lines = "line was" if count == 1 else "lines were"
        fields = {"event": "log_lines_dropped", "lines": count}
        log.warning("%d log %s left out: stderr did not take them in time.", count, lines, extra={"fields": fields})


class _Lines(logging.Handler):
    """Formats a line where it is made, which knows the request that it belongs to; `writer` writes it."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # A line for each request is many, and is asked for; all others are few.
            self._writer.put(self.format(record), 0.0 if record.name == request_ids.log.name else TURN_S)
        except Exception:
            self.handleError(record)


class _Stderr(io.TextIOBase):
    """`sys.stderr` of a node: what other code prints there, tracebacks above all, goes the way of the log lines."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._begun: dict[int, str] = {}  # the line that a thread has not ended yet

    def write(self, text: str) -> int:
        thread = threading.get_ident()
        *lines, begun = (self._begun.pop(thread, "") + text).split("\n")
        if len(begun) > WRITE_BYTES_MAX:
            lines, begun = [*lines, begun], ""
        if begun:
            self._begun[thread] = begun
        for line in lines:
            self._writer.put(line)
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return STDERR

    def isatty(self) -> bool:
        return os.isatty(STDERR)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # One record is one line. So a name in it must not end the line or move a terminal's cursor.
        message = record.getMessage().translate(_ESCAPES)
        line = f"{_time(record)} {record.levelname.lower():7} {_room(record)}: {message}"
        if (request_id := request_ids.request_id.get()) is not None:
            line += f" [{request_id}]"
        if (stack := getattr(record, "stack", None)) is not None:
            line += f"\n{stack}"
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
        if (request_id := request_ids.request_id.get()) is not None:
            fields["request_id"] = request_id
        fields |= getattr(record, "fields", {})  # what the sentence says, each part under a name of its own
        if (stack := getattr(record, "stack", None)) is not None:
            fields["stack"] = stack
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def _admitted(record: logging.LogRecord) -> bool:
    """Of other people's libraries, what is new in this minute: their lines tell what a stranger's bytes did to them."""
    return record.name.startswith("kvnode") or FAULTS.admits(str(record.msg)[:80], record.name)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _room(record: logging.LogRecord) -> str:
    return record.name.removeprefix("kvnode.")


def start(node_id: str, form: Literal["text", "json"], level: str, requests: bool = False) -> None:
    """Sends everything at `level` and above to stderr; other people's libraries only from warning up.

    `requests`: also a line for each request, at every level. From here on Python's own output to stderr does not wait
    for its reader; the end of the process waits FLUSH_S at most.
    """
    global _writer
    _writer = writer = Writer(STDERR)
    atexit.register(flush)
    sys.stderr = cast(TextIO, _Stderr(writer))
    handler = _Lines(writer)
    handler.setFormatter(_Json(node_id) if form == "json" else _Text())
    handler.addFilter(_admitted)
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, getattr(logging, level.upper())), force=True)
    logging.captureWarnings(True)
    logging.getLogger("kvnode").setLevel(level.upper())
    logging.getLogger("kvnode.audit").setLevel(logging.INFO)  # who did what is asked for when it is too late to log it
    request_ids.log.setLevel(logging.INFO if requests else logging.WARNING)


def flush() -> None:
    """Gives the lines before the end of the process FLUSH_S to get out."""
    if _writer is not None:
        _writer.flush(FLUSH_S)


def dropped() -> int:
    """Lines that were left out since the process began, because stderr did not take them."""
    return _writer.dropped if _writer is not None else 0


def writing_since() -> float | None:
    """When the write of lines began that stderr has not taken yet, by the monotonic clock; None where there is none."""
    return _writer.writing_since if _writer is not None else None
