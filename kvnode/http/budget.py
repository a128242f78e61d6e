"""What all connections of a node may hold and ask for together: bytes of answers, bytes of bodies, turns of the loop.

A bound for each connection alone bounds nothing: connections cost their client nothing, and 500 that ask for 2 MiB and
do not read hold a gigabyte. Over a budget a request is refused before its work is done (503 `overloaded`, definite).
Small answers take no budget while their client reads them; so probes are answered even when all is spent.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from itertools import islice
from time import monotonic
from typing import Final

from kvnode.errors import Overloaded
from kvnode.state.limits import CONTENTS_BYTES_MAX

# Answers that clients have not taken: the largest pages of 20 clients, and an eighth of the memory of a small machine.
ANSWER_BYTES_MAX: Final = 64 * 1_048_576
# Requests that are not complete, or wait behind another one: the largest backup that is
# restored at feature level 0 beside the largest batch. From level 1 on a backup is taken in pieces, and holds little.
BODY_BYTES_MAX: Final = CONTENTS_BYTES_MAX + 8 * 1_048_576
# What one connection may hold of either without being counted. Nearly every request is whole with its first piece, is
# answered from there, and not counted either.
UNCOUNTED_BYTES: Final = 4_096
# An answer up to this size is written without asking: the kernel takes it at once, unless its client does not read.
SMALL_BYTES: Final = 65_536
# While the budget is spent, who has taken nothing for so long makes room. A client that reads takes something in every
# round trip; TLS hides how much, so that its clients have to take all of an answer in this time.
STALLED_S: Final = 5.0
STALLED_LOOKS: Final = 16  # of those that have waited longest, looked at for one that needs room

# How long the loop is held for pages, bodies and searches before everything else gets its turn. An election is 600 ms
# away; the largest single one takes about 20 ms.
TURN_S: Final = 0.005
TURNS_WAITING_MAX: Final = 1_024  # that is five seconds of waiting, the longest that anybody does
# What arrives is parsed for so long in each turn of the loop; the loop runs all that has arrived in one turn, and 250
# connections that each send 27 KB of short header lines are 600 ms of it. The largest single read takes 3 ms.
READS_TURN_S: Final = 0.01
# A read up to this size never waits: a probe, a read or a small write. It holds no more than 200 header lines, 0.1 ms.
AT_ONCE_BYTES: Final = 1_024


class Budget:
    """Bytes that requests hold at one time. Not for threads.

    `incoming`: a budget of arriving bytes. Progress there is what has come; for answers it is what is left.
    """

    __slots__ = ("_sentence", "cut", "in_use", "incoming", "limit", "refused", "stalled")

    def __init__(self, limit: int, sentence: str, *, incoming: bool = False) -> None:
        self.limit = limit
        self.incoming = incoming
        self.in_use = 0
        self.refused = 0  # requests, since the process began
        self.cut = 0  # connections that were ended to make room, or because there was none for them
        self._sentence = sentence
        # Who waits for its client: since when, and how much was left then. In the order of that time.
        self.stalled: dict[Hold, tuple[asyncio.WriteTransport, float, int]] = {}

    def hold(self, size: int) -> Hold:
        """So many bytes until they are released. Raises Overloaded (definite) where they do not fit."""
        self.require(size)
        return Hold(self, size)

    def require(self, size: int) -> None:
        """Raises Overloaded (definite) where so many bytes more do not fit."""
        if not self.fits(size):
            self.refused += 1
            raise Overloaded(self._sentence)

    def fits(self, size: int) -> bool:
        """Whether there is room; makes room where clients have stalled."""
        while self.in_use + size > self.limit:
            if not self._make_room():
                return False
        return True

    def hold_anyway(self, size: int) -> Hold:
        """For what is there already, and cannot be refused any more."""
        return Hold(self, size)

    def _make_room(self) -> bool:
        """Ends the connection that has been stalled for longest. False: none has been for STALLED_S."""
        now = asyncio.get_running_loop().time()
        for hold in list(islice(self.stalled, STALLED_LOOKS)):
            transport, since, left_before = self.stalled[hold]
            if now - since < STALLED_S:
                return False
            left = hold.left(transport)
            if left < left_before:
                del self.stalled[hold]
                self.stalled[hold] = (transport, now, left)  # it makes progress, if slowly
                continue
            self.cut += 1
            hold.release()
            transport.abort()
            return True
        return False


class Hold:
    """A part of a budget. Returned by `release`, or when the last reference goes."""

    __slots__ = ("_budget", "size")

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget = budget
        self.size = size
        budget.in_use += size

    def resize(self, size: int) -> None:
        self._budget.in_use += size - self.size
        self.size = size

    def left(self, transport: asyncio.WriteTransport) -> int:
        """A number that falls while the client makes progress."""
        return -self.size if self._budget.incoming else transport.get_write_buffer_size()

    @property
    def waits(self) -> bool:
        """Whether the client decides when this is released, by reading or by sending on."""
        return self in self._budget.stalled

    def wait(self, transport: asyncio.WriteTransport) -> bool:
        """From now on the client decides when this is released. False if there is no room for it."""
        budget, now = self._budget, asyncio.get_running_loop().time()
        budget.stalled[self] = (transport, now, self.left(transport))
        return budget.fits(0)

    def release(self) -> None:
        self._budget.stalled.pop(self, None)
        self.resize(0)

    def __del__(self) -> None:
        # The size only: a request that ends early drops its answer, and the bytes with it.
        self._budget.in_use -= self.size


class Turns:
    """Work that holds the loop for milliseconds waits here until this turn of the loop has time for it."""

    __slots__ = ("_began", "_clock", "_lock", "_waiting", "refused")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._began: float | None = None  # when the first of this turn came
        self._lock = asyncio.Lock()
        self._waiting = 0
        self.refused = 0

    async def take(self, *, done: bool = False) -> None:
        """Returns when the work may be done, at once and without waiting again, the writing of its answer included.

        Raises Overloaded (definite) where too many wait, unless a write is `done` whose outcome its client has to know.
        """
        if not self._waiting and not self._spent():
            return
        if self._waiting >= TURNS_WAITING_MAX and not done:
            self.refused += 1
            raise Overloaded("Too many large requests are waiting on this node: send the request again in a moment.")
        self._waiting += 1
        try:
            async with self._lock:  # the next in line is woken in another turn
                if self._spent():
                    await asyncio.sleep(0)
        finally:
            self._waiting -= 1

    def _spent(self) -> bool:
        """Whether such work has held this turn of the loop for TURN_S."""
        if self._began is None:
            self._began = self._clock()
            asyncio.get_running_loop().call_soon(self._end)
            return False
        return self._clock() - self._began > TURN_S

    def _end(self) -> None:
        self._began = None


class Reads:
    """What has arrived waits here, first come, first served, until a turn of the loop has time to parse it.

    Each waits once at most: its connection is not read until then. Their bytes are of the budget of bodies.
    """

    __slots__ = ("_began", "_clock", "_waiting", "_working")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._began: float | None = None  # when the first of this turn came
        self._waiting: deque[Callable[[], None]] = deque()
        self._working = False

    def now(self) -> bool:
        """Whether to parse at once what has arrived; else it has to `wait`."""
        if self._working:
            return True
        if self._began is None:
            self._began = self._clock()
            asyncio.get_running_loop().call_soon(self._turn)
            return True
        return not self._waiting and self._clock() - self._began < READS_TURN_S

    def wait(self, read: Callable[[], None]) -> None:
        """`read` is called in the turn that has time for it. Only after `now` was False."""
        self._waiting.append(read)

    def _turn(self) -> None:
        """Begins another turn with those that wait."""
        self._began = None
        if not self._waiting:
            return
        self._began = began = self._clock()
        asyncio.get_running_loop().call_soon(self._turn)
        self._working = True
        try:
            while self._waiting:
                self._waiting.popleft()()
                if self._clock() - began >= READS_TURN_S:
                    break
        finally:
            self._working = False


class Budgets:
    """Those of one node, for all its listeners."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.clock = clock
        self.answers = Budget(
            ANSWER_BYTES_MAX,
            "This node's clients have not taken too many of its answers yet: send the request again in a moment.",
        )
        self.bodies = Budget(
            BODY_BYTES_MAX,
            "Too many bytes of unfinished requests are on this node: send the request again in a moment.",
            incoming=True,
        )
        self.turns = Turns(clock)
        self.reads = Reads(clock)

    def levels(self) -> dict[str, tuple[int, int]]:
        """(bytes in use, limit) of each."""
        budgets = {"answers": self.answers, "bodies": self.bodies}
        return {name: (budget.in_use, budget.limit) for name, budget in budgets.items()}

    def refusals(self) -> Counter[tuple[str, str]]:
        """How often each was spent, and what came of it."""
        return Counter(
            {
                ("answers", "refused"): self.answers.refused,
                ("answers", "cut"): self.answers.cut,
                ("bodies", "refused"): self.bodies.refused,
                ("bodies", "cut"): self.bodies.cut,
                ("turns", "refused"): self.turns.refused,
            }
        )
