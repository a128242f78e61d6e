"""What is in a data directory, and whether it is whole: the very code that a start reads it with, changing nothing.

It may be read while its node runs. The journal is read before the snapshots: a snapshot only ever becomes newer
and lets older segments go, so a journal that was read earlier always reaches as far back as a snapshot that was read
later. What the node is just writing looks like the unfinished tail of a crash, and a file that it removed in
between is a reason to look again.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvnode.errors import StartupError
from kvnode.state.store import KeyValueStore
from kvnode.storage import identity
from kvnode.storage.disk import ReadOnly
from kvnode.storage.journal import Journal
from kvnode.storage.records import (
    BASE,
    ENTRY,
    STATE,
    SYNCED,
    TRUNCATE,
    entry_place,
    records,
)
from kvnode.storage.replay import Poisoned, replay
from kvnode.storage.segments import (
    HEADER_BYTES,
    JournalDamaged,
    Recovered,
    Segments,
)
from kvnode.storage.snapshots import PART, Damaged, Snapshots

LOOKS: Final = 10

_KINDS: Final = {ENTRY: "entries", TRUNCATE: "truncations", BASE: "bases", STATE: "hard_states", SYNCED: "syncs"}
_LIMITS: Final = (
    "where another node's data is whole, move the data directory away and let this node catch up from its peers as a "
    "new node; where none is, 'kvnode recover' keeps what is sound of it"
)
_CATCH_UP: Final = (
    "restore it from a copy, or move the data directory away and let the node catch up from its peers as a new node"
)


class NotADataDirectory(StartupError):
    """There is nothing here that a node has written."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with one file. `offset` is in bytes, None where it is the file as a whole."""

    file: str
    offset: int | None
    what: str
    remedy: str

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.file}{at}: {self.what}; {self.remedy}."


@dataclass(slots=True)
class SegmentReport:
    """One journal file, up to the first record that does not check out; indexes and terms are those of its entries."""

    file: str
    bytes: int
    entries: int = 0
    truncations: int = 0
    bases: int = 0
    hard_states: int = 0
    syncs: int = 0
    first_index: int | None = None
    last_index: int | None = None
    first_term: int | None = None
    last_term: int | None = None
    unread_bytes: int = 0  # behind the last good record: what a crash left unfinished, or damage


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """One snapshot file that was read to its end and checks out. `digest`: see `node/divergence.py`."""

    file: str
    bytes: int
    index: int
    term: int
    members: tuple[str, ...]
    revision: int
    items: int
    digest: int | None


@dataclass(slots=True)
class VerifyReport:
    """Everything that was found. Whole where `damage` and `poisoned` are empty."""

    data_dir: str
    node_id: str | None = None
    cluster_id: str | None = None
    members: list[str] = field(default_factory=list)
    term: int | None = None
    vote: str | None = None
    first_index: int | None = None
    last_index: int | None = None
    segments: list[SegmentReport] = field(default_factory=list)
    snapshots: list[SnapshotReport] = field(default_factory=list)
    leftovers: dict[str, int] = field(default_factory=dict)  # file -> bytes; a start removes them
    damage: list[Damage] = field(default_factory=list)
    poisoned: list[Poisoned] = field(default_factory=list)  # looked for where there is no damage


def verify(path: Path) -> VerifyReport:
    """Reads all of a data directory. Raises NotADataDirectory, StartupError where listed files were not there, and
    OSError where it cannot be read at all."""
    if not path.is_dir():
        raise NotADataDirectory(f"There is no directory {path}: name a node's data directory with --data-dir.")
    for _ in range(LOOKS):
        try:
            return _Reader(path).read()
        except FileNotFoundError:
            pass  # the node removed it in between
    raise StartupError(
        f"Files that {path} lists were not there at each of {LOOKS} looks, because its node removes what it needs no "
        "more, or a link leads nowhere: try again, or stop the node."
    )


class _Reader:
    """One look at one directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disk = ReadOnly(path)
        self._report = VerifyReport(str(path))
        self._newest: tuple[int, int] | None = None  # (index, term) of the newest snapshot, where it is whole
        self._store = KeyValueStore()  # what it holds

    def read(self) -> VerifyReport:
        report = self._report
        files = [name for name in self._disk.names() if stat.S_ISREG((self._path / name).stat().st_mode)]
        ours = [name for name in files if name == identity.FILE or name.startswith(("journal-", "snapshot-"))]
        if not ours:
            raise NotADataDirectory(
                f"The directory {self._path} holds no data of a node: name a node's data directory with --data-dir."
            )
        report.leftovers = {name: self._disk.size(name) for name in files if name.endswith(PART)}
        cluster_id = self._identity(identity.FILE in files)
        if cluster_id is None:
            return report  # which cluster the other files must belong to is not known
        recovered = self._journal(cluster_id, [name for name in ours if name.startswith("journal-")])
        # Listed anew: what is read from now on is at least as new as the journal.
        snapshots = [name for name in self._disk.names() if name.startswith("snapshot-") and not name.endswith(PART)]
        for name in snapshots:
            self._snapshot(Snapshots(self._disk, cluster_id), name, newest=name == snapshots[-1])
        if recovered is not None and (self._newest is not None or not snapshots):
            self._fit(recovered)
        return report

    def _identity(self, there: bool) -> bytes | None:
        report = self._report
        if not there:
            self._damaged(identity.FILE, None, "it is missing", "restore it from a copy")
            return None
        try:
            claimed = identity.written(self._disk)
        except StartupError:
            self._damaged(identity.FILE, None, "it does not say which node of which cluster", "restore it from a copy")
            return None
        report.node_id, report.members = claimed.node_id, claimed.members
        report.cluster_id = claimed.cluster_id.hex()
        return claimed.cluster_id

    def _journal(self, cluster_id: bytes, names: list[str]) -> Recovered | None:
        report = self._report
        for name in names:
            try:
                report.segments.append(_segment(name, self._disk.read(name)))
            except FileNotFoundError:
                raise
            except OSError as error:
                self._damaged(name, None, f"it cannot be read ({error.strerror})", _CATCH_UP)
                return None
        try:
            recovered = Segments(self._disk, cluster_id).recover()
        except JournalDamaged as damage:
            self._damaged(damage.file, damage.offset, damage.what, _CATCH_UP)
            return None
        except StartupError as error:
            what, _, remedy = error.message.rstrip(".").rpartition(": ")
            self._damaged("journal", None, what, remedy)
            return None
        report.term, report.vote = recovered.term, recovered.vote
        if recovered.entries:
            report.first_index, report.last_index = recovered.entries[0][1], recovered.entries[-1][1]
        return recovered

    def _snapshot(self, snapshots: Snapshots, name: str, newest: bool) -> None:
        remedy = _CATCH_UP if newest else "a newer one is there, so the node does not need it: delete the file"
        try:
            snapshot, store = snapshots.load(name)
        except Damaged as damage:
            breaks_a_limit = newest and isinstance(damage.__cause__, ValueError)  # the bytes are whole
            self._damaged(name, damage.offset, str(damage), _LIMITS if breaks_a_limit else remedy)
        except FileNotFoundError:
            raise
        except OSError as error:
            self._damaged(name, None, f"it cannot be read ({error.strerror})", remedy)
        else:
            if newest:
                self._newest = snapshot.index, snapshot.term
                self._store = store
            found = SnapshotReport(
                name, snapshot.size_bytes, snapshot.index, snapshot.term, snapshot.members, store.revision, len(store),
                snapshot.digest,
            )  # fmt: skip
            self._report.snapshots.append(found)

    def _fit(self, recovered: Recovered) -> None:
        """Whether the log reaches back to the newest snapshot, as a start asks."""
        if self._newest is not None and not self._report.segments:
            what = "a snapshot is there and no journal, which held this node's votes"
            self._damaged("journal", None, what, "restore it from a copy, or give the node an empty --data-dir")
            return
        index, term = self._newest or (0, 0)
        journal = Journal(recovered)
        try:
            journal.reconcile(index, term, str(self._path))
            self._report.poisoned = replay(self._store, journal, index or 1)
        except StartupError:
            first = recovered.entries[0][1]
            what = (
                f"it starts at entry {first} and the newest snapshot ends at {index}: what is between them is missing"
            )
            self._damaged(self._report.segments[0].file, None, what, _CATCH_UP)

    def _damaged(self, file: str, offset: int | None, what: str, remedy: str) -> None:
        self._report.damage.append(Damage(file, offset, what, remedy))


def _segment(name: str, data: bytes) -> SegmentReport:
    report = SegmentReport(name, len(data))
    end = min(len(data), HEADER_BYTES)
    for behind, kind, body in records(data, end):
        if kind in _KINDS:
            setattr(report, _KINDS[kind], getattr(report, _KINDS[kind]) + 1)
        if kind == ENTRY:
            report.last_index, report.last_term = entry_place(body)
            if report.first_index is None:
                report.first_index, report.first_term = report.last_index, report.last_term
        end = behind
    report.unread_bytes = len(data) - end
    return report
