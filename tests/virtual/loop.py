"""asyncio's own event loop over virtual time, simulated connections and workers that are greenlets.

Everything that makes a loop a loop is `asyncio.BaseEventLoop`'s: callbacks, timers, tasks, futures, contexts. Below it
there is no selector to wait in: the world calls `turn` when a callback is ready or a timer is due. `_run_once`,
`_ready`, `_scheduled` and `_selector` are private, and alike in Python 3.11 to 3.14; `test_loop.py` holds them.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio import events
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.virtual.process import Process


class _NoSelector:
    """Nothing outside of the world can wake a loop, and it is called only when it has something to do."""

    def select(self, timeout: float | None) -> list[Any]:
        return []


class Loop(asyncio.BaseEventLoop):
    """The event loop of one process. Its `time()` is that process's monotonic clock."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self._selector = _NoSelector()
        self._clock_resolution = 1e-6  # a timer's time goes through the process's clock and back
        self.set_exception_handler(process.loop_failed)
        self.set_task_factory(_task)

    # --- what BaseEventLoop leaves to its heirs ---------------------------------------------------------------

    def time(self) -> float:
        return self.process.clock()

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def __del__(self) -> None:
        pass  # a process that is killed closes nothing

    # --- the world -----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Everything that is ready now, and no more than that."""
        events._set_running_loop(self)
        try:
            self._run_once()  # type: ignore[attr-defined]
        finally:
            events._set_running_loop(None)

    # --- workers ----------------------------------------------------------------------------------------------------

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """In a worker thread of the process, which begins a little later."""
        future = self.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                self.call_soon_threadsafe(settle, None, error)
            else:
                self.call_soon_threadsafe(settle, result, None)

        self.process.threads.begin(work)
        return future

    # --- connections --------------------------------------------------------------------------------------------------

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        return await self.process.network.connect(self.process, protocol_factory, host, port)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        return self.process.network.listen(self.process, protocol_factory, host, port)


class _Task(asyncio.Task[Any]):
    """Sets of tasks are walked in the order of their hashes, which would be addresses in memory."""

    def __init__(self, coroutine: Any, *, loop: Any, number: int, **settings: Any) -> None:
        self._number = number
        super().__init__(coroutine, loop=loop, **settings)

    def __hash__(self) -> int:
        return self._number


def _task(loop: Any, coroutine: Any, **settings: Any) -> Any:
    return _Task(coroutine, loop=loop, number=loop.process.world.number(), **settings)
