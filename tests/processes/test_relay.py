"""A relay between real nodes that alters one frame after the other: connections end, the cluster loses nothing.

`tests/peers/test_relay.py` does the same in memory, far more often. KVNODE_RELAY_SOCKET_TRIES makes this one longer,
KVNODE_RELAY_SEED repeats its draws:

    KVNODE_RELAY_SOCKET_TRIES=1000 python -m pytest tests/processes/test_relay.py
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from kvnode.peers import frames
from kvnode.raft import messages
from kvnode.state.commands import CreateToken
from kvnode.state.entries import encode_group
from tests.certificates import Authority
from tests.cluster import Cluster, free_ports, wait_until

TRIES = int(os.environ.get("KVNODE_RELAY_SOCKET_TRIES", "27"))
SECRET = "a secret that this cluster shares"
FAULTS = ("flip", "flip the length", "drop", "repeat", "reorder", "inject", "insert", "shorten", "old")
HANDSHAKE_FRAMES = 2  # of the dialler
LATE_S = 10.0
TOKEN_SECRET = "A" * 43


class Relayed(Cluster):
    """Three nodes that dial each other by way of a relay."""

    relay: Relay

    def command(self, name: str) -> list[str]:
        command = super().command(name)
        peers = command.index("--peers") + 1
        command[peers] = ",".join(f"{each}=127.0.0.1:{port}" for each, port in self.relay.ports.items())
        return command


class Relay:
    """Passes on what nodes send each other, frame by frame, and does one thing to it when it is armed."""

    def __init__(self, cluster: Cluster, draw: random.Random, tls: bool = False) -> None:
        self._tls = tls  # then it knows of no frames, and alters what it reads at once
        self.ports = dict(zip(cluster.nodes, free_ports(len(cluster.nodes)), strict=True))
        self._targets = {name: node.raft for name, node in cluster.nodes.items()}
        self._draw = draw
        self._armed: str | None = None
        self._recorded: dict[str, bytes] = {}  # by target: a frame of a connection that has ended
        self.done = threading.Event()  # the fault was done, and the connection has ended since
        self.target = ""
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        for name, port in self.ports.items():
            serving = asyncio.start_server(lambda r, w, name=name: self._serve(name, r, w), "127.0.0.1", port)  # type: ignore[misc]
            self._servers.append(asyncio.run_coroutine_threadsafe(serving, self._loop).result(5))

    def arm(self, fault: str) -> None:
        """The next frame has it, or the next after which it is possible."""
        self.done.clear()
        self._armed = fault

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            for writer in self._writers:
                writer.transport.abort()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # the transports' own last callbacks

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        faulted = [False]
        self._writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            back, forth = await asyncio.open_connection(*self._targets[name])
            self._writers.add(forth)
            tasks = {
                asyncio.ensure_future(self._forth(name, reader, forth, faulted)),
                asyncio.ensure_future(self._back(back, writer)),
            }
            _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, *pending):
                task.cancel()
            self._writers.discard(forth)
            forth.close()
        self._writers.discard(writer)
        writer.close()
        if faulted[0]:
            self.done.set()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)

    async def _forth(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faulted: list[bool]
    ) -> None:
        if self._tls:
            await self._forth_in_tls(name, reader, writer, faulted)
            return
        writer.write(await reader.readexactly(4))
        before = b""
        for number in range(1 << 60):
            head = await reader.readexactly(4)
            length = int.from_bytes(head, "big")
            sealed = number >= HANDSHAKE_FRAMES
            frame = head + await reader.readexactly(length + (frames.CHECK_BYTES + frames.TAG_BYTES if sealed else 0))
            possible = sealed and before and (self._armed != "old" or name in self._recorded)
            if self._armed is not None and possible and not faulted[0]:
                fault, self._armed = self._armed, None
                faulted[0], self.target = True, name
                if fault == "reorder":
                    head = await reader.readexactly(4)
                    length = int.from_bytes(head, "big")
                    frame = head + await reader.readexactly(length + frames.CHECK_BYTES + frames.TAG_BYTES) + frame
                else:
                    frame = self._altered(name, fault, frame, before)
            elif sealed:
                before = frame
                if self._draw.random() < 0.1 and not faulted[0]:
                    self._recorded[name] = frame
            writer.write(frame)
            await writer.drain()

    async def _forth_in_tls(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faulted: list[bool]
    ) -> None:
        seen = 0
        while data := await reader.read(65_536):
            seen += 1
            if self._armed is not None and seen > 8 and not faulted[0]:  # the handshakes are over
                fault, self._armed = self._armed, None
                faulted[0], self.target = True, name
                data = self._altered(name, fault, data, data)
            writer.write(data)
            await writer.drain()

    def _altered(self, name: str, fault: str, frame: bytes, before: bytes) -> bytes:
        draw = self._draw
        at = draw.randrange(len(frame))
        if fault == "flip the length":
            at, fault = draw.randrange(4), "flip"
        if fault == "flip":
            return frame[:at] + bytes((frame[at] ^ 1 << draw.randrange(8),)) + frame[at + 1 :]
        if fault == "inject":
            digest = hashlib.sha256(TOKEN_SECRET.encode()).digest()
            group = encode_group(os.urandom(8), 1, [CreateToken("evil0001", "on-path", "full", digest, 0).encode()])
            return b"".join(frames.encode((messages.FORWARD, term, 1, group)) for term in range(1, 50)) + frame
        return {
            "drop": b"",
            "repeat": frame + frame,
            "insert": frame[:at] + draw.randbytes(draw.randint(1, 32)) + frame[at:],
            "shorten": frame[:at] + frame[at + draw.randint(1, 16) :],
            "old": self._recorded.get(name, before) + frame,
        }[fault]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Relayed]:
    seed = int(os.environ.get("KVNODE_RELAY_SEED", secrets.randbits(32)))
    print(f"KVNODE_RELAY_SEED={seed}")
    args = ("--heartbeat", "25ms", "--election-timeout", "200-400ms", "--fsync", "never")
    with (
        Relayed(tmp_path / "relayed", args=args, env={"KVNODE_CLUSTER_SECRET": SECRET}) as cluster,
        Relay(cluster, random.Random(seed)) as cluster.relay,
    ):
        yield cluster.start()


@pytest.mark.parametrize("fault", ["flip", "drop"])
def test_what_a_relay_does_to_tls_ends_a_connection_with_a_line_too(tmp_path: Path, fault: str) -> None:
    authority = Authority(tmp_path)
    for name in ("n1", "n2", "n3"):
        authority.sign(name, (name,))
    files = ("cert", "{node}.pem"), ("key", "{node}-key.pem"), ("ca", authority.ca.name)
    args = ["--heartbeat", "25ms", "--election-timeout", "200-400ms"]
    for option, file in files:
        args += [f"--raft-{option}", str(tmp_path / file)]
    with (
        Relayed(tmp_path / "relayed", args=args, env={"KVNODE_CLUSTER_SECRET": SECRET}) as cluster,
        Relay(cluster, random.Random(7), tls=True) as cluster.relay,
    ):
        cluster.start()
        cluster.relay.arm(fault)
        assert cluster.relay.done.wait(LATE_S), f"after '{fault}' the connection goes on"
        target = cluster.relay.target
        wait_until(lambda: "what came was altered on the way" in cluster.log(target), 5.0, f"{target} says why")
        cluster.wait_ready()
        cluster.put("after", b"1", via=target)
        assert not any("Traceback" in cluster.log(name) for name in cluster.nodes)


def test_what_a_relay_does_ends_a_connection_and_nothing_of_it_is_applied(cluster: Relayed) -> None:
    relay = cluster.relay
    acknowledged: dict[str, bytes] = {}
    targets = set()
    for number in range(TRIES):
        fault = FAULTS[number % len(FAULTS)]
        relay.arm(fault)
        assert relay.done.wait(LATE_S), f"after '{fault}' the connection goes on"
        targets.add(relay.target)
        key, value = f"k/{number}", os.urandom(64)
        answer = cluster.request(cluster.awake()[number % 3], "PUT", f"/v1/kv/{key}", value)
        if answer.status == 200:
            acknowledged[key] = value
        else:
            assert answer.json()["outcome"] in ("not_applied", "unknown")
    assert len(acknowledged) > TRIES // 2
    cluster.wait_ready()
    for name in cluster.nodes:
        for key, value in acknowledged.items():
            assert cluster.get(key, via=name) == value
        assert cluster.request(name, "GET", "/admin/api/v1/tokens").json()["tokens"] == []
        assert "Traceback" not in cluster.log(name)
        assert "data differs" not in cluster.log(name)
        assert cluster.request(name, "GET", "/readyz").status == 200
    for name in targets:
        refusals = [line for line in cluster.log(name).splitlines() if "Refused a peer connection" in line]
        assert any("was altered, lost, repeated, moved or made up on the way" in line for line in refusals), refusals
