"""Admin sessions, signed by the cluster's key, so that each node accepts what another one signed; and that key."""

from __future__ import annotations

import json
import time
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest, Starting, Unauthorized
from kvnode.http.answer import Answer, json_answer
from kvnode.http.body import read_body
from kvnode.http.group import Group
from kvnode.http.route import Methods
from kvnode.limits import SESSION_GRACE_S_MAX
from kvnode.raft.status import RaftStatus
from kvnode.session import SessionKeys, sign, subject_of

PATH: Final = "/admin/api/v1/session"
KEY_PATH: Final = "/admin/api/v1/session-key"
COOKIE: Final = "kvnode_session"
SUBJECT: Final = "admin"
# A working day: long enough not to be in the way, short enough that a lost cookie is soon worth nothing.
SESSION_S: Final = 8 * 3_600
# By default a rotation ends no session early.
GRACE_S: Final = SESSION_S
REQUEST_BYTES_MAX: Final = 4_096

# Strict: no other site's page can act with it; HttpOnly: no script can read it (RFC 6265bis).
_COOKIE: Final = "Set-Cookie: {}={}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{}\r\n"


def routes(group: Group) -> dict[str, Methods]:
    def begin(request: web.BaseRequest, rest: str, query: str) -> Answer:
        """Whoever may ask for it gets one; who may is for those to decide who stand before this."""
        keys = group.session.keys
        if not keys:
            raise Starting(f"{group.session.error}.")
        ends_at = int(time.time()) + SESSION_S
        cookie = _COOKIE.format(COOKIE, sign(keys[0], SUBJECT, ends_at), SESSION_S, _secure(request))
        return json_answer(200, {"subject": SUBJECT, "ends_at": ends_at}, cookie.encode())

    def whose(request: web.BaseRequest, rest: str, query: str) -> Answer:
        subject = session_subject(group, request)
        if subject is None:
            raise Unauthorized("There is no session, or it is over: begin one with POST.")
        return json_answer(200, {"subject": subject})

    def end(request: web.BaseRequest, rest: str, query: str) -> Answer:
        """Takes the cookie back. What was signed stays good until its time is over, or the key is rotated."""
        return json_answer(200, {"ended": True}, _COOKIE.format(COOKIE, "", 0, _secure(request)).encode())

    def key(request: web.BaseRequest, rest: str, query: str) -> Answer:
        return json_answer(200, _shown(group.session.known, group.status()))

    async def rotate(request: web.BaseRequest, rest: str, query: str) -> Answer:
        grace_s = await _grace_s(request)
        return json_answer(200, _shown(await group.session.rotate(group.propose, grace_s), group.status()))

    return {
        PATH: {"GET": whose, "HEAD": whose, "POST": begin, "DELETE": end},
        KEY_PATH: {"GET": key, "HEAD": key},
        KEY_PATH + "/rotate": {"POST": rotate},
    }


def _secure(request: web.BaseRequest) -> str:
    """What came by TLS goes by TLS alone."""
    return "; Secure" if request.secure else ""


def session_subject(group: Group, request: web.BaseRequest) -> str | None:
    """Whose session the request's cookie is, None where it has none that this cluster signed and that is not over."""
    for pair in request.headers.get("Cookie", "").split(";"):
        name, _, token = pair.strip().partition("=")
        if name == COOKIE:
            return subject_of(token, group.session.keys, time.time())
    return None


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
    body = await read_body(request, REQUEST_BYTES_MAX)
    try:
        document: Any = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
    if not isinstance(document, dict) or not set(document) <= {"grace_s"}:
        raise BadRequest('The body is a JSON object with "grace_s" at most.')
    grace_s = document.get("grace_s", GRACE_S)
    if type(grace_s) is not int or not 0 <= grace_s <= SESSION_GRACE_S_MAX:
        raise BadRequest(f'"grace_s" is a whole number of seconds, 0 to {SESSION_GRACE_S_MAX}.')
    return grace_s
