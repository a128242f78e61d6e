"""The newest changes of the store, in order: what a watch that comes back, or begins in the past, is given.

One node's memory and no part of the replicated state: bounded by count and by bytes, the oldest out first. A restart
begins it anew at the snapshot that the node loads, and fills it from the journal; a snapshot from a peer begins it
anew as well. So nodes hold different stretches of the same history, and what one has forgotten another may still have.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import Final

from kvnode.state.changes import Change

# Ten seconds at 13,000 changes a second, a day and a half at one: a client that lost its node is back long before.
HISTORY_CHANGES_MAX: Final = 131_072
# Values that are still in the store are shared with it: this bounds what overwritten and deleted ones may take.
HISTORY_BYTES_MAX: Final = 64 * 1_048_576
CHANGE_BYTES: Final = 256  # tuple, numbers, text and dictionary slot of one change, beside its key and value

Block = tuple[Change, ...]
"""All changes of one revision, in order, or the selected ones among them."""

Segment = tuple[int, int, tuple[Change, ...]]
"""(newest revision, bytes, changes): a plain tuple for the reason that `changes.py` gives."""


def blocks(changes: Sequence[Change]) -> Iterator[Block]:
    """Changes as the store noted them, cut by revision."""
    if len(changes) == 1:
        yield (changes[0],)
        return
    for _, same in groupby(changes, _revision):
        yield tuple(same)


def _revision(change: Change) -> int:
    return change[2]


def changes_bytes(changes: Sequence[Change]) -> int:
    """What changes count for in the bound of what is held.

    A value that is in the store takes no memory here, and one that is not was taken away by one change: so the items
    before them bound the memory. New ones count as well where they are larger, since they will be such items.
    """
    size = CHANGE_BYTES * len(changes)
    for _, key, _, packed, previous in changes:
        size += len(key) + max(len(packed), len(previous))
    return size


def sent_bytes(changes: Sequence[Change]) -> int:
    """What changes count for in the bounds of what waits to be sent."""
    size = CHANGE_BYTES * len(changes)
    for _, key, _, packed, _ in changes:
        size += len(key) + len(packed)
    return size


class History:
    """Every change from revision `oldest` to `newest`, in segments: one for each entry of the log."""

    __slots__ = ("_bytes", "_bytes_max", "_changes", "_changes_max", "_segments", "newest", "oldest")

    def __init__(
        self, revision: int = 0, changes_max: int = HISTORY_CHANGES_MAX, bytes_max: int = HISTORY_BYTES_MAX
    ) -> None:
        self._changes_max = changes_max
        self._bytes_max = bytes_max
        self.reset(revision)

    def reset(self, revision: int) -> None:
        """Forgets everything: what comes next is what happens after `revision`."""
        self._segments: deque[Segment] = deque()
        self._changes = 0
        self._bytes = 0
        self.newest = revision
        self.oldest = revision + 1  # the oldest revision that a watch may begin with, here or still to come

    def __len__(self) -> int:
        """How many changes are held."""
        return self._changes

    def append(self, changes: Sequence[Change]) -> None:
        """What an entry changed. One that is over the bounds by itself is forgotten at once, with what was before."""
        size = changes_bytes(changes)
        self.newest = newest = changes[-1][2]
        self._segments.append((newest, size, tuple(changes)))
        self._changes += len(changes)
        self._bytes += size
        while self._changes > self._changes_max or self._bytes > self._bytes_max:
            newest, size, forgotten = self._segments.popleft()
            self.oldest = newest + 1
            self._changes -= len(forgotten)
            self._bytes -= size

    def since(self, revision: int) -> Iterator[Block]:
        """What was changed from that revision on, block by block. Not to be iterated across an `append`."""
        first = bisect_left(self._segments, revision, key=_newest)
        for _, _, changes in islice(self._segments, first, None):
            for block in blocks(changes):
                if block[0][2] >= revision:
                    yield block

    def undone(self, holds: Callable[[str], bool], revision: int) -> dict[str, bytes]:
        """Each key that `holds` and has changed after that revision: its item as it was then, b"" where it was not
        there. Looks at all changes since: about 20 ms at HISTORY_CHANGES_MAX."""
        before: dict[str, bytes] = {}
        for block in self.since(revision + 1):
            for _, key, _, _, previous in block:
                if key not in before and holds(key):
                    before[key] = previous
        return before

    def of(self, key: str, count: int) -> list[Change]:
        """The key's last changes, newest first, at most `count`. Looks through all that is held at worst."""
        found: list[Change] = []
        for _, _, changes in reversed(self._segments):
            for change in reversed(changes):
                if change[1] == key:
                    found.append(change)
                    if len(found) == count:
                        return found
        return found

    def next(self, key: str, revision: int) -> Change | None:
        """The key's first change after that revision."""
        first = bisect_left(self._segments, revision + 1, key=_newest)
        for _, _, changes in islice(self._segments, first, None):
            for change in changes:
                if change[1] == key and change[2] > revision:
                    return change
        return None


def _newest(segment: Segment) -> int:
    return segment[0]
