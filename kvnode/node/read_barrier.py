"""The read barrier: tries for a read index until one is confirmed and applied here, across changes of leader."""

from __future__ import annotations

from collections.abc import Callable

from kvnode.errors import Unverified
from kvnode.node.engine import Engine


async def read_barrier(
    engine: Engine, timeout_s: float, waited_s: float, heartbeat_s: float, stopping: Callable[[], bool]
) -> bool:
    """True once the store may be read; False where no leader was heard of in time, or the node stops.

    `waited_s` of `timeout_s` are over already, spent on a leader; `heartbeat_s` later one may know better.
    Raises Unverified where one did not answer.
    """
    deadline = engine.clock() + timeout_s - waited_s
    heard_of_leader = waited_s > 0
    while (left_s := deadline - engine.clock()) > 0 and not stopping():
        asked = engine.reads.index(left_s)
        if asked is None:
            await engine.leadership.wait(left_s)
            continue
        heard_of_leader = True
        index = await asked
        if index is None:
            await engine.leadership.wait(min(left_s, heartbeat_s))
        elif await engine.reads.applied(index, left_s):
            return True
    if heard_of_leader and not stopping():
        raise Unverified("The leader could not confirm with a majority that it still leads; nothing was read.")
    return False
