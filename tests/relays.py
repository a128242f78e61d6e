"""A real cluster in which each node dials each other one through a relay of its own: links that break by halves.

`cluster.links["n1", "n2"]` is what n1 dials to reach n2. It carries everything that n1 sends to n2: each node sends on
the connections that it dialled.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from tests.cluster import Cluster, free_ports

Pair = tuple[socket.socket, socket.socket]
"""The connection of the node that dials, and the one to the node that it dials."""

READ_BYTES = 1 << 18
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Link:
    """One direction between two nodes. Its methods may be called from any thread."""

    def __init__(self, port: int, to: tuple[str, int]) -> None:
        self.port = port
        self._to = to
        self._open = threading.Event()
        self._open.set()
        self._halved: set[Pair] = set()  # a half of these that ends leaves the other one open
        self.delay_s = 0.0  # what is sent arrives so much later, and up to twice as much under load
        self._sockets: list[Pair] = []
        self._ended: set[Pair] = set()  # one of their halves has
        self._ending = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=32)
        self._start(self._accept)

    def hold(self) -> None:
        """What is sent from now on arrives only after `release`; nothing is lost and nothing is closed."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def reset(self) -> None:
        """All connections of this link break, on both sides."""
        for pair in list(self._sockets):
            for each in pair:
                _reset(each)

    def lose_the_dialler(self) -> None:
        """The dialling node's side of each connection breaks, and the other node is not told. It may dial again."""
        for pair in list(self._sockets):
            self._halved.add(pair)
            _reset(pair[0])

    def close(self) -> None:
        self._halved.clear()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()
        self.reset()
        for thread in list(self._threads):
            thread.join(5)
        for pair in self._sockets:
            for each in pair:
                each.close()

    def _start(self, run: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                dialler, _ = self._listener.accept()
                try:
                    acceptor = socket.create_connection(self._to, timeout=5)
                except OSError:
                    dialler.close()
                    continue
                acceptor.settimeout(None)
                pair = (dialler, acceptor)
                self._sockets.append(pair)
                self._start(self._pump, pair, dialler, acceptor, True)
                self._start(self._pump, pair, acceptor, dialler, False)

    def _pump(self, pair: Pair, source: socket.socket, sink: socket.socket, held: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(READ_BYTES):
                if held:
                    if self.delay_s:
                        time.sleep(self.delay_s)
                    self._open.wait()
                sink.sendall(data)
        if pair not in self._halved:
            _reset(sink)
        with self._ending:
            self._threads.discard(threading.current_thread())
            if pair not in self._ended:
                self._ended.add(pair)
                return
            self._ended.discard(pair)
            self._halved.discard(pair)
            self._sockets.remove(pair)
        for each in pair:
            each.close()


def _reset(each: socket.socket) -> None:
    """Both sides of the connection see it break at once, also a thread that waits for it here."""
    with contextlib.suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        each.shutdown(socket.SHUT_RDWR)


class RelayedCluster(Cluster):
    """`Cluster` whose nodes reach each other through `links` alone."""

    def __init__(self, folder: Path, size: int = 3, **options: Any) -> None:
        super().__init__(folder, size, **options)
        pairs = [(a, b) for a in self.nodes for b in self.nodes if a != b]
        ports = free_ports(len(pairs))
        self.links = {pair: Link(port, self.nodes[pair[1]].raft) for pair, port in zip(pairs, ports, strict=True)}

    def command(self, name: str) -> list[str]:
        command = super().command(name)
        peers = ",".join(
            f"{peer}=127.0.0.1:{self.nodes[peer].raft[1] if peer == name else self.links[name, peer].port}"
            for peer in self.first
        )
        command[command.index("--peers") + 1] = peers
        return [*command, "--cluster-id", "relayed"]  # by default it is made of the peers' addresses

    def close(self) -> None:
        super().close()
        for link in self.links.values():
            link.close()
