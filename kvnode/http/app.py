"""The HTTP face of a node: one route table, one error table, one place that turns failures into answers.

This is aiohttp's low-level server, not its Application: the Application's router normalises paths, which
would merge keys, and its middle layers cost more time than the rest of a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from email.utils import formatdate
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from kvnode.errors import (
    BadRequest,
    Compacted,
    Definite,
    Indefinite,
    KeyNotFound,
    KvnodeError,
    LeaseNotFound,
    MethodNotAllowed,
    PreconditionFailed,
    TooManyRequests,
    Unauthorized,
)
from kvnode.http import (
    access,
    admin,
    backup,
    batch,
    console,
    gateway,
    key_history,
    kv,
    leases,
    listing,
    members,
    metrics,
    nodes,
    openapi,
    probes,
    recent,
    restore,
    sessions,
    timeout,
    tokens,
    txn,
    viewer,
    watch,
)
from kvnode.http.answer import JSON_TYPE, STATUS_LINE_200, Answer, json_bytes
from kvnode.http.audit import audited
from kvnode.http.budget import SMALL_BYTES, Budgets
from kvnode.http.connection import IDLE_S, Connection
from kvnode.http.connection_limits import ConnectionLimits
from kvnode.http.credentials import Credentials, check_still_admitted
from kvnode.http.door import METHOD_CHARS_MAX, READING, Door, is_probe
from kvnode.http.gateway.errors import failure as gateway_failure
from kvnode.http.gateway.errors import is_gateway
from kvnode.http.group import Group
from kvnode.http.heads import Heads
from kvnode.http.paths import split_target
from kvnode.http.probes import LeaderProbe
from kvnode.http.rights import OutsidePrefixes
from kvnode.http.route import Methods, RouteTable
from kvnode.http.spans import Spans
from kvnode.http.stream import HEARTBEAT_S
from kvnode.http.tracing import REQUEST_ID, Traced
from kvnode.logs.rate_limited import FAULTS, printable
from kvnode.metrics.meters import HttpMeters
from kvnode.net.proxies import Proxies

__all__ = ["LeaderProbe", "create_server"]

# The error table: one status for each code.
STATUS_OF: Final = {
    "bad_request": 400,
    "idempotency_key_reused": 400,
    "not_found": 404,
    "unknown_endpoint": 404,
    "key_not_found": 404,
    "lease_not_found": 404,
    "unauthorized": 401,
    "forbidden": 403,
    "token_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "last_ready_node": 409,
    "compacted": 410,
    "precondition_failed": 412,
    "too_large": 413,
    "unsupported_media_type": 415,
    "too_many_leases": 429,
    "too_many_tokens": 429,
    "too_many_requests": 429,
    "internal": 500,
    "unavailable": 503,
    "no_leader": 503,
    "not_leader": 503,
    "unverified": 503,
    "overloaded": 503,
    "shutting_down": 503,
    "starting": 503,
    "outcome_unknown": 504,
    "disk_full": 507,
}
CONNECTIONS_MAX: Final = 32_768
PROBERS_MAX: Final = 256
WRITING: Final = frozenset(("PUT", "POST", "DELETE", "PATCH"))
# How long the rest of a refused body is read and dropped, so that the client gets to see why (RFC 9112, 9.6).
LINGER_S: Final = 2.0

_log = logging.getLogger("kvnode.http")


def create_server(
    group: Group,
    *,
    node_id: str,
    leader_probe: LeaderProbe | None,
    probe_timeout_s: float,
    version: str,
    heartbeat_s: float = HEARTBEAT_S,
    meters: HttpMeters | None = None,
    log_requests: bool = False,
    spans: Spans | None = None,
    token: str = "",
    rate_limit: int = 0,
    proxies: Proxies | None = None,
    connections: tuple[int, int] = (CONNECTIONS_MAX, 0),
    with_metrics: bool = True,
    names: Collection[str] | None = None,
    budgets: Budgets | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Server:
    """The server for one node, for `loop.create_server`. To be called with the loop running.

    `token` '' lets everybody in; then `names` are what `Host` may say beside loopback names, None: anything.
    `rate_limit` in requests per second and client, 0 for none; `connections` at most, in all and for each client.
    `leader_probe` None leaves `/admin/healthz/leader` out. `budgets` are shared by all servers of a node.
    On the way down: `pre_shutdown()`, `shutdown(timeout)`.
    """
    meters = HttpMeters() if meters is None else meters
    budgets = Budgets() if budgets is None else budgets
    credentials = Credentials(group, token)
    door = Door(credentials, rate_limit, proxies, names)
    tables: tuple[dict[str, Methods], ...] = (
        probes.routes(group, leader_probe, probe_timeout_s, meters),
        metrics.routes(group, meters, budgets, version) if with_metrics else {},
        kv.routes(group, budgets, meters.traffic),
        watch.routes(group, budgets, heartbeat_s),
        listing.routes(group, budgets, meters.traffic),
        txn.routes(group, budgets, meters.traffic),
        batch.routes(group, budgets, meters.traffic),
        leases.routes(group, budgets),
        access.routes(credentials),
        nodes.routes(group, node_id, version),
        recent.routes(group, meters),
        key_history.routes(group, budgets),
        audited(
            {
                **admin.routes(group, node_id, version),
                **backup.routes(group),
                **restore.routes(group),
                **members.routes(group),
                **sessions.routes(group, credentials),
                **tokens.routes(group, credentials, node_id),
            },
            door,
        ),
    )
    # Neither the pages' files nor etcd's API are part of the one that is described.
    others = console.routes(), viewer.routes(), gateway.routes(group, budgets, credentials, heartbeat_s, meters)
    table = RouteTable(*tables, *others, openapi.routes(tables, STATUS_OF, version))
    stamp = Stamp(group, node_id, wall_clock)
    app = App(group, table, stamp, meters, log_requests, door, spans, door.client, budgets=budgets)
    return Server(app, meters, connections, proxies)


def create_probe_server(
    group: Group,
    node_id: str,
    leader_probe: LeaderProbe | None,
    probe_timeout_s: float,
    version: str,
    meters: HttpMeters,
    budgets: Budgets,
) -> Server:
    """The routes of the probe port: what a node says about itself without credentials."""
    table = RouteTable(
        probes.routes(group, leader_probe, probe_timeout_s, meters), metrics.routes(group, meters, budgets, version)
    )
    app = App(group, table, Stamp(group, node_id), meters, False, None, None, budgets=budgets)
    return Server(app, HttpMeters(), (PROBERS_MAX, 0))


class Stamp:
    """The header lines of every answer: Date, and who answers under whom, as far as that is known.

    `now` is the loop's time: it stands still while the loop runs what has come in one turn, and so do the lines.
    """

    __slots__ = ("_at", "_group", "_known", "_lines", "_node", "_now", "_wall_clock", "draining")

    def __init__(self, group: Group, node_id: str, wall_clock: Callable[[], float] = time.time) -> None:
        self._now = asyncio.get_running_loop().time
        self._at: float | None = None
        self._wall_clock = wall_clock
        self._group = group
        self._node = b"Kvnode-Node: %b\r\n" % node_id.encode()
        self._known: tuple[str | None, int, int] | None = None
        self._lines = b""
        self.draining = False  # what the group said when `lines` asked last

    def lines(self) -> bytes:
        """Rendered again only when the second, the leader or the term changes."""
        now = self._now()
        if now != self._at:
            self._at, self.draining = now, self._group.draining
            self._look()
        return self._lines

    def _look(self) -> None:
        leader_id, term = self._group.leader()
        now_s = int(self._wall_clock())
        known = (leader_id, term, now_s)
        if known != self._known:
            lines = f"Date: {formatdate(now_s, usegmt=True)}\r\n".encode() + self._node
            if leader_id is not None:
                lines += b"Kvnode-Leader: %b\r\n" % leader_id.encode()
            if term > 0:
                lines += b"Kvnode-Term: %d\r\n" % term
            self._known, self._lines = known, lines


class App:
    """Finds the handler, runs it, and always answers."""

    __slots__ = ("_client", "_codes", "_door", "_group", "_spans", "_stamp", "_table", "budgets", "heads", "traces")

    def __init__(
        self,
        group: Group,
        table: RouteTable,
        stamp: Stamp,
        meters: HttpMeters,
        log_requests: bool,
        door: Door | None,
        spans: Spans | None,
        client: Callable[[web.BaseRequest], str] | None = None,
        *,
        budgets: Budgets,
    ) -> None:
        self.budgets = budgets
        self._door = door  # None: everybody may do everything, as often as they like
        self._spans, self._client = spans, client
        self.heads = Heads()
        self.traces = log_requests or spans is not None  # every request is named in the logs
        self._codes = meters.codes
        self._group = group
        self._table = table
        self._stamp = stamp

    def begin(
        self, request: web.BaseRequest, path: str = "", query: str = "", admitted: bool = False
    ) -> Answer | Awaitable[Answer]:
        """The answer, or an awaitable of it; never raises. Pass what the awaitable raises to `failed`.

        `path` and `query` where they are known already, and whether the door was asked about such a request before.
        """
        try:
            if not path:
                path, query = split_target(request.raw_path)
            door = self._door
            admission = None if door is None or admitted else door.admit(request, request.method, path)
            if admission is None or door is None:
                endpoint, rest = self._table.find(request.method, path)
            else:
                endpoint, rest = door.route(self._table, request, path, admission)
            if query and endpoint.checks:
                endpoint.check(query)
            if timeout.TIMEOUT in request.headers and not is_probe(path):  # probes have a deadline of their own
                return timeout.begin(request, endpoint.handler, rest, query)
            return endpoint.handler(request, rest, query)
        except Exception as error:
            return self.failed(request, error)

    async def awaited(self, request: web.BaseRequest, outcome: Awaitable[Answer]) -> Answer:
        """The answer to a request that waited; never raises. A read is checked again: the right may have ended."""
        try:
            answer = await outcome
            if type(answer) is Answer and request.method in READING:  # a streaming answer checks itself
                check_still_admitted(request)
        except Exception as error:
            return self.failed(request, error)
        return answer

    def failed(self, request: web.BaseRequest, error: Exception) -> Answer:
        """What is answered when a handler raised."""
        method = request.method
        if not isinstance(error, KvnodeError) or error.code not in STATUS_OF:
            # A KvnodeError without a status is for the operator, not for clients: it names files and addresses.
            error = _unexpected(method, error)
        elif isinstance(error, OutsidePrefixes) and self._door is not None:
            self._door.note_outside(request)
        if is_gateway(split_target(request.raw_path)[0]):
            return gateway_failure(request, error)
        answer = failure(error, writing=method in WRITING)
        if answer.status == 503 and timeout.TIMEOUT in request.headers:
            answer.headers += timeout.HONOURED
        return answer

    def held(self, method: str, answer: Answer) -> Answer:
        """A large answer with a part of the budget, which it may have already; or a refusal in its place."""
        if answer.hold is not None:
            return answer
        answers, size = self.budgets.answers, len(answer.body)
        if method in WRITING:
            answer.hold = answers.hold_anyway(size)  # what is done is done, and its client has to know
            return answer
        try:
            answer.hold = answers.hold(size)
        except KvnodeError as error:
            return failure(error, writing=False)
        return answer

    def sealed(self, answer: Answer, queued: bool = False) -> Answer:
        """Counted, and with the lines that every answer carries: ready to be written.

        `queued`: whole requests wait behind this one on its connection. While the node drains, every answer says that
        the connection ends, and the last one that is owed ends it.
        """
        self._codes[answer.status] += 1
        answer.stamp = self._stamp.lines()
        if self._stamp.draining and not answer.close:
            if queued:
                answer.headers += b"Connection: close\r\n"
            else:
                answer.close = True
        return answer

    def lines_of_200(self) -> bytes:
        """Counts an answer that needs nothing else of `sealed`, and gives its first lines. b"": the node drains."""
        stamp = self._stamp
        lines = stamp.lines()
        if stamp.draining:
            return b""
        self._codes[200] += 1
        return STATUS_LINE_200 + lines

    def client(self, request: web.BaseRequest) -> str:
        """The client's address, as trusted balancers name it."""
        return cast(Connection, request.protocol).address if self._client is None else self._client(request)

    def renew_token(self, token: str) -> None:
        """`token` takes the place of the one that the node was started with."""
        assert self._door is not None
        self._door.renew(token)

    def follows(self, request: web.BaseRequest) -> bool:
        """Whether the request is named in the logs."""
        return self.traces or REQUEST_ID in request.headers

    async def handle(self, request: web.BaseRequest) -> Answer:
        traced = Traced(request, self._spans) if self.follows(request) else None
        answer = self.begin(request)
        if not isinstance(answer, Answer):
            answer = await self.awaited(request, answer)
        if traced is not None:
            traced.end(answer, self._client)
        if len(answer.body) > SMALL_BYTES:
            answer = self.held(request.method, answer)
        return self.sealed(answer, cast(Connection, request.protocol).has_queued(request))

    def malformed(self, error: BaseException | None) -> Answer:
        """For bytes that are not a request, or that there is no room for.

        The connection is closed after it: where the next request begins is unknown.
        """
        if isinstance(error, KvnodeError):
            return self.refused(error)
        if isinstance(error, LineTooLong):
            sentence = "A line of the request is too long, or it has too many header lines."
        else:
            sentence = "These bytes are not an HTTP request; check the request line and the headers."
        return self.refused(BadRequest(sentence))

    def refused(self, error: KvnodeError) -> Answer:
        """The answer for a connection that ends with it."""
        answer = failure(error, writing=True)  # nothing was done for any method
        answer.close = True
        return self.sealed(answer)


def failure(error: KvnodeError, *, writing: bool) -> Answer:
    """The one translation of an error: status, JSON, and the headers that go with it."""
    status = STATUS_OF[error.code]
    document: dict[str, Any] = {"error": error.code, "message": error.message}
    if writing:
        document["outcome"] = error.outcome
    headers = JSON_TYPE
    if isinstance(error, Compacted):
        document["oldest_revision"] = error.oldest_revision
    elif isinstance(error, MethodNotAllowed):
        headers += f"Allow: {error.allow}\r\n".encode()
    elif isinstance(error, PreconditionFailed) and error.current_revision is not None:
        headers += b'ETag: "%d"\r\n' % error.current_revision
    elif isinstance(error, KeyNotFound | LeaseNotFound) and error.applied_lag is not None:
        headers += b"Kvnode-Applied-Lag: %d\r\n" % error.applied_lag
    elif isinstance(error, Unauthorized):
        headers += b'WWW-Authenticate: Bearer realm="kvnode"\r\n'
    elif isinstance(error, TooManyRequests):
        headers += b"Retry-After: %d\r\n" % error.retry_after_s
    elif status == 503 and isinstance(error, Definite):
        headers += b"Retry-After: 1\r\n"
    return Answer(status, headers, json_bytes(document))


def _unexpected(method: str, error: Exception) -> KvnodeError:
    """Everything goes to the log and nothing of it to the client. A write may have happened by then."""
    if FAULTS.admits_one_of_many("requests that failed unexpectedly"):
        _log.error("a %s request failed unexpectedly", printable(method, METHOD_CHARS_MAX), exc_info=error)
    return Indefinite("The node failed in a way that it did not expect; its log says more.", "internal")


class Server(web.Server):
    """aiohttp's server with connections that answer malformed requests as everything else is answered."""

    def __init__(
        self,
        app: App,
        meters: HttpMeters,
        connections: tuple[int, int] = (CONNECTIONS_MAX, 0),
        proxies: Proxies | None = None,
    ) -> None:
        # An Answer is not a StreamResponse, and has all that the connection asks of one (answer.py).
        handler = cast(Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], app.handle)
        super().__init__(
            handler, access_log=None, auto_decompress=False, lingering_time=LINGER_S, keepalive_timeout=IDLE_S
        )
        self.app = app
        self._limits = ConnectionLimits(*connections, app.handle, app.refused, proxies, meters)

    def __call__(self, address: str = "") -> web.RequestHandler:
        connection = Connection(self, self.app, loop=self._loop, **self._kwargs)
        return connection.counted(self._limits, address)
