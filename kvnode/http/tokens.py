"""Access tokens: making, listing, changing, rotating and revoking them. Replicated, so that it holds everywhere.

A token is made on the node that is asked, which shows it once: what goes into the log is its hash. That node also reads
its clock: times are absolute in the log, and each node judges by its own clock whether one is over.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest, Conflict, TokenNotFound, TooManyTokens, Unavailable
from kvnode.http.answer import Answer, json_answer
from kvnode.http.audit import Noted
from kvnode.http.credentials import Credentials
from kvnode.http.document import read_object, refuse_fields
from kvnode.http.group import Group
from kvnode.http.paths import decode
from kvnode.http.recent import unanswered
from kvnode.http.route import Methods
from kvnode.state.commands import CreateToken, PutToken, RevokeToken
from kvnode.state.limits import (
    ADMIN_ROLES,
    PREFIXES_BYTES_MAX,
    PREFIXES_MAX,
    ROLES,
    TOKEN_NAME_BYTES_MAX,
    prefixes_fault,
    text_fault,
)
from kvnode.state.results import (
    Invalid,
    Result,
    TokenChanged,
    TokenMissing,
    TokensFull,
)
from kvnode.state.tokens import NAME_TAKEN, Token

PATH: Final = "/admin/api/v1/tokens"
REPORT: Final = "token_uses"  # what each node says of its own when a listing asks all
REQUEST_BYTES_MAX: Final = 65_536
SECRET_BYTES: Final = 32
ID_BYTES: Final = 4
# Long enough to hand a new secret to every program that has the old one, with a restart of each.
GRACE_S: Final = 3_600
GRACE_S_MAX: Final = 31 * 86_400
EXPIRES_S_MAX: Final = 10 * 366 * 86_400
# The words of version 0.1, while a member may be of it. What it has no word for waits until none is.
WORDS_0_1: Final = {"read": "read_only", "admin": "full"}

UNASKED: Final = (
    "This node asks for no token, so this one protects nothing yet: start the nodes with --token-file, and they ask."
)
_NEW: Final = frozenset(("name", "role", "prefixes", "expires_s"))
_CHANGED: Final = frozenset(("role", "prefixes", "expires_s"))
_ROTATED: Final = frozenset(("grace_s",))


def routes(group: Group, credentials: Credentials, node_id: str) -> dict[str, Methods]:
    tokens = Tokens(group, credentials, node_id)
    group.own_reports[REPORT] = lambda since_ms: {"last_used_ms": credentials.last_used_ms()}
    return {
        PATH: {"GET": tokens.list, "HEAD": tokens.list, "POST": tokens.create},
        PATH + "/{token}": {"PATCH": tokens.change, "DELETE": tokens.revoke},
        PATH + "/{token}/rotate": {"POST": tokens.rotate},
    }


class Tokens:
    """The handlers."""

    __slots__ = ("_credentials", "_group", "_node_id")

    def __init__(self, group: Group, credentials: Credentials, node_id: str) -> None:
        self._group = group
        self._credentials = credentials
        self._node_id = node_id

    async def list(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        await self._group.read_barrier()
        reports = await self._group.reports(REPORT)
        told = [each.get("last_used_ms") for each in reports.values()]
        used_ms = _last_uses((self._credentials.last_used_ms(), *told))  # its own may be newer than a shared report
        found = [_shown(token, used_ms) for token in self._group.store.tokens.view()]
        document = {"tokens": found, "node": self._node_id, "unanswered": unanswered(self._group, reports)}
        return json_answer(200, document)

    async def create(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        document = await read_object(request, REQUEST_BYTES_MAX, _NEW)
        name, role, now_ms = _name(document), _role(document), _now_ms()
        prefixes, expires_ms = _prefixes(document, role), _expires_ms(document, now_ms)
        level = self._group.store.level
        if level < 1:
            role = WORDS_0_1.get(role, role)
        tokens = self._group.store.tokens.view()
        _refuse_taken(name, any(name in (token.name, token.id) for token in tokens))
        secret, token_id = _secret(), secrets.token_hex(ID_BYTES)
        token = Token(token_id, name, role, _digest(secret), now_ms, prefixes, expires_ms)
        if token.scoped:
            self._need_level()
            result = await self._group.propose(PutToken(b"", tuple(token)).encode())
        else:
            result = await self._group.propose(CreateToken(*token[:5]).encode())
        if isinstance(result, TokensFull):
            raise TooManyTokens("The cluster holds as many tokens as it may; revoke those that nobody uses.")
        _refuse_taken(name, isinstance(result, Invalid) and result.reason == NAME_TAKEN)
        if not isinstance(result, TokenChanged):
            raise BadRequest("The token could not be made; send the request again.")
        return Noted(self._made(token, secret), f"made token {_named(token)}")

    async def change(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        """Another role, other prefixes or another end. What was let in with the rights that it had ends."""
        document = await read_object(request, REQUEST_BYTES_MAX, _CHANGED)
        if not document:
            raise BadRequest(f"The body names nothing to change; known: {', '.join(sorted(_CHANGED))}.")
        token, now_ms = await self._token(rest), _now_ms()
        role = _role(document) if "role" in document else token.role
        changed = token._replace(role=role)
        if "prefixes" in document:
            changed = changed._replace(prefixes=_prefixes(document, role))
        elif role in ADMIN_ROLES and token.prefixes:
            raise BadRequest('An administrator\'s token has no prefixes: send "prefixes": [] with this role.')
        if "expires_s" in document:
            changed = changed._replace(expires_ms=_expires_ms(document, now_ms))
        await self._put(token, changed)
        return Noted(
            json_answer(200, _shown(changed, self._credentials.last_used_ms())), f"changed token {_named(changed)}"
        )

    async def rotate(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        """Another secret; the one before it counts for `grace_s` more, so that nothing stops meanwhile."""
        document = await read_object(request, REQUEST_BYTES_MAX, _ROTATED, optional=True)
        grace_s = _seconds(document.get("grace_s", GRACE_S), 0, GRACE_S_MAX, "grace_s")
        token, secret = await self._token(rest), _secret()
        former = (token.digest, _now_ms() + 1_000 * grace_s) if grace_s else (b"", 0)
        rotated = token._replace(digest=_digest(secret), former=former[0], former_until_ms=former[1])
        await self._put(token, rotated)
        return Noted(self._made(rotated, secret), f"rotated token {_named(rotated)}, with {grace_s} s of grace")

    async def revoke(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        await refuse_fields(request)
        token = await self._token(rest)
        result = await self._group.propose(RevokeToken(token.id).encode())
        if isinstance(result, TokenChanged):
            return Noted(json_answer(200, {"revoked": token.id}), f"revoked token {_named(token)}")
        if isinstance(result, TokenMissing):
            raise _missing()
        raise BadRequest("The token could not be revoked; send the request again.")

    # --- inside -----------------------------------------------------------------------------------------

    async def _token(self, rest: str) -> Token:
        """The token with this id or, if there is none, of this name. Raises TokenNotFound, Conflict."""
        text = decode(rest, "token")
        if text_fault("token", text, 1, TOKEN_NAME_BYTES_MAX) is not None:
            raise BadRequest("This is neither the id nor the name of a token; kvnode token list shows them.")
        found = self._found(text)
        if found is None:  # this node may be behind
            await self._group.read_barrier()
            found = self._found(text)
        if found is None:
            raise _missing()
        return found

    def _found(self, text: str) -> Token | None:
        tokens = self._group.store.tokens
        if (token := tokens.get(text)) is not None:
            return token
        named = [token for token in tokens.view() if token.name == text]
        if len(named) > 1:
            raise Conflict("More than one token has this name, from before names were given once: say the id.")
        return named[0] if named else None

    async def _put(self, before: Token, token: Token) -> None:
        """`token` in the place of `before`."""
        self._need_level()
        result: Result = await self._group.propose(PutToken(before.mark, tuple(token)).encode())
        if isinstance(result, TokenMissing):
            raise _missing()
        if not isinstance(result, TokenChanged):
            raise Conflict("The token was changed by somebody else at the same time: look at it, and send this again.")

    def _need_level(self) -> None:
        if self._group.store.level < 1:
            raise Unavailable(
                "Some member of this cluster is of a version that knows no other roles than read_only and full, no "
                "prefixes, no expiry and no rotation: update it first."
            )

    def _made(self, token: Token, secret: str) -> Answer:
        """With the secret, this once."""
        warning = {} if self._credentials.first is not None else {"warning": UNASKED}
        return json_answer(
            200, {**_shown(token, self._credentials.last_used_ms()), "token": f"kvnode_{token.id}_{secret}", **warning}
        )


def _shown(token: Token, used_ms: Mapping[str, int]) -> dict[str, Any]:
    """Without a secret. `used_ms`: when each token was last used, by its id."""
    now_ms = _now_ms()
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "prefixes": list(token.prefixes),
        "created_ms": token.created_ms,
        "expires_ms": token.expires_ms or None,
        "expired": 0 < token.expires_ms <= now_ms,
        "former_until_ms": token.former_until_ms if token.former_until_ms > now_ms else None,
        "last_used_ms": used_ms.get(token.id),
    }


def _last_uses(told: Iterable[object]) -> dict[str, int]:
    """The latest use by token id, from the nodes' reports. Skips entries of other shapes: versions may differ."""
    latest: dict[str, int] = {}
    for uses in told:
        for token_id, used_ms in uses.items() if isinstance(uses, dict) else ():
            if type(used_ms) is int:
                latest[token_id] = max(used_ms, latest.get(token_id, 0))
    return latest


def _named(token: Token) -> str:
    """As the audit log names a token that was made, changed or ended."""
    scope = f", {', '.join(token.prefixes)}" if token.prefixes else ""
    return f"{token.id} ({token.name}, {token.role}{scope})"


def _refuse_taken(name: str, taken: bool) -> None:
    """The audit log and the listing tell tokens apart by their names, and so do commands. Raises Conflict."""
    if taken:
        raise Conflict(f"There is a token named {name!r} already: choose another name, or revoke that one first.")


def _missing() -> TokenNotFound:
    return TokenNotFound("There is no token with this id or name, or not any more.")


def _name(document: Mapping[str, Any]) -> str:
    name = document.get("name")
    fault = text_fault("token's name", name, 1, TOKEN_NAME_BYTES_MAX)
    if fault is not None or not str(name).isprintable():
        raise BadRequest(f'"name" says whose token it is, in 1 to {TOKEN_NAME_BYTES_MAX} bytes of printable text.')
    return str(name)


def _role(document: Mapping[str, Any]) -> str:
    role = document.get("role")
    if role not in ROLES:
        raise BadRequest(f'"role" is one of {", ".join(ROLES)}.')
    return str(role)


def _prefixes(document: Mapping[str, Any], role: str) -> tuple[str, ...]:
    """Sorted, without those that lie under another one; () for all keys. Raises BadRequest."""
    given = document.get("prefixes", [])
    if type(given) is not list or not all(type(each) is str for each in given) or "" in given:
        raise BadRequest('"prefixes" is a list of what the token\'s keys begin with; leave it out for all keys.')
    if given and role in ADMIN_ROLES:
        raise BadRequest("An administrator's token has no prefixes: leave them out, or choose another role.")
    kept: list[str] = []
    for prefix in sorted(given):
        if not (kept and prefix.startswith(kept[-1])):
            kept.append(prefix)
    if prefixes_fault(kept) is not None:
        raise BadRequest(f'"prefixes" has up to {PREFIXES_MAX} texts, of {PREFIXES_BYTES_MAX} bytes of UTF-8 together.')
    return tuple(kept)


def _expires_ms(document: Mapping[str, Any], now_ms: int) -> int:
    """When the token expires, in milliseconds since 1970; 0 for never."""
    expires_s = document.get("expires_s")
    return 0 if expires_s is None else now_ms + 1_000 * _seconds(expires_s, 1, EXPIRES_S_MAX, "expires_s")


def _seconds(number: Any, least: int, most: int, name: str) -> int:
    if type(number) is not int or not least <= number <= most:
        raise BadRequest(f'"{name}" is a whole number of seconds, {least} to {most}.')
    return number


def _secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _now_ms() -> int:
    return int(time.time() * 1000)
