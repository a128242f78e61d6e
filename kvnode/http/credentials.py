"""Who asks: bearer tokens (RFC 6750) and sessions, and whether what let a request in holds still.

There is no cache that a revocation would have to reach. A token is looked up by its id in the replicated state itself,
a session by its token, its end and the key that signed it; at each request, and again at each delivery of a stream, at
the end of whatever made a request wait, and at least every REVIEW_S for what goes on meanwhile (`stream.Streams`).
"""

from __future__ import annotations

import hashlib
import time
from hmac import compare_digest
from typing import TYPE_CHECKING, Final, cast

from aiohttp import hdrs, web

from kvnode.errors import Unauthorized
from kvnode.http.group import Group
from kvnode.state.session_keys import Session, session_of
from kvnode.state.tokens import ANONYMOUS, FIRST, Token

if TYPE_CHECKING:
    from kvnode.http.connection import Connection

PREFIX: Final = "kvnode_"
COOKIE: Final = "kvnode_session"
# Under TLS a browser takes a cookie of this name from the node itself alone: no other name of the domain, no path and
# nobody on an unencrypted way can put another one in its place (RFC 6265bis, 4.1.3.2).
SECURE_COOKIE: Final = "__Host-kvnode_session"
# What was let in and goes on (streams, long polls, backups) is looked at as often. With the time that a revocation
# takes to be applied it ends within two seconds; a look at ten thousand streams takes 3 ms.
REVIEW_S: Final = 0.5
ENDED: Final = "What this request was let in with has ended meanwhile: the token was revoked, or the session is over."

_ANYBODY: Final = Token(ANONYMOUS, "anonymous", "full", b"", 0)


class Admission:
    """What a request was let in with: `token`, or a `session` that has the right of that token."""

    __slots__ = ("_credentials", "session", "token")

    def __init__(self, credentials: Credentials, token: Token, session: Session | None) -> None:
        self._credentials = credentials
        self.token = token
        self.session = session

    def holds(self) -> bool:
        """Whether it would let a request in now. It is never true again once it was not."""
        credentials, token, session = self._credentials, self.token, self.session
        found = credentials.named(token.id)
        if found is not token and found != token:  # a snapshot that is installed brings every token anew
            return False
        return session is None or credentials.goes_on(session)

    def __str__(self) -> str:
        """As the audit log names it."""
        token = f"token {self.token.id} ({self.token.name})" if self.token.id else "anonymous"
        return token if self.session is None else f"session {shown(self.session)} of {token}"


class Credentials:
    """`first`: the token that the node was started with, None where it asks for none."""

    __slots__ = ("_group", "first")

    def __init__(self, group: Group, first: str) -> None:
        self._group = group
        self.change_first(first)

    def change_first(self, first: str) -> None:
        """Another first token, '' for none. What was let in with the one before ends."""
        self.first = Token(FIRST, "the node's own --token-file", "full", _digest(first), 0) if first else None

    def admission(self, request: web.BaseRequest) -> Admission | None:
        """What the request is let in with, None where it has nothing that is good now. A header counts, not a cookie
        beside it."""
        header = request.headers.get(hdrs.AUTHORIZATION)
        connection = cast("Connection", request.protocol)
        if header is None:
            found = self.session(request) if hdrs.COOKIE in request.headers else None
            connection.credential = None if found is None else (None, found)
            return found
        known = connection.credential
        if known is not None and known[0] == header:
            # Verified on this connection before; what is asked again is whether the token is still the same one.
            token = known[1].token
            if token is self.first or self._group.store.tokens.get(token.id) is token:
                return known[1]
        found = self._bearer(header)
        connection.credential = None if found is None else (header, found)
        return found

    def session(self, request: web.BaseRequest) -> Admission | None:
        """The session that the request's cookie stands for, as long as it goes on."""
        cookie, signing = _cookie(request), self._group.session
        read = None if cookie is None else session_of(cookie, signing.keys, signing.known.number, time.time())
        if read is None:
            return None
        session, key = read
        token = self.named(session.token_id)
        if token is None or not self.goes_on(session):
            return None
        if not compare_digest(token.generation(key, self._group.status().cluster_id), session.generation):
            return None
        return Admission(self, token, session)

    def named(self, token_id: str) -> Token | None:
        """The token that has this id now."""
        first = self.first
        if first is None:
            return _ANYBODY if token_id == ANONYMOUS else None
        return first if token_id == FIRST else self._group.store.tokens.get(token_id)

    def goes_on(self, session: Session) -> bool:
        """Whether a session goes on as far as it is not its token's: it was not ended, and its key still counts."""
        signing = self._group.session
        return (
            0 <= signing.known.number - session.key_number < len(signing.keys)
            and session.ends_at_s > time.time()
            and not self._group.store.ended_sessions.has(session)
        )

    def whom(self, request: web.BaseRequest) -> Token | None:
        """Whose session would begin with this request: the bearer's, or anybody's where no token is asked for."""
        if self.first is None:
            return _ANYBODY
        admission = self.admission(request)
        return None if admission is None or admission.session is not None else admission.token

    def _bearer(self, header: str) -> Admission | None:
        """A token behind its scheme, or bare, as etcd's clients send it."""
        scheme, space, credential = header.partition(" ")
        if space and scheme.lower() != "bearer":
            return None
        return self.by_secret(credential.strip() if space else header)

    def by_secret(self, credential: str) -> Admission | None:
        """What whoever has this token is let in with."""
        first = self.first
        if first is not None and compare_digest(_digest(credential), first.digest):
            return Admission(self, first, None)
        token_id, _, secret = credential.removeprefix(PREFIX).partition("_")
        token = self._group.store.tokens.get(token_id)
        if token is not None and compare_digest(_digest(secret), token.digest):
            return Admission(self, token, None)
        return None


def admission_of(request: web.BaseRequest) -> Admission | None:
    """What the request that is being answered was let in with; None where nothing was asked for."""
    known = cast("Connection", request.protocol).credential
    return None if known is None else known[1]


def check_still_admitted(request: web.BaseRequest) -> None:
    """To be called after whatever can take long. Unauthorized where the request would not be let in any more."""
    admission = admission_of(request)
    if admission is not None and not admission.holds():
        raise Unauthorized(ENDED)


def shown(session: Session) -> str:
    """A session's id for people: the signature is what is secret of a cookie."""
    return session.id.hex()[:12]


def cookie_name(request: web.BaseRequest) -> str:
    return SECURE_COOKIE if request.secure else COOKIE


def _cookie(request: web.BaseRequest) -> str | None:
    """The one cookie of the name that is right here. With two of them somebody else has put one there: neither."""
    name = cookie_name(request)
    pairs = (
        pair.strip().partition("=") for line in request.headers.getall(hdrs.COOKIE, ()) for pair in line.split(";")
    )
    found = [text for each, _, text in pairs if each == name]
    return found[0] if len(found) == 1 else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
