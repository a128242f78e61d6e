"""The client for programs without an event loop: the same calls, which wait for their answer.

One thread runs a loop for all of them, so leases of locks are renewed while the caller does something else, and
`SyncClient` may be used from several threads, and by one process: a child that was forked has the sockets and not the
thread. Its calls are refused with one sentence, and nothing that it does or frees touches its parent's connections.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, cast

from kvnode.client.access import OPEN, Access
from kvnode.client.client import Client, Listing
from kvnode.client.leases import Lease, Leases
from kvnode.client.lock import TTL_S, Lock, LockLost
from kvnode.client.misuse import WrongState
from kvnode.client.records import Listed
from kvnode.client.watching import Event

PARENTS: Final = "The client was opened by the process that forked this one: open another one here."
CANCEL_S = 1.0  # for a call that was broken off to come to its end

P = ParamSpec("P")
T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self.is_parents = False  # this process was forked: the thread is not here, the sockets are
        _LOOPS.add(self)
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvnode-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises; Ctrl-C while it runs ends it."""
        if self.is_parents:
            work.close()
            raise WrongState(PARENTS)
        if threading.current_thread() is self._thread:
            work.close()
            raise WrongState("A SyncClient waits: call it from another thread than its own loop's.")
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
            if not self.is_parents:
                self.run(cast("AsyncGenerator[T]", source).aclose())

    def left_behind(self) -> None:
        """In a child that was forked.

        What polls the sockets is shared with the parent: an object that is freed here would take the parent's sockets
        out of it. It is replaced here by a file that takes no such orders, which asyncio passes over in silence.
        """
        self.is_parents = True
        self._loop.set_exception_handler(lambda *_: None)  # that the parent's sessions are not closed here is right
        polls = getattr(self._selector, "fileno", None)  # select(2) has none, and shares nothing
        if polls is not None:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, polls(), inheritable=False)
            os.close(nothing)

    def close(self) -> None:
        if self.is_parents:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


_LOOPS: weakref.WeakSet[Loop] = weakref.WeakSet()


def _forked() -> None:
    for loop in list(_LOOPS):
        loop.left_behind()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


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


class SyncListing(Iterator[Listed]):
    """`Listing`, waiting."""

    def __init__(self, loop: Loop, listing: Listing) -> None:
        self._listing = listing
        self._items = loop.iterate(listing)

    @property
    def watch_from(self) -> int:
        """As `Listing.watch_from`."""
        return self._listing.watch_from

    def __next__(self) -> Listed:
        return next(self._items)


class SyncClient:
    """`Client`, waiting: the same arguments, results and errors. Use as a context manager."""

    def __init__(self, urls: str | Sequence[str], timeout_s: float = 10.0, *, access: Access = OPEN) -> None:
        self.client = Client(urls, timeout_s, access=access)

        self._loop: Loop | None = None
        self._closed = False

    @property
    def loop(self) -> Loop:
        """Where the calls run. Raises WrongState outside of the context."""
        if self._loop is None:
            state = "closed" if self._closed else "not open"
            raise WrongState(f"The client is {state}: use it inside `with SyncClient(...) as client`.")
        return self._loop

    @property
    def leases(self) -> SyncLeases:
        """As `Client.leases`."""
        return SyncLeases(self.loop, self.client.leases)

    def __enter__(self) -> Self:
        if self._loop is not None:
            raise WrongState("The client is open already: `with` it once, and use it inside.")
        loop = Loop()
        try:
            loop.run(self.client.__aenter__())
        except BaseException:
            loop.close()
            raise
        self._loop = loop
        return self

    def __exit__(self, *_: object) -> None:
        loop, self._loop, self._closed = self._loop, None, True
        if loop is not None and not loop.is_parents:
            loop.run(self.client.__aexit__())
            loop.close()

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

    def iterate(self, prefix: str = "", **options: Any) -> SyncListing:
        """As `Client.iterate`."""
        return SyncListing(self.loop, self.client.iterate(prefix, **options))

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
        return self._lock.held and not self._loop.is_parents  # whose forks must not both believe in it

    def acquire(self, wait_s: float | None = None) -> bool:
        return self._loop.run(self._lock.acquire(wait_s))

    def release(self) -> None:
        self._loop.run(self._lock.release())

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._loop.is_parents:
            return  # the parent holds it, and goes on holding it
        lost = not self.held
        self.release()
        if lost and kind is None:
            raise LockLost(f"The lock {self._lock.name} was lost while it was held.")
