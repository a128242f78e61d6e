"""Access tokens: making one, listing them, revoking one. Replicated, so that it holds on every node.

A token is made on the node that is asked, which shows it once: what goes into the log is its hash.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest, Conflict, TokenNotFound, TooManyTokens
from kvnode.http.answer import Answer, json_answer
from kvnode.http.audit import Noted
from kvnode.http.document import read_object
from kvnode.http.group import Group
from kvnode.http.paths import decode
from kvnode.http.route import Methods
from kvnode.state.commands import CreateToken, RevokeToken
from kvnode.state.limits import (
    ROLES,
    TOKEN_ID_CHARS_MAX,
    TOKEN_NAME_BYTES_MAX,
    text_fault,
)
from kvnode.state.results import (
    Invalid,
    TokenChanged,
    TokenMissing,
    TokensFull,
)
from kvnode.state.tokens import NAME_TAKEN, Token

PATH: Final = "/admin/api/v1/tokens"
REQUEST_BYTES_MAX: Final = 65_536
SECRET_BYTES: Final = 32
ID_BYTES: Final = 4


UNASKED: Final = (
    "This node asks for no token, so this one protects nothing yet: start the nodes with --token-file, and they ask."
)


def routes(group: Group, asks_for_tokens: bool = True) -> dict[str, Methods]:
    async def tokens(request: web.BaseRequest, rest: str, query: str) -> Answer:
        await group.read_barrier()
        return json_answer(200, {"tokens": [_shown(token) for token in group.store.tokens.view()]})

    async def create(request: web.BaseRequest, rest: str, query: str) -> Answer:
        name, role = await _wanted(request)
        _refuse_taken(name, any(token.name == name for token in group.store.tokens.view()))
        secret = secrets.token_urlsafe(SECRET_BYTES)
        token = Token(secrets.token_hex(ID_BYTES), name, role, hashlib.sha256(secret.encode()).digest(), _now_ms())
        result = await group.propose(CreateToken(*token).encode())
        if isinstance(result, TokensFull):
            raise TooManyTokens("The cluster holds as many tokens as it may; revoke those that nobody uses.")
        _refuse_taken(name, isinstance(result, Invalid) and result.reason == NAME_TAKEN)
        if not isinstance(result, TokenChanged):
            raise BadRequest("The token could not be made; send the request again.")
        warning = {} if asks_for_tokens else {"warning": UNASKED}
        answer = json_answer(200, {**_shown(token), "token": f"kvnode_{token.id}_{secret}", **warning})
        return Noted(answer, f"made token {token.id} ({token.name}, {token.role})")

    async def revoke(request: web.BaseRequest, rest: str, query: str) -> Answer:
        token_id = decode(rest, "token")
        if text_fault("token's id", token_id, 1, TOKEN_ID_CHARS_MAX) is not None:
            raise BadRequest("This is not the id of a token; kvnode token list shows them.")
        token = group.store.tokens.get(token_id)
        result = await group.propose(RevokeToken(token_id).encode())
        if isinstance(result, TokenChanged):
            named = "" if token is None else f" ({token.name}, {token.role})"
            return Noted(json_answer(200, {"revoked": token_id}), f"revoked token {token_id}{named}")
        if isinstance(result, TokenMissing):
            raise TokenNotFound("There is no token with this id, or not any more.")
        raise BadRequest("This is not the id of a token; kvnode token list shows them.")

    return {
        PATH: {"GET": tokens, "HEAD": tokens, "POST": create},
        PATH + "/{token}": {"DELETE": revoke},
    }


def _refuse_taken(name: str, taken: bool) -> None:
    """The audit log and the listing tell tokens apart by their names. Raises Conflict."""
    if taken:
        raise Conflict(f"There is a token named {name!r} already: choose another name, or revoke that one first.")


async def _wanted(request: web.BaseRequest) -> tuple[str, str]:
    """The name and the role of the token to make."""
    document = await read_object(request, REQUEST_BYTES_MAX, frozenset(("name", "role")))
    name, role = document.get("name"), document.get("role")
    fault = text_fault("token's name", name, 1, TOKEN_NAME_BYTES_MAX)
    if fault is not None or not str(name).isprintable():
        raise BadRequest(f'"name" says whose token it is, in 1 to {TOKEN_NAME_BYTES_MAX} bytes of printable text.')
    if role not in ROLES:
        raise BadRequest(f'"role" is {" or ".join(ROLES)}.')
    return str(name), str(role)


def _shown(token: Token) -> dict[str, Any]:
    return {"id": token.id, "name": token.name, "role": token.role, "created_ms": token.created_ms}


def _now_ms() -> int:
    return int(time.time() * 1000)
