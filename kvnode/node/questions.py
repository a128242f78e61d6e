"""What this node asks another one: a number, a deadline, and asked again until there is an answer.

The question travels on the connection that this node dialled, and the answer on the one that the other node dialled.
One of the two may break, or be cut without a sign, while the other goes on; then a question is lost or its answer is,
and nothing says so. So a question is repeated, under the same number, whenever a connection to that node begins
and every AGAIN_S. It is given up at its deadline, never before.

What changes something (`repeat=SAME`) is repeated to the process that was asked first and to no other, and the side
that answers does the work once for each number (`Answers`). What only asks (`repeat=LEADER`) goes to whichever leader
this node would turn to by then: an answer to a number counts whoever gives it, since it was asked for after the number
was drawn.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from kvnode.host import Host
from kvnode.peers.network import Network
from kvnode.raft.messages import Message

# Two heartbeats: far longer than an answer takes that is not lost, so that a quiet network sees each question once.
AGAIN_S: Final = 0.2
# Of each node and kind: more than it can have open, since a person waits for each of those that change something.
REMEMBERED_MAX: Final = 16

Repeat = Literal["same", "leader"]
Then = Callable[[list[Any] | None], None]


class Unanswered(Exception):
    """There was no answer by the deadline. `sent`: the question may have arrived."""

    def __init__(self, sent: bool) -> None:
        super().__init__()
        self.sent = sent


@dataclass(eq=False, slots=True)
class _Question:
    message: Message
    then: Then
    deadline: float
    node_id: str | None
    repeat: Repeat
    process: bytes | None = None  # the one that was asked first
    sent_at: float = 0.0
    sent: bool = False


class Questions:
    """One node's. `leader` is whom this node would turn to now. Everything happens in the loop's thread."""

    def __init__(self, network: Network, leader: Callable[[], str | None], host: Host) -> None:
        self._network = network
        self._leader = leader
        self._clock = host.clock
        # Not from 0: what an answering node remembers of another process must not meet these numbers.
        self._number = int.from_bytes(host.token_bytes(6), "big")
        self._open: dict[int, _Question] = {}

    def ask(
        self, kind: int, *fields: Any, then: Then, deadline: float, node_id: str | None = None, repeat: Repeat
    ) -> int:
        """Calls `then` once with the fields of the answer, or with None where there was none; the question's number.

        `node_id`: whom to ask, for `repeat="same"`; otherwise whoever leads, found anew at each repetition.
        """
        self._number += 1
        question = _Question((kind, self._number, *fields), then, deadline, node_id, repeat)
        self._open[self._number] = question
        self._put(question)
        return self._number

    async def answer(self, kind: int, *fields: Any, deadline: float, node_id: str) -> list[Any]:
        """What that node answers to a question that changes something. Raises Unanswered."""
        answered: asyncio.Future[list[Any] | None] = asyncio.get_running_loop().create_future()

        def then(answer: list[Any] | None) -> None:
            if not answered.done():
                answered.set_result(answer)

        number = self.ask(kind, *fields, then=then, deadline=deadline, node_id=node_id, repeat="same")
        question = self._open[number]
        try:
            answer = await answered
        finally:
            self._open.pop(number, None)
        if answer is None:
            raise Unanswered(question.sent)
        return answer

    def answered(self, number: int, fields: list[Any]) -> None:
        """An answer has come. One to a question that is closed counts for nothing."""
        self._close(number, fields)

    def connected(self, node_id: str) -> None:
        """A connection with this node has begun: what was asked of it on an earlier one, or its answer, may be lost."""
        for question in list(self._open.values()):
            if question.node_id == node_id:
                self._put(question)

    def leader_changed(self) -> None:
        """What any leader can answer is asked of the next one."""
        for question in list(self._open.values()):
            if question.repeat == "leader":
                self._put(question)

    def look(self) -> None:
        """By the clock: repeats what has no answer yet, and gives up what has reached its deadline."""
        if not self._open:
            return
        now = self._clock()
        for number, question in list(self._open.items()):
            if question.deadline <= now:
                self._close(number, None)
            elif now - question.sent_at >= AGAIN_S:
                self._put(question)

    def give_up(self, number: int) -> None:
        """Closes a question without an answer."""
        self._close(number, None)

    def stop(self) -> None:
        for number in list(self._open):
            self._close(number, None)

    def _put(self, question: _Question) -> None:
        if question.repeat == "leader":
            question.node_id = self._leader()
        node_id = question.node_id
        if node_id is None:
            return
        process = self._network.process_at(node_id)
        if question.repeat == "same" and question.sent:
            if self._network.level_of(node_id) < 1:
                return  # it would do the work twice
            if process is not None and process != question.process:
                self._close(question.message[1], None)  # it has restarted, and knows nothing of the question
                return
        if self._network.send(node_id, question.message):
            question.sent, question.sent_at, question.process = True, self._clock(), process

    def _close(self, number: int, fields: list[Any] | None) -> None:
        question = self._open.pop(number, None)
        if question is not None:
            question.then(fields)


class Answers:
    """The other side of questions that change something: each is worked on once, however often it is asked."""

    def __init__(self, network: Network) -> None:
        self._network = network
        # By node: the process that asks, and its latest questions by kind and number; None: not answered yet.
        self._known: dict[str, tuple[bytes | None, OrderedDict[tuple[int, int], Message | None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, node_id: str, question: Message, work: Callable[[], Awaitable[Message]]) -> None:
        """Sends what `work` gives, once it does; for a question that is known already, what it gave then."""
        process = self._network.process_of(node_id)
        if node_id not in self._known or self._known[node_id][0] != process:
            self._known[node_id] = process, OrderedDict()
        known, key = self._known[node_id][1], (question[0], question[1])
        if key in known:
            if (message := known[key]) is not None:
                self._network.send(node_id, message)
            return
        known[key] = None
        if len(known) > REMEMBERED_MAX:
            known.popitem(last=False)
        task = asyncio.get_running_loop().create_task(self._work(node_id, known, key, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(
        self,
        node_id: str,
        known: OrderedDict[tuple[int, int], Message | None],
        key: tuple[int, int],
        work: Callable[[], Awaitable[Message]],
    ) -> None:
        message = await work()
        if key in known:
            known[key] = message
        self._network.send(node_id, message)

    def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
