"""A process that asks a node for /admin/healthz every 2 ms: `python -m benchmarks.pause HOST:PORT`.

That answer needs nothing but the event loop, so the longest time it takes is how long the loop stood still, as a client
sees it (with what the machine's scheduler adds). Prints `<moment> <seconds>` for each answer that took longer than
REPORTED_S, the moment on `time.monotonic()`, which all processes of a Linux machine share.
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Final

EVERY_S: Final = 0.002
REPORTED_S: Final = 0.004
TIMEOUT_S: Final = 5.0
_REQUEST: Final = b"GET /admin/healthz HTTP/1.1\r\nHost: probe\r\n\r\n"


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    connection: socket.socket | None = None
    while True:
        began_at = time.monotonic()
        try:
            if connection is None:
                connection = socket.create_connection((host, int(port)), TIMEOUT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                began_at = time.monotonic()
            connection.sendall(_REQUEST)
            answer = b""
            while not answer.endswith(b"ok\n"):
                piece = connection.recv(4096)
                if not piece:
                    raise ConnectionError
                answer += piece
        except OSError:
            connection = None  # the node is down: nothing to be measured
            time.sleep(0.05)
            continue
        took_s = time.monotonic() - began_at
        if took_s > REPORTED_S:
            print(f"{began_at:.6f} {took_s:.6f}", flush=True)
        time.sleep(max(0.0, EVERY_S - took_s))


if __name__ == "__main__":
    main()
