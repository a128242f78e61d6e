"""What every node says of itself: one question to all of them at once, for pages that show the whole cluster.

A report is a small document that its node keeps anyway. Nothing is changed by asking, nothing waits for it but the
page, and a node that does not answer in time is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import msgpack

from kvnode.node.engine import Engine
from kvnode.node.questions import Unanswered
from kvnode.raft import messages

# A node answers within a millisecond unless its loop is busy; a page that is to show a change within two seconds can
# wait for half of that.
ANSWER_S: Final = 0.8
# Pages that ask at the same time share an answer: fifty open pages cost the cluster as much as two.
FRESH_S: Final = 0.3
REPORT_BYTES_MAX: Final = 1_048_576  # the longest, an hour of prefixes, has some 200 KB
LEVEL: Final = 1  # the feature level from which nodes know these messages

Report = dict[str, Any]


class Reports:
    """One node's. `own`: what makes each of its reports, of what has happened since a time in milliseconds."""

    def __init__(self, node_id: str) -> None:
        self._me = node_id
        self._engine: Engine | None = None
        self.own: dict[str, Callable[[int], Report]] = {}
        self._shared: dict[str, tuple[float, asyncio.Task[dict[str, Report]]]] = {}

    def start(self, engine: Engine) -> None:
        self._engine = engine
        engine.on[messages.REPORT] = self._asked

    async def ask(self, what: str, since_ms: int = 0) -> dict[str, Report]:
        """By node: the report of each member that answers within ANSWER_S; {} of one whose version knows no reports."""
        if since_ms:
            return await self._ask(what, since_ms)
        made_at, task = self._shared.get(what, (0.0, None))
        if task is None or monotonic() - made_at > FRESH_S or task.cancelled():
            task = asyncio.get_running_loop().create_task(self._ask(what, 0))
            self._shared[what] = monotonic(), task
        return await asyncio.shield(task)

    async def _ask(self, what: str, since_ms: int) -> dict[str, Report]:
        engine = self._engine
        reports = {self._me: self.own[what](since_ms)}
        if engine is not None:
            others = [each for each in engine.roster.current.members if each != self._me and engine.network.is_up(each)]
            answers = await asyncio.gather(*(self._of(engine, node_id, what, since_ms) for node_id in others))
            reports |= {node_id: report for node_id, report in zip(others, answers, strict=True) if report is not None}
        return reports

    async def _of(self, engine: Engine, node_id: str, what: str, since_ms: int) -> Report | None:
        if engine.network.level_of(node_id) < LEVEL:
            return {}
        deadline = engine.clock() + ANSWER_S
        try:
            answer = await engine.questions.answer(messages.REPORT, what, since_ms, deadline=deadline, node_id=node_id)
            report = msgpack.unpackb(answer[0], max_ext_len=0)
        except (Unanswered, ValueError, msgpack.exceptions.UnpackException):
            return None
        return report if type(report) is dict else None

    def _asked(self, node_id: str, message: messages.Message) -> None:
        _, number, what, since_ms = message
        make = self.own.get(what)
        packed = b"" if make is None or self._engine is None else msgpack.packb(make(since_ms))
        if self._engine is not None and len(packed) <= REPORT_BYTES_MAX:
            self._engine.network.send(node_id, (messages.REPORT_ANSWER, number, packed))
