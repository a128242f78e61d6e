"""Whether the event loop runs, as a thread beside it sees that: the loop itself cannot tell while it hangs.

A loop that hangs answers no probe, so the prober's own deadline finds it out. The thread is for what the prober does
not see: it says in the log where the loop hangs, and it keeps the liveness probe at 503 until the loop has run again
for a while, so that a loop which hangs, answers one probe and hangs again is not taken for well.

Where the thread itself was late, the whole process stood still (SIGSTOP, a machine without a core to spare, a suspended
guest): that is nobody's hang, and a restart would mend nothing.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from typing import Final

from kvnode.host import Host

log = logging.getLogger("kvnode.raft")

LOOK_S: Final = 0.25
# Longer than the longest single piece of work that a node is known to do in its loop (deleting a prefix of a million
# keys takes two seconds), shorter than the patience of the usual liveness probe (three failures, ten seconds apart).
STUCK_S: Final = 5.0
WELL_S: Final = 1.0
_STACK_FRAMES: Final = 12


class Watchdog:
    """`error`: one sentence, while the loop does not run or has only just begun to again."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.error: str | None = None
        self._beat_at = self._host.clock()
        self._stopped = host.event()
        self._watched = threading.get_ident()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From the loop's own thread."""
        self._beat(asyncio.get_running_loop())
        self._host.thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat_at = self._host.clock()
        self._timer = loop.call_later(LOOK_S, self._beat, loop)

    def _watch(self) -> None:
        looked_at = self._host.clock()
        from_s = looked_at  # silence counts from here on at the earliest
        well_since: float | None = None
        while not self._stopped.wait(LOOK_S):
            now = self._host.clock()
            if now - looked_at > 4 * LOOK_S:
                from_s = now
            looked_at = now
            silence_s = now - max(self._beat_at, from_s)
            if silence_s >= STUCK_S:
                if self.error is None:
                    sentence = "The event loop has not run for %.1f s. It is at:"
                    log.error(sentence, silence_s, extra={"stack": self._where()})
                self.error, well_since = f"The event loop has not run for {silence_s:.1f} s", None
            elif self.error is not None and silence_s < 2 * LOOK_S:
                well_since = well_since or now
                if now - well_since >= WELL_S:
                    log.warning("The event loop runs again.")
                    self.error = None

    def _where(self) -> str:
        frame = sys._current_frames().get(self._watched)
        return "".join(traceback.format_stack(frame)[-_STACK_FRAMES:]).rstrip() if frame is not None else "?"
