"""Clients that send at their own pace, whatever the answers take: half of the requests write, half read it back.

Some keep their connection, some open one for each request. A failure is anything but the 200 that was due: no client
here sends anything twice.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from kvnode.client import Client
from tests.cluster import key_path

CLIENTS = 5
TIMEOUT_S = 20.0


@dataclass
class Load:
    """`rate_per_s` in all; `acknowledged` is what was written, `told` what a watch through the balancer was told."""

    url: str
    rate_per_s: float
    acknowledged: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    told_twice: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Load:
        self._watch = asyncio.create_task(self._follow())
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        for _ in range(200):  # what was acknowledged last may still be on its way
            if self._watch.done() or len(self.told) >= len(self.acknowledged):
                break
            await asyncio.sleep(0.05)
        self._watch.cancel()
        await asyncio.wait([self._watch])
        if not self._watch.cancelled() and (error := self._watch.exception()) is not None:
            self.failures.append(f"watch: {error!r}")

    async def _client(self, number: int) -> None:
        """Every other one opens a connection for each of its requests."""
        pause_s = CLIENTS / self.rate_per_s
        connector = aiohttp.TCPConnector(force_close=number % 2 == 1, limit=0)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            due, turn = time.monotonic() + pause_s * number / CLIENTS, 0
            while not self._stopping.is_set():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due += pause_s
                key, value = f"rolling/{number}/{turn // 2}", f"{number}:{turn // 2}"
                if turn % 2 == 0:
                    if await self._ask(session, "PUT", key, value) is not None:
                        self.acknowledged[key] = value
                elif key in self.acknowledged:
                    read = await self._ask(session, "GET", key)
                    if read is not None and read != value:
                        self.failures.append(f"GET {key}: read {read!r} after writing {value!r}")
                turn += 1

    async def _ask(self, session: aiohttp.ClientSession, method: str, key: str, body: str | None = None) -> str | None:
        began = time.monotonic()
        try:
            async with session.request(method, URL(self.url + key_path(key), encoded=True), data=body) as answer:
                text = await answer.text()
                if answer.status == 200:
                    return text
                self.failures.append(f"{method} {key}: {answer.status} by {answer.headers.get('Kvnode-Node')} {text}")
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            self.failures.append(f"{method} {key}: {error!r}")
        finally:
            self.latencies_s.append(time.monotonic() - began)
        return None

    async def _follow(self) -> None:
        """Every change once, in order, across all the streams that end."""
        async with Client([self.url], TIMEOUT_S) as client:
            async for event in client.watch("rolling/", from_revision=1):
                if event.key in self.told:
                    self.told_twice.append(event.key)
                self.told[event.key] = event.value.decode()
