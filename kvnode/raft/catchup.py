"""How a follower that is too far behind fetches a snapshot: it pulls, so that it sets the pace and can resume.

    leader    OFFER  term, index, snapshot term, size      repeated with the heartbeat while it is needed
    follower  WANT   index, offset                         one at a time
    leader    CHUNK  index, offset, data

The follower writes what arrives to a `.part` file; once it has all of it, the file is verified and loaded as a
whole in a worker, and only then does anything change (Raft §7; PySyncObj quirks R1, R4, R13). No
acknowledgement of its own is needed: the next heartbeat finds the log where the snapshot ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kvnode.raft.snapshot import PART, Damaged, Snapshot, Snapshots
from kvnode.raft.wire import CHUNK, OFFER, WANT, Message
from kvnode.store import KeyValueStore

log = logging.getLogger("kvnode.raft")

CHUNK_BYTES: Final = 524_288
OFFER_AGAIN_S: Final = 0.2
STALLED_S: Final = 1.0

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

    @property
    def part(self) -> str:
        return f"snapshot-{self.index:020d}-{self.term}{PART}"


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

    def offer(self, node_id: str, term: int) -> None:
        """Tells a follower of the newest snapshot, a few times a second at most."""
        snapshot, now = self._snapshots.newest, self._clock()
        if snapshot is not None and now - self._offered_at.get(node_id, -OFFER_AGAIN_S) >= OFFER_AGAIN_S:
            self._offered_at[node_id] = now
            self._send(node_id, (OFFER, term, snapshot.index, snapshot.term, snapshot.size_bytes))

    def wanted(self, node_id: str, index: int, offset: int) -> None:
        name = self._snapshots.find(index)
        if name is None or offset < 0:
            return  # a newer one has taken its place: the next offer names it
        data = self._snapshots.disk.read(name, offset, CHUNK_BYTES)
        self._send(node_id, (CHUNK, index, offset, data))

    # --- the follower's side -----------------------------------------------------------------------

    def offered(self, node_id: str, index: int, term: int, size_bytes: int) -> None:
        fetch, now = self._fetch, self._clock()
        if index <= self._receiver.committed_floor or (fetch is not None and fetch.verifying):
            return
        if fetch is None or (fetch.index, fetch.term, fetch.size_bytes) != (index, term, size_bytes):
            self._forget()
            fetch = self._fetch = _Fetch(node_id, index, term, size_bytes, 0, now)
            log.info("Fetching the snapshot at index %d (%d bytes) from %s.", index, size_bytes, node_id)
        elif fetch.source == node_id and now - fetch.heard_at < STALLED_S:
            return
        fetch.source, fetch.heard_at = node_id, now
        self._send(node_id, (WANT, index, fetch.have_bytes))

    def arrived(self, node_id: str, index: int, offset: int, data: bytes) -> None:
        fetch = self._fetch
        if (
            fetch is None
            or fetch.verifying
            or (node_id, index, offset) != (fetch.source, fetch.index, fetch.have_bytes)
        ):
            return
        if not data or fetch.have_bytes + len(data) > fetch.size_bytes:
            self._forget()
            return
        try:
            self._snapshots.disk.append(fetch.part, [data])
        except OSError as error:
            log.warning("A snapshot could not be stored (%s); fetching it again.", error.strerror or error)
            self._forget()
            return
        fetch.have_bytes += len(data)
        fetch.heard_at = self._clock()
        if fetch.have_bytes < fetch.size_bytes:
            self._send(node_id, (WANT, index, fetch.have_bytes))
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
                self._snapshots.disk.unlink(fetch.part)
        elif error is not None:
            raise error
        elif result is not None and result[0].index > self._receiver.committed_floor:
            self._receiver.snapshot_arrived(*result)
            self._snapshots.published(result[0])

    def _forget(self) -> None:
        fetch, self._fetch = self._fetch, None
        if fetch is not None and fetch.part in self._snapshots.disk.names():
            self._snapshots.disk.unlink(fetch.part)
