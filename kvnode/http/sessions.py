"""Sessions, signed by the cluster's key, so that each node accepts what another one signed; and that key.

A session has the right of the token that began it, and ends with it: the cookie says whose it is, and the node looks
that up at each request (`credentials.py`). No list is kept of sessions that go on; one that is ended before its time is
noted in the replicated state until it would have been over.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest, Forbidden, Starting, Unauthorized, Unavailable
from kvnode.http.answer import Answer, json_answer
from kvnode.http.audit import Noted
from kvnode.http.credentials import Admission, Credentials, cookie_name, shown
from kvnode.http.document import read_object, refuse_fields
from kvnode.http.door import SESSION_PATH as PATH
from kvnode.http.group import Group
from kvnode.http.rights import READ
from kvnode.http.route import Endpoint, Handler, Methods
from kvnode.node.status import RaftStatus
from kvnode.state.commands import EndSession
from kvnode.state.limits import SESSION_GRACE_S_MAX, SESSION_ID_BYTES
from kvnode.state.results import SessionEnded
from kvnode.state.session_keys import Session, SessionKeys, sign

KEY_PATH: Final = "/admin/api/v1/session-key"
SUBJECT: Final = "admin"  # of a session that began on a node which asks for no token
# A working day: long enough not to be in the way, short enough that a lost cookie is soon worth nothing.
SESSION_S: Final = 8 * 3_600
# By default a rotation ends no session early.
GRACE_S: Final = SESSION_S
REQUEST_BYTES_MAX: Final = 4_096

# Strict: no other site's page can act with it; HttpOnly: no script can read it (RFC 6265bis).
_COOKIE: Final = "Set-Cookie: {}={}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{}\r\n"


def routes(group: Group, credentials: Credentials) -> dict[str, Methods]:
    async def begin(request: web.BaseRequest, rest: str, query: str) -> Answer:
        """A session with the right of the token that the request carries."""
        await refuse_fields(request)
        keys = group.session.keys
        if not keys:
            raise Starting(f"{group.session.error}.")
        token, secret = credentials.whom(request)
        if token is None:
            raise Forbidden("A session begins with a token; send it as 'Authorization: Bearer TOKEN'.")
        ends_at_s = int(time.time()) + SESSION_S
        number = group.session.known.number
        generation = token.generation(keys[0], group.status().cluster_id, secret)
        session = Session(secrets.token_bytes(SESSION_ID_BYTES), token.id, generation, number, ends_at_s)
        cookie = _cookie(request, sign(keys[0], session), SESSION_S)
        document = _whose(Admission(credentials, token, secret, session)) | {"ends_at": ends_at_s}
        return Noted(json_answer(200, document, cookie), f"began session {shown(session)}")

    def whose(request: web.BaseRequest, rest: str, query: str) -> Answer:
        admission = credentials.session(request)
        if admission is None:
            raise Unauthorized("There is no session, or it is over: begin one with POST.")
        return json_answer(200, _whose(admission))

    async def end(request: web.BaseRequest, rest: str, query: str) -> Answer:
        """Ends the cookie's session on every node, and takes the cookie back."""
        await refuse_fields(request)
        answer = json_answer(200, {"ended": True}, _cookie(request, "", 0))
        admission = credentials.session(request)
        if admission is None or admission.session is None:
            return answer  # it is over already, or there is none
        if group.store.level < 1:
            raise Unavailable(
                "Some member of this cluster is of a version that cannot note the end of a session: update it, or end "
                "all sessions with 'kvnode session-key rotate --grace 0'."
            )
        session = admission.session
        result = await group.propose(EndSession(session.token_id, session.id, session.ends_at_s).encode())
        if not isinstance(result, SessionEnded):
            raise Unavailable("The session could not be ended; send the request again.")
        return Noted(answer, f"ended session {shown(session)}")

    def key(request: web.BaseRequest, rest: str, query: str) -> Answer:
        return json_answer(200, _shown(group.session.known, group.status()))

    async def rotate(request: web.BaseRequest, rest: str, query: str) -> Answer:
        grace_s = await _grace_s(request)
        return json_answer(200, _shown(await group.session.rotate(group.propose, grace_s), group.status()))

    def any_role(handler: Handler) -> Endpoint:
        """Routes for the holder of a token: what it may see, and its sessions."""
        return Endpoint(handler, right=READ, scoped=True)

    look, look_at_key = any_role(whose), any_role(key)
    return {
        PATH: {"GET": look, "HEAD": look, "POST": any_role(begin), "DELETE": any_role(end)},
        KEY_PATH: {"GET": look_at_key, "HEAD": look_at_key},
        KEY_PATH + "/rotate": {"POST": rotate},
    }


def _cookie(request: web.BaseRequest, text: str, max_age_s: int) -> bytes:
    """What came by TLS goes by TLS alone."""
    return _COOKIE.format(cookie_name(request), text, max_age_s, "; Secure" if request.secure else "").encode()


def _whose(admission: Admission) -> dict[str, Any]:
    token = admission.token
    if not token.id:
        return {"subject": SUBJECT}
    scope = {"prefixes": list(token.prefixes)} if token.prefixes else {}
    return {"subject": token.name, "token": token.id, "role": token.role, **scope}


def _shown(known: SessionKeys, status: RaftStatus) -> dict[str, Any]:
    """The key's fingerprint, never the key."""
    return {
        "number": known.number,
        "fingerprint": known.fingerprint.hex() or None,
        "origin": None if not known.number else "cluster" if known.key else "given",
        "previous": None if known.previous is None else known.previous[1].hex(),
        "grace_s": known.grace_s,
        "error": status.session_error,
    }


async def _grace_s(request: web.BaseRequest) -> int:
    document = await read_object(request, REQUEST_BYTES_MAX, frozenset(("grace_s",)), optional=True)
    grace_s = document.get("grace_s", GRACE_S)
    if type(grace_s) is not int or not 0 <= grace_s <= SESSION_GRACE_S_MAX:
        raise BadRequest(f'"grace_s" is a whole number of seconds, 0 to {SESSION_GRACE_S_MAX}.')
    return grace_s
