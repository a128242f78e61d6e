"""The thread that writes the journal: one group write and one fdatasync for all that queued up meanwhile."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, Literal

from kvnode.errors import Fatal
from kvnode.host import Host
from kvnode.storage.journal import Flight, Journal
from kvnode.storage.segments import OutOfSpace, Segments
from kvnode.storage.tail import NOTE_AT_LEAST_EVERY_S, QUIET_S

Fsync = Literal["always", "interval", "never"]

SPACE_AGAIN_S: Final = 0.25
INTERVAL_S: Final = 0.1  # `--fsync interval`: a crash of the machine (not of the process) loses up to this much


class Flusher:
    """Takes flights from the journal to disk, one at a time. `landed` and `failed` are called in the loop.

    `--fsync always`: a flight has landed when its bytes are on disk. `interval` and `never`: when the kernel
    has them; they survive a crash of the process, not of the machine.
    """

    def __init__(
        self,
        journal: Journal,
        segments: Segments,
        fsync: Fsync,
        landed: Callable[[], None],
        failed: Callable[[Fatal], None],
        out_of_space: Callable[[bool], None],
        host: Host | None = None,
    ) -> None:
        host = host or Host()
        self._clock = host.clock
        self._journal = journal
        self._segments = segments
        self._fsync = fsync
        self._landed = landed
        self._failed = failed
        self._out_of_space = out_of_space
        self._giving_up = host.event()
        self._loop = asyncio.get_running_loop()
        self._waiting_for_space = False
        self._flight_began_at: float | None = None  # the flight that was handed to the thread and has not landed
        self._call_began_at: float | None = None  # what the thread asks of the disk now; it alone sets this
        self._queue: SimpleQueue[Flight | None] = host.queue()
        self._thread = host.thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def kick(self) -> None:
        """Starts the next flight, if there is something to write and none is under way."""
        flight = self._journal.begin_flight()
        if flight is not None:
            self._flight_began_at = self._clock()
            self._queue.put(flight)

    @property
    def outstanding_since(self) -> float | None:
        """When the oldest unanswered disk operation began; None while there is none.

        Marks and removals of segments count too: one that hangs holds up the next flight.
        """
        flight, call = self._flight_began_at, self._call_began_at
        if flight is None or call is None:
            return flight if call is None else call
        return min(flight, call)

    async def stop(self, timeout_s: float) -> bool:
        """Writes what is left and ends the thread; False if the disk did not answer in time."""
        deadline = self._loop.time() + timeout_s
        while not self._journal.clean and self._thread.is_alive() and self._loop.time() < deadline:
            if self._waiting_for_space:
                break  # it may never come, and nothing of this was acknowledged
            await asyncio.sleep(0.005)  # the thread has no event of the loop's to set, and this happens once
        self._giving_up.set()
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join, max(0.1, deadline - self._loop.time()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        sync_at: float | None = None  # `interval`: the time by which what was written must be on disk
        note_at: float | None = None  # the time by which what is on disk must be noted, quiet or not
        while True:
            wait_s, due = None, sync_at if sync_at is not None else note_at
            if due is not None:
                wait_s = due - self._clock()
                if sync_at is None:
                    wait_s = min(wait_s, QUIET_S)
            try:
                if wait_s is not None and wait_s <= 0:
                    raise Empty  # however much is queued: under load there is no pause to wait for
                flight = self._queue.get(timeout=wait_s)
            except Empty:
                if not self._write(self._segments.note_durable if sync_at is None else self._segments.sync):
                    return
                note_at = None if sync_at is None else note_at or self._clock() + NOTE_AT_LEAST_EVERY_S
                sync_at = None
                continue
            if flight is None:
                self._write(self._finish)
                return
            if not self._write(lambda flight=flight: self._take(flight)):  # type: ignore[misc]
                return
            if self._fsync == "always":
                note_at = note_at or self._clock() + NOTE_AT_LEAST_EVERY_S
            elif self._fsync == "interval":
                sync_at = sync_at or self._clock() + INTERVAL_S
            self._loop.call_soon_threadsafe(self._end, flight)

    def _finish(self) -> None:
        self._segments.sync()
        self._segments.note_durable()

    def _take(self, flight: Flight) -> None:
        if flight.buffers:
            self._append(flight)
        if flight.drop_before:
            self._segments.drop_before(flight.drop_before)

    def _append(self, flight: Flight) -> None:
        """Appends, as often as it takes while the disk is full: see `OutOfSpace` for why that may be repeated."""
        while True:
            try:
                self._segments.append(flight.buffers, flight.last_index, flight.state, sync=self._fsync == "always")
            except OutOfSpace:
                self._waiting_for_space = True
                self._loop.call_soon_threadsafe(self._out_of_space, True)
                if self._giving_up.wait(SPACE_AGAIN_S):
                    raise OSError(errno.ENOSPC, "the disk is full and the node stops") from None
            else:
                if self._waiting_for_space:
                    self._waiting_for_space = False
                    self._loop.call_soon_threadsafe(self._out_of_space, False)
                return

    def _write(self, work: Callable[[], None]) -> bool:
        """False after an error. It is never retried: what the page cache still holds is not known (fsyncgate)."""
        self._call_began_at = self._clock()
        try:
            work()
        except OSError as error:
            fatal = Fatal(
                f"The journal could not be written ({error.strerror or error}): what is on disk is not certain any "
                "more, so the node stops. Mend the disk, then start it again."
            )
            self._loop.call_soon_threadsafe(self._failed, fatal)
            return False
        finally:
            self._call_began_at = None
        return True

    def _end(self, flight: Flight) -> None:
        self._flight_began_at = None
        self._journal.end_flight(flight)
        self._landed()
