"""Hub: who watches what on one node. No sockets, no clock, no tasks.

Watchers of the same key, or of the same prefix, are one audience. A change is looked up by its key, and by as many of
its beginnings as there are different lengths of watched prefixes: an unwatched key costs the same with ten thousand
watchers as with one. A change is noted once for a whole audience, and encoded once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Protocol

from kvnode.errors import Overloaded, ShuttingDown
from kvnode.state.changes import CHANGE_REPLACED, Change
from kvnode.watch.audience import Audience, Piece, Selector, Texts
from kvnode.watch.history import History, blocks
from kvnode.watch.watcher import Ending, Watcher

WATCHERS_MAX: Final = 16_384
# What a client may be behind before it is cut off, beyond what fits its socket.
LOG_CHANGES_MAX: Final = 4_096
LOG_BYTES_MAX: Final = 4 * 1_048_576
# What is done for watchers between two looks at the network, about two milliseconds: revisions of the past that are
# searched, watchers that are called, bytes of changes that they take (each makes text of them, and copies it).
TURN_REVISIONS: Final = 8_192
TURN_WATCHERS: Final = 128
TURN_BYTES: Final = 1_048_576


class Source(Protocol):
    """The store, as far as the hub knows it."""

    changes: list[Change] | None
    revision: int


class Hub:
    """All watchers of one node. `call_soon` runs a function in the event loop, after what runs now."""

    def __init__(
        self, store: Source, call_soon: Callable[[Callable[[], None]], object], history: History | None = None
    ) -> None:
        self._store = store
        self._call_soon = call_soon
        self.history = History() if history is None else history
        self._watchers: dict[Watcher, None] = {}
        self._keys: dict[str, Audience] = {}
        self._prefixes: dict[str, Audience] = {}
        self._lengths: Counter[int] = Counter()  # how many watched prefixes have so many characters
        self._dirty: dict[Audience, None] = {}  # something was pushed since their watchers were last called
        self._unread: dict[Audience, None] = {}  # their log is not empty, as far as anybody knows
        self._calls: deque[Watcher] = deque()
        self._turn_due = False
        self._closed_for: str | None = None
        self.ended: Counter[str] = Counter()  # watches that this node ended, by reason
        self.searched = 0  # revisions, in this turn
        self.taken = 0  # bytes, in this turn
        self.texts = Texts()
        self.restart()

    def __len__(self) -> int:
        return len(self._watchers)

    # --- what the node tells ------------------------------------------------------------------------

    def restart(self) -> None:
        """The store was loaded: history begins here."""
        self._store.changes = []
        self.history.reset(self._store.revision)

    def publish(self) -> None:
        """An entry was applied: takes the changes that the store noted, and schedules their watchers."""
        changes = self._store.changes
        if not changes:
            return
        self._store.changes = []
        if changes[0][0] == CHANGE_REPLACED and not (changes := self._replaced(changes)):
            return
        self.history.append(changes)
        if self._keys or self._prefixes:
            self._deliver(changes)

    def _replaced(self, changes: list[Change]) -> list[Change]:
        """All contents were exchanged; what the same entry changed after that."""
        revision = changes[0][2]
        for watcher in [each for each in self._watchers if each.revision < revision]:
            self.end(watcher, "compacted", revision + 1)
        self.history.reset(revision)
        return changes[1:]

    def skipped(self) -> None:
        """A snapshot took the place of the store's contents: what led from one to the other is not known here."""
        if self._store.revision != self.history.newest:
            for watcher in [each for each in self._watchers if each.revision < self._store.revision]:
                self.end(watcher, "compacted", self._store.revision + 1)
        self.restart()

    def close(self, reason: str) -> None:
        """Ends every watcher, each with the revision to resume from elsewhere, and takes no new ones. Idempotent."""
        self._closed_for = reason
        for watcher in list(self._watchers):
            self.end(watcher, reason)

    def reopen(self) -> None:
        """Takes watchers again."""
        self._closed_for = None

    # --- watching -----------------------------------------------------------------------------------

    def watch(self, selector: Selector, from_revision: int, wake: Callable[[], None]) -> Watcher:
        """A watcher of all that happens from that revision on; it may be one that is still to come.

        Raises ShuttingDown, or Overloaded with WATCHERS_MAX of them here.
        """
        if self._closed_for is not None:
            raise ShuttingDown("This node is shutting down: watch on another one, from where this watch was.")
        if len(self._watchers) >= WATCHERS_MAX:
            raise Overloaded(f"This node has {WATCHERS_MAX} watchers, and takes no more: watch on another one.")
        watcher = Watcher(self, selector, from_revision, wake)
        self._watchers[watcher] = None
        if from_revision > self.history.newest:
            self.caught_up(watcher)
        return watcher

    def caught_up(self, watcher: Watcher) -> None:
        """From now on the watcher reads the log of its audience."""
        selector = watcher.selector
        table = self._prefixes if selector.is_prefix else self._keys
        audience = table.get(selector.text)
        if audience is None:
            audience = table[selector.text] = Audience(selector)
            if selector.is_prefix:
                self._lengths[len(selector.text)] += 1
        audience.watchers[watcher] = None
        watcher.audience, watcher.position = audience, audience.end

    def call(self, watcher: Watcher) -> None:
        """Schedules the watcher's `wake`, in order of the calls."""
        if not watcher.due:
            watcher.due = True
            self._calls.append(watcher)
            self._schedule()

    def end(self, watcher: Watcher, reason: str, oldest: int | None = None) -> None:
        if watcher.ending is None:
            self.ended[reason] += 1
            watcher.ending = Ending(reason, self.history.oldest if oldest is None else oldest)
            self._leave(watcher)
            self.call(watcher)

    def forget(self, watcher: Watcher) -> None:
        """As `Watcher.close`."""
        self._watchers.pop(watcher, None)
        self._leave(watcher)
        watcher.wake = _nothing
        watcher.ending = watcher.ending or Ending("closed", self.history.oldest)

    def sweep(self) -> None:
        """To be called about once a second: logs let go of what the history has let go of.

        Else an audience that nothing happens to any more would keep, for a client that does not read, what is old.
        """
        for audience in list(self._unread):
            if audience.log and audience.log[0].revision < self.history.oldest:
                self._trim(audience, LOG_CHANGES_MAX, LOG_BYTES_MAX)
            if not audience.log:
                self._unread.pop(audience, None)

    # --- inside -------------------------------------------------------------------------------------

    def _deliver(self, changes: list[Change]) -> None:
        keys, prefixes, lengths = self._keys, self._prefixes, self._lengths
        found: dict[Audience, list[Change]] = {}
        for change in changes:
            key = change[1]
            audience = keys.get(key)
            if audience is not None:
                found.setdefault(audience, []).append(change)
            for length in lengths:
                # `key[:length]` of a shorter key is the key itself: skip audiences whose prefix is longer.
                audience = prefixes.get(key[:length])
                if audience is not None and length <= len(key):
                    found.setdefault(audience, []).append(change)
        for audience, wanted in found.items():
            for block in blocks(wanted):
                audience.push(Piece(block, audience.selector))
            self._dirty[audience] = self._unread[audience] = None
            if audience.changes > LOG_CHANGES_MAX or audience.bytes > LOG_BYTES_MAX:
                self._trim(audience, LOG_CHANGES_MAX // 2, LOG_BYTES_MAX // 2)
        if found:
            self._schedule()

    def _trim(self, audience: Audience, changes_max: int, bytes_max: int) -> None:
        """Shortens a log; by half, so that looking for those who had not read it costs little for each change."""
        surplus = audience.surplus(changes_max, bytes_max, self.history.oldest)
        start = audience.start + surplus
        for watcher in [each for each in audience.watchers if each.position < start]:
            if watcher.blocked:
                self.end(watcher, "slow")
            else:
                self._leave(watcher)  # it has only not had its turn yet: the history has what it missed
                self.call(watcher)
        audience.drop(surplus)

    def _leave(self, watcher: Watcher) -> None:
        """Takes the watcher out of its audience, and an empty audience out of the tables."""
        audience, watcher.audience = watcher.audience, None
        if audience is None:
            return
        unread_from = audience.unread_from(watcher)
        following = self.history.newest + 1 if unread_from is None else unread_from
        watcher.next_revision = max(watcher.next_revision, following)
        del audience.watchers[watcher]
        if unread_from is not None:
            audience.read_by_one_more()
        if audience.watchers:
            return
        selector = audience.selector
        self._dirty.pop(audience, None)
        self._unread.pop(audience, None)
        if selector.is_prefix:
            del self._prefixes[selector.text]
            length = len(selector.text)
            self._lengths[length] -= 1
            if not self._lengths[length]:
                del self._lengths[length]
        else:
            del self._keys[selector.text]

    def _schedule(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._call_soon(self._turn)

    def _turn(self) -> None:
        """Calls the watchers that have something to take; not so many at once that the node would notice."""
        self._turn_due = False
        self.searched = self.taken = 0
        for audience in self._dirty:
            for watcher in audience.watchers:
                if not watcher.due:
                    watcher.due = True
                    self._calls.append(watcher)
        self._dirty.clear()
        calls = self._calls
        for _ in range(min(len(calls), TURN_WATCHERS)):
            watcher = calls.popleft()
            watcher.due = False
            watcher.wake()
            if self.searched >= TURN_REVISIONS or self.taken >= TURN_BYTES:
                break
        if calls:
            self._schedule()
        else:
            self.texts.clear()  # every watcher has read them but those that do not read at all


def _nothing() -> None:
    """What a watcher that was closed is woken with."""
