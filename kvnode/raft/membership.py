"""Which configuration counts now, as one node sees its log; and which is known to be committed."""

from __future__ import annotations

from collections.abc import Callable

from kvnode.configuration import Configuration, Member, of_entry, unpacked
from kvnode.storage.journal import Journal


class Roster:
    """The configurations that one node knows of. `on_change` is called after each change of what it answers.

    `current` counts for majorities: the last in the log, committed or not. `newest` is the latest that is known to
    be committed, from the log, a snapshot or a peer's word: a node that was away learns from it whom to talk to,
    and that it was removed. `known` are the members of both: whoever else speaks is not listened to.
    """

    def __init__(self, node_id: str, journal: Journal, first: Configuration, told: Configuration | None = None) -> None:
        self.node_id = node_id
        self._journal = journal
        self._base = first
        self.current = self.at(2**63)
        self.newest = told if told is not None and told.index > first.index else first
        self.known: dict[str, Member] = {}
        self.dismissed: str | None = None
        self.admitted: Configuration | None = None  # the one by which a node that had forgotten its promises was let in
        self.on_change: Callable[[], None] = lambda: None
        self.is_fresh: Callable[[], bool] = lambda: False  # this node has never promised anything (`promises.py`)
        journal.on_configuration = self._changed
        self._changed()

    def __contains__(self, node_id: object) -> bool:
        return node_id in self.known

    @property
    def index(self) -> int:
        """Of the latest configuration that this node knows to be committed."""
        return self.newest.index

    @property
    def packed(self) -> bytes:
        return self.newest.packed

    @property
    def is_member(self) -> bool:
        return self.node_id in self.current.members

    def at(self, index: int) -> Configuration:
        """The one that counts after entry `index`."""
        for position, command in reversed(self._journal.configurations):
            if position <= index:
                return of_entry(position, command)
        return self._base

    def committed(self, index: int) -> None:
        """The configuration entry at `index` is committed."""
        self._advance(self.at(index))

    def told(self, packed: bytes) -> None:
        """A proved peer's `packed`, which it knows to be committed. Raises ValueError."""
        self._advance(unpacked(packed))

    def restored(self, index: int, configuration: Configuration) -> None:
        """The log starts behind a snapshot at `index`; one of a first cluster says nothing that is not known."""
        if configuration.index:
            self._base = configuration
        self._journal.forget_configurations(index)
        self._advance(self._base)
        self._changed()

    def compacted(self, index: int) -> None:
        """A snapshot at `index` holds what the log below it said."""
        self._base = self.at(index)
        self._journal.forget_configurations(index)

    def _advance(self, configuration: Configuration) -> None:
        if configuration.index <= self.newest.index:
            return
        before, now = self.newest.members.get(self.node_id), configuration.members.get(self.node_id)
        self.newest = configuration
        if self.is_fresh() and now is not None and not now.voter:
            self._base = self.admitted = configuration  # as a node that has joined, from here on
        elif before is not None and (now is None or now.since != before.since):
            again = "" if now is None else ", and its name was given to another one"
            self.dismissed = (
                f"Node {self.node_id} was removed from the cluster by entry {configuration.index} of its log{again}: "
                "its data is no longer part of it; to add the node again, start it with an empty --data-dir and --join."
            )
        self._changed()

    def _changed(self) -> None:
        self.current = self.at(2**63)
        older, newer = sorted((self.current, self.newest), key=lambda one: one.index)
        self.known = {**older.members, **newer.members}
        self.on_change()
