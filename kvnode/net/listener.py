"""Accepts connections: plain, with TLS, or with a balancer's PROXY header in front.

Each connection is accepted by a task of its own, bounded in number and in time, and handed to its protocol once the
handshake is done. `loop.create_server` does not bound handshakes under way and cannot read a PROXY header. It also
accepts one connection in each turn of the loop, so the last of a hundred waits for a hundred turns, a quarter of a
second on a busy node. The certificate is looked up anew for each connection, so that it can be exchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic, TypeVar

from kvnode.logs.rate_limited import LINES
from kvnode.net.proxies import Proxies, ProxyHeaderError
from kvnode.net.tls import HANDSHAKE_S, SHUTDOWN_S, Certificate

log = logging.getLogger(__name__)

Arrival = TypeVar("Arrival", bound=Hashable)

NEWCOMERS_MAX: Final = 512  # connections whose handshake is under way; one more, and one has to go (Newcomers)
PREFACE_S: Final = 3.0  # for the line of a balancer
PAUSE_S: Final = 0.2  # after an accept that failed: no file descriptor is left, mostly
BACKLOG: Final = 1_024
STOP_S: Final = 0.5  # for handshakes that are under way when nothing new is taken any more
BURST: Final = 32  # connections taken in one turn of the loop


async def bound(host: str, port: int, backlog: int = BACKLOG) -> list[socket.socket]:
    """Listening sockets on every address that the host has. Raises OSError with nothing left open."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            each = socket.socket(family, kind, protocol)
            sockets.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.setblocking(False)
            each.bind(address)
            each.listen(backlog)
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


class Newcomers(Generic[Arrival]):
    """What has proved nothing yet, by the address that it came from, in order of arrival."""

    __slots__ = ("_addresses", "_arrivals")

    def __init__(self) -> None:
        self._arrivals: dict[Arrival, str] = {}
        self._addresses: dict[str, dict[Arrival, None]] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self._arrivals)

    def add(self, arrival: Arrival, address: str) -> None:
        self._arrivals[arrival] = address
        self._addresses.setdefault(address, {})[arrival] = None

    def discard(self, arrival: Arrival) -> str | None:
        """Its address; None where it is not there."""
        address = self._arrivals.pop(arrival, None)
        if address is not None:
            others = self._addresses[address]
            del others[arrival]
            if not others:
                del self._addresses[address]
        return address

    def first_to_go(self) -> Arrival:
        """The oldest one of the address that has most of them.

        The oldest has had the most time: were it the newest that went, the silent would keep all others out. And a
        flood from one address takes the places of that address alone.
        """
        most = max(self._addresses.values(), key=len)
        return next(iter(most))


class SocketListener:
    """Takes connections from listening sockets and hands each to `protocol(client address)`.

    `certificate` None: no TLS. `proxies` None: no PROXY headers. `refused(address, sentence)` is called for each
    connection that is turned away; it must not raise.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        protocol: Callable[[str], asyncio.BaseProtocol],
        certificate: Certificate | None,
        proxies: Proxies | None,
        refused: Callable[[str, str], None],
        newcomers_max: int = NEWCOMERS_MAX,
    ) -> None:
        self._sockets = sockets
        self._protocol = protocol
        self._certificate = certificate
        self._proxies = proxies
        self._refused = refused
        self._newcomers_max = newcomers_max
        self._newcomers: Newcomers[asyncio.Task[None]] = Newcomers()
        self._accepting = [asyncio.create_task(self._accept(each), name="accept") for each in sockets]

    async def stop(self) -> None:
        """Accepts no more connections; those handed over stay open.

        Connections that the kernel has accepted already are taken in, and handshakes under way get STOP_S to finish:
        their clients believe that there is a server, and closing the socket would reset them.
        """
        await _cancelled(self._accepting)
        for each in self._sockets:
            with contextlib.suppress(OSError):
                for _ in range(self._newcomers_max):
                    connection, address = each.accept()
                    connection.setblocking(False)
                    self._take(connection, address[0])
            each.close()
        if self._newcomers:
            await asyncio.wait(list(self._newcomers), timeout=STOP_S)
        await _cancelled(list(self._newcomers))

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:
                LINES.write(
                    *(log, logging.ERROR, "", "connections that could not be accepted"),
                    "A connection could not be accepted (%s): is the limit of open files too low?",
                    error.strerror,
                    capped=False,
                )
                await asyncio.sleep(PAUSE_S)
                continue
            self._take(connection, address[0])
            with contextlib.suppress(OSError):  # nobody else is there; or an error, which the next try will meet
                for _ in range(min(BURST, self._newcomers_max) - 1):
                    connection, address = listening.accept()
                    connection.setblocking(False)
                    self._take(connection, address[0])
            await asyncio.sleep(0)  # they must have begun, or being cancelled closes nothing; floods share the loop

    def _take(self, connection: socket.socket, address: str) -> None:
        if len(self._newcomers) >= self._newcomers_max:
            self._make_room()
        task = asyncio.create_task(self._receive(connection, address))
        self._newcomers.add(task, address)
        task.add_done_callback(self._newcomers.discard)

    def _make_room(self) -> None:
        gone = self._newcomers.first_to_go()
        address = self._newcomers.discard(gone)
        assert address is not None
        self._refused(address, f"it was the oldest of {self._newcomers_max} that had proved nothing")
        gone.cancel()

    async def _receive(self, connection: socket.socket, address: str) -> None:
        """One connection until its protocol has it."""
        loop = asyncio.get_running_loop()
        try:
            client = address
            if self._proxies is not None and self._proxies.trusts(address):
                client = await self._preface(self._proxies, connection) or address
            certificate = self._certificate
            if certificate is None:
                await loop.connect_accepted_socket(lambda: self._protocol(client), connection)
                return
            await loop.connect_accepted_socket(
                lambda: self._protocol(client),
                connection,
                ssl=certificate.context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except ProxyHeaderError as refused:
            connection.close()
            self._refused(address, str(refused))
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            connection.close()
            why = _why(error)
            self._refused(address, why if self._certificate is None else f"its TLS handshake failed ({why})")
        except asyncio.CancelledError:
            connection.close()
            raise

    async def _preface(self, proxies: Proxies, connection: socket.socket) -> str | None:
        """The client's address by a balancer's word. Raises ProxyHeaderError."""
        try:
            async with asyncio.timeout(PREFACE_S):
                return await proxies.preface(connection)
        except TimeoutError:
            raise ProxyHeaderError(f"it is a trusted proxy and sent no PROXY header within {PREFACE_S:g} s") from None


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(reason, str):
        return reason.replace("_", " ").lower()
    return "it took too long" if isinstance(error, TimeoutError | ConnectionAbortedError) else "it went away"
