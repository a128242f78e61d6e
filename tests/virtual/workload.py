"""What clients do meanwhile, each call noted for the judge. Every value that is written is unlike any other."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from kvnode import errors
from kvnode.client import Client
from kvnode.client.answers import etag_revision, parsed
from kvnode.client.calls import Calls
from kvnode.client.lock import Lock
from kvnode.client.records import written
from kvnode.client.transactions import put, when
from tests.virtual.judge import Holding, Operation, Renewal, Watch

if TYPE_CHECKING:
    from tests.virtual.cluster import Cluster
    from tests.virtual.process import Process

REGISTERS = 4
PROBE_S = 1.0
REFUSALS = (errors.PreconditionFailed, errors.KeyNotFound)


class Workload:
    """All clients of one run; `stop` lets each finish what it has begun."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.world, self.judge = cluster, cluster.world, cluster.judge
        self.draw = random.Random(f"{cluster.world.seed} workload")
        self.values = itertools.count(1)
        self.stopped = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.process: Process = cluster.process("clients")  # one for all: it has no faults
        self.answered = 0

    # --- the clients of a run ----------------------------------------------------------------------------------

    def begin(self, registers: int, pause_s: float) -> None:
        """Clients that read and write registers, one of them with many calls under way at a time, and one each for
        leases, locks, probes and watches.
        """
        for _ in range(registers):
            self._client(lambda client: self._registers(client, pause_s), alone=0.6)
        self._client(lambda client: self._crowd(client, pause_s))
        self._client(self._leases)
        for _ in range(2):
            self._client(self._locks)
        self._client(self._probes)
        for _ in range(2):
            self._client(self._watches)

    def _client(self, work: Callable[[Client], Awaitable[None]], alone: float = 0.2) -> None:
        """`alone`: how often it asks one node alone. A client of several turns to the one that leads."""
        names = list(self.cluster.nodes)
        self.draw.shuffle(names)
        if self.draw.random() < alone:
            names = names[:1]

        async def run() -> None:
            async with self.cluster.client(*names, timeout_s=self.draw.choice((2.0, 5.0, 10.0))) as client:
                await work(client)

        self.tasks.append(self.process.spawn(run()))

    def finish(self, for_s: float) -> None:
        """Every call that was begun comes to its end, within its deadline."""
        self.stopped = True
        self.world.run(lambda: all(task.done() for task in self.tasks), for_s)
        for task in self.tasks:
            task.result()

    async def _pause(self, pause_s: float) -> None:
        await asyncio.sleep(self.draw.expovariate(1 / pause_s))

    def value(self) -> bytes:
        return b"v%d" % next(self.values)

    # --- registers ----------------------------------------------------------------------------------------------

    async def _registers(self, client: Client, pause_s: float) -> None:
        while not self.stopped:
            key = f"r{self.draw.randrange(REGISTERS)}"
            await self.draw.choice((self.put, self.put_once, self.get, self.get, self.stale, self.cas, self.txn))(
                client, key
            )
            await self._pause(pause_s)

    async def _crowd(self, client: Client, pause_s: float) -> None:
        """Many calls of one client at once, which travel together."""
        while not self.stopped:
            calls = [
                self.draw.choice((self.put, self.put, self.get, self.stale)) for _ in range(self.draw.randint(2, 8))
            ]
            await asyncio.gather(*(call(client, f"r{self.draw.randrange(REGISTERS)}") for call in calls))
            await self._pause(2 * pause_s)

    async def put(self, client: Client, key: str) -> None:
        """Under an idempotency key, sent again through other nodes."""
        operation = self.judge.begin("put", key, value=self.value())
        await self._write(operation, client.put(key, operation.value, idempotency_key=operation.value.decode()))

    async def put_once(self, client: Client, key: str) -> None:
        """Without a key: sent once, and never applied twice."""
        operation = self.judge.begin("put", key, value=self.value())

        async def send() -> Any:
            calls: Calls = client._calls
            return written(parsed(await calls.call("PUT", f"/v1/kv/{key}", {}, operation.value)))

        await self._write(operation, send())

    async def cas(self, client: Client, key: str) -> None:
        read = await self.get(client, key)
        if read.outcome != "ok":
            return
        operation = self.judge.begin("cas", key, value=self.value(), expect=read.revision)
        expectation: dict[str, Any] = {"if_match": read.revision} if read.revision else {"if_absent": True}
        name = operation.value.decode()
        await self._write(operation, client.put(key, operation.value, idempotency_key=name, **expectation))

    async def txn(self, client: Client, key: str) -> None:
        """Two keys in one revision, if the first is as it was."""
        read = await self.get(client, key)
        if read.outcome != "ok":
            return
        other = f"{key}/other"
        operation = self.judge.begin("txn", key, other, value=self.value(), expect=read.revision)
        compare = when(key, mod_revision=read.revision) if read.revision else when(key, exists=False)
        value = operation.value

        async def send() -> Any:
            txn = await client.txn(
                [compare], [put(key, value), put(other, value)], idempotency_key=operation.value.decode()
            )
            if not txn.succeeded:
                raise errors.PreconditionFailed("The comparison did not hold.", None)
            return cast(Any, txn.results[0])

        await self._write(operation, send())

    async def _write(self, operation: Operation, call: Awaitable[Any]) -> None:
        try:
            done = await call
        except REFUSALS:
            self.judge.end(operation, "refused")
        except errors.Indefinite:
            self.judge.end(operation, "unknown")
        except errors.KvnodeError:
            self.judge.end(operation, "not_applied")
        else:
            self.answered += 1
            self.judge.end(operation, "ok", revision=done.revision)

    async def get(self, client: Client, key: str) -> Operation:
        return await self._read(client, key, "get")

    async def stale(self, client: Client, key: str) -> Operation:
        return await self._read(client, key, "stale")

    async def _read(self, client: Client, key: str, kind: str) -> Operation:
        operation = self.judge.begin(kind, key)
        try:
            if kind == "get" and self.draw.random() < 0.5:
                answer = await client._calls.call("GET", f"/v1/kv/{key}")  # as other people's clients ask, no query
                revision, seen = etag_revision(answer.headers) or 0, answer.body
            else:
                item = await client.get(key, "linearizable" if kind == "get" else "stale")
                revision, seen = item.mod_revision, item.value
        except errors.KeyNotFound:
            self.judge.end(operation, "ok", revision=0)
        except errors.KvnodeError:
            self.judge.end(operation, "not_applied")
        else:
            self.judge.end(operation, "ok", revision=revision, seen=seen)
        return operation

    # --- leases, locks ------------------------------------------------------------------------------------------

    async def _leases(self, client: Client) -> None:
        """Keys that live for a few seconds; some are kept alive for a while."""
        for number in itertools.count():
            if self.stopped:
                return
            key, ttl_s = f"l{number}", self.draw.randint(1, 4)
            called_at = self.world.now
            try:
                done = await client.put(key, b"leased", ttl=ttl_s, idempotency_key=f"lease {number}")
                self.judge.renewals.append(Renewal(key, called_at, ttl_s, self.world.now))
                for _ in range(self.draw.randrange(3)):
                    await asyncio.sleep(self.draw.uniform(0.0, ttl_s / 2))
                    called_at = self.world.now
                    await client.leases.keep_alive(cast(int, done.lease))
                    self.judge.renewals.append(Renewal(key, called_at, ttl_s, self.world.now))
            except errors.KvnodeError:
                self.judge.unsure.add(key)
            await self._pause(0.3)

    async def _locks(self, client: Client) -> None:
        """Holds one lock for a while, again and again."""
        clock = asyncio.get_running_loop().time
        while not self.stopped:
            lock = Lock(client, "one", ttl_s=self.draw.randint(2, 5), value=self.value(), clock=clock)
            called_at = self.world.now
            try:
                if await lock.acquire(5.0):
                    holding = Holding("one", lock.token, called_at, self.world.now, self.world.now)
                    self.judge.holdings.append(holding)
                    ends_at = self.world.now + self.draw.uniform(0.1, 4.0)
                    while lock.held and self.world.now < ends_at and not self.stopped:
                        holding.held_until = self.world.now
                        await asyncio.sleep(0.02)
                    await lock.release()
            except errors.KvnodeError:
                pass
            await self._pause(0.2)

    # --- probes, watches ----------------------------------------------------------------------------------------

    async def _probes(self, client: Client) -> None:
        """Asks every node for the leader, as a balancer does."""
        while not self.stopped:
            await asyncio.gather(*(self._probe(client, node.name, node.url) for node in self.cluster.nodes.values()))
            await self._pause(0.1)

    async def _probe(self, client: Client, name: str, url: str) -> None:
        called_at = self.world.now
        answer = await client.look(url, "/admin/healthz/leader", PROBE_S)
        if answer is not None and answer.status == 200:
            self.judge.probed(name, called_at, int(answer.headers["Kvnode-Term"]))

    async def _watches(self, client: Client) -> None:
        """Watches everything, over whatever happens to the nodes, and begins again from there when it may."""
        prefix = self.draw.choice(("", "r", "r1"))
        from_revision = 1
        while not self.stopped:
            seen = Watch(prefix, from_revision)
            self.judge.watches.append(seen)
            try:
                watched = client.watch(prefix, from_revision=from_revision)
                async with aclosing(cast(Any, watched)) as events:
                    async for event in _until(events, lambda: self.stopped):
                        seen.events.append((event.kind, event.key, event.revision, event.value))
                        from_revision = event.revision + 1
            except errors.Compacted as error:
                seen.over = "compacted"
                from_revision = max(from_revision, error.oldest_revision or from_revision)
                await asyncio.sleep(0.5)
            except errors.KvnodeError as error:
                seen.over = error.message
                await asyncio.sleep(0.2)


async def _until(events: Any, stopped: Callable[[], bool]) -> Any:
    """The events, until it is time to stop, which is looked at a few times a second."""
    following: asyncio.Future[Any] | None = None
    try:
        while not stopped():
            if following is None:
                following = asyncio.ensure_future(anext(events))
            await asyncio.wait([following], timeout=0.2)
            if following.done():
                done, following = following, None
                try:
                    yield done.result()
                except StopAsyncIteration:
                    return
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait([following])
