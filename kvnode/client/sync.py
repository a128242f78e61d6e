"""The client for programs without an event loop: the same calls, which wait for their answer.

One thread runs a loop for all of them, so leases of locks are renewed while the caller does something else, and
`SyncClient` may be used from several threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from kvnode.client.access import OPEN, Access
from kvnode.client.client import Client
from kvnode.client.leases import Lease, Leases
from kvnode.client.lock import TTL_S, Lock, LockLost
from kvnode.client.watching import Event

CANCEL_S = 1.0  # for a call that was broken off to come to its end

P = ParamSpec("P")
T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvnode-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises; Ctrl-C while it runs ends it."""
        ended = threading.Event()

        async def whole() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(whole(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(CANCEL_S)
            raise

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """One by one; nothing is fetched ahead of the caller but what the connection holds."""
        end: Any = object()
        try:
            while (found := self.run(_next(source, end))) is not end:
                yield found
        finally:
            self.run(cast("AsyncGenerator[T]", source).aclose())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(source: AsyncIterator[T], end: T) -> T:
    return await anext(source, end)


def _waiting(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncClient, P], T]:
    def wait(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.loop.run(method(self.client, *args, **kwargs))

    return wraps(method)(wait)


def _waiting_lease(
    method: Callable[Concatenate[Leases, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncLeases, P], T]:
    def wait(self: SyncLeases, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.loop.run(method(self.leases, *args, **kwargs))

    return wraps(method)(wait)


class SyncLeases:
    """`Leases`, waiting."""

    def __init__(self, loop: Loop, leases: Leases) -> None:
        self.loop = loop
        self.leases = leases

    grant = _waiting_lease(Leases.grant)
    keep_alive = _waiting_lease(Leases.keep_alive)
    revoke = _waiting_lease(Leases.revoke)
    get = _waiting_lease(Leases.get)

    def list(self) -> Iterator[Lease]:
        """As `Leases.list`."""
        return self.loop.iterate(self.leases.list())


class SyncClient:
    """`Client`, waiting: the same arguments, results and errors. Use as a context manager."""

    def __init__(self, urls: Sequence[str], timeout_s: float = 10.0, *, access: Access = OPEN) -> None:
        self.client = Client(urls, timeout_s, access=access)

    def __enter__(self) -> Self:
        self.loop = Loop()
        self.leases = SyncLeases(self.loop, self.client.leases)
        self.loop.run(self.client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.run(self.client.__aexit__())
        self.loop.close()

    put = _waiting(Client.put)
    get = _waiting(Client.get)
    delete = _waiting(Client.delete)
    delete_prefix = _waiting(Client.delete_prefix)
    list = _waiting(Client.list)
    count = _waiting(Client.count)
    txn = _waiting(Client.txn)
    batch = _waiting(Client.batch)
    cluster = _waiting(Client.cluster)
    transfer = _waiting(Client.transfer)

    def iterate(self, prefix: str = "", **options: Any) -> Iterator[Any]:
        """As `Client.iterate`."""
        return self.loop.iterate(self.client.iterate(prefix, **options))

    def watch(self, prefix: str = "", *, key: str | None = None, from_revision: int | None = None) -> Iterator[Event]:
        """As `Client.watch`; close the iterator (or leave it to the garbage collector) to end the watch."""
        return self.loop.iterate(self.client.watch(prefix, key=key, from_revision=from_revision))

    def lock(self, name: str, *, ttl_s: int = TTL_S, value: bytes | None = None) -> SyncLock:
        """As `Client.lock`; nothing can stop the block when the lock is lost, so ask `held` before what matters."""
        return SyncLock(self.loop, self.client.lock(name, ttl_s=ttl_s, value=value))


class SyncLock:
    """`Lock`, waiting: `with client.lock("name") as held:`; LockLost at the end of a block that lost it."""

    def __init__(self, loop: Loop, lock: Lock) -> None:
        self._loop = loop
        self._lock = lock

    @property
    def token(self) -> int:
        """Rises with every holder."""
        return self._lock.token

    @property
    def held(self) -> bool:
        return self._lock.held

    def acquire(self, wait_s: float | None = None) -> bool:
        return self._loop.run(self._lock.acquire(wait_s))

    def release(self) -> None:
        self._loop.run(self._lock.release())

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        lost = not self.held
        self.release()
        if lost and kind is None:
            raise LockLost(f"The lock {self._lock.name} was lost while it was held.")
