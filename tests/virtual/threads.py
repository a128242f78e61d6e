"""Worker threads as greenlets: one runs at a time, and changes hands only where a thread would wait.

They wait for time (a sleep, a disk), for a queue or an event. What wakes them is the world, at a time that the seed
chooses, so each job begins and ends at some moment between the turns of its process's loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty
from typing import TYPE_CHECKING, Any

import greenlet

if TYPE_CHECKING:
    from tests.virtual.process import Process

START_S = (0.00002, 0.003)  # from being asked for to running: a thread has to get a core, and the interpreter's lock
RUN_S = (0.00001, 0.0005)  # from what it waited for to running again


class Gone(BaseException):
    """The process of this thread has ended. Nothing in a node may catch it, which is why it is no Exception."""


class Threads:
    """Those of one process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._waiting: dict[int, greenlet.greenlet] = {}

    def begin(self, work: Callable[[], object]) -> greenlet.greenlet:
        """A new thread, which begins soon."""
        world = self.process.world

        def run() -> None:
            try:
                work()
            except Gone:
                pass

        thread = greenlet.greenlet(run, parent=_root())
        thread.gr_context = None
        self._resume_after(world.draw.uniform(*START_S), thread)
        return thread

    @property
    def inside(self) -> bool:
        """Whether it is a thread of a process that runs now, and not its loop."""
        return greenlet.getcurrent().parent is not None

    def sleep(self, seconds: float) -> None:
        """In a thread: lets virtual time pass. In the loop nothing passes: there it would stand still for everybody."""
        if self.inside:
            self._resume_after(seconds, greenlet.getcurrent())
            self._switch()

    def wait(self, ready: Callable[[], bool], wakers: list[Callable[[], None]], timeout_s: float | None) -> bool:
        """In a thread: until `ready`, which is looked at when one of `wakers` is called; False after `timeout_s`."""
        if ready():
            return True
        if not self.inside:
            raise AssertionError("the loop itself would wait for a thread")
        thread, world = greenlet.getcurrent(), self.process.world
        state = {"timed out": False, "called": False}

        def wake() -> None:
            if not state["called"]:
                state["called"] = True
                self._resume_after(world.draw.uniform(*RUN_S), thread)

        def give_up() -> None:
            if not state["called"]:
                state["called"] = state["timed out"] = True
                self._resume_after(0.0, thread)

        while not ready():
            state["called"] = False
            wakers.append(wake)
            if timeout_s is not None:
                self.process.after(timeout_s, give_up)
                timeout_s = None
            self._switch()
            if wake in wakers:
                wakers.remove(wake)
            if state["timed out"]:
                return ready()
        return True

    def _resume_after(self, seconds: float, thread: greenlet.greenlet) -> None:
        process = self.process

        def resume() -> None:
            if process.ended or thread.dead:
                return
            if process.stalled_until > process.world.now:
                process.world.at(process.stalled_until, resume)
                return
            self._waiting.pop(id(thread), None)
            before, process.world.running = process.world.running, process
            try:
                thread.switch()
            finally:
                process.world.running = before

        self._waiting[id(thread)] = thread
        process.world.after(seconds, resume)

    def _switch(self) -> None:
        thread = greenlet.getcurrent()
        assert thread.parent is not None
        self._waiting[id(thread)] = thread
        thread.parent.switch()
        if self.process.ended:
            raise Gone

    def end(self) -> None:
        """The process has ended: its threads do nothing any more, but for what their `finally` says."""
        waiting, self._waiting = list(self._waiting.values()), {}

        def kill() -> None:  # from the world, to which each of them returns
            for thread in waiting:
                if thread and not thread.dead:
                    thread.throw(Gone)

        self.process.world.after(0.0, kill)


class Thread:
    """`threading.Thread`, as far as nodes use it."""

    def __init__(self, threads: Threads, target: Callable[[], object], name: str = "", daemon: bool = True) -> None:
        self._threads, self._target = threads, target
        self._done = False
        self._wakers: list[Callable[[], None]] = []

    def start(self) -> None:
        self._threads.begin(self._run)

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._done = True
            _call(self._wakers)

    def is_alive(self) -> bool:
        return not self._done

    def join(self, timeout: float | None = None) -> None:
        self._threads.wait(lambda: self._done, self._wakers, timeout)


class Event:
    """`threading.Event`."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._set = False
        self._wakers: list[Callable[[], None]] = []

    def set(self) -> None:
        self._set = True
        _call(self._wakers)

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        return self._threads.wait(lambda: self._set, self._wakers, timeout)


class Queue:
    """`queue.SimpleQueue`."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._items: deque[Any] = deque()
        self._wakers: list[Callable[[], None]] = []

    def put(self, item: Any) -> None:
        self._items.append(item)
        _call(self._wakers)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self._threads.wait(lambda: bool(self._items), self._wakers, timeout):
            raise Empty
        return self._items.popleft()


class Lock:
    """`threading.Lock`, as a context alone."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._held = False
        self._wakers: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        self._threads.wait(lambda: not self._held, self._wakers, None)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
        _call(self._wakers)


def _root() -> greenlet.greenlet:
    thread = greenlet.getcurrent()
    while thread.parent is not None:
        thread = thread.parent
    return thread


def _call(wakers: list[Callable[[], None]]) -> None:
    for wake in list(wakers):
        wake()
