"""Writes on their way: waiting to be sent, sent and not yet applied, and what is certain about each.

A group of commands carries its node's `origin` and a sequence number through the log, so every node recognises
its own writes when it applies them and answers its clients from its own state machine: a follower needs no
reply to a forwarded write, and its answer is the leader's to the letter.

The same makes failures certain. A group is sent in a term and is accepted in that term only. Terms never fall
along the log (Raft §5.3), so once an entry of a later term is applied here, a group of an earlier term that was
not seen never will be: it is definite that it was not applied, and it is sent again to the new leader. Within a term
a group may be sent to its leader any number of times, under the same sequence number: the leader takes it once
(`writes.py`). So it is sent again when a connection with the leader begins. Only what is still in doubt at its deadline
is answered `outcome_unknown`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Final, NamedTuple, Protocol

from kvnode.errors import DiskFull, KvnodeError, NoLeader, OutcomeUnknown, Overloaded
from kvnode.metrics.meters import RaftMeters
from kvnode.state.entries import decode_entry, encode_group, frees_space
from kvnode.state.results import Result

GROUP_BYTES: Final = 524_288  # commands are added to a group until it holds this much
GROUP_COMMANDS: Final = 2_048
WAITING_COMMANDS_MAX: Final = 16_384
WAITING_BYTES_MAX: Final = 64 * 1_048_576


class Waiter(Protocol):
    """Who is told the outcome: an `asyncio.Future`, or a test's stand-in for one."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


class _Write(NamedTuple):
    command: bytes
    waiter: Waiter
    deadline: float
    request_id: str | None


_write: Final = partial(tuple.__new__, _Write)  # as `_Write(…)`, of a tuple and in a third of the time


@dataclass(slots=True)
class _Group:
    term: int
    writes: list[_Write]
    sent_at: float


class Proposals:
    """One node's writes. `clock` is monotonic, in seconds; `apply` is the state machine's."""

    def __init__(
        self,
        origin: bytes,
        apply: Callable[[Any], Result],
        clock: Callable[[], float],
        meters: RaftMeters | None = None,
    ) -> None:
        self.meters = RaftMeters() if meters is None else meters
        self._origin = origin
        self._apply = apply
        self._clock = clock
        self._sequence = 0
        self.traced = False  # some write has had a request id
        self._applied_term = 0
        self.waiting: deque[_Write] = deque()  # to be sent; read-only outside this class
        self._waiting_bytes = 0
        self._sent: dict[int, _Group] = {}
        self._soonest = inf  # no deadline of a write here is earlier

    def submit(self, command: bytes, waiter: Waiter, deadline: float, request_id: str | None = None) -> None:
        """Queues one encoded command. Raises Overloaded (definite) when the queue is full."""
        if len(self.waiting) >= WAITING_COMMANDS_MAX or self._waiting_bytes + len(command) > WAITING_BYTES_MAX:
            self.meters.refused += 1
            raise Overloaded("Too many writes are waiting on this node: send the request again in a moment.")
        self.waiting.append(_write((command, waiter, deadline, request_id)))
        if request_id is not None:
            self.traced = True
        self._waiting_bytes += len(command)
        if deadline < self._soonest:
            self._soonest = deadline

    @property
    def sent_since(self) -> float | None:
        """When the oldest group left that is on its way; None where there is none."""
        return next((group.sent_at for group in self._sent.values()), None)

    @property
    def sent(self) -> int:
        """Groups that are on their way."""
        return len(self._sent)

    def take(self, term: int) -> tuple[int, bytes]:
        """The next group, from now on in doubt in `term`: (sequence, encoded). Only while `waiting`."""
        writes: list[_Write] = []
        size = 0
        while self.waiting and size < GROUP_BYTES and len(writes) < GROUP_COMMANDS:
            length = len(self.waiting[0].command)
            if writes and size + length > GROUP_BYTES:
                break
            writes.append(self.waiting.popleft())
            size += length
        self._waiting_bytes -= size
        self._sequence += 1
        self._sent[self._sequence] = _Group(term, writes, self._clock())
        self.meters.batch_commands.observe(len(writes))
        return self._sequence, encode_group(self._origin, self._sequence, [write.command for write in writes])

    def in_doubt(self, term: int) -> Iterator[tuple[int, bytes]]:
        """The groups of this term that are on their way, as `take` gave them and in the same order."""
        for sequence, group in self._sent.items():
            if group.term == term:
                yield sequence, encode_group(self._origin, sequence, [write.command for write in group.writes])

    def request_ids(self, sequence: int) -> list[str]:
        """Those of the writes in a group that is on its way."""
        return [write.request_id for write in self._sent[sequence].writes if write.request_id is not None]

    def taken_back(self, sequence: int) -> None:
        """Certain: the group was not applied and will not be. Its writes wait again, in their old place."""
        group = self._sent.pop(sequence, None)
        if group is None:
            return
        for write in reversed(group.writes):
            if not write.waiter.done():  # who was told "unknown", or left, is not served behind its back
                self.waiting.appendleft(write)
                self._waiting_bytes += len(write.command)

    def refused(self, sequence: int, error: KvnodeError) -> None:
        """Certain: the leader did not take the group, for a reason that sending it again will not mend.

        A full disk still takes what frees space: that part of the group is sent again, without the rest.
        """
        group = self._sent.get(sequence)
        if group is None:
            return
        for write in group.writes:
            if not (isinstance(error, DiskFull) and frees_space(write.command)):
                self._fail(write.waiter, error)
        self.taken_back(sequence)

    def applied(self, term: int, payload: bytes) -> None:
        """An entry is committed: applies it, answers this node's own writes in it, and settles older doubts."""
        for origin, sequence, commands in decode_entry(payload) if payload else ():
            results = [self._apply(command) for command in commands]
            if origin == self._origin and type(sequence) is int:
                group = self._sent.pop(sequence, None)
                if group is None:
                    continue
                late = 0
                for write, result in zip(group.writes, results, strict=False):
                    if not write.waiter.done():
                        write.waiter.set_result(result)
                    else:
                        late += 1  # it was told "unknown", and counted so, or nobody waits for it any more
                self.meters.applied += len(results) - late
                self.meters.commit_s.observe(self._clock() - group.sent_at)
        if term > self._applied_term:
            self._applied_term = term
            # The latest first: each is put in front of what waits, and all are to be sent in their old order.
            for sequence in [sequence for sequence, group in reversed(self._sent.items()) if group.term < term]:
                self.taken_back(sequence)

    def skipped(self) -> None:
        """A snapshot took the place of entries that may have held this node's writes: nobody can tell any more."""
        for sequence in list(self._sent):
            self._doubt(self._sent.pop(sequence).writes)

    def expire(self) -> None:
        """Answers what has reached its deadline: never sent is definite, sent is in doubt."""
        now = self._clock()
        if now < self._soonest:
            return
        # Senders may wait shorter than others (Kvnode-Timeout), so a late write may stand behind one that has time.
        late = [write for write in self.waiting if write.deadline <= now]
        if late:
            self.waiting = deque(write for write in self.waiting if write.deadline > now)
        for write in late:
            self._waiting_bytes -= len(write.command)
            self._fail(
                write.waiter,
                NoLeader("The cluster has no leader that this node can reach: send the request again in a moment."),
            )
        for sequence, group in list(self._sent.items()):
            self._doubt(write for write in group.writes if write.deadline <= now)
            if all(write.waiter.done() for write in group.writes):
                del self._sent[sequence]  # nobody asks any more; should it still be applied, nothing is owed
        self._soonest = min((write.deadline for write in self._outstanding() if write.deadline > now), default=inf)

    def _outstanding(self) -> Iterator[_Write]:
        """Every write that is not applied yet."""
        yield from self.waiting
        for group in self._sent.values():
            yield from group.writes

    def abandon(self) -> None:
        """The node stops: what was never sent is definite, the rest stays in doubt."""
        self.waiting = deque(write._replace(deadline=0.0) for write in self.waiting)
        self._soonest = 0.0
        self.expire()
        self.skipped()

    def _doubt(self, writes: Iterable[_Write]) -> None:
        for write in writes:
            self._fail(
                write.waiter,
                OutcomeUnknown(
                    "The write was proposed, and its outcome was not known in time: read the key to learn it."
                ),
            )

    def _fail(self, waiter: Waiter, error: KvnodeError) -> None:
        if not waiter.done():
            if isinstance(error, OutcomeUnknown):
                self.meters.unknown += 1
            else:
                self.meters.refused += 1
            waiter.set_exception(error)
