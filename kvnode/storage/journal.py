"""The log in memory and its way to disk: PySyncObj's journal interface over `segments`.

Every change is a numbered *mutation*. It is buffered at once and written later, in order, by the driver of the
flights (`Flusher` in a running node, the simulation in a test). An index is not enough to say what is durable,
because a truncation is a change too. So acknowledgements wait for `durable_mutation`, and the
leader's own share of a majority for `durable_index`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

from kvnode.configuration import CONFIGURATION
from kvnode.errors import StartupError
from kvnode.storage.records import (
    NO_OP,
    Entry,
    base_record,
    entry_record,
    entry_sum,
    state_record,
    truncate_record,
)
from kvnode.storage.segments import Recovered


@dataclass(slots=True)
class Flight:
    """Bytes on their way to disk. `state`: the hard state before them, for the head of a new segment.

    `drop_before`: afterwards, entries below this index may be unlinked.
    """

    buffers: list[bytes]
    mutation: int
    last_index: int
    state: bytes
    drop_before: int


class Journal:
    """PySyncObj's Journal by shape (journal.py in 0.3.17): a list of (command, index, term), never empty once in use.

    `on_dirty` is called when there is something to write and no flight is under way. `configurations` are the
    entries, as (index, command), that say who the members are; `on_configuration` is called when they change.
    """

    def __init__(self, recovered: Recovered, on_dirty: Callable[[], None] = lambda: None) -> None:
        self._entries: list[Entry] = list(recovered.entries)
        self._sums: list[int | None] = [None] * len(self._entries)
        self._bytes = sum(len(entry[0]) for entry in self._entries)
        self._term = recovered.term
        self._vote = recovered.vote
        self._state = self._flown_state = state_record(recovered.term, recovered.vote)
        self._buffers: list[bytes] = []
        self._in_flight = False
        self._flight_last_index = 0
        self._drop_before = 0
        self._snapshot_index = 1
        self.on_dirty = on_dirty
        self.configurations = [(index, command) for command, index, _ in self._entries if command[0] == CONFIGURATION]
        self.on_configuration: Callable[[], None] = lambda: None
        self.mutation = 0
        self.durable_mutation = 0
        self.durable_index = self._entries[-1][1] if self._entries else 0

    # --- what PySyncObj asks for ---------------------------------------------------------------

    def add(self, command: bytes, index: int, term: int) -> None:
        record = entry_record(command, index, term)
        self._entries.append((command, index, term))
        self._sums.append(entry_sum(record[0]))
        self._bytes += len(command)
        self._buffers += record
        self._mutated()
        if command[0] == CONFIGURATION:
            self.configurations.append((index, command))
            self.on_configuration()

    def clear(self) -> None:
        raise AssertionError("the core never clears this journal: snapshots are installed by rebase()")

    def deleteEntriesFrom(self, position: int) -> None:
        gone = self._entries[position:]
        if not gone:
            return
        index = gone[0][1]
        del self._entries[position:], self._sums[position:]
        self._bytes -= sum(len(entry[0]) for entry in gone)
        self.durable_index = min(self.durable_index, index - 1)
        self._flight_last_index = min(self._flight_last_index, index - 1)
        self._buffers.append(truncate_record(index))
        self._mutated()
        if self.configurations and self.configurations[-1][0] >= index:
            self.configurations = [each for each in self.configurations if each[0] < index]
            self.on_configuration()

    def deleteEntriesTo(self, position: int) -> None:
        self._bytes -= sum(len(entry[0]) for entry in self._entries[:position])
        del self._entries[:position], self._sums[:position]
        self._drop_before = self._entries[0][1]
        self._dirty()

    @overload
    def __getitem__(self, item: int) -> tuple[bytes, int, int]: ...
    @overload
    def __getitem__(self, item: slice) -> list[tuple[bytes, int, int]]: ...
    def __getitem__(self, item: int | slice) -> Any:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, index: int) -> None:
        """Not kept: a commit index that outlives the log it spoke of commits what was never agreed (quirk R8)."""

    def getRaftCommitIndex(self) -> int:
        return self._snapshot_index

    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        self._term, self._vote = term, vote
        self._state = state_record(term, vote)
        self._buffers.append(self._state)
        self._mutated()

    def getCurrentTerm(self) -> int:
        return self._term

    def getVotedForNodeId(self) -> str | None:
        return self._vote

    def onOneSecondTimer(self) -> None:
        """Nothing to do by the clock: every mutation is on its way already."""

    def _destroy(self) -> None:
        """Does nothing: the caller that opened the files closes them."""

    # --- what the rest of this package asks for -------------------------------------------------

    @property
    def command_bytes(self) -> int:
        """Command bytes held in memory."""
        return self._bytes

    @property
    def clean(self) -> bool:
        """Everything that was changed is durable."""
        return self.durable_mutation == self.mutation

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, None where the log does not hold it."""
        position = index - self._entries[0][1]
        if 0 <= position < len(self._entries):
            return int(self._entries[position][2])
        return None

    def sum_at(self, index: int) -> int:
        """The checksum of an entry that the log holds: of its index, its term and its command.

        Kept from the entry's record on disk, so that it is not computed again for a big entry.
        """
        position = index - self._entries[0][1]
        known = self._sums[position]
        return entry_sum(entry_record(*self._entries[position])[0]) if known is None else known

    def reconcile(self, index: int, term: int, where: str) -> None:
        """Fits the recovered log to the snapshot that is on disk (entry `index` of `term` is the last in it).

        A crash may have fallen between publishing a snapshot and rebasing the log on it; then the log is
        behind it, or says otherwise, and the snapshot is right: it holds only what was committed.
        """
        self._snapshot_index = max(1, index)
        if not self._entries:
            if index:
                self.rebase(index, term)
            return
        if self._entries[0][1] > max(1, index):
            raise StartupError(
                f"The journal in {where} starts at entry {self._entries[0][1]}, but the newest whole snapshot there "
                f"ends at {index}: what is between them is missing; move the data directory away and let this node "
                "catch up from its peers as a new node."
            )
        if index and self.term_at(index) != term:
            self.rebase(index, term)

    def rebase(self, index: int, term: int) -> None:
        """Starts the log anew behind a snapshot whose last entry is `index` of `term`."""
        self._entries, self._sums = [(NO_OP, index, term)], [None]
        self._bytes = 0
        self._snapshot_index = index
        self.durable_index = 0
        self._flight_last_index = 0
        self._buffers.append(base_record(index, term))
        self._drop_before = index
        self._mutated()
        self.configurations.clear()  # what the snapshot says takes their place: `Roster.restored`

    def forget_configurations(self, index: int) -> None:
        """A snapshot at `index` holds what those up to there said."""
        self.configurations = [each for each in self.configurations if each[0] > index]

    def compact(self, first_index: int) -> None:
        """Forgets the entries below `first_index`, which must be in a durable snapshot; those that are still there.

        The log may start behind it already: a peer's newer snapshot was installed while this one was written.
        """
        if first_index > self._entries[0][1]:
            self.deleteEntriesTo(first_index - self._entries[0][1])

    def begin_flight(self) -> Flight | None:
        """What is to be written next, or None. One flight at a time; end it with `end_flight`."""
        if self._in_flight or not (self._buffers or self._drop_before):
            return None
        last_index = self._entries[-1][1] if self._entries else 0
        flight = Flight(self._buffers, self.mutation, last_index, self._flown_state, self._drop_before)
        self._buffers, self._drop_before, self._flown_state = [], 0, self._state
        self._in_flight, self._flight_last_index = True, last_index
        return flight

    def end_flight(self, flight: Flight) -> None:
        """The flight's bytes are durable."""
        self._in_flight = False
        self.durable_mutation = flight.mutation
        self.durable_index = self._flight_last_index
        if self._buffers or self._drop_before:
            self.on_dirty()

    def _mutated(self) -> None:
        self.mutation += 1
        self._dirty()

    def _dirty(self) -> None:
        if not self._in_flight:
            self.on_dirty()
