"""Who may come in: bearer tokens with a role (RFC 6750), and how often. None of it runs where none of it is asked for.

There is no cache that a revocation would have to reach: a token is looked up by its id in the replicated state itself.
Its secret is hashed, and compared in constant time, once for each connection, or as often as that sends another one.
"""

from __future__ import annotations

import hashlib
import logging
from hmac import compare_digest
from math import ceil
from time import monotonic
from typing import Final, cast

from aiohttp import hdrs, web

from kvnode.errors import Forbidden, TooManyRequests, Unauthorized
from kvnode.http.connection import Connection
from kvnode.http.group import Group
from kvnode.http.sessions import PATH as SESSION_PATH
from kvnode.http.sessions import session_subject
from kvnode.proxies import Proxies
from kvnode.tokens import Token

PREFIX: Final = "kvnode_"
SESSION: Final = "session"  # the id that stands for an admin session: one is begun with the role full alone
FIRST: Final = "first"  # the id of the token that the node was started with
PROBES: Final = frozenset(("/admin/healthz", "/admin/healthz/leader", "/healthz", "/livez", "/readyz"))
READING: Final = frozenset(("GET", "HEAD"))
# What reads, and is not for those who may only read: a backup holds everything at once, tokens concern administrators.
FULL_ONLY: Final = ("/admin/api/v1/backup", "/admin/api/v1/tokens")
CLIENTS_MAX: Final = 65_536  # whose rate is kept; the one that was seen first is forgotten first
BURST_S: Final = 2.0  # a client that was quiet may send so many seconds' worth at once
LOG_AGAIN_S: Final = 60.0
LOGGED_MAX: Final = 1_024

log = logging.getLogger("kvnode.audit")


def is_probe(path: str) -> bool:
    """Probes need no credentials and count towards no limit, also where there is no such check."""
    return not path.startswith("/v1/") and (path in PROBES or path.startswith(("/livez/", "/readyz/")))


class Door:
    """`first` '': no tokens are asked for. `rate_per_s` 0: no limit."""

    __slots__ = ("_first", "_group", "_logged", "_proxies", "_rates")

    def __init__(self, group: Group, first: str, rate_per_s: int, proxies: Proxies | None) -> None:
        self._group = group
        self._first = _first(first) if first else None
        self._proxies = proxies
        self._rates = Rates(rate_per_s) if rate_per_s else None
        self._logged: dict[tuple[str, str], float] = {}

    def renew(self, first: str) -> None:
        """Another token that the node was started with: the former one is not valid from here on."""
        assert self._first is not None
        self._first = _first(first)

    def admit(self, request: web.BaseRequest, method: str, path: str) -> None:
        """Raises Unauthorized, Forbidden or TooManyRequests."""
        if is_probe(path):
            return
        if self._rates is not None:
            wait_s = self._rates.wait_s(self.client(request), monotonic())
            if wait_s > 0:
                raise TooManyRequests("This address sends more requests than it may; wait a moment.", ceil(wait_s))
        if self._first is None:
            return
        token = self.token(request)
        if token is None:
            self._note(request, method, path, "no valid token")
            if hdrs.AUTHORIZATION in request.headers:
                raise Unauthorized("The token is not valid, or not any more; ask an administrator for another one.")
            raise Unauthorized("This node asks for a token; send it as 'Authorization: Bearer TOKEN'.")
        if token.role != "full" and (method not in READING or path.startswith(FULL_ONLY)):
            self._note(request, method, path, f"token {token.id} ({token.name}) may only read")
            raise Forbidden(f"The token {token.id} may only read, and this takes one with the role full.")
        if token.id == SESSION and path == SESSION_PATH and method == "POST":
            raise Forbidden("A session does not begin another one, or it would never end; send a token.")

    def token(self, request: web.BaseRequest) -> Token | None:
        """The token that the request carries, if it is valid now; or what an admin session stands for."""
        header = request.headers.get(hdrs.AUTHORIZATION)
        if header is None:
            subject = session_subject(self._group, request) if hdrs.COOKIE in request.headers else None
            return None if subject is None else Token(SESSION, subject, "full", b"", 0)
        connection = cast(Connection, request.protocol)
        known = connection.credential
        if known is not None and known[0] == header:
            # Verified on this connection before; what is asked again is whether the token is still the same one.
            token = known[1]
            if token is self._first or self._group.store.tokens.get(token.id) is token:
                return token
        found = self._verified(header)
        if found is not None:
            connection.credential = (header, found)
        return found

    def _verified(self, header: str) -> Token | None:
        scheme, _, credential = header.partition(" ")
        if scheme.lower() != "bearer":
            return None
        credential = credential.strip()
        first = self._first
        if first is not None and compare_digest(_digest(credential), first.digest):
            return first
        token_id, _, secret = credential.removeprefix(PREFIX).partition("_")
        token = self._group.store.tokens.get(token_id)
        if token is not None and compare_digest(_digest(secret), token.digest):
            return token
        return None

    def client(self, request: web.BaseRequest) -> str:
        """The client's address, behind the balancers that are believed."""
        connection = cast(Connection, request.protocol)
        address, proxies = connection.address, self._proxies
        if proxies is None:
            return address
        if connection.believed is None:
            connection.believed = proxies.trusts(address)
        if connection.believed:
            forwarded = ",".join(request.headers.getall(hdrs.X_FORWARDED_FOR, ()))
            if forwarded:
                return proxies.client_of(forwarded, address)
        return address

    def who(self, request: web.BaseRequest) -> tuple[Token | None, str]:
        """(token, address) of whoever asks; no token where none is asked for."""
        return self.token(request) if self._first is not None else None, self.client(request)

    def _note(self, request: web.BaseRequest, method: str, path: str, why: str) -> None:
        """Says who was turned away, once a minute for each client and reason: floods must not fill the disk."""
        client, now = self.client(request), monotonic()
        if now - self._logged.get((client, why), -LOG_AGAIN_S) < LOG_AGAIN_S:
            return
        if len(self._logged) >= LOGGED_MAX:
            self._logged.clear()
        self._logged[client, why] = now
        fields = {"event": "refused", "client": client, "method": method, "target": path[:200], "why": why}
        log.warning("Refused %s %s from %s: %s.", method, path[:200], client, why, extra={"fields": fields})


class Rates:
    """A bucket for each client, filled at `rate_per_s` up to BURST_S worth (a token bucket)."""

    __slots__ = ("_buckets", "_burst", "_rate_per_s")

    def __init__(self, rate_per_s: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = max(1.0, rate_per_s * BURST_S)
        self._buckets: dict[str, list[float]] = {}

    def wait_s(self, client: str, now: float) -> float:
        """0 where the request may come in, and it is counted then; else after how long the next one may."""
        bucket = self._buckets.get(client)
        if bucket is None:
            if len(self._buckets) >= CLIENTS_MAX:
                del self._buckets[next(iter(self._buckets))]
            self._buckets[client] = [self._burst - 1.0, now]
            return 0.0
        bucket[0] = min(self._burst, bucket[0] + (now - bucket[1]) * self._rate_per_s)
        bucket[1] = now
        if bucket[0] < 1.0:
            return (1.0 - bucket[0]) / self._rate_per_s
        bucket[0] -= 1.0
        return 0.0


def _first(secret: str) -> Token:
    return Token(FIRST, "the node's own --token-file", "full", _digest(secret), 0)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
