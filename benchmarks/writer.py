"""A client that writes in a closed loop to one node, and what it lived through."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

Outcome = Literal["acknowledged", "refused", "unknown"]
"""`refused`: by the answer, or for want of a connection, the write certainly was not and will not be applied."""

Put = Callable[[http.client.HTTPConnection, str, bytes], tuple[Outcome, str]]
"""One write on a connection: its outcome, and what was said about it. May raise OSError or HTTPException."""

PATIENT_S: Final = 15.0
PAUSE_S: Final = 0.01  # after a failure: a node that refuses at once is not asked in a tight loop


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request; times on `time.monotonic()`."""

    key: str
    began_at: float
    ended_at: float
    outcome: Outcome
    detail: str


class Writer(threading.Thread):
    """Writes `name/1`, `name/2`, ... to one address, each as soon as the last one was answered.

    `timeout_s` is how long it waits for an answer; then it gives the connection up and goes on with the next key.
    """

    def __init__(self, name: str, address: tuple[str, int], put: Put, timeout_s: float = PATIENT_S) -> None:
        super().__init__(name=name, daemon=True)
        self.attempts: list[Attempt] = []
        self._address = address
        self._put = put
        self._timeout_s = timeout_s
        self._ending = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=self._timeout_s)
        number = 0
        while not self._ending.is_set():
            number += 1
            key = f"{self.name}/{number}"
            began_at = time.monotonic()
            try:
                outcome, detail = self._put(connection, key, b"x" * 100)
            except ConnectionRefusedError:
                outcome, detail = "refused", "connection refused"
            except (OSError, http.client.HTTPException) as error:
                outcome, detail = "unknown", "no answer in time" if isinstance(error, TimeoutError) else repr(error)
            self.attempts.append(Attempt(key, began_at, time.monotonic(), outcome, detail))
            if outcome != "acknowledged":
                connection.close()
                self._ending.wait(PAUSE_S)
        connection.close()

    def end(self) -> None:
        """Begins no further request, and waits for the present one."""
        self._ending.set()
        self.join(self._timeout_s + 5)

    def acknowledged(self) -> list[Attempt]:
        return [each for each in self.attempts if each.outcome == "acknowledged"]

    def has_resumed(self, since: float) -> bool:
        """Something that was begun after `since` is acknowledged."""
        latest = self.attempts[-1:]
        return any(each.began_at > since and each.outcome == "acknowledged" for each in latest)

    def gap(self, since: float) -> tuple[float, float]:
        """The longest time without an acknowledgement that ended after `since`: (its begin, its end).

        An acknowledgement that was on its way when a leader died does not end an outage: the gap behind it does.
        """
        acks = [each.ended_at for each in self.acknowledged()]
        gaps = [(before, after) for before, after in pairwise(acks) if after > since]
        return max(gaps, key=lambda gap: gap[1] - gap[0])

    def first_in(self, gap: tuple[float, float]) -> Attempt:
        """The write that was waiting when the gap began."""
        return next(each for each in self.attempts if each.ended_at > gap[0])
