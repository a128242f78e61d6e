"""A process that writes as fast as the cluster takes it: `python -m benchmarks.load HOST:PORT,... --keys N`.

Plain sockets and requests made by hand, many connections with one request at a time on each: the load generator must
not be what is measured. Every key is written until it is acknowledged (the same value each time, so to send it again
is harmless). Prints how many writes were acknowledged in each second, and ends by itself or with SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import signal
from collections.abc import Iterator
from typing import Final

import uvloop

AGAIN_S: Final = 0.05
DIAL_S: Final = 2.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def key(number: int) -> str:
    return f"user/{number:08d}"


class Client(asyncio.Protocol):
    """One connection in a closed loop over `numbers`; `done` resolves when they are used up."""

    def __init__(self, host: str, port: int, numbers: Iterator[int], value: bytes, tally: list[int]) -> None:
        self._address = (host, port)
        self._numbers = numbers
        self._tail = b" HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n%b" % (host.encode(), len(value), value)
        self._tally = tally
        self._buffer = b""
        self._request = b""
        self._transport: asyncio.WriteTransport | None = None
        self.done = asyncio.get_running_loop().create_future()

    async def dial(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.done.done():
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(DIAL_S):
                    await loop.create_connection(lambda: self, *self._address)
                    return
            await asyncio.sleep(AGAIN_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one in all but name
        self._buffer = b""
        self._send(again=bool(self._request))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            asyncio.get_running_loop().call_later(AGAIN_S, lambda: asyncio.ensure_future(self.dial()))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head_end + 2)
        if length is None or len(self._buffer) < head_end + 4 + int(length[1]):
            return
        acknowledged = self._buffer.startswith(b"HTTP/1.1 200")
        self._buffer = b""
        if acknowledged:
            self._tally[0] += 1
            self._send(again=False)
        else:
            self._tally[1] += 1
            asyncio.get_running_loop().call_later(AGAIN_S, self._send, True)

    def _send(self, again: bool) -> None:
        if self.done.done() or self._transport is None or self._transport.is_closing():
            return
        if not again:
            number = next(self._numbers, None)
            if number is None:
                self.done.set_result(None)
                self._transport.close()
                return
            self._request = b"PUT /v1/kv/%b%b" % (key(number).encode(), self._tail)
        self._transport.write(self._request)


def random_numbers(below: int) -> Iterator[int]:
    while True:
        yield random.randrange(below)


async def run(addresses: list[tuple[str, int]], numbers: Iterator[int], value: bytes, connections: int) -> None:
    tally = [0, 0]  # acknowledged, answered otherwise
    clients = [Client(*addresses[i % len(addresses)], numbers, value, tally) for i in range(connections)]
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: [each.done.cancel() for each in clients])
    await asyncio.gather(*(each.dial() for each in clients))
    waiting = asyncio.gather(*(each.done for each in clients))
    before = [0, 0]
    while not waiting.done():
        await asyncio.wait([waiting], timeout=1.0)
        print(f"{tally[0]} {tally[0] - before[0]} {tally[1] - before[1]}", flush=True)
        before = list(tally)
    with contextlib.suppress(asyncio.CancelledError):
        await waiting


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("addresses", help="HOST:PORT,...")
    parser.add_argument("--keys", type=int, required=True)
    parser.add_argument("--endless", action="store_true", help="any of the keys, again and again, until SIGTERM")
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--value-bytes", type=int, default=100)
    options = parser.parse_args()
    addresses = [(host, int(port)) for host, _, port in (each.rpartition(":") for each in options.addresses.split(","))]
    numbers = random_numbers(options.keys) if options.endless else iter(range(options.keys))
    value = random.randbytes(options.value_bytes)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(addresses, numbers, value, options.connections))


if __name__ == "__main__":
    main()
