"""What `kvnode bench` itself tops out at: `python -m benchmarks.generator`.

A process that answers every request with the same bytes, on another core: what comes out is the generator's own limit.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
from typing import Final

import uvloop

RUNS: Final = (
    ("put", "-c", "1"),
    ("put", "-c", "64"),
    ("put", "-c", "256"),
    ("put", "-c", "64", "--value-size", "4096"),
    ("probe", "-c", "64"),
)
BODY: Final = b'{"key":"kvnode-bench/01234567/0000000","revision":1234567,"version":1,"created":true,"deleted":0}'
HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nKvnode-Node: n1\r\nKvnode-Leader: n1\r\n"
ANSWER: Final = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Idle(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER)  # type: ignore[attr-defined]  # a request of this size comes in one piece


def serve(ports: multiprocessing.Queue[int]) -> None:
    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(Idle, "127.0.0.1", 0)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(forever())


def main() -> None:
    ports: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(ports,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ports.get(timeout=10)}"
    try:
        for run in RUNS:
            command = [sys.executable, "-m", "kvnode", "bench", *run, "--duration", "3s", "--url", url]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=60)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
