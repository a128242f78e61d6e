"""The leader's side of replication: what each follower is sent next, and how much may be on its way.

Stands in for the core's own `__sendAppendEntries` (quirk Q5), which resends what is in flight on every
acknowledgement and queues a whole log in one tick (R18). As in etcd's `tracker/progress`: a follower whose
log is not known to match is *probed* with one frame at a time; one that matches is *streamed* to, up to
`WINDOW_BYTES` ahead of its acknowledgements.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from kvnode.raft.messages import APPEND, Message
from kvnode.raft.ready import Ready, SnapshotNeeded
from kvnode.storage.journal import Journal

FRAME_BYTES: Final = 1_048_576  # entries are added to a frame until it holds this much
FRAME_ENTRIES: Final = 4_096
WINDOW_BYTES: Final = 8 * 1_048_576


@dataclass(slots=True)
class Progress:
    """One follower as its leader sees it. `next` is the first index that has not been sent."""

    next: int
    probing: bool = True
    awaiting: bool = False  # a probe is out
    in_flight: deque[tuple[int, int]] = field(default_factory=deque)  # (last index, bytes) of each frame
    in_flight_bytes: int = 0
    applied: int = 0  # as the follower last said
    fit: bool = True  # to lead, as the follower last said: its disk is well and it is not draining

    def forget_flights(self) -> None:
        self.in_flight.clear()
        self.in_flight_bytes = 0


class Replicator:
    """All followers of one leader. Which messages did not leave is told by `unsent`."""

    def __init__(self, journal: Journal, ready: Ready) -> None:
        self._journal = journal
        self._ready = ready
        self.followers: dict[str, Progress] = {}

    def lead(self, peer_ids: Iterable[str]) -> None:
        """A term of leadership begins: nothing is known of anybody's log."""
        following = self._journal[-1][1] + 1
        self.followers = {peer: Progress(following) for peer in peer_ids}

    def reconnected(self, peer_id: str, match_index: int) -> None:
        """The stream to a follower began anew: what was on its way is lost, what it acknowledged is not."""
        progress = self.followers.get(peer_id)
        if progress is not None:
            progress.forget_flights()
            progress.probing, progress.awaiting = True, False
            progress.next = min(progress.next, match_index + 1) if match_index else progress.next

    def acknowledged(self, peer_id: str, next_index: int, success: bool, reset: bool, applied: int, fit: bool) -> bool:
        """A follower holds everything below `next_index` (success), or wants to be sent from there (reset).

        True: there are entries for it, which need not wait for the next heartbeat. One that waits for a snapshot
        refuses whatever it is sent meanwhile: to answer that at once would be to go round and round (R18).
        """
        progress = self.followers.get(peer_id)
        if progress is None:
            return False
        progress.applied, progress.fit = applied, fit
        if reset:
            progress.forget_flights()
            progress.probing, progress.awaiting = True, False
            progress.next = max(1, min(next_index, self._journal[-1][1] + 1))
        elif success:
            flights = progress.in_flight
            while flights and flights[0][0] < next_index:
                progress.in_flight_bytes -= flights.popleft()[1]
            progress.probing = progress.awaiting = False
            progress.next = max(progress.next, next_index)
        return (success or reset) and self._journal[0][1] < progress.next <= self._journal[-1][1]

    def unsent(self, peer_id: str, message: Message) -> None:
        """An append was not taken on the way to this follower, which reads too slowly or has gone: what it brought is
        sent again with the next pass."""
        progress = self.followers.get(peer_id)
        if progress is None or not message[6]:
            return
        first = message[2] + 1
        if first < progress.next:
            progress.next, progress.awaiting = first, False
            while progress.in_flight and progress.in_flight[-1][0] >= first:
                progress.in_flight_bytes -= progress.in_flight.pop()[1]

    def replicate(self, peer_ids: Iterable[str], term: int, commit_index: int, read_round: int) -> None:
        """One pass over the connected followers; each gets at least a heartbeat."""
        shared: dict[int, tuple[Message, int, int]] = {}
        for peer_id in peer_ids:
            progress = self.followers.get(peer_id)
            if progress is None:
                progress = self.followers[peer_id] = Progress(self._journal[-1][1] + 1)
            if progress.next <= self._journal[0][1]:
                self._ready.events.append(SnapshotNeeded(peer_id))
                self._ready.send(peer_id, self._frame(self._journal[0][1] + 1, term, commit_index, read_round, 0)[0])
            else:
                self._advance(peer_id, progress, term, commit_index, read_round, shared)

    def _advance(
        self,
        peer_id: str,
        progress: Progress,
        term: int,
        commit_index: int,
        read_round: int,
        shared: dict[int, tuple[Message, int, int]],
    ) -> None:
        last_index = self._journal[-1][1]
        sent = False
        while progress.next <= last_index and not progress.awaiting and progress.in_flight_bytes < WINDOW_BYTES:
            frame = shared.get(progress.next)
            if frame is None:
                # Followers that are equally far get the very same message, which the transport encodes once.
                frame = self._frame(progress.next, term, commit_index, read_round, FRAME_BYTES)
                shared[progress.next] = frame
            message, frame_last, frame_bytes = frame
            self._ready.messages.append((peer_id, message))
            sent = True
            progress.in_flight.append((frame_last, frame_bytes))
            progress.in_flight_bytes += frame_bytes
            progress.next = frame_last + 1
            progress.awaiting = progress.probing
        if not sent:
            heartbeat = shared.get(-progress.next)
            if heartbeat is None:
                heartbeat = shared[-progress.next] = self._frame(progress.next, term, commit_index, read_round, 0)
            self._ready.messages.append((peer_id, heartbeat[0]))

    def _frame(
        self, next_index: int, term: int, commit_index: int, read_round: int, limit_bytes: int
    ) -> tuple[Message, int, int]:
        """(message, last index in it, bytes of entries in it)."""
        journal = self._journal
        position = next_index - journal[0][1]
        previous = journal[position - 1]
        entries: list[Any] = []
        size = 0
        for command, _, entry_term in journal[position : position + FRAME_ENTRIES] if limit_bytes else ():
            entries.append((entry_term, command))
            size += len(command) + 32
            if size >= limit_bytes:
                break
        message = (APPEND, term, previous[1], previous[2], commit_index, read_round, entries)
        return message, next_index + len(entries) - 1, size
