"""Who may come in, and with what: a token's role, what a browser says of the page that asks, and how often.

None of it runs where none of it is asked for. `credentials.py` says who asks; here is what they may.

A page of another origin can make a browser send requests, with the browser's cookies, and to a node on the browser's
own machine. It cannot read the answers, for no answer has a CORS header, and it cannot send a PUT, a DELETE or JSON,
for these are preceded by a question (a preflight) that no node answers. What is left is refused here:

- A write under a cookie, or on a node that asks for no tokens, that comes from a page of another origin: the browser
  says so in `Sec-Fetch-Site` or `Origin`. A client that sends neither is no current browser.
- A write under a cookie that is not what a page of the node's own would send: JSON.
- On an open node that listens on loopback, a `Host` that is no loopback name: the name of a stranger who lets it
  point here, so that the browser takes the node for a part of that stranger's site (DNS rebinding).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from math import ceil
from time import monotonic
from typing import Final, cast

from aiohttp import hdrs, web

from kvnode.config import values
from kvnode.errors import Forbidden, MethodNotAllowed, NotFound, TooManyRequests, Unauthorized, UnsupportedMediaType
from kvnode.http.connection import Connection
from kvnode.http.console import PUBLIC
from kvnode.http.credentials import Admission, Credentials, sent_session
from kvnode.http.heads import SEC_FETCH_SITE
from kvnode.http.request import KnownRequest
from kvnode.http.rights import ROLE_NAMES, WRITE
from kvnode.http.route import Endpoint, RouteTable
from kvnode.logs.rate_limited import LINES, printable
from kvnode.net.proxies import Proxies

SESSION_PATH: Final = "/admin/api/v1/session"
RESTORE_PATH: Final = "/admin/api/v1/restore"
KEYS_PATH: Final = "/v1/kv/"
ACCESS_PATH: Final = "/admin/api/v1/access"
# Where etcd's clients show a token first.
AUTHENTICATE: Final = frozenset(("/v3/auth/authenticate", "/v3beta/auth/authenticate"))
# The page that one signs in on, and what tells it whether to ask for a token.
OPEN_TO_ALL: Final = PUBLIC | {ACCESS_PATH} | AUTHENTICATE
# The last two are etcd's: its clients ask for them before they have a token.
PROBES: Final = frozenset(
    ("/admin/healthz", "/admin/healthz/leader", "/healthz", "/livez", "/readyz", "/health", "/version")
)
READING: Final = frozenset(("GET", "HEAD"))
WITHOUT_EFFECT: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))  # RFC 9110, 9.2.1; no handler takes the last two
OWN_SITE: Final = frozenset(("same-origin", "none"))  # none: the user typed the address, or used a bookmark
CLIENTS_MAX: Final = 65_536  # whose rate is kept; the one that was seen first is forgotten first
BURST_S: Final = 2.0  # a client that was quiet may send so many seconds' worth at once
METHOD_CHARS_MAX: Final = 16  # in a log line; a client may send any word

_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z._-]{1,255}?)\.?(?::([0-9]{1,5}))?", re.ASCII)
_ORIGIN: Final = re.compile(r"(https?)://([^/?#@\s]{1,300})")
_PORTS: Final = {"http": "80", "https": "443"}

log = logging.getLogger("kvnode.audit")


def is_probe(path: str) -> bool:
    """Probes need no credentials and count towards no limit, also where there is no such check."""
    return not path.startswith("/v1/") and (path in PROBES or path.startswith(("/livez/", "/readyz/")))


class Door:
    """`rate_per_s` 0: no limit. `names`: what `Host` may say on an open node beside loopback names; None: anything."""

    __slots__ = ("_credentials", "_names", "_proxies", "_rates")

    def __init__(
        self, credentials: Credentials, rate_per_s: int, proxies: Proxies | None, names: Collection[str] | None = None
    ) -> None:
        self._credentials = credentials
        self._proxies = proxies
        self._names = None if names is None else frozenset(name.lower() for name in names)
        self._rates = Rates(rate_per_s) if rate_per_s else None

    def renew(self, first: str) -> None:
        """Another token that the node was started with: the former one ends here, and what was let in with it."""
        assert self._credentials.first is not None
        self._credentials.change_first(first)

    def admit(self, request: web.BaseRequest, method: str, path: str) -> Admission | None:
        """The request's credentials; None where none are needed. Raises Unauthorized, Forbidden or TooManyRequests."""
        # Nearly all paths begin so: they are told apart from probes without a call. Balancers send probes with no Host,
        # or with one of their own.
        if not path.startswith(("/v1/", "/v3/")) and is_probe(path):
            cast(Connection, request.protocol).credential = None
            return None
        if self._rates is not None:
            wait_s = self._rates.wait_s(self.client(request), monotonic())
            if wait_s > 0:
                raise TooManyRequests("This address sends more requests than it may; wait a moment.", ceil(wait_s))
        if self._credentials.first is None:  # the node asks for no tokens
            if self._names is not None:
                host, connection = request.headers.get(hdrs.HOST), request.protocol
                if host != connection.host or request.raw_path[:1] != "/":  # type: ignore[attr-defined]
                    self._check_host(request, method, path)
                    connection.host = host  # type: ignore[attr-defined]
            if method not in WITHOUT_EFFECT:
                headers = request.headers
                if hdrs.ORIGIN in headers or SEC_FETCH_SITE in headers:
                    self._check_origin(request, method, path)
            if type(request) is KnownRequest and self._rates is None and not request.head.of_page:
                # Nothing but the head was asked about, and the same one comes again and again.
                cast(Connection, request.protocol).admitted = request.head
            return None
        admission = self._credentials.admission(request)
        if admission is None:
            if path in OPEN_TO_ALL:
                return None
            self._note(request, method, path, "no valid token")
            raise Unauthorized(_why_not(request))
        return admission

    def route(
        self, table: RouteTable, request: web.BaseRequest, path: str, admission: Admission
    ) -> tuple[Endpoint, str]:
        """The endpoint of a request that was let in, and the raw rest of the path.

        Raises what `RouteTable.find` raises, Forbidden, UnsupportedMediaType.
        """
        method, rights = request.method, admission.rights
        try:
            endpoint, rest = table.find(method, path, rights)
        except (NotFound, MethodNotAllowed):
            if rights.role < WRITE and method not in READING and path not in OPEN_TO_ALL:
                raise self._forbidden(request, path, admission, WRITE) from None
            self._check_page(request, method, path, admission)
            raise
        if endpoint.right > rights.role:
            raise self._forbidden(request, path, admission, endpoint.right)
        if rights.prefixes and not endpoint.scoped:
            self._note(request, method, path, f"{admission} has prefixes")
            raise Forbidden(f"The token {admission.token.id} has prefixes, and this takes one without.")
        if admission.ambient:
            self._check_page(request, method, path, admission)
        return endpoint, rest

    def _forbidden(self, request: web.BaseRequest, path: str, admission: Admission, right: int) -> Forbidden:
        may = "may only read" if admission.rights.role < WRITE else "may not administer"
        self._note(request, request.method, path, f"{admission} {may}")
        return Forbidden(f"The token {admission.token.id} {may}, and this takes one with the role {ROLE_NAMES[right]}.")

    def note_outside(self, request: web.BaseRequest) -> None:
        """A request named a key outside of its token's prefixes."""
        admission = None if self._credentials.first is None else self._credentials.admission(request)
        path = request.raw_path.partition("?")[0]
        self._note(request, request.method, path, f"{admission or 'anonymous'} has no right to a key of it")

    def _check_page(self, request: web.BaseRequest, method: str, path: str, admission: Admission) -> None:
        """What writes under a cookie, or under a certificate, which a browser shows by itself as well."""
        if not admission.ambient or method in WITHOUT_EFFECT:
            return
        if admission.session is None:
            self._check_origin(request, method, path, referer=True)
            return
        if path == SESSION_PATH and method == "POST":
            raise Forbidden("A session does not begin another one, or it would never end; send a token.")
        self._check_origin(request, method, path, referer=True)
        # A value is of any type. It comes by PUT, which no page of another origin can send.
        if request.body_exists and not (method == "PUT" and path.startswith(KEYS_PATH)):
            kind = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
            taken = ("application/octet-stream",) if path == RESTORE_PATH else ("application/json",)
            if kind not in taken:
                raise UnsupportedMediaType(f"Under a session's cookie a body has the Content-Type {taken[0]}; set it.")

    def _check_host(self, request: web.BaseRequest, method: str, path: str) -> None:
        """All that say under which name the node was asked: every Host, and a target in absolute form."""
        said = request.headers.getall(hdrs.HOST, [])
        if (authority := _authority(request.raw_path)) is not None:
            said.append(authority)
        if len(said) > 2 or not all(self._is_own(each) for each in said):
            self._note(request, method, path, "its Host is no loopback name")
            raise Forbidden(
                "This node asks for no token and listens on loopback, so it answers to loopback names alone: ask for "
                "localhost, 127.0.0.1 or [::1], or give the node --token-file, or that name in --advertise-http."
            )

    def _is_own(self, authority: str) -> bool:
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        name = match[1].lower()
        assert self._names is not None
        return name in self._names or values.is_loopback(name.strip("[]"))

    def _check_origin(self, request: web.BaseRequest, method: str, path: str, referer: bool = False) -> None:
        """Forbidden for a request that a page of another origin has made. `referer`: also look where it was."""
        headers = request.headers
        sites, origins = headers.getall(SEC_FETCH_SITE, ()), headers.getall(hdrs.ORIGIN, ())
        foreign = any(site not in OWN_SITE for site in sites)
        if referer and not sites and not origins:
            origins = [_origin_of(each) for each in headers.getall(hdrs.REFERER, ())]
        if foreign or not all(_is_same(origin, request) for origin in origins):
            self._note(request, method, path, "a page of another origin sent it")
            raise Forbidden(
                "A page of another origin sent this request, and such a page may change nothing on a node: send it "
                "from a page of the node's own, or from a program, with a token and without a cookie."
            )

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

    def who(self, request: web.BaseRequest) -> tuple[Admission | None, str]:
        """(admission, address) of the client; no admission where none is needed."""
        return None if self._credentials.first is None else self._credentials.admission(request), self.client(request)

    def _note(self, request: web.BaseRequest, method: str, path: str, why: str) -> None:
        """Says who was turned away, once a minute for each client and reason: floods must not fill the disk."""
        method = printable(method, METHOD_CHARS_MAX)
        client, target = self.client(request), printable(path)
        if LINES.admits(client, why):
            fields = {"event": "refused", "client": client, "method": method, "target": target, "why": why}
            log.warning("Refused %s %s from %s: %s.", method, target, client, why, extra={"fields": fields})


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


def _why_not(request: web.BaseRequest) -> str:
    """What is said to those who have shown nothing that is valid."""
    name = cast(Connection, request.protocol).common_name
    if hdrs.AUTHORIZATION in request.headers:
        return "The token is not valid, or not any more; ask an administrator for another one."
    if sent_session(request):
        return "The session has ended, or it is not this cluster's: sign in again, or send a token."
    if name is not None:
        return (
            f"The client certificate names {name!r}, and no token of this name is valid now: make one with 'kvnode "
            "token create', or send a token as 'Authorization: Bearer TOKEN'."
        )
    return "This node asks for a token; send it as 'Authorization: Bearer TOKEN'."


def _authority(target: str) -> str | None:
    """The authority of a target in absolute form, None for one in another form (RFC 9112, 3.2)."""
    scheme, separator, rest = target.partition("://")
    if target.startswith("/") or not separator or not scheme.isalpha():
        return None
    return re.split(r"[/?#]", rest, maxsplit=1)[0]


def _origin_of(url: str) -> str:
    """Of a Referer: all up to its path."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _is_same(origin: str, request: web.BaseRequest) -> bool:
    """Whether an Origin (RFC 6454, 7.3) is the one under which the node was asked. `null` is none.

    Behind a balancer that takes TLS off, the page is from https and the node was asked by http: then the names decide.
    """
    match = _ORIGIN.fullmatch(origin)
    host = _authority(request.raw_path) or (request.headers.get(hdrs.HOST) or "")
    if match is None or (request.secure and match[1] != "https"):
        return False
    default = _PORTS[match[1]]
    asked, page = _name_and_port(host, default), _name_and_port(match[2], default)
    return asked is not None and asked == page


def _name_and_port(authority: str, default: str) -> tuple[str, str] | None:
    match = _AUTHORITY.fullmatch(authority)
    return None if match is None else (match[1].lower(), match[2] or default)
