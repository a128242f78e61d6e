"""What must never happen, whatever the schedule (Raft, figure 3; dissertation §6.4 for reads).

The oracle sees every node at once, which no node can. It is told what happens and raises `Violation` at the
first thing that breaks a promise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(eq=False)
class Write:
    """One proposal as its client sees it. It is acknowledged by the node that it was proposed on, and only there."""

    node_id: str
    payload: bytes
    index: int = 0
    term: int = 0
    acknowledged: bool = False


@dataclass(eq=False)
class Read:
    """A read round as those see it who wait for it. Clocks are counts of events."""

    node_id: str
    term: int
    requested_at: int
    committed_before: int  # the highest index that any node had applied when the round was asked for
    confirmed_index: int | None = None


class Holder(Protocol):
    """A node, as far as the oracle looks into it."""

    @property
    def node_id(self) -> str: ...
    @property
    def first_index(self) -> int: ...
    def term_at(self, index: int) -> int | None: ...


class Chosen(NamedTuple):
    """A committed entry. `committed_in` is the term of the node that applied it first, which is its leader."""

    term: int
    payload: bytes
    committed_in: int


@dataclass
class Oracle:
    chosen: dict[int, Chosen] = field(default_factory=dict)
    digests: dict[int, int | None] = field(default_factory=dict)
    leaders: dict[int, str] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    confirmed: list[Read] = field(default_factory=list)
    highest_applied: int = 1
    events: int = 0
    _open: dict[tuple[str, int, int], Write] = field(default_factory=dict)

    def leads(self, node: Holder, term: int) -> None:
        """Election Safety and Leader Completeness."""
        first = self.leaders.setdefault(term, node.node_id)
        if first != node.node_id:
            raise Violation(f"two leaders in term {term}: {first} and {node.node_id}")
        for index, chosen in self.chosen.items():
            if chosen.committed_in < term and index >= node.first_index and node.term_at(index) != chosen.term:
                raise Violation(f"{node.node_id} leads in term {term} without the committed entry {index}")

    def proposed(self, write: Write) -> None:
        self.writes.append(write)
        self._open[write.node_id, write.index, write.term] = write

    def applied(
        self, node_id: str, index: int, term: int, payload: bytes, *, node_term: int, holders: int, needed: int
    ) -> None:
        """State Machine Safety; and nothing is committed that a majority would not find on its disks again."""
        chosen = self.chosen.get(index)
        if chosen is None:
            if holders < needed:
                raise Violation(f"{node_id} applied entry {index}, which {holders} of {needed} nodes hold durably")
            self.chosen[index] = Chosen(term, payload, node_term)
        elif chosen[:2] != (term, payload):
            raise Violation(
                f"divergent apply: {node_id} applied {payload!r} of term {term} at index {index}, "
                f"where {chosen.payload!r} of term {chosen.term} was committed"
            )
        self.highest_applied = max(self.highest_applied, index)
        write = self._open.pop((node_id, index, term), None)
        if write is not None:
            write.acknowledged = True

    def digested(self, node_id: str, index: int, digest: int | None) -> None:
        """What the nodes compare among themselves: one history, one digest, through snapshots and restarts too."""
        if self.digests.setdefault(index, digest) != digest:
            raise Violation(f"{node_id} has another digest at index {index} than the first who got there")

    def read_requested(self, node_id: str, term: int) -> Read:
        self.events += 1
        return Read(node_id, term, self.events, self.highest_applied)

    def read_confirmed(self, read: Read, index: int) -> None:
        """Linearizability: a read sees every write that was committed before it was asked for."""
        read.confirmed_index = index
        if index < read.committed_before:
            raise Violation(f"{read.node_id} confirmed a read at {index} after {read.committed_before} was committed")
        for other in self.confirmed:
            older, newer = sorted((read, other), key=lambda one: one.term)
            if older.term < newer.term and older.requested_at > newer.requested_at:
                raise Violation(f"a read asked for in term {older.term} was confirmed after one of term {newer.term}")
        self.confirmed.append(read)

    @property
    def acknowledged(self) -> list[Write]:
        return [write for write in self.writes if write.acknowledged]
