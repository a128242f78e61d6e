"""The newest changes of the store, revision by revision: what a watch that comes back, or begins in the past, is given.

One node's memory and no part of the replicated state: bounded by count and by bytes, the oldest out first. A restart
begins it anew at the snapshot that the node loads, and fills it from the journal; a snapshot from a peer begins it
anew as well. So nodes hold different stretches of the same history, and what one has forgotten another may still have.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from kvnode.changes import Change

# Ten seconds at 13,000 changes a second, a day and a half at one: a client that lost its node is back long before.
HISTORY_CHANGES_MAX: Final = 131_072
# Values that are still in the store are shared with it: this bounds what overwritten and deleted ones may take.
HISTORY_BYTES_MAX: Final = 64 * 1_048_576
CHANGE_BYTES: Final = 256  # tuple, numbers, text and dictionary slot of one change, beside its key and value

Block = tuple[Change, ...]
"""All changes of one revision, in order; or those of them that somebody asked for."""


def blocks(changes: list[Change]) -> Iterator[Block]:
    """Changes as the store noted them, cut by revision."""
    if len(changes) == 1:  # nearly always one entry with few commands, each with one change
        yield (changes[0],)
        return
    for _, same in groupby(changes, _revision):
        yield tuple(same)


def _revision(change: Change) -> int:
    return change[2]


def block_bytes(block: Block) -> int:
    """What a block counts for in every bound."""
    size = 0
    for _, key, _, packed in block:
        size += CHANGE_BYTES + len(key) + len(packed)
    return size


class History:
    """Blocks by revision. Every revision from `oldest` to `newest` is here, or changed no key."""

    __slots__ = ("_blocks", "_bytes", "_bytes_max", "_changes", "_changes_max", "newest", "oldest")

    def __init__(
        self, revision: int = 0, changes_max: int = HISTORY_CHANGES_MAX, bytes_max: int = HISTORY_BYTES_MAX
    ) -> None:
        self._changes_max = changes_max
        self._bytes_max = bytes_max
        self.reset(revision)

    def reset(self, revision: int) -> None:
        """Forgets everything: what comes next is what happens after `revision`."""
        self._blocks: dict[int, Block] = {}
        self._changes = 0
        self._bytes = 0
        self.newest = revision
        self.oldest = revision + 1  # the oldest revision that a watch may begin with, here or still to come

    def __len__(self) -> int:
        """How many changes are held."""
        return self._changes

    def append(self, block: Block) -> None:
        """The changes of the next revision. One that is over the bounds by itself is forgotten at once."""
        revision = block[0][2]
        self._blocks[revision] = block
        self.newest = revision
        self._changes += len(block)
        self._bytes += block_bytes(block)
        while self._changes > self._changes_max or self._bytes > self._bytes_max:
            forgotten = self._blocks.pop(self.oldest, ())
            self.oldest += 1
            self._changes -= len(forgotten)
            self._bytes -= block_bytes(forgotten)

    def get(self, revision: int) -> Block:
        """The changes of one revision; () for one that changed no key, is forgotten, or is still to come."""
        return self._blocks.get(revision, ())
