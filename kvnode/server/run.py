"""One node from the first bind to the last flush: build, start, wait, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import uvloop

from kvnode import __version__, errors
from kvnode.config import values
from kvnode.config.layers import Config
from kvnode.config.security import is_public, refuse_public
from kvnode.http.checks import is_ready
from kvnode.http.looplag import watch_loop_lag
from kvnode.http.recent import record
from kvnode.http.release import check_release
from kvnode.logs import writer
from kvnode.metrics.meters import HttpMeters
from kvnode.net.tls import Certificate, MutualCertificate
from kvnode.node.group import RaftGroup
from kvnode.node.settings import RaftSettings
from kvnode.node.status import is_leader
from kvnode.server.http_listeners import HttpListeners
from kvnode.storage.identity import Invitation

log = logging.getLogger(__name__)

TRANSFER_S: Final = (
    2.0  # the next leader needs a round trip and a commit; a cluster that cannot is not worth waiting for
)
LINGER_S: Final = 1.0  # two checks of a balancer that asks every 500 ms: it knows before the listener closes
STOP_S: Final = 10.0  # from signal to end, even if something hangs; below the grace periods of init systems and engines
GC_OBJECTS: Final = 20_000  # a few hundred requests' worth between looks at the youngest
EXIT_S: Final = 1.0  # for threads that outlive a finished stop: a name lookup cannot be interrupted


def run(config: Config, hung_up: Sequence[int] = ()) -> int:
    """Runs one node until a signal stops it. The exit code: 0 stopped, 1 had to stop, 2 could not start.

    `hung_up`: the SIGHUPs that came before this call, and those until the loop takes them over.
    """
    # Journal, snapshots and identity hold all values and the hashes of tokens: they are this user's alone.
    os.umask(0o077)
    writer.start(config.node_id, config.log_format, config.log_level, config.log_requests)
    # What a request makes is freed by its count of references: the collector finds next to nothing, and by default it
    # looks after every 700th object. What is there already stays for good.
    gc.freeze()
    gc.enable()  # `cli` switches it off for the imports
    gc.set_threshold(GC_OBJECTS, 20, 50)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            code = runner.run(serve(config, hung_up))
        except errors.StartupError as e:
            print(f"kvnode: {e.message}", file=sys.stderr, flush=True)
            code = 2
        # Everything is closed and flushed. The interpreter would still wait for each thread of the default executor.
        _leave_within(EXIT_S, code)
    return code


async def serve(config: Config, hung_up: Sequence[int] = ()) -> int:
    """The life of a node: HTTP answers first, with 503 on /healthz until the group has started."""
    for option, file in config.security.secret_files:
        refuse_public(option, file)
    with _signals(hung_up) as signals:
        check_release()
        settings = raft_settings(config)
        group = RaftGroup(settings)
        group.is_ready = is_ready
        meters = HttpMeters()
        http = HttpListeners(config, group, meters)
        await http.open()
        certificates = [each for each in (http.certificate, settings.certificate) if each is not None]
        signals.on_hangup(partial(_read_again, certificates, http))
        watching = [
            asyncio.create_task(watch_loop_lag(meters.loop_lag_s)),
            asyncio.create_task(record(group, meters)),
        ]
        try:
            if await _start(group, signals):
                _announce(config, len(group.members()))
                await _first(group.fatal, signals.wait(1))
                _leave_within(STOP_S, 1, f"Not stopped within {STOP_S:g} s: leaving as it stands.")
                if signals.count:
                    await _drain(group, http, signals)
        finally:
            for each in watching:
                each.cancel()
            group.begin_drain()
            await http.finish()
            await group.stop()  # which answers what is still waiting for it
            await http.cleanup()
    if group.fatal.done() and not group.fatal.cancelled():
        log.error("Node %s stops: %s", config.node_id, group.fatal.result().message)
        return 1
    log.info("Node %s has stopped.", config.node_id)
    return 0


def raft_settings(config: Config) -> RaftSettings:
    """What the Raft group needs to know of the configuration. Raises StartupError for a bad certificate."""
    security = config.security
    return RaftSettings(
        node_id=config.node_id,
        listen=config.raft,
        peers=config.peers,
        http_url=config.advertise_http,
        data_dir=config.data_dir,
        secret=security.secret,
        cluster_id=config.cluster_id,
        fsync=config.fsync,
        election_timeout_min_s=config.election_timeout_min_s,
        election_timeout_max_s=config.election_timeout_max_s,
        heartbeat_s=config.heartbeat_s,
        session_keys=config.session_keys,
        join=_joining(config) if config.join else None,
        certificate=MutualCertificate("raft", *security.raft_tls) if security.raft_tls else None,
        peers_0_1=security.peers_0_1,
    )


def _joining(config: Config) -> Callable[[], Awaitable[Invitation]]:
    from kvnode.client import Access  # the client: few nodes need it, and those once
    from kvnode.server.joining import join

    access = Access(config.security.token, config.security.tls_ca)
    return partial(join, config.join, config.node_id, config.peers[config.node_id], config.advertise_http, access)


# --- start ------------------------------------------------------------------------------------------


async def _start(group: RaftGroup, signals: _Signals) -> bool:
    """Whether the group has started; False if a signal came first. Raises StartupError."""
    starting = asyncio.ensure_future(group.start())
    await _first(starting, signals.wait(1))
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting], timeout=EXIT_S)
        return False
    starting.result()
    return True


def _announce(config: Config, members: int) -> None:
    for warning in config.warnings:
        log.warning("%s", warning)
    for option, file in config.security.key_files:
        if is_public(file):
            log.warning(
                "The key %s of --%s can be read by every user of this machine: chmod 600 %s.", file, option, file
            )
    if config.fsync != "always":
        log.warning("--fsync %s: a power cut can lose writes that were acknowledged.", config.fsync)
    raft = values.show_host_port(config.raft)
    log.info(
        "kvnode %s %s ready: http=%s raft=%s members=%d data=%s",
        *(
            config.node_id,
            __version__,
            f"{'https' if config.security.tls else 'http'}://{values.show_host_port(config.http)}",
            raft,
            members,
            config.data_dir,
        ),
    )


# --- stop -------------------------------------------------------------------------------------------


async def _drain(group: RaftGroup, http: HttpListeners, signals: _Signals) -> None:
    """Probes fail, leadership moves, balancers notice. A second signal skips what is left of it."""
    status, alone = group.status(), len(group.members()) <= 1
    handing_over = is_leader(status) and not alone
    log.info("Stopping: probes fail from now on%s.", ", leadership is handed over" if handing_over else "")
    group.begin_drain()
    if alone:
        # No balancer has another node to turn to. Clients hear with their next answer that their connection ends.
        await _first(asyncio.ensure_future(http.quiet(LINGER_S)), signals.wait(2))
        return
    if handing_over:
        transfer = asyncio.ensure_future(_hand_over(group))
        await _first(transfer, signals.wait(2))
        transfer.cancel()
    # Requests still come until every balancer has asked again. They are served: forwarded, mostly, by now.
    await _first(asyncio.ensure_future(asyncio.sleep(LINGER_S)), signals.wait(2))


async def _hand_over(group: RaftGroup) -> None:
    """A failed transfer costs the cluster an election timeout, no more: not a reason to stay."""
    try:
        async with asyncio.timeout(TRANSFER_S + 0.5):
            leader, term = await group.transfer(None, TRANSFER_S)
        log.info("Leadership handed over to %s in term %d.", leader, term)
    except errors.KvnodeError as e:
        log.warning("Leadership was not handed over: %s", e.message)
    except TimeoutError:
        log.warning("Leadership was not handed over within %g s.", TRANSFER_S)


def _leave_within(seconds: float, code: int, why: str = "") -> None:
    """Ends the process after `seconds`, even if threads hang. Runs in a daemon thread: a clean end does not wait."""

    def leave() -> None:
        if why:
            log.error("%s", why)
        writer.flush()
        os._exit(code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def _read_again(certificates: Sequence[Certificate], http: HttpListeners) -> None:
    """What SIGHUP asks for: the certificates and the token that are in the files now, from here on."""
    if not certificates and http.token_file is None:
        log.info("SIGHUP: there is nothing to read again, neither a certificate nor a token file was given.")
    for certificate in certificates:
        try:
            certificate.reload()
            log.info("Read --%s-cert again: new connections are shown what it holds now.", certificate.option)
        except errors.StartupError as e:
            log.error("The certificate stays what it was: %s", e.message)
    if http.token_file is not None:
        try:
            http.read_token_again()
            log.info("Read --token-file again: the token that it holds now counts.")
        except errors.StartupError as e:
            log.error("The token stays what it was: %s", e.message)


# --- signals ----------------------------------------------------------------------------------------


class _Signals:
    """Counts SIGTERM and SIGINT: the first asks to stop, the second to hurry. SIGHUP asks to read files again."""

    def __init__(self) -> None:
        self.count = 0
        self._hangup: Callable[[], None] | None = None
        self._hung_up = False  # before there was anything to do about it
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def arrived(self) -> None:
        self.count += 1
        for count, waiter in self._waiters:
            if self.count >= count and not waiter.done():
                waiter.set_result(None)

    def hung_up(self) -> None:
        if self._hangup is None:
            self._hung_up = True
        else:
            self._hangup()

    def on_hangup(self, work: Callable[[], None]) -> None:
        """What SIGHUP asks for from now on; at once, where one came before."""
        self._hangup = work
        if self._hung_up:
            work()

    def wait(self, count: int) -> asyncio.Future[None]:
        """Resolves with the `count`-th signal, at once if it has come."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((count, waiter))
        if self.count >= count:
            waiter.set_result(None)
        return waiter


@contextmanager
def _signals(hung_up: Sequence[int]) -> Iterator[_Signals]:
    """Takes the signals over: aiohttp's own way is to close its listener at once, before a balancer can see a 503.

    Afterwards they are ignored: the node is on its way out, EXIT_S at most, and its exit code is its own.
    """
    loop, signals = asyncio.get_running_loop(), _Signals()
    work = {signal.SIGHUP: signals.hung_up, signal.SIGTERM: signals.arrived, signal.SIGINT: signals.arrived}
    for number, called in work.items():
        loop.add_signal_handler(number, called)
    if hung_up:
        signals.hung_up()
    try:
        yield signals
    finally:
        for number in work:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


async def _first(*futures: asyncio.Future[object] | asyncio.Future[None] | asyncio.Future[errors.Fatal]) -> None:
    """Returns when one of them is done; cancels none."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
