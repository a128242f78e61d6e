"""How a follower that is too far behind fetches a snapshot: it pulls, so that it sets the pace and can resume.

    leader    OFFER  term, index, snapshot term, size      repeated with the heartbeat while it is needed
    follower  WANT   index, offset                         one at a time
    leader    CHUNK  index, offset, data

The follower writes what arrives to a `.part` file; once it has all of it, the file is verified and loaded as a
whole in a worker, and only then does anything change (Raft §7; PySyncObj quirks R1, R4, R13). No
acknowledgement of its own is needed: the next heartbeat finds the log where the snapshot ends.

A fetch that was begun is finished, however many newer snapshots there are by then: under load the next one is always
ready before a fetch of the last has ended. So a leader goes on offering a follower the snapshot that it fetches, and
keeps that file and the log behind it (`fetched`), within bounds; and a follower takes no other offer while pieces come.

Files are read and written in workers alone: a disk that hangs must not stop the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kvnode.raft.messages import CHUNK, OFFER, WANT, Message
from kvnode.state.store import KeyValueStore
from kvnode.storage.snapshots import (
    PART,
    Damaged,
    Snapshot,
    Snapshots,
)

log = logging.getLogger("kvnode.raft")

CHUNK_BYTES: Final = 524_288
OFFER_AGAIN_S: Final = 0.2
STALLED_S: Final = 1.0
# A follower that asks for no more pieces is loading what it has, which takes some seconds for each million keys; or it
# is gone, and then it must not keep this node's log from being compacted.
FETCH_SILENT_S_MAX: Final = 60.0

Work = Callable[[Callable[[], Any], Callable[[Any, Exception | None], None]], None]
"""Runs the first in a worker thread, then the second with its result or exception in the owner's thread."""


class Receiver(Protocol):
    """The node that a snapshot would be installed on."""

    @property
    def committed_floor(self) -> int: ...

    def snapshot_arrived(self, snapshot: Snapshot, store: KeyValueStore) -> None: ...


@dataclass(slots=True)
class _Fetch:
    source: str
    index: int
    term: int
    size_bytes: int
    have_bytes: int
    heard_at: float
    verifying: bool = False
    writing: bool = False  # a piece is on its way to the disk

    @property
    def part(self) -> str:
        return f"snapshot-{self.index:020d}-{self.term}{PART}"


@dataclass(slots=True)
class _Use:
    """A follower's use of a snapshot of this node: it fetches it, or catches up from where it ends."""

    index: int
    heard_at: float = 0.0
    held: int = 0  # as the follower has acknowledged


class Catchup:
    """Both sides of the transfer, for one node. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        snapshots: Snapshots,
        receiver: Receiver,
        send: Callable[[str, Message], bool],
        work: Work,
        clock: Callable[[], float],
    ) -> None:
        self._snapshots = snapshots
        self._receiver = receiver
        self._send = send
        self._work = work
        self._clock = clock
        self._offered_at: dict[str, float] = {}
        self._fetch: _Fetch | None = None
        self._fetched: dict[str, _Use] = {}  # by follower
        self._removing = 0  # files: their names may be those of the next fetch
        self._reading: set[str] = set()  # followers that a piece is being read for

    def receive(self, node_id: str, message: Message, term: int) -> None:
        """OFFER, WANT or CHUNK from a peer; `term` is this node's."""
        kind = message[0]
        if kind == WANT:
            self.wanted(node_id, *message[1:])
        elif kind == CHUNK:
            self.arrived(node_id, *message[1:])
        elif message[1] == term:  # an offer counts in its own term only
            self.offered(node_id, *message[2:])

    # --- the leader's side -------------------------------------------------------------------------

    def offer(self, node_id: str, term: int, first_index: int) -> None:
        """Offers a follower the snapshot that it fetches already, or the newest; a few times a second at most.

        `first_index`: where this node's log begins. A snapshot that the log does not go on from is of no use any more.
        """
        use, now = self._fetched.get(node_id), self._clock()
        begun = self._snapshots.published_at(use.index) if use is not None and use.index >= first_index else None
        snapshot = begun or self._snapshots.newest
        if snapshot is not None and now - self._offered_at.get(node_id, -OFFER_AGAIN_S) >= OFFER_AGAIN_S:
            self._offered_at[node_id] = now
            self._send(node_id, (OFFER, term, snapshot.index, snapshot.term, snapshot.size_bytes))

    def wanted(self, node_id: str, index: int, offset: int) -> None:
        snapshot = self._snapshots.published_at(index)
        if snapshot is None or offset < 0 or node_id in self._reading:
            return  # it is not kept any more: the next offer names another
        use = self._fetched.setdefault(node_id, _Use(index))
        use.index, use.heard_at = index, self._clock()
        self._reading.add(node_id)

        def read(data: bytes | None, error: Exception | None) -> None:
            self._reading.discard(node_id)
            if data is not None:
                self._send(node_id, (CHUNK, index, offset, data))
            else:
                log.warning("The snapshot at index %d could not be read for %s (%s).", index, node_id, error)

        self._work(lambda: self._snapshots.disk.read(snapshot.name, offset, CHUNK_BYTES), read)

    def kept(self, first_index: int, match_index: Callable[[str], int]) -> frozenset[int]:
        """The snapshots that followers fetch or go on from, of those that have not got to `first_index` by the log.

        One that neither asks for a piece nor acknowledges more for FETCH_SILENT_S_MAX is not waited for.
        """
        now = self._clock()
        for node_id, use in list(self._fetched.items()):
            held = match_index(node_id)
            if held > use.held:
                use.held, use.heard_at = held, now
            if held >= first_index or now - use.heard_at > FETCH_SILENT_S_MAX:
                del self._fetched[node_id]
        return frozenset(use.index for use in self._fetched.values())

    # --- the follower's side -----------------------------------------------------------------------

    def offered(self, node_id: str, index: int, term: int, size_bytes: int) -> None:
        fetch, now = self._fetch, self._clock()
        if index <= self._receiver.committed_floor or self._removing or (fetch is not None and fetch.verifying):
            return
        if fetch is None or (fetch.index, fetch.term, fetch.size_bytes) != (index, term, size_bytes):
            if fetch is not None and (fetch.writing or now - fetch.heard_at < STALLED_S):
                return  # that one first
            self._forget()
            fetch = self._fetch = _Fetch(node_id, index, term, size_bytes, 0, now)
            log.info("Fetching the snapshot at index %d (%d bytes) from %s.", index, size_bytes, node_id)
        elif fetch.writing or (fetch.source == node_id and now - fetch.heard_at < STALLED_S):
            return
        fetch.source, fetch.heard_at = node_id, now
        self._send(node_id, (WANT, index, fetch.have_bytes))

    def arrived(self, node_id: str, index: int, offset: int, data: bytes) -> None:
        fetch = self._fetch
        if (
            fetch is None
            or fetch.verifying
            or fetch.writing
            or (node_id, index, offset) != (fetch.source, fetch.index, fetch.have_bytes)
        ):
            return
        if not data or fetch.have_bytes + len(data) > fetch.size_bytes:
            self._forget()
            return
        fetch.writing = True
        self._work(
            lambda: self._snapshots.disk.append(fetch.part, [data]),
            lambda _, error: self._stored(fetch, len(data), error),
        )

    def _stored(self, fetch: _Fetch, size_bytes: int, error: Exception | None) -> None:
        """A piece is in the file, or could not be put there."""
        fetch.writing = False
        if error is not None:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            log.warning("A snapshot could not be stored (%s); fetching it again.", why)
            self._forget()
            return
        fetch.have_bytes += size_bytes
        fetch.heard_at = self._clock()
        if fetch.have_bytes < fetch.size_bytes:
            self._send(fetch.source, (WANT, fetch.index, fetch.have_bytes))
            return
        fetch.verifying = True
        self._work(lambda: self._snapshots.adopt(fetch.part, fetch.index, fetch.term), self._verified)

    def _verified(self, result: tuple[Snapshot, KeyValueStore] | None, error: Exception | None) -> None:
        fetch, self._fetch = self._fetch, None
        if isinstance(error, Damaged):
            log.warning(
                "The snapshot from %s did not check out (%s); fetching it again.", fetch and fetch.source, error
            )
            if fetch is not None:
                self._remove(fetch)
        elif error is not None:
            raise error
        elif result is not None and result[0].index > self._receiver.committed_floor:
            self._receiver.snapshot_arrived(*result)
            self._snapshots.published(result[0])

    def _forget(self) -> None:
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            self._remove(fetch)

    def _remove(self, fetch: _Fetch) -> None:
        self._removing += 1
        self._work(lambda: self._snapshots.remove(fetch.part), self._removed)

    def _removed(self, _: None, error: Exception | None) -> None:
        self._removing -= 1
        if error is not None:
            log.warning("A part of a snapshot could not be removed (%s).", error)
