"""How many HTTP connections there may be, in all and for each client, and which one goes when there are too many.

A connection costs a client nothing and a node a file descriptor and about 10 KB. So an idle connection keeps its place
only until another client needs it: the longest idle one makes room. If none is idle, a newcomer gets one of a few
reserve places. There requests get 429, but probes are answered, because a balancer whose probe is refused takes the
node for dead and moves its load to others. Reserve places cannot be hoarded: the oldest that has sent no request makes
room for the newest.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from aiohttp import web

from kvnode.errors import TooManyRequests
from kvnode.http.answer import Answer
from kvnode.http.connection import Connection
from kvnode.http.door import is_probe
from kvnode.metrics.meters import HttpMeters
from kvnode.net.proxies import Proxies, client_network

# Connections over the limit that wait for their 429, or for the answer to a probe. A flood of 3,000 a second (what one
# core of an attacker opens) leaves each 85 ms to ask: a balancer's probe arrives with its connection's last packet.
REFUSED_MAX: Final = 256
PATIENCE_S: Final = 5.0  # for a refused one to ask something and hear why
# Of all places, those that one client's address may hold unless an option says otherwise: half, so that no address
# keeps out all others, and a balancer that is not named as a trusted proxy still gets enough for any real load.
CLIENT_SHARE: Final = 0.5
CANDIDATES_MAX: Final = 256  # found with one look at all connections: 10 ms at 32,768 of them, for 256 that make room
LOOK_AGAIN_S: Final = 0.1  # after a look that found none idle


class ConnectionLimits:
    """`most` in all, `most_each` for each client (0: CLIENT_SHARE of all). A client is an IPv4 address or an IPv6 /64.

    Over `most`, and over a client's default share, the longest idle makes room: of all, or of that client's. Over a
    `most_each` that was asked for, the newest is refused. Trusted proxies carry other people's requests: they have no
    share of their own.
    """

    def __init__(
        self,
        most: int,
        most_each: int,
        handle: Callable[[web.BaseRequest], Awaitable[Answer]],
        failed: Callable[[TooManyRequests], Answer],
        proxies: Proxies | None,
        meters: HttpMeters,
    ) -> None:
        self._most_each = most_each or max(1, round(most * CLIENT_SHARE))
        self._makes_room_each = not most_each
        self._handle = handle
        self._failed = failed
        self._proxies = proxies
        self._meters = meters
        self._all = Places(most)
        self._clients: dict[str, Places] = {}
        self._places: dict[Connection, str] = {}  # whose client has which name in _clients; '' for trusted proxies
        self._refused: dict[Connection, asyncio.TimerHandle | None] = {}

    def came(self, connection: Connection) -> None:
        address = connection.address
        exempt = self._proxies is not None and self._proxies.trusts(address)
        name = "" if exempt else client_network(address)
        client = None if exempt else self._clients.get(name)
        over = client is not None and client.full and not (self._makes_room_each and self._make_room(client))
        if over or (self._all.full and not self._make_room(self._all)):
            self._refuse_soon(connection)
        else:
            self._place(connection, name)

    def _place(self, connection: Connection, name: str) -> None:
        if name:
            client = self._clients.get(name)
            if client is None:
                client = self._clients[name] = Places(self._most_each)
            client.connections[connection] = None
        self._all.connections[connection] = None
        self._places[connection] = name
        self._meters.connections = len(self._places)

    def went(self, connection: Connection) -> None:
        if connection in self._refused:
            timer = self._refused.pop(connection)
            if timer is not None:
                timer.cancel()
            return
        name = self._places.pop(connection, None)
        if name is None:
            return  # it has made room before
        del self._all.connections[connection]
        if name:
            client = self._clients[name]
            del client.connections[connection]
            if not client.connections:
                del self._clients[name]
        self._meters.connections = len(self._places)

    def _make_room(self, places: Places) -> bool:
        """Whether one of them was idle; it is closed."""
        longest_idle = places.longest_idle()
        if longest_idle is None:
            return False
        self.went(longest_idle)
        longest_idle.abort()
        self._meters.connections_closed["made_room"] += 1
        return True

    # --- one too many ----------------------------------------------------------------------------------

    def _refuse_soon(self, connection: Connection) -> None:
        """Gives it a moment to ask, and to hear why it is refused or how the node is."""
        self._meters.connections_closed["refused"] += 1
        if len(self._refused) >= REFUSED_MAX:
            silent = next((each for each in self._refused if each.idle_since is not None), None)
            if silent is None:  # all are being answered, which takes no longer than a probe's deadline
                self._refused[connection] = None
                connection.abort()
                return
            self.went(silent)
            silent.abort()
        connection.refused(self._refuse)
        self._refused[connection] = asyncio.get_running_loop().call_later(PATIENCE_S, connection.abort)

    async def _refuse(self, request: web.BaseRequest) -> Answer:
        if is_probe(request.raw_path.partition("?")[0]):
            answer = await self._handle(request)
        else:
            answer = self._failed(TooManyRequests("There are more connections than there may be; try again later."))
        answer.close = True
        return answer


class Places:
    """The connections that share one limit, in order of arrival."""

    __slots__ = ("_candidates", "_look_again_at", "connections", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.connections: dict[Connection, None] = {}
        self._candidates: list[tuple[tuple[bool, float], Connection]] = []  # the longest idle last
        self._look_again_at = 0.0

    @property
    def full(self) -> bool:
        return len(self.connections) >= self.most

    def longest_idle(self) -> Connection | None:
        """None where every one has a request under way.

        Keeping them in order all the time would cost every request something. So they are looked through when room is
        needed, and the longest idle of them are remembered. One that was used since does not count. What became idle
        since that look is younger than all that were found by it, so the order is exact.
        """
        for looked in (False, True):
            while self._candidates:
                rank, connection = self._candidates.pop()
                if connection in self.connections and _rank(connection) == rank:
                    return connection
            if not looked:
                self._look(asyncio.get_running_loop().time())
        return None

    def _look(self, now: float) -> None:
        if now < self._look_again_at:
            return
        found = heapq.nsmallest(CANDIDATES_MAX, _idle(self.connections), key=lambda each: each[0])
        if not found:
            self._look_again_at = now + LOOK_AGAIN_S
        found.reverse()
        self._candidates = found


def _idle(connections: Iterable[Connection]) -> Iterable[tuple[tuple[bool, float], Connection]]:
    for connection in connections:
        rank = _rank(connection)
        if rank is not None:
            yield rank, connection


def _rank(connection: Connection) -> tuple[bool, float] | None:
    """The lowest goes first: silent ones before those whose request has begun to arrive. None: it is in use."""
    since = connection.idle_since
    return None if since is None else (connection.arriving, since)
