"""A process on a machine of its own: a loop, threads, a clock that drifts; it can stall, and end at any moment."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from kvnode.host import Host
from tests.virtual import threads
from tests.virtual.loop import Loop
from tests.virtual.world import World

if TYPE_CHECKING:
    from tests.virtual.network import Network

NEVER = float("inf")
BEGAN_AT = 1_800_000_000.0  # what a wall clock shows when a world begins
# What one turn of a loop takes. Time passes for the others meanwhile, so what they do falls between its turns.
TURN_S = (0.00001, 0.0004)


class Process:
    """`rate` is how fast its monotonic clock runs, `boot_s` what it showed at the beginning of the world."""

    def __init__(self, world: World, network: Network, name: str, rate: float = 1.0, boot_s: float = 100.0) -> None:
        self.world, self.network, self.name = world, network, name
        self.rate, self.boot_s = rate, boot_s
        self.ended = False
        self.exit: str = ""  # how it ended
        self.stalled_until = 0.0
        self.stalled_s = 0.0  # in all
        self.wall_offset_s = 0.0  # a step of it moves no other clock
        self._not_before = 0.0  # it is busy, or stands still
        self.failures: list[dict[str, Any]] = []  # what nobody caught
        self.threads = threads.Threads(self)
        self.loop = Loop(self)
        draw = random.Random(f"{world.seed} {name} {world.number()}")
        self.host = Host(
            clock=self.clock,
            sleep=self.threads.sleep,
            token_bytes=draw.randbytes,
            draw=draw,
            thread=lambda **settings: threads.Thread(self.threads, **settings),  # type: ignore[arg-type,return-value]
            event=lambda: threads.Event(self.threads),  # type: ignore[arg-type,return-value]
            lock=lambda: threads.Lock(self.threads),  # type: ignore[arg-type,return-value]
            queue=lambda: threads.Queue(self.threads),  # type: ignore[arg-type,return-value]
        )
        world.processes[name] = self

    def clock(self) -> float:
        return self.boot_s + self.world.now * self.rate

    def wall_clock(self) -> float:
        return BEGAN_AT + self.world.now * self.rate + self.wall_offset_s

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """By this process's clock."""
        self.world.after(seconds / self.rate, what)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """A task of this process's loop; it begins at its next turn."""
        return self.loop.create_task(coroutine)

    # --- for the world -------------------------------------------------------------------------------------------

    def due_at(self, now: float) -> float:
        """When its loop has something to do, and may."""
        loop = self.loop
        if loop._ready:  # type: ignore[attr-defined]
            when = now
        elif loop._scheduled:  # type: ignore[attr-defined]
            when = (loop._scheduled[0]._when - self.boot_s) / self.rate  # type: ignore[attr-defined]
            if when < now:
                when = now
        else:
            return NEVER
        if self._not_before > when:
            when = self._not_before
        return when

    def turn(self) -> None:
        self._not_before = self.world.now + self.world.draw.uniform(*TURN_S)
        self.loop.turn()

    def loop_failed(self, loop: object, context: dict[str, Any]) -> None:
        """What asyncio found that nobody caught."""
        if not self.ended and not isinstance(context.get("exception"), threads.Gone):
            self.failures.append(context)

    # --- what happens to processes ---------------------------------------------------------------------------------

    def stall(self, seconds: float) -> None:
        """Nothing of it runs for so long (SIGSTOP, a suspended guest); its kernel goes on."""
        before, self.stalled_until = self.stalled_until, max(self.stalled_until, self.world.now + seconds)
        self.stalled_s += self.stalled_until - max(before, self.world.now)
        self._not_before = max(self._not_before, self.stalled_until)

    def go_on(self) -> None:
        """The stall is over."""
        self.stalled_until = self._not_before = self.world.now

    def end(self, how: str, silently: bool = False) -> None:
        """It ends now, whatever it was doing. `silently`: its machine with it, so that its peers hear nothing."""
        if self.ended:
            return
        self.ended, self.exit = True, how
        self.world.trace("ends", self.name, how)
        self.network.process_ended(self, silently)
        self.threads.end()
        if self.world.processes.get(self.name) is self:
            del self.world.processes[self.name]
