"""Steady clients of one address: each puts a new key, reads it back, and remembers what was acknowledged."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.cluster import Answer, key_path, request, wait_until


@dataclass(frozen=True)
class Failure:
    """A request that was not answered with 200: its method and what came instead."""

    method: str
    key: str
    what: str
    outcome: str


@dataclass
class Load:
    """About 60 requests a second from three clients, each on a new connection, as far as the answers allow."""

    address: tuple[str, int]
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    slowest_s: float = 0.0
    requests: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)

    def acknowledge_more(self, count: int, timeout_s: float = 20.0) -> None:
        """Returns once so many further writes were acknowledged: the load has seen what just happened."""
        enough = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= enough, timeout_s, f"{count} further writes acknowledged")

    def run(self, client: int) -> None:
        number = 0
        while not self._stopping.wait(0.03):
            number += 1
            key, value = f"load/{client}/{number}", b"%d" % number
            if self._ask("PUT", key, value) is not None:
                self.acknowledged[key] = value
                answer = self._ask("GET", key)
                if answer is not None and answer.body != value:
                    self.failures.append(Failure("GET", key, f"read {answer.body!r} after writing {value!r}", "wrong"))

    def _ask(self, method: str, key: str, body: bytes | None = None) -> Answer | None:
        began = time.monotonic()
        try:
            answer = request(self.address, method, key_path(key), body, timeout_s=20)
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(Failure(method, key, repr(error), "unknown"))
            return None
        finally:
            self.requests += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        if answer.status == 200:
            return answer
        outcome = answer.json().get("outcome", "?") if answer.body.startswith(b"{") else "?"
        self.failures.append(Failure(method, key, f"{answer.status} {answer.body[:200]!r}", outcome))
        return None


@contextmanager
def steady_load(address: tuple[str, int]) -> Iterator[Load]:
    load = Load(address)
    clients = [threading.Thread(target=load.run, args=(client,)) for client in range(3)]
    for client in clients:
        client.start()
    try:
        load.acknowledge_more(15)
        yield load
    finally:
        load._stopping.set()
        for client in clients:
            client.join(30)
