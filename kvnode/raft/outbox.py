"""Promises that wait for the disk: nothing that a node says about its log, term or vote leaves before it is durable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from kvnode.raft.messages import Message
from kvnode.raft.ready import Ready
from kvnode.storage.journal import Journal


class _Promise(NamedTuple):
    mutation: int
    term: int
    to: str
    message: Message


class Outbox:
    """Holds messages back until the journal's present state is on disk; drops them if the term has moved on.

    The mutation count decides, not an index: an acknowledgement may rest on a truncation as well as on an
    entry. A promise of an old term is dropped, because what it speaks of may have been overwritten since.
    Bounded by what peers may have in flight: the guard holds at most one promise for each new index.
    """

    def __init__(self, journal: Journal, term: Callable[[], int], ready: Ready) -> None:
        self._journal = journal
        self._term = term
        self._ready = ready
        self._held: deque[_Promise] = deque()

    def send(self, to: str, message: Message) -> bool:
        """Sends at once if everything is durable, otherwise when it is. True: sent at once."""
        if not self._held and self._journal.clean:
            self._ready.send(to, message)
            return True
        self._held.append(_Promise(self._journal.mutation, self._term(), to, message))
        return False

    def release(self) -> None:
        """The journal has made progress: sends what it now covers."""
        if not self._held:
            return
        durable, term = self._journal.durable_mutation, self._term()
        while self._held and self._held[0].mutation <= durable:
            promise = self._held.popleft()
            if promise.term == term:
                self._ready.send(promise.to, promise.message)

    def __len__(self) -> int:
        return len(self._held)
