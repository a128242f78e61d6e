"""A node's HTTP listeners: the clients' port, and where it is asked for one of their own for probes and metrics."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
from typing import Final, cast
from urllib.parse import urlsplit

from aiohttp import web

from kvnode import __version__, errors
from kvnode.config import values
from kvnode.config.layers import Config
from kvnode.config.security import refuse_public, token_in
from kvnode.config.values import HostPort
from kvnode.http.app import PROBERS_MAX, LeaderProbe, Server, create_probe_server, create_server
from kvnode.http.budget import Budgets
from kvnode.http.connection import Connection
from kvnode.http.connection_limits import REFUSED_MAX
from kvnode.http.spans import Spans
from kvnode.logs.rate_limited import LINES
from kvnode.metrics.meters import HttpMeters
from kvnode.net.listener import NEWCOMERS_MAX, SocketListener, bound
from kvnode.net.proxies import Proxies
from kvnode.net.tls import Certificate
from kvnode.node.group import RaftGroup

log = logging.getLogger(__name__)

IN_FLIGHT_S: Final = 2.5  # for requests that have begun, once nothing new is let in
LAST_ANSWERS_S: Final = 0.5  # for answers that the end of the group brings about to be written, and read
CANCEL_S: Final = 0.25  # for handlers that hang even then; aiohttp may take it twice
LOOK_S: Final = 0.02
# File descriptors that are not for clients' connections: 128 for the journal, snapshots and peers, and those that have
# bounds of their own: TLS handshakes under way, connections over the limit, the probe port, unproved peers.
FILES_KEPT: Final = 128 + NEWCOMERS_MAX + REFUSED_MAX + PROBERS_MAX + REFUSED_MAX + 128


class HttpListeners:
    """Open from `open` to `cleanup`."""

    def __init__(self, config: Config, group: RaftGroup, meters: HttpMeters) -> None:
        """Raises StartupError for a certificate that cannot be used."""
        self._config = config
        security = config.security
        self.certificate = Certificate("tls", *security.tls, security.tls_client_ca) if security.tls else None
        self.token_file = security.token_file
        self._spans = Spans(config.node_id, __version__) if config.otel else None
        probe = LeaderProbe(group, config.probe_timeout_s) if config.leader_probe else None
        budgets = Budgets()
        self._server = create_server(
            group,
            node_id=config.node_id,
            leader_probe=probe,
            probe_timeout_s=config.probe_timeout_s,
            version=__version__,
            meters=meters,
            log_requests=config.log_requests,
            spans=self._spans,
            token=security.token,
            rate_limit=security.rate_limit,
            proxies=security.proxies,
            connections=(_room_for(security.connections_max), security.connections_per_client),
            with_metrics=security.probes is None,
            names=_names(config),
            budgets=budgets,
        )
        self._probes = create_probe_server(
            group, config.node_id, probe, config.probe_timeout_s, __version__, meters, budgets
        )
        self._runners: list[web.ServerRunner] = []
        self._receptions: list[SocketListener] = []

    async def open(self) -> None:
        """Listens. Raises StartupError with nothing left open."""
        security = self._config.security
        try:
            await self._receive()
            if security.probes is not None:
                await self._listen(self._probes, security.probes, "probes", None, None)
        except errors.StartupError:
            await self.cleanup()
            raise

    def read_token_again(self) -> None:
        """The token in --token-file counts from here on, and the one before does not. Raises StartupError."""
        assert self.token_file is not None
        refuse_public("token-file", self.token_file)
        self._server.app.renew_token(token_in(self.token_file))

    async def _receive(self) -> None:
        """The clients' port."""
        proxies = self._config.security.proxies
        prefaced = proxies if proxies is not None and proxies.prefaced else None
        await self._listen(self._server, self._config.http, "http", self.certificate, prefaced)

    async def _listen(
        self, server: Server, address: HostPort, option: str, certificate: Certificate | None, proxies: Proxies | None
    ) -> None:
        await self._runner(server)
        try:
            sockets = await bound(*address)
        except OSError as e:
            raise errors.StartupError(_why_not_bound(address, option, e)) from None
        self._receptions.append(SocketListener(sockets, server, certificate, proxies, _turned_away))

    async def _runner(self, server: Server) -> web.ServerRunner:
        runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=CANCEL_S)
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def quiet(self, timeout_s: float) -> None:
        """Returns when the clients' port has no connection, and after `timeout_s` at the latest."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self._server.connections:
            if loop.time() > deadline:
                return
            await asyncio.sleep(LOOK_S)

    async def finish(self) -> None:
        """Lets nothing new in, and gives what is in flight its time. The group must be draining."""
        for reception in self._receptions:
            await reception.stop()
        await self._part(IN_FLIGHT_S)

    async def _part(self, timeout_s: float) -> None:
        """Closes each connection behind its last answer. Returns when none is left, or after `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            connections = [*self._server.connections, *self._probes.connections]
            if not connections or loop.time() > deadline:
                return
            for connection in connections:
                cast(Connection, connection).part()
            await asyncio.sleep(LOOK_S)

    async def cleanup(self) -> None:
        """Closes what is left. Afterwards the group answers nothing more: what it left unanswered has ended by now."""
        for reception in self._receptions:
            await reception.stop()
        await self._part(LAST_ANSWERS_S)
        for runner in self._runners:
            await runner.cleanup()
        if self._spans is not None:
            await self._spans.stop()


def _turned_away(address: str, why: str) -> None:
    # Port scanners and impatient clients: nothing that an operator must know of.
    LINES.write(log, logging.DEBUG, address, why, "A connection from %s came to nothing: %s.", address, why)


def _room_for(most: int) -> int:
    """So many connections at most as there are files for; takes what the system gives for the asking.

    Where it gives few, clients get half of them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + FILES_KEPT if hard == resource.RLIM_INFINITY else min(hard, most + FILES_KEPT)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS has a lower bound of its own, and does not say which
            wanted = soft
    return min(most, max(wanted - FILES_KEPT, wanted // 2))


def _names(config: Config) -> tuple[str, ...] | None:
    """Under which names an open node is asked beside loopback's own; None where it takes any name.

    On loopback alone: off it, `--insecure` lets anyone use the node who reaches it, under names that it cannot know.
    """
    host = urlsplit(config.advertise_http).hostname
    return ((host,) if host else ()) if values.is_loopback(config.http[0]) else None


def _why_not_bound(address: HostPort, option: str, e: OSError) -> str:
    what = "HTTP cannot listen" if option == "http" else "Probes cannot be listened for"
    where = values.show_host_port(address)
    if e.errno == errno.EADDRINUSE:
        return f"{what} on {where}: the port is in use; stop what uses it or choose another with --{option}."
    if e.errno == errno.EACCES:
        return f"{what} on {where}: not permitted; choose a port from 1024 up with --{option}."
    return f"{what} on {where}: this machine has no such address; choose another with --{option}."
