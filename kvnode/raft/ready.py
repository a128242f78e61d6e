"""What a replica wants done: it calls nobody, it says so here, and its member takes it from here (as etcd's `Ready`).

Messages may leave at once: what must be durable first is held back by `outbox.py` and appears here when it is.
Events are in the order in which they came about. Entries are not here: `Replica.committed` gives them.
"""

from __future__ import annotations

from typing import NamedTuple

from kvnode.configuration import Role
from kvnode.raft.messages import Message


class RoleChanged(NamedTuple):
    role: Role


class MembersChanged(NamedTuple):
    """The roster says something new: whom to talk to, or that this node was removed."""


class ReadConfirmed(NamedTuple):
    """A majority echoed the round: the reads of it, and of those before it, may go once that index is applied."""

    number: int
    commit_index: int


class ReadsFailed(NamedTuple):
    """No round up to this number will be confirmed any more: leadership has ended."""

    number: int


class SnapshotNeeded(NamedTuple):
    """This follower wants entries that the log has no more."""

    node_id: str


Event = RoleChanged | MembersChanged | ReadConfirmed | ReadsFailed | SnapshotNeeded


class Ready:
    """One replica's. Whoever takes from the lists clears them; they stay the same lists."""

    __slots__ = ("events", "messages")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.messages: list[tuple[str, Message]] = []  # (to, message)

    def send(self, node_id: str, message: Message) -> None:
        self.messages.append((node_id, message))
