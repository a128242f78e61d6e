"""When the followers hear of a commit: with whatever is sent to them next, or by itself soon after.

A message of its own for each commit is a third of all messages, and costs each follower as much as the entries
themselves. Under load the next entry follows at once and brings the news along. Where clients wait for it on another
node (their writes were forwarded), it is not held back at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from kvnode.node.writes import Writes
from kvnode.raft.replica import Replica

NEWS_S: Final = 0.002  # a follower's stale reads and watchers are behind by so much more


class CommitNotices:
    """Speaks to one leader's followers at the end of each step. `guarded` runs what may end the node."""

    def __init__(self, replica: Replica, writes: Writes, guarded: Callable[[Callable[[], None]], None]) -> None:
        self._replica = replica
        self._writes = writes
        self._guarded = guarded
        self._timer: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        """What was proposed and what was committed meanwhile goes out together."""
        replica = self._replica
        replica.tell(patient=not self._writes.awaited)
        if not replica.untold:
            self._writes.awaited = False
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(NEWS_S, self._guarded, self._at_last)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _at_last(self) -> None:
        self._timer = None
        if self._replica.untold:
            self._replica.tell(patient=False)
