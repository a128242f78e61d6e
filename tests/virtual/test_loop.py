"""The ground that whole nodes are simulated on: time, threads, connections."""

from __future__ import annotations

import asyncio
from queue import Empty
from typing import Any

import pytest

from tests.virtual.network import Network
from tests.virtual.process import Process
from tests.virtual.world import Stuck, World


class Ground:
    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.network = Network(self.world)

    def process(self, name: str, **settings: Any) -> Process:
        return Process(self.world, self.network, name, **settings)

    def finish(self, process: Process, coroutine: Any, for_s: float = 60.0) -> Any:
        task = process.spawn(coroutine)
        self.world.run(task.done, for_s)
        return task.result()


class Echo(asyncio.Protocol):
    lost: Exception | str | None = "no"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc


class Collect(Echo):
    def __init__(self) -> None:
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data


def test_an_hour_passes_at_once_and_in_order() -> None:
    ground, seen = Ground(), []
    one, two = ground.process("one"), ground.process("two", rate=2.0)

    async def sleep(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, round(ground.world.now)))

    one.spawn(sleep("one", 3600))
    two.spawn(sleep("two", 3600))
    ground.world.run(lambda: len(seen) == 2, 4000)
    assert seen == [("two", 1800), ("one", 3600)]  # the second one's clock is twice as fast


def test_what_does_not_happen_in_time_is_said() -> None:
    ground = Ground()
    with pytest.raises(Stuck):
        ground.finish(ground.process("one"), asyncio.sleep(61))


def test_a_process_that_stalls_runs_nothing_and_goes_on_afterwards() -> None:
    ground = Ground()
    one = ground.process("one")
    task = one.spawn(asyncio.sleep(1.0))
    ground.world.pass_s(0.5)
    one.stall(10.0)
    ground.world.pass_s(9.0)
    assert not task.done()
    ground.world.pass_s(1.1)
    assert task.done()


def test_threads_wait_for_queues_events_and_time_beside_the_loop() -> None:
    ground = Ground()
    one = ground.process("one")
    host, seen = one.host, []
    queue, ended = host.queue(), host.event()

    def work() -> None:
        while not ended.is_set():
            try:
                seen.append((queue.get(timeout=1.0), round(ground.world.now, 1)))
            except Empty:
                seen.append(("nothing", round(ground.world.now, 1)))
            host.sleep(0.5)

    async def feed() -> None:
        thread = host.thread(target=work, name="worker")
        thread.start()
        await asyncio.sleep(1.2)
        queue.put("something")
        await asyncio.sleep(0.5)
        ended.set()
        await asyncio.get_running_loop().run_in_executor(None, thread.join, 5.0)
        assert not thread.is_alive()

    ground.finish(one, feed())
    assert seen == [("nothing", 1.0), ("something", 1.5)]


def test_a_job_gives_its_result_or_its_exception() -> None:
    ground = Ground()
    one = ground.process("one")

    async def calls() -> Any:
        loop = asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        return await loop.run_in_executor(None, pow, 2, 10)

    assert ground.finish(one, calls()) == 1024


def dialled(ground: Ground, client: Process, server: Process, protocol: Any = Echo) -> tuple[Any, Collect, list[Any]]:
    made: list[Any] = []

    def factory() -> Any:
        made.append(protocol())
        return made[-1]

    ground.network.listen(server, factory, server.name, 80)

    async def connect() -> Any:
        return await asyncio.get_running_loop().create_connection(Collect, server.name, 80)

    transport, collect = ground.finish(client, connect())
    return transport, collect, made


def test_a_megabyte_arrives_in_order_through_a_bounded_window() -> None:
    ground = Ground()
    client, server = ground.process("client"), ground.process("server")
    transport, collect, _ = dialled(ground, client, server)
    data = bytes(range(256)) * 4096
    client.loop.call_soon(transport.write, data)
    ground.world.run(lambda: len(collect.data) == len(data), 10)
    assert collect.data == data


def test_nobody_listens() -> None:
    ground = Ground()

    async def connect() -> Any:
        return await asyncio.get_running_loop().create_connection(Collect, "nobody", 80)

    with pytest.raises(ConnectionRefusedError):
        ground.finish(ground.process("client"), connect())


def test_closing_flushes_and_the_other_side_sees_the_end() -> None:
    ground = Ground()
    client, server = ground.process("client"), ground.process("server")
    transport, collect, made = dialled(ground, client, server, Collect)
    client.loop.call_soon(lambda: (transport.write(b"x" * 1_000_000), transport.close()))
    ground.world.run(lambda: bool(made) and made[0].lost is None and collect.lost is None, 10)
    assert len(made[0].data) == 1_000_000


def test_a_reader_that_pauses_fills_the_writer_up() -> None:
    ground = Ground()
    client, server = ground.process("client"), ground.process("server")
    transport, _, made = dialled(ground, client, server, Collect)
    ground.world.pass_s(0.1)
    server.loop.call_soon(made[0].transport.pause_reading)
    ground.world.pass_s(0.1)
    client.loop.call_soon(transport.write, b"x" * 2_000_000)
    ground.world.pass_s(5.0)
    assert transport.get_write_buffer_size() > 1_000_000
    server.loop.call_soon(made[0].transport.resume_reading)
    ground.world.run(lambda: len(made[0].data) == 2_000_000, 5)
    assert transport.get_write_buffer_size() == 0


def test_a_blocked_link_holds_what_is_sent_until_it_is_open() -> None:
    ground = Ground()
    client, server = ground.process("client"), ground.process("server")
    transport, collect, _ = dialled(ground, client, server)
    ground.network.block("client", "server")
    client.loop.call_soon(transport.write, b"one")
    ground.world.pass_s(3.0)
    client.loop.call_soon(transport.write, b"two")
    ground.world.pass_s(3.0)
    assert collect.data == b""
    for number in range(100):  # some of them on their way when the link is blocked once more
        if number == 50:
            ground.network.open("client", "server")
            ground.world.pass_s(1.0)
        client.loop.call_soon(transport.write, b"%02d" % number)
        ground.world.pass_s(0.0001)
    ground.network.block("client", "server")
    ground.world.pass_s(1.0)
    ground.network.open("client", "server")
    ground.world.run(lambda: len(collect.data) == 206, 5)
    assert collect.data == b"onetwo" + b"".join(b"%02d" % number for number in range(100))


def test_the_end_of_a_process_resets_its_connections_and_that_of_a_machine_does_not() -> None:
    for silently in (False, True):
        ground = Ground()
        client, server = ground.process("client"), ground.process("server")
        _, collect, _ = dialled(ground, client, server)
        server.end("killed", silently)
        ground.world.pass_s(5.0)
        assert isinstance(collect.lost, ConnectionResetError) is not silently
        assert (collect.lost == "no") is silently


def test_a_reset_connection_is_lost_on_both_sides() -> None:
    ground = Ground()
    client, server = ground.process("client"), ground.process("server")
    _, collect, made = dialled(ground, client, server)
    ground.world.pass_s(0.1)
    (connection,) = ground.network.connections("client", "server")
    ground.network.reset(connection)
    ground.world.run(lambda: isinstance(collect.lost, Exception) and isinstance(made[0].lost, Exception), 1)


def test_a_thread_of_a_process_that_ends_does_nothing_any_more() -> None:
    ground, seen = Ground(), []
    one = ground.process("one")

    def work() -> None:
        while True:
            one.host.sleep(1.0)
            seen.append(ground.world.now)

    one.loop.run_in_executor(None, work)
    ground.world.pass_s(2.5)
    one.end("killed")
    ground.world.pass_s(5.0)
    assert len(seen) == 2
