"""Who asks: bearer tokens (RFC 6750), sessions and client certificates, and whether what let a request in holds still.

There is no cache that a revocation would have to reach. A token is looked up by its id in the replicated state, a
session by its token, its expiry and the key that signed it, a certificate by the token of its name. This happens at
each request, at each delivery of a stream, after each wait of a request, and at least every REVIEW_S for streams, long
polls and backups under way (`stream.Streams`).

Whether a token has expired, and whether its former secret still counts, each node judges by its own clock: the times
are absolute, and are in the replicated state as they were set.
"""

from __future__ import annotations

import hashlib
import time
from hmac import compare_digest
from math import inf
from typing import TYPE_CHECKING, Final, cast

from aiohttp import hdrs, web

from kvnode.errors import Unauthorized
from kvnode.http.group import Group
from kvnode.http.rights import of_token
from kvnode.state.limits import TOKENS_MAX
from kvnode.state.session_keys import Session, session_of
from kvnode.state.tokens import ANONYMOUS, FIRST, Token

if TYPE_CHECKING:
    from kvnode.http.connection import Connection

PREFIX: Final = "kvnode_"
COOKIE: Final = "kvnode_session"
# Under TLS a browser accepts a cookie of this name only from the node itself: another host of the domain, another path
# or an attacker on plain HTTP cannot replace it (RFC 6265bis, 4.1.3.2).
SECURE_COOKIE: Final = "__Host-kvnode_session"
# How often streams, long polls and backups are checked again. Together with the time to apply a revocation they end
# within two seconds; checking ten thousand streams takes 3 ms.
REVIEW_S: Final = 0.5
# Tokens whose last use is known: over it, what is known of those that are gone is dropped.
USES_MAX: Final = 2 * TOKENS_MAX
ENDED: Final = (
    "What this request was let in with has ended meanwhile: the token or the session is over, or has other rights."
)

_ANYBODY: Final = Token(ANONYMOUS, "anonymous", "full", b"", 0)


class Use:
    """When a token was last used on this node: seconds since 1970, 0.0 for never since it began."""

    __slots__ = ("last_s",)

    def __init__(self) -> None:
        self.last_s = 0.0


class Admission:
    """What a request was let in with: `token`, by its secret, by a `session` that has its right, or by a certificate.

    `secret` is the hash of the token's secret that it goes by, b"" for none: when another one takes its place, this
    ends with the former secret's time.
    """

    __slots__ = ("_credentials", "certified", "rights", "secret", "session", "token", "until_s", "use")

    def __init__(
        self, credentials: Credentials, token: Token, secret: bytes, session: Session | None, certified: bool = False
    ) -> None:
        self._credentials = credentials
        self.secret = secret
        self.session = session
        self.certified = certified
        self.use = credentials.use_of(token.id)
        self.rights = of_token(token)
        self._go_by(token)

    def _go_by(self, token: Token) -> None:
        self.token = token
        self.until_s = ends_at_s(token, self.secret)  # by this node's clock; since 1970

    def holds(self) -> bool:
        """Whether it would let a request in now."""
        credentials, token, session = self._credentials, self.token, self.session
        found = credentials.named(token.id)
        if found is not token:  # a snapshot that is installed brings every token anew
            if found is None or not _same_right(found, token):
                return False
            self._go_by(found)
        return self.until_s > time.time() and (session is None or credentials.goes_on(session))

    @property
    def ambient(self) -> bool:
        """Whether a browser adds by itself what it goes by, also to what a page of another origin sends."""
        return self.certified or self.session is not None

    def __str__(self) -> str:
        """As the audit log names it."""
        token = f"token {self.token.id} ({self.token.name})" if self.token.id else "anonymous"
        if self.certified:
            token = f"the certificate of {token}"
        return token if self.session is None else f"session {shown(self.session)} of {token}"


class Credentials:
    """`first`: the token that the node was started with, None where it asks for none."""

    __slots__ = ("_group", "_uses", "first")

    def __init__(self, group: Group, first: str) -> None:
        self._group = group
        self._uses: dict[str, Use] = {}
        self.change_first(first)

    def change_first(self, first: str) -> None:
        """Another first token, '' for none. What was let in with the one before ends."""
        self.first = Token(FIRST, "the node's own --token-file", "full", _digest(first), 0) if first else None

    def admission(self, request: web.BaseRequest) -> Admission | None:
        """What the request is let in with, None where it has nothing that is good now. A header counts, not a cookie
        beside it."""
        header = request.headers.get(hdrs.AUTHORIZATION)
        connection = cast("Connection", request.protocol)
        known, now_s = connection.credential, time.time()
        if header is not None:
            if known is not None and known[0] == header:
                # Verified on this connection before; what is asked again is whether the token is still the same one.
                found = known[1]
                token = found.token
                if (token is self.first or self._group.store.tokens.get(token.id) is token) and found.until_s > now_s:
                    found.use.last_s = now_s
                    return found
            admission = self._bearer(header)
        else:
            admission = self.session(request) if hdrs.COOKIE in request.headers else None
            if admission is None and connection.common_name is not None:
                admission = self._certified(connection.common_name, None if known is None else known[1])
        if admission is None or admission.until_s <= now_s:
            connection.credential = None
            return None
        connection.credential = (header, admission)
        admission.use.last_s = now_s
        return admission

    def session(self, request: web.BaseRequest) -> Admission | None:
        """The session of the request's cookie, if it is valid now."""
        cookie, signing = _cookie(request), self._group.session
        read = None if cookie is None else session_of(cookie, signing.keys, signing.known.number, time.time())
        if read is None:
            return None
        session, key = read
        token = self.named(session.token_id)
        if token is None or not self.goes_on(session):
            return None
        for secret in (token.digest, token.former) if token.former else (token.digest,):
            if compare_digest(token.generation(key, self._group.status().cluster_id, secret), session.generation):
                admission = Admission(self, token, secret, session)
                return admission if admission.until_s > time.time() else None
        return None

    def named(self, token_id: str) -> Token | None:
        """The token that has this id now."""
        first = self.first
        if first is None:
            return _ANYBODY if token_id == ANONYMOUS else None
        return first if token_id == FIRST else self._group.store.tokens.get(token_id)

    def use_of(self, token_id: str) -> Use:
        """When a token was last used on this node, to be noted there."""
        uses = self._uses
        use = uses.get(token_id)
        if use is None:
            if len(uses) >= USES_MAX:
                self._uses = uses = {each: uses[each] for each in uses if self.named(each) is not None}
            use = uses[token_id] = Use()
        return use

    def last_used_ms(self) -> dict[str, int]:
        """By a token's id, of those that were used here: the time of the last use, in milliseconds since 1970."""
        return {token_id: int(use.last_s * 1_000) for token_id, use in self._uses.items() if use.last_s}

    def goes_on(self, session: Session) -> bool:
        """Whether the session itself is valid: not ended, and signed with a key in use. Its token is checked apart."""
        signing = self._group.session
        return (
            0 <= signing.known.number - session.key_number < len(signing.keys)
            and session.ends_at_s > time.time()
            and not self._group.store.ended_sessions.has(session)
        )

    def whom(self, request: web.BaseRequest) -> tuple[Token | None, bytes]:
        """Whose session would begin with this request, and the hash of the secret that it would end with: the bearer's,
        or anybody's where no token is asked for."""
        if self.first is None:
            return _ANYBODY, b""
        admission = self.admission(request)
        if admission is None or admission.session is not None:
            return None, b""
        return admission.token, admission.secret or admission.token.digest

    def _bearer(self, header: str) -> Admission | None:
        """A token behind its scheme, or bare, as etcd's clients send it."""
        scheme, space, credential = header.partition(" ")
        if space and scheme.lower() != "bearer":
            return None
        return self.by_secret(credential.strip() if space else header)

    def by_secret(self, credential: str) -> Admission | None:
        """The admission that this bearer token gives; None if no token has this secret."""
        first = self.first
        if first is not None and compare_digest(_digest(credential), first.digest):
            return Admission(self, first, first.digest, None)
        token_id, _, secret = credential.removeprefix(PREFIX).partition("_")
        token = self._group.store.tokens.get(token_id)
        if token is None:
            return None
        digest = _digest(secret)
        if compare_digest(digest, token.digest) or (token.former and compare_digest(digest, token.former)):
            admission = Admission(self, token, digest, None)
            return admission if admission.until_s > time.time() else None
        return None

    def _certified(self, name: str, known: Admission | None) -> Admission | None:
        """By a certificate with this common name. A name of two tokens (possible before level 1) admits none.

        `known`: what the connection's last request was let in with.
        """
        tokens = self._group.store.tokens
        if known is not None and known.certified and tokens.get(known.token.id) is known.token:
            return known
        named = [token for token in tokens.view() if token.name == name]
        return Admission(self, named[0], b"", None, True) if len(named) == 1 else None


def ends_at_s(token: Token, secret: bytes) -> float:
    """Until when a token lets in with this secret (its hash, b"" without one): seconds since 1970."""
    until_s = token.expires_ms / 1_000 if token.expires_ms else inf
    if secret and secret != token.digest:
        return min(until_s, token.former_until_ms / 1_000) if secret == token.former else 0.0
    return until_s


def _same_right(found: Token, token: Token) -> bool:
    return (found.created_ms, found.role, found.prefixes) == (token.created_ms, token.role, token.prefixes)


def admission_of(request: web.BaseRequest) -> Admission | None:
    """What the request that is being answered was let in with; None where nothing was asked for."""
    known = cast("Connection", request.protocol).credential
    return None if known is None else known[1]


def check_still_admitted(request: web.BaseRequest) -> None:
    """Call after every long wait. Raises Unauthorized if the request would not be admitted any more."""
    admission = admission_of(request)
    if admission is not None and not admission.holds():
        raise Unauthorized(ENDED)


def shown(session: Session) -> str:
    """A session's id for people: the signature is what is secret of a cookie."""
    return session.id.hex()[:12]


def cookie_name(request: web.BaseRequest) -> str:
    return SECURE_COOKIE if request.secure else COOKIE


def sent_session(request: web.BaseRequest) -> bool:
    """Whether the request has a session's cookie, be it good or not."""
    return hdrs.COOKIE in request.headers and _cookie(request) is not None


def _cookie(request: web.BaseRequest) -> str | None:
    """The session cookie. None if there are two: one of them was planted by another site."""
    name = cookie_name(request)
    pairs = (
        pair.strip().partition("=") for line in request.headers.getall(hdrs.COOKIE, ()) for pair in line.split(";")
    )
    found = [text for each, _, text in pairs if each == name]
    return found[0] if len(found) == 1 else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
