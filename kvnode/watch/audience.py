"""Audience: the watchers of one key, or of one prefix, and the changes that they have not read yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final, NamedTuple

from kvnode.watch.history import Block, sent_bytes

if TYPE_CHECKING:
    from kvnode.watch.watcher import Watcher


# What the texts of changes may take that are kept for the watchers whose turn is still to come. All audiences together:
# a key has a thousand beginnings, each of which may be watched.
TEXTS_BYTES_MAX: Final = 8 * 1_048_576


class Selector(NamedTuple):
    """One key, or all keys that begin with `text`."""

    text: str
    is_prefix: bool

    def of(self, block: Block) -> Block:
        """The changes of a block that are meant, in order."""
        text = self.text
        if self.is_prefix:
            return tuple(change for change in block if change[1].startswith(text))
        return tuple(change for change in block if change[1] == text)


class Piece:
    """The changes of one revision that a group watches; `texts` are what faces made of them, for their next watchers.

    A face names its texts by something that tells them from those of all others.
    """

    __slots__ = ("block", "bytes", "revision", "selector", "texts")

    def __init__(self, block: Block, selector: Selector) -> None:
        self.block = block
        self.selector = selector
        self.bytes = sent_bytes(block)
        self.revision = block[0][2]
        self.texts: dict[Hashable, bytes] = {}


class Texts:
    """The texts that pieces have at present, the oldest out first. A piece that lost its own is made one again."""

    __slots__ = ("bytes", "pieces")

    def __init__(self) -> None:
        self.pieces: dict[tuple[Selector, int], Piece] = {}  # by selector and revision
        self.bytes = 0

    def keep(self, piece: Piece, name: Hashable, text: bytes) -> None:
        place = (piece.selector, piece.revision)
        if self.pieces.get(place, piece) is not piece:  # another one of the same, from before it was kept
            self._forget(place)
        piece.texts[name] = text
        self.pieces[place] = piece
        self.bytes += len(text)
        # The newest stays at any size: encoding a deleted prefix again for each watcher would take far longer.
        while self.bytes > TEXTS_BYTES_MAX and len(self.pieces) > 1:
            self._forget(next(iter(self.pieces)))

    def clear(self) -> None:
        for place in list(self.pieces):
            self._forget(place)

    def _forget(self, place: tuple[Selector, int]) -> None:
        piece = self.pieces.pop(place)
        self.bytes -= sum(map(len, piece.texts.values()))
        piece.texts = {}


class Audience:
    """The watchers of one selector, and the log that those who have caught up read."""

    __slots__ = ("behind", "bytes", "changes", "log", "selector", "start", "watchers")

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.watchers: dict[Watcher, None] = {}  # an ordered set: first come, first served
        self.log: deque[Piece] = deque()
        self.start = 0  # the position of the log's first piece
        self.changes = 0
        self.bytes = 0
        self.behind = 0  # watchers that have not read all of the log

    @property
    def end(self) -> int:
        """The position behind the log's last piece."""
        return self.start + len(self.log)

    def push(self, piece: Piece) -> None:
        self.log.append(piece)
        self.changes += len(piece.block)
        self.bytes += piece.bytes
        self.behind = len(self.watchers)

    def surplus(self, changes_max: int, bytes_max: int, oldest: int) -> int:
        """How many of the oldest pieces are over these bounds, or from before revision `oldest`."""
        changes, size = self.changes, self.bytes
        for count, piece in enumerate(self.log):
            if changes <= changes_max and size <= bytes_max and piece.revision >= oldest:
                return count
            changes -= len(piece.block)
            size -= piece.bytes
        return len(self.log)

    def drop(self, count: int) -> None:
        """Lets the oldest pieces go."""
        for _ in range(min(count, len(self.log))):
            piece = self.log.popleft()
            self.start += 1
            self.changes -= len(piece.block)
            self.bytes -= piece.bytes

    def unread_from(self, watcher: Watcher) -> int | None:
        """The revision of the first piece that the watcher has not read; None where it has read all."""
        return None if watcher.position == self.end else self.log[watcher.position - self.start].revision

    def read_by_one_more(self) -> None:
        """A watcher that was behind is not any more, or has left: once none is, the log has served."""
        self.behind -= 1
        if self.behind == 0:
            self.drop(len(self.log))
