"""Watches on real nodes: unbroken across killed nodes and restarts, ended by a shutdown, and ten thousand of them."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvnode import errors
from kvnode.client import Client
from kvnode.client.watching import Event
from tests.cli.command import COMMAND, environment, kvnode
from tests.cluster import Cluster

KEYS = 20
STREAMS = 9_000  # a process may open 20,000 files here, and the test has its end of each connection


@asynccontextmanager
async def following(client: Client, prefix: str, told: list[Event]) -> AsyncIterator[None]:
    async def follow() -> None:
        async for event in client.watch(prefix, from_revision=1):
            told.append(event)

    task = asyncio.create_task(follow())
    try:
        yield
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_no_gap_and_no_repetition_across_a_killed_leader_and_a_killed_watched_node(cluster: Cluster) -> None:
    """Writers go on all the while; the final history is what the events must add up to."""
    urls = [cluster.url(name) for name in cluster.nodes]
    leader, watched = cluster.leader(), cluster.followers()[0]
    applied: dict[int, tuple[str, bytes | None]] = {}
    told: dict[str, list[Event]] = {name: [] for name in cluster.nodes}
    stopping = False

    async def write(writer: int, client: Client) -> None:
        number = 0
        while not stopping:
            number += 1
            key = f"w{writer}/{number % KEYS}"
            try:
                if number % 7 == 0:
                    applied[await client.delete(key)] = (key, None)
                else:
                    value = b"%d" % number
                    applied[(await client.put(key, value)).revision] = (key, value)
            except errors.KeyNotFound:
                pass

    async def written(more: int) -> None:
        goal = len(applied) + more
        async with asyncio.timeout(30):
            while len(applied) < goal:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async with Client(urls, 20) as writing, asyncio.TaskGroup() as tasks:
        clients = {name: Client([cluster.url(name), *urls], 20) for name in cluster.nodes}
        for client in clients.values():
            await client.__aenter__()
        try:
            async with (
                following(clients["n1"], "", told["n1"]),
                following(clients["n2"], "", told["n2"]),
                following(clients["n3"], "", told["n3"]),
            ):
                writers = [tasks.create_task(write(writer, writing)) for writer in range(3)]
                await written(300)
                cluster.kill(leader)
                await written(300)
                await asyncio.to_thread(cluster.restart, leader)
                await written(100)
                cluster.kill(watched)
                await written(300)
                await asyncio.to_thread(cluster.restart, watched)
                await written(100)
                stopping = True
                await asyncio.gather(*writers)
                async with asyncio.timeout(20):
                    while any(not events or events[-1].revision < max(applied) for events in told.values()):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
        finally:
            stopping = True
            for client in clients.values():
                await client.__aexit__()
    for events in told.values():
        first = events[0].revision  # 2, where all members were there before the first write
        assert [event.revision for event in events] == list(range(first, first + len(events)))
        for revision, (key, value) in applied.items():
            event = events[revision - first]
            assert (event.key, event.value if event.kind == "put" else None) == (key, value)
    assert told["n1"][: len(applied)] == told["n2"][: len(applied)] == told["n3"][: len(applied)]


async def test_a_restarted_node_goes_on_from_its_journal(cluster: Cluster) -> None:
    put = [cluster.put(f"k{number}", b"v", via="n1") for number in range(20)]
    cluster.kill("n2")
    cluster.restart("n2")
    async with Client([cluster.url("n2")], 10) as client:
        keys = []
        async for event in client.watch("k", from_revision=put[5]["revision"]):
            keys.append(event.key)
            if len(keys) == 15:
                break
    assert keys == [f"k{number}" for number in range(5, 20)]


def test_a_shutdown_ends_streams_and_is_not_held_up_by_them(cluster: Cluster) -> None:
    """`kvnode watch` of the node that goes away moves on by itself; a stopped client is left behind."""
    urls = ",".join(cluster.url(name) for name in ("n1", "n2", "n3"))
    watch = subprocess.Popen(
        [*COMMAND, "watch", "a/", "--from-revision", "1", "-o", "json", "--url", urls],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    deaf = subprocess.Popen(
        [*COMMAND, "watch", "--from-revision", "1", "--url", cluster.url("n1")],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert watch.stdout is not None
        assert deaf.stdout is not None
        revision = cluster.put("a/1", b"one", via="n1")["revision"]
        assert json.loads(watch.stdout.readline())["key"] == "a/1"
        assert deaf.stdout.readline() == b"%d\tput\ta/1\tone\n" % revision
        deaf.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert cluster.terminate("n1") == 0
        assert time.monotonic() - began < 6.0
        cluster.put("a/2", b"two", via="n2")
        event = json.loads(watch.stdout.readline())
        assert (event["event"], event["key"], event["value"]) == ("put", "a/2", "dHdv")
    finally:
        for process in (watch, deaf):
            process.kill()
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


async def test_nine_thousand_real_streams_on_one_node(cluster: Cluster) -> None:
    """Each is told of its own key and of nothing else; the node stays ready, and fast for everybody else."""
    host, port = cluster.nodes["n1"].http
    streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        began = time.monotonic()
        for first in range(0, STREAMS, 250):
            batch = await asyncio.gather(*(asyncio.open_connection(host, port) for _ in range(250)))
            streams += batch
            for offset, (_, writer) in enumerate(batch):
                writer.write(
                    b"GET /v1/watch?key=k%d&from_revision=1 HTTP/1.1\r\nHost: localhost\r\n\r\n" % (first + offset)
                )
            await asyncio.gather(*(reader.readuntil(b"\n\n") for reader, _ in batch))  # the head and a first comment
        opened_s = time.monotonic() - began
        async with Client([cluster.url("n1")], 10) as client:
            began = time.monotonic()
            for number in range(200):
                await client.put("other", b"%d" % number)
            put_s = (time.monotonic() - began) / 200
            for number in range(0, STREAMS, STREAMS // 100):
                await client.put(f"k{number}", b"v")
            async with asyncio.timeout(10):
                for number in range(0, STREAMS, STREAMS // 100):
                    assert b'"key":"k%d"' % number in await next_event(streams[number][0])
        assert cluster.is_ready("n1")
        assert opened_s < 30, opened_s
        assert put_s < 0.05, put_s
    finally:
        for _, writer in streams:
            writer.transport.abort()
        await asyncio.sleep(0)  # in which the loop lets go of the sockets


async def next_event(reader: asyncio.StreamReader) -> bytes:
    """The next that is no heartbeat."""
    while (event := await reader.readuntil(b"\n\n")).startswith(b":"):
        pass
    return event


def test_the_command_line_prints_a_line_for_each_change_and_says_what_is_wrong(cluster: Cluster) -> None:
    url = cluster.url("n3")
    revision = cluster.put("a", b"one")["revision"]
    cluster.request("n1", "DELETE", "/v1/kv/a")
    watch = subprocess.Popen(
        [*COMMAND, "watch", "--key", "a", "--from-revision", "1", "--url", url],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert watch.stdout is not None
        assert watch.stdout.readline() == b"%d\tput\ta\tone\n" % revision
        assert watch.stdout.readline() == b"%d\tdelete\ta\n" % (revision + 1)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(10) == 130
    finally:
        watch.kill()
        watch.wait(10)
        assert watch.stdout is not None
        watch.stdout.close()
    future = kvnode("watch", "--from-revision", "99", "--url", url)
    assert (future.code, "still to come" in future.err) == (2, True)
    assert kvnode("watch", "a", "--key", "b", "--url", url).code == 2
    assert kvnode("watch", "--url", "http://127.0.0.1:9", "--timeout", "0.5").code == 5
