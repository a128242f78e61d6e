"""Watcher: one reader of what happens to the keys that it names.

It reads in one of two ways. Behind the newest revision it reads from the history, a slice at a time, independently of
other watchers. Once it has caught up it reads the log of its audience, which is bounded: when it is full its older
half is dropped. A watcher that had not read that half returns to the history. If its client does not take what was
sent, it is cut off instead, with the revision to resume from. So a slow client costs no memory and delays no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from kvnode.watch.audience import Audience, Piece, Selector

if TYPE_CHECKING:
    from kvnode.watch.hub import Hub

SLICE_REVISIONS: Final = 4_096  # how much of the past is searched at once: about a millisecond


class Ending(NamedTuple):
    """Why a watcher ended: `slow`, `compacted`, or the reason that the hub was closed with."""

    reason: str
    oldest: int  # the oldest revision that this node can give now


class Watcher:
    """One reader. `wake` is called, soon after, when `take` may have something, or `ending` is set."""

    __slots__ = ("_hub", "audience", "blocked", "due", "ending", "next_revision", "position", "selector", "wake")

    def __init__(self, hub: Hub, selector: Selector, from_revision: int, wake: Callable[[], None]) -> None:
        self._hub = hub
        self.next_revision = from_revision  # the first that it has not read
        self.selector = selector
        self.wake = wake
        self.blocked = False  # set by the face: its client does not take what it was sent
        self.due = False  # waits for its turn to be woken
        self.audience: Audience | None = None  # None: it reads from the history
        self.position = 0  # in the log of the audience
        self.ending: Ending | None = None

    @property
    def revision(self) -> int:
        """The revision up to which its changes were taken. Resume from the next one."""
        audience = self.audience
        if audience is not None and self.position == audience.end:
            return max(self.next_revision - 1, self._hub.history.newest)
        return self.next_revision - 1

    def take(self, bytes_max: int) -> list[Piece]:
        """What comes next, whole revisions, at least one if there is any; [] when there is nothing now.

        Where it has to search the history for longer than a slice it gives what it found, and is woken again.
        """
        if self.ending is not None:
            return []
        audience = self.audience
        pieces = self._from_history(bytes_max) if audience is None else self._from_log(audience, bytes_max)
        for piece in pieces:
            self._hub.taken += piece.bytes
        return pieces

    def _from_history(self, bytes_max: int) -> list[Piece]:
        hub, history = self._hub, self._hub.history
        first = self.next_revision
        if first < history.oldest:
            hub.end(self, "compacted")
            return []
        found: list[Piece] = []
        size = 0
        stop = min(history.newest + 1, first + SLICE_REVISIONS)
        selector, known = self.selector, hub.texts.pieces
        of = selector.of
        for block in history.since(first):
            if block[0][2] >= stop:
                break
            # One of many changes is searched and made into text once: it is too much for the log of an audience.
            piece = known.get((selector, block[0][2])) if known else None
            if piece is None and (wanted := of(block)):
                piece = Piece(wanted, selector)
            if piece is not None:
                found.append(piece)
                size += piece.bytes
                if size >= bytes_max:
                    stop = piece.revision + 1
                    break
        self.next_revision = max(first, stop)
        hub.searched += self.next_revision - first
        if stop > history.newest:
            hub.caught_up(self)
        else:
            hub.call(self)
        return found

    def _from_log(self, audience: Audience, bytes_max: int) -> list[Piece]:
        if self.position == audience.end:
            return []
        found: list[Piece] = []
        size = 0
        log, start = audience.log, audience.start
        while self.position < audience.end and size < bytes_max:
            piece = log[self.position - start]
            self.position += 1
            if piece.revision >= self.next_revision:  # else it asked to begin later than what has happened so far
                found.append(piece)
                size += piece.bytes
                self.next_revision = piece.revision + 1
        if self.position == audience.end:
            audience.read_by_one_more()
        else:
            self._hub.call(self)
        return found

    def close(self) -> None:
        """Ends the watcher and frees what it held."""
        self._hub.forget(self)
