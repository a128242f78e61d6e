"""A lock, and with it leader election: a key that one client at a time creates, on a lease that it keeps alive.

The key is `locks/NAME`, created by a transaction only while it does not exist; its value tells people who holds it.
Who finds it there watches the key and tries again when it is gone: whoever comes first then gets it, in no order.
(A queue of keys would be fair, and would take a key, a lease and a watch for each that waits.)

No lock that ends by itself can keep a holder that was stopped (SIGSTOP, a paused machine) from going on in the belief
that it holds it. Hence `token`, the revision at which the lock was taken: it rises with every holder, so what the
lock protects can refuse a token lower than the highest that it has seen (Kleppmann, "How to do distributed locking").
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Self, cast

from kvnode import errors
from kvnode.client.access import Untrusted
from kvnode.client.misuse import WrongState, WrongValue, octets, seconds, text, whole
from kvnode.client.records import Found, Put
from kvnode.client.transactions import get, put, when

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from kvnode.client.client import Client
    from kvnode.client.watching import Event

TTL_S: Final = 15
PREFIX: Final = "locks/"
BEATS: Final = 3  # keepalives in a ttl
# The holder stops counting on a lease this far into its ttl, so that what it does has the rest of it to come to an end.
TRUSTED: Final = 0.75
RETRY_S: Final = 0.2
FIRST_TRY_S: Final = 1.0  # for the first try of an `acquire` that waits shorter than that

_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


class LockLost(errors.KvnodeError):
    """The lock was lost while it was held: its lease ended or could not be renewed in time, or its key was changed."""

    code = "lock_lost"


class Lock:
    """`async with client.lock("name") as held:` waits for the lock, and cancels the block when it is lost (LockLost).

    `ttl_s`: how long after its holder died the lock is free, 1 and up; a leader change takes some two seconds, so less
    than 5 may lose the lock to one. `value`: what `locks/NAME` holds meanwhile, by default the host and process.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        *,
        ttl_s: int = TTL_S,
        value: bytes | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if not text("The name of a lock", name):
            raise WrongValue("The name of a lock is not empty.")
        self.name = name
        self.key = PREFIX + name
        self.ttl_s = whole("ttl_s", ttl_s)
        self.token = 0
        self.lost = asyncio.Event()
        self._client = client
        self._now = clock or (lambda: _now())
        self._value = f"{socket.gethostname()}:{os.getpid()}".encode() if value is None else bytes(octets(value))
        self._lease: int | None = None
        self._renewed_at = 0.0  # when the last renewal that was answered left: the lease began no earlier
        self._gone_for_sure = False
        self._keeping: tuple[asyncio.Task[None], ...] = ()
        self._scope: asyncio.Timeout | None = None

    @property
    def held(self) -> bool:
        """Whether this client holds the lock, as far as it can know: also while nothing of the loop could run."""
        return self._lease is not None and not self.lost.is_set() and self._trusted_s > 0

    @property
    def ends_in_s(self) -> float:
        """For how long nobody else can hold the lock, whatever happens; 0 once it is known to be lost."""
        if self._lease is None or self._gone_for_sure:
            return 0.0
        return self._renewed_at + self.ttl_s - self._now()

    @property
    def _trusted_s(self) -> float:
        return self._renewed_at + TRUSTED * self.ttl_s - self._now()

    async def acquire(self, wait_s: float | None = None) -> bool:
        """Waits for the lock, `wait_s` at most (None: for as long as it takes, 0: one try); whether it is held now.

        With None, times without a leader or without any node are waited for too. Otherwise raises Unavailable where no
        node could be asked in time, OutcomeUnknown where the time was over while nobody could tell: then it may be
        taken, and ends by itself. BadRequest for a name or ttl that cannot be.
        """
        if self._lease is not None:
            raise errors.Conflict(f"The lock {self.name} is held by this very object.")
        deadline = None if wait_s is None else self._now() + seconds("wait_s", wait_s, may_be_zero=True)
        while (revision := await self._try(deadline)) is not None:
            if deadline is not None and self._now() >= deadline:
                return False
            try:
                async with asyncio.timeout(None if deadline is None else deadline - self._now()):
                    await self._gone(revision)
            except TimeoutError:
                return False
        return True

    async def release(self) -> None:
        """Ends the lease, and the key with it. Nothing happens where neither is there any more."""
        keeping, self._keeping = self._keeping, ()
        for task in keeping:
            task.cancel()
        if keeping:
            await asyncio.wait(keeping)
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await self._client.leases.revoke(lease)
            except errors.LeaseNotFound:
                pass

    async def holder(self) -> bytes | None:
        """The present holder's value; None where nobody holds the lock."""
        try:
            return (await self._client.get(self.key)).value
        except errors.KeyNotFound:
            return None

    async def observe(self) -> AsyncIterator[tuple[int, bytes] | None]:
        """(token, value) of the present holder and of every later one; None while there is none. Never ends.

        A watch whose history is gone begins again with the holder of that moment.
        """
        while True:
            try:
                seen = await self._client.txn(success=[get(self.key)])
                found = cast(Found, seen.results[0])
                yield (found.create_revision, found.value or b"") if found.exists else None
                watched = self._client.watch(key=self.key, from_revision=seen.revision + 1)
                async with aclosing(cast("AsyncGenerator[Event]", watched)) as events:
                    async for event in events:
                        yield (event.create_revision, event.value) if event.kind == "put" else None
            except Untrusted:
                raise
            except errors.Compacted:
                pass
            except (errors.Unavailable, errors.Indefinite):
                await asyncio.sleep(RETRY_S)

    async def __aenter__(self) -> Self:
        await self.acquire()
        self._scope = asyncio.timeout(None)
        await self._scope.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        assert self._scope is not None
        try:
            await self._scope.__aexit__(*raised)  # type: ignore[arg-type]
        except TimeoutError:
            if self._scope.expired():
                raise LockLost(f"The lock {self.name} was lost while it was held.") from None
            raise
        finally:
            self._scope = None
            try:
                await self.release()
            except errors.KvnodeError:
                pass  # nothing renews the lease any more: it ends by itself

    # --- how ------------------------------------------------------------------------------------------

    async def _try(self, deadline: float | None) -> int | None:
        """Takes the lock where it is free, and returns None; otherwise the revision at which it was not."""
        doubt: errors.OutcomeUnknown | None = None
        timeout_s: float | None = None
        while True:
            if deadline is not None:
                # The first try is a whole one however short the wait, within reason; later ones have what is left.
                least_s = FIRST_TRY_S if doubt is None else 0.0
                timeout_s = min(self._client.timeout_s, max(deadline - self._now(), least_s))
            began = self._now()
            try:
                txn = await self._client.txn(
                    [when(self.key, exists=False)],
                    [put(self.key, self._value, content_type="text/plain; charset=utf-8", ttl=self.ttl_s)],
                    timeout_s=timeout_s,
                )
            except Untrusted:
                raise
            except (errors.Unavailable, errors.OutcomeUnknown) as e:
                # In doubt, it may have been taken, on a lease that nobody here knows: that one ends by itself.
                doubt = e if isinstance(e, errors.OutcomeUnknown) else doubt
                if deadline is not None and self._now() + RETRY_S >= deadline:
                    raise doubt or e from None
                await asyncio.sleep(RETRY_S)
                continue
            if not txn.succeeded:
                return txn.revision
            done = cast(Put, txn.results[0])
            # The lease began after the first sending. How much of it is over by the time of the answer, nobody says:
            # a repetition gets the outcome that is remembered, which may be older than the ttl.
            self.token, self._lease, self._renewed_at = done.revision, done.lease, began
            self._gone_for_sure = False
            self.lost.clear()
            if self._now() - began < self.ttl_s / BEATS or await self._confirmed():
                self._keeping = (asyncio.create_task(self._keep()), asyncio.create_task(self._look_after()))
                return None
            self._lease = None

    async def _confirmed(self) -> bool:
        """Begins the lease anew; whether there still was one, and the key is as this client put it."""
        while True:
            began = self._now()
            try:
                await self._client.leases.keep_alive(cast(int, self._lease), attempt_s=self.ttl_s / BEATS / 2)
                self._renewed_at = began
                if await self._is_mine() is None:
                    return False
            except errors.LeaseNotFound:
                return False
            except (errors.Unavailable, errors.Indefinite):
                await asyncio.sleep(RETRY_S)
                continue
            if self._trusted_s > 0:
                return True

    async def _is_mine(self) -> int | None:
        """The store's revision at which the key was still as this client put it; None where it was not."""
        seen = await self._client.txn(success=[get(self.key)])
        found = cast(Found, seen.results[0])
        return seen.revision if found.exists and found.mod_revision == self.token else None

    async def _gone(self, revision: int) -> None:
        """Returns once the key was deleted after `revision`, or may have been."""
        watched = self._client.watch(key=self.key, from_revision=revision + 1)
        try:
            async with aclosing(cast("AsyncGenerator[Event]", watched)) as events:
                async for event in events:
                    if event.kind != "put":
                        return
        except Untrusted:
            raise
        except (errors.Compacted, errors.Unavailable):
            pass

    async def _keep(self) -> None:
        """Renews the lease BEATS times in a ttl, until it can be trusted no more."""
        beat_s = self.ttl_s / BEATS
        while True:
            try:
                async with asyncio.timeout(self._trusted_s):
                    await asyncio.sleep(max(RETRY_S, self._renewed_at + beat_s - self._now()))
                    began = self._now()
                    await self._client.leases.keep_alive(cast(int, self._lease), attempt_s=beat_s / 2)
                    self._renewed_at = began
            except (errors.Unavailable, errors.Indefinite):
                continue
            except errors.LeaseNotFound:
                self._lose(for_sure=True)
                return
            except (TimeoutError, errors.KvnodeError):
                self._lose(for_sure=False)
                return

    async def _look_after(self) -> None:
        """Notices at once that the key was deleted or overwritten: a lease that lives says nothing of that."""
        revision = self.token
        while True:
            watched = self._client.watch(key=self.key, from_revision=revision + 1)
            try:
                async with aclosing(cast("AsyncGenerator[Event]", watched)) as events:
                    async for _ in events:
                        self._lose(for_sure=True)
                        return
            except errors.Compacted:
                try:
                    if (seen := await self._is_mine()) is None:
                        self._lose(for_sure=True)
                        return
                    revision = seen
                except errors.KvnodeError:
                    await asyncio.sleep(RETRY_S)
            except WrongState:  # the client was closed: nobody renews the lease any more
                self._lose(for_sure=False)
                return
            except errors.KvnodeError:
                await asyncio.sleep(RETRY_S)

    def _lose(self, *, for_sure: bool) -> None:
        self._gone_for_sure = for_sure
        self.lost.set()
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())


def _now() -> float:
    """Seconds that go on while the machine sleeps, where there is such a clock: a lease ends meanwhile."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
