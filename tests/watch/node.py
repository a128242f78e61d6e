"""A store with a hub and an event loop that turns when it is told to; and watchers that keep what they took."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvnode.state.changes import Change
from kvnode.state.commands import DELETE, PUT
from kvnode.state.store import KeyValueStore
from kvnode.watch.audience import Selector
from kvnode.watch.history import History
from kvnode.watch.hub import Hub
from kvnode.watch.watcher import Watcher


class Node:
    def __init__(self, history: History | None = None) -> None:
        self.store = KeyValueStore()
        self.soon: deque[Callable[[], None]] = deque()
        self.hub = Hub(self.store, self.soon.append, history)
        self.put_changes: list[Change] = []

    def put(self, key: str, value: bytes = b"v") -> None:
        self.store.apply([PUT, key, value, "", None])
        self.hub.publish()

    def delete(self, key: str) -> None:
        self.store.apply([DELETE, key, None])
        self.hub.publish()

    def entry(self, *changes: tuple[str, ...]) -> None:
        """One entry whose commands each change these keys in one revision, as a transaction does."""
        assert self.store.changes is not None
        for keys in changes:
            self.store.revision += 1
            self.store.changes += [(1, key, self.store.revision, b"", b"") for key in keys]
        self.hub.publish()

    def turn(self) -> int:
        """Runs the loop until nothing is left to do; how often the hub had its turn."""
        turns = 0
        while self.soon:
            self.soon.popleft()()
            turns += 1
        return turns


class Reader:
    """Takes whatever comes, `reads` permitting."""

    def __init__(
        self, node: Node, selector: Selector, from_revision: int | None = None, bytes_max: int = 65_536
    ) -> None:
        self.told: list[tuple[int, tuple[str, ...]]] = []
        self.calls = 0
        self.bytes_max = bytes_max
        start = node.store.revision + 1 if from_revision is None else from_revision
        self.watcher: Watcher = node.hub.watch(selector, start, self.wake)
        self.wake()

    def wake(self) -> None:
        self.calls += 1
        if not self.watcher.blocked:
            for piece in self.watcher.take(self.bytes_max):
                assert len({change[2] for change in piece.block}) == 1
                self.told.append((piece.revision, tuple(change[1] for change in piece.block)))

    @property
    def keys(self) -> list[str]:
        return [key for _, keys in self.told for key in keys]


def prefix(text: str) -> Selector:
    return Selector(text, True)


def key(text: str) -> Selector:
    return Selector(text, False)
