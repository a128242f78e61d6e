"""One node's files without its Raft: the real identity, journal, segments and snapshots, and what they have promised.

The script below makes every kind of change that a node makes to its directory. A `Member` remembers the state
after each change and up to which one was promised, so that whatever is found after an accident can be judged.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvnode.configuration import first_cluster
from kvnode.state.commands import PUT
from kvnode.state.store import KeyValueStore
from kvnode.storage.identity import claim
from kvnode.storage.journal import Journal
from kvnode.storage.records import Entry
from kvnode.storage.segments import OutOfSpace, Segments
from kvnode.storage.snapshots import PART, Snapshots
from tests.simulation.disk import MemoryDisk

PEERS = {"n1": ("127.0.0.1", 7001), "n2": ("127.0.0.1", 7002)}
MEMBERS = first_cluster(PEERS)


class Broken(AssertionError):
    """What was found on a disk is not what was promised."""


@dataclass(frozen=True)
class State:
    """After one change: hard state and log."""

    term: int
    vote: str | None
    log: tuple[Entry, ...]


class Member:
    """Changes are made and then landed, one flight at a time, as the flusher does."""

    def __init__(self, disk: MemoryDisk, segment_bytes: int = 220) -> None:
        self.disk = disk
        self.segment_bytes = segment_bytes
        self.history = [State(0, None, ())]
        self.landed = 0  # the state in `history` that is promised
        self.snapshot_index = 0  # the newest snapshot that is promised
        self.refused = 0  # how often the disk was full

    # --- as RaftGroup starts and stops ----------------------------------------------------------------------

    def start(self) -> None:
        self.cluster_id = claim(self.disk, "n1", None, PEERS).cluster_id
        self.segments = Segments(self.disk, self.cluster_id, self.segment_bytes)
        self.snapshots = Snapshots(self.disk, self.cluster_id)
        self.store = self.snapshots.recover()
        self.journal = Journal(self.segments.recover())
        newest = self.snapshots.newest
        self.journal.reconcile(newest.index if newest else 0, newest.term if newest else 0, "here")
        self.check()
        self._remember()
        if self.journal.clean:
            self.landed = len(self.history) - 1  # acknowledgements may speak of it from now on
        self.land()

    def stop(self) -> None:
        self.segments.sync()
        self.segments.note_durable()

    def check(self) -> None:
        """What was just recovered is the state after the last promised change, or after a later one."""
        newest = self.snapshots.newest.index if self.snapshots.newest else 0
        if newest < self.snapshot_index:
            raise Broken(f"the snapshot at {self.snapshot_index} was promised, and {newest} is the newest")
        item = self.store.get("last")
        if (0 if item is None else int(item.value)) != newest:
            raise Broken(f"the snapshot at {newest} holds {item}")
        found = self._state()
        for state in self.history[self.landed :]:
            if (found.term, found.vote) == (state.term, state.vote) and _behind(found, newest) == _behind(
                state, newest
            ):
                return
        raise Broken(f"found {found} behind {newest}, promised was {self.history[self.landed]}")

    # --- what a node does to its files ------------------------------------------------------------------------

    def write(self, *sizes: int, term: int) -> None:
        """One entry of each size behind the last."""
        for size in sizes:
            index = self.journal[-1][1] + 1 if len(self.journal) else 1
            self.journal.add(f"{index}".encode() * size, index, term)
            self._remember()

    def truncate(self, index: int) -> None:
        self.journal.deleteEntriesFrom(index - self.journal[0][1])
        self._remember()

    def vote(self, term: int, vote: str | None) -> None:
        self.journal.setCurrentTerm(term, vote)
        self._remember()

    def land(self) -> None:
        """What was changed is on disk when this returns, and is promised from then on."""
        while (flight := self.journal.begin_flight()) is not None:
            reached = len(self.history) - 1
            if flight.buffers:
                self._append(flight.buffers, flight.last_index, flight.state)
            if flight.drop_before:
                self.segments.drop_before(flight.drop_before)
            self.journal.end_flight(flight)
            self.landed = reached

    def _append(self, buffers: list[bytes], last_index: int, state: bytes) -> None:
        """A full disk is tried again, once: then it must have room, and nothing may be left of the first attempt."""
        before = self.files()
        try:
            self.segments.append(buffers, last_index, state, sync=True)
        except OutOfSpace:
            self.refused += 1
            after = self.files()
            rotated = {name: data for name, data in after.items() if name not in before}
            if {name: data for name, data in after.items() if name in before} != before or len(rotated) > 1:
                raise Broken("a write that was refused has left something behind") from None
            self.segments.append(buffers, last_index, state, sync=True)

    def quiet(self) -> None:
        """No flight for a moment."""
        self.segments.note_durable()

    def snapshot(self, index: int, keep: int) -> None:
        """Of the state after entry `index`; then the log before it goes, but for `keep` entries."""
        term = self.journal.term_at(index)
        assert term is not None
        snapshot = self.snapshots.write(index, term, MEMBERS, _store_at(index).view())
        self.snapshot_index = index
        self.snapshots.published(snapshot)
        if (retired := self.snapshots.retire()) is not None:
            retired()
        self.journal.compact(index - keep)
        self._remember()

    def install(self, index: int, term: int) -> None:
        """A peer's snapshot arrives in pieces and takes the place of the log."""
        elsewhere = Snapshots(MemoryDisk(), self.cluster_id)
        whole = elsewhere.disk.read(elsewhere.write(index, term, MEMBERS, _store_at(index).view()).name)
        part = f"snapshot-{index:020d}-{term}{PART}"
        for first in range(0, len(whole), 50):
            self.disk.append(part, [whole[first : first + 50]])
        snapshot, self.store = self.snapshots.adopt(part, index, term)
        self.snapshot_index = index
        self.journal.rebase(index, term)
        self._remember()
        self.snapshots.published(snapshot)

    # --- what is known ------------------------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        return self.disk.files()

    def _state(self) -> State:
        return State(self.journal.getCurrentTerm(), self.journal.getVotedForNodeId(), tuple(self.journal[:]))

    def _remember(self) -> None:
        self.history.append(self._state())


def _behind(state: State, index: int) -> list[Entry]:
    return [entry for entry in state.log if entry[1] > index]


def _store_at(index: int) -> KeyValueStore:
    store = KeyValueStore()
    for n in range(1, 6):
        store.apply([PUT, f"k{n}", b"x" * 40, "text/plain", None])
    store.apply([PUT, "last", b"%d" % index, "", None])
    return store


def script(member: Member) -> None:
    """Every kind of change, some alone in their flight and some together, over a dozen small segments."""
    member.start()
    member.vote(1, "n1")
    member.write(1, 1, term=1)
    member.land()
    member.write(10, term=1)
    member.land()
    member.vote(2, "n2")
    member.land()
    member.write(5, 40, 1, 30, term=2)
    member.land()
    member.quiet()
    member.truncate(6)
    member.vote(3, None)
    member.write(3, 20, term=3)
    member.land()
    member.vote(3, "n2")
    member.truncate(7)
    member.land()
    for size in (9, 60, 1, 30):
        member.write(size, size, term=3)
        member.land()
    member.snapshot(9, keep=2)
    member.land()
    member.quiet()
    member.write(5, term=3)
    member.start()  # the process was killed between two changes
    member.write(5, 50, term=3)
    member.land()
    member.snapshot(12, keep=0)
    member.write(50, term=3)
    member.land()
    member.write(7, term=4)
    member.install(40, 5)
    member.vote(6, "n1")
    member.land()
    member.write(30, 30, 30, term=6)
    member.land()
    member.write(*[90] * 8, term=6)  # three blocks
    member.land()
    member.quiet()
    member.snapshot(42, keep=1)
    member.write(1, term=6)
    member.land()
    member.vote(7, "n2")
    member.land()
    member.stop()
