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
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Self, cast

from kvnode import errors
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


class LockLost(errors.KvnodeError):
    """The lock was lost while it was held: its lease ended, or could not be renewed in time."""

    code = "lock_lost"


class Lock:
    """`async with client.lock("name") as held:` waits for the lock, and cancels the block when it is lost (LockLost).

    `ttl_s`: how long after its holder died the lock is free, 1 and up; a leader change takes some two seconds, so less
    than 5 may lose the lock to one. `value`: what `locks/NAME` holds meanwhile, by default the host and process.
    """

    def __init__(self, client: Client, name: str, *, ttl_s: int = TTL_S, value: bytes | None = None) -> None:
        self.name = name
        self.key = PREFIX + name
        self.ttl_s = ttl_s
        self.token = 0
        self.lost = asyncio.Event()
        self._client = client
        self._value = f"{socket.gethostname()}:{os.getpid()}".encode() if value is None else value
        self._lease: int | None = None
        self._renewed_at = 0.0  # when the last renewal that was answered left: the lease began no earlier
        self._keeping: asyncio.Task[None] | None = None
        self._scope: asyncio.Timeout | None = None

    @property
    def held(self) -> bool:
        """Whether this client holds the lock, as far as it can know."""
        return self._lease is not None and not self.lost.is_set()

    @property
    def ends_in_s(self) -> float:
        """For how long nobody else can hold the lock, whatever happens."""
        return self._renewed_at + self.ttl_s - asyncio.get_running_loop().time() if self._lease is not None else 0.0

    async def acquire(self, wait_s: float | None = None) -> bool:
        """Waits for the lock, `wait_s` at most (None: for as long as it takes, 0: one try); whether it is held now.

        Raises Unavailable where no node can be asked, BadRequest for a name or ttl that cannot be, OutcomeUnknown where
        the time was over while nobody could tell: then it may be taken, and ends by itself.
        """
        if self._lease is not None:
            raise errors.Conflict(f"The lock {self.name} is held by this very object.")
        clock = asyncio.get_running_loop().time
        deadline = None if wait_s is None else clock() + wait_s
        while (revision := await self._try(deadline)) is not None:
            if deadline is not None and clock() >= deadline:
                return False
            try:
                async with asyncio.timeout_at(deadline):
                    await self._gone(revision)
            except TimeoutError:
                return False
        return True

    async def release(self) -> None:
        """Ends the lease, and the key with it. Nothing happens where neither is there any more."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
            self._keeping = None
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
            seen = await self._client.txn(success=[get(self.key)])
            found = cast(Found, seen.results[0])
            yield (found.create_revision, found.value or b"") if found.exists else None
            watched = self._client.watch(key=self.key, from_revision=seen.revision + 1)
            try:
                async with aclosing(cast("AsyncGenerator[Event]", watched)) as events:
                    async for event in events:
                        yield (event.create_revision, event.value) if event.kind == "put" else None
            except errors.Compacted:
                pass

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
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                txn = await self._client.txn(
                    [when(self.key, exists=False)],
                    [put(self.key, self._value, content_type="text/plain; charset=utf-8", ttl=self.ttl_s)],
                )
                break
            except errors.OutcomeUnknown:
                if deadline is not None and clock() >= deadline:
                    raise
                # It may have been taken, on a lease that nobody here knows: that one ends by itself, then this goes on.
                await asyncio.sleep(RETRY_S)
        if not txn.succeeded:
            return txn.revision
        done = cast(Put, txn.results[0])
        self.token, self._lease, self._renewed_at = done.revision, done.lease, began
        self.lost.clear()
        self._keeping = asyncio.create_task(self._keep())
        return None

    async def _gone(self, revision: int) -> None:
        """Returns once the key was deleted after `revision`, or may have been."""
        watched = self._client.watch(key=self.key, from_revision=revision + 1)
        try:
            async with aclosing(cast("AsyncGenerator[Event]", watched)) as events:
                async for event in events:
                    if event.kind != "put":
                        return
        except errors.Compacted:
            pass

    async def _keep(self) -> None:
        """Renews the lease BEATS times in a ttl, until it can be trusted no more."""
        clock = asyncio.get_running_loop().time
        beat_s = self.ttl_s / BEATS
        try:
            while True:
                try:
                    async with asyncio.timeout_at(self._renewed_at + TRUSTED * self.ttl_s):
                        await asyncio.sleep(max(RETRY_S, self._renewed_at + beat_s - clock()))
                        began = clock()
                        await self._client.leases.keep_alive(cast(int, self._lease), attempt_s=beat_s / 2)
                        self._renewed_at = began
                except (errors.Unavailable, errors.Indefinite):
                    continue
        except (TimeoutError, errors.KvnodeError):
            pass
        self.lost.set()
        if self._scope is not None:
            self._scope.reschedule(clock())
