"""Every route with every method for every kind of caller, on both ways that a request is taken."""

from __future__ import annotations

import hashlib
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from kvnode.http import viewer
from kvnode.http.console import PUBLIC
from kvnode.http.door import AUTHENTICATE
from kvnode.http.gateway.cluster import REFUSED
from kvnode.http.gateway.errors import BAD_TOKEN, DENIED, NO_USER
from kvnode.state.commands import (
    END_SESSION,
    LEVEL,
    TOKEN_CREATE,
    TOKEN_PUT,
    TOKEN_REVOKE,
)
from kvnode.state.session_keys import Session, session_of, sign
from tests.http.serving import Reply, Served, Wire, serve, until
from tests.http.single import SingleGroup

FIRST = "the-first-token-of-this-cluster"
SESSION = "/admin/api/v1/session"
ANYONE = {"GET": "anyone", "HEAD": "anyone"}
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE")
READS = {"GET": "read", "HEAD": "read"}
# etcd's calls are all POSTs; kv/txn asks for the role write itself, once it knows that the transaction writes.
CALLS = {
    **dict.fromkeys(("cluster/member/list", "maintenance/status", *REFUSED), "read"),
    **dict.fromkeys(("kv/range", "kv/txn", "watch", "lease/timetolive", "kv/lease/timetolive"), "read"),
    **dict.fromkeys(("lease/leases", "kv/lease/leases"), "read"),
    **dict.fromkeys(("kv/put", "kv/deleterange"), "write"),
    **dict.fromkeys(("lease/grant", "lease/revoke", "kv/lease/revoke", "lease/keepalive"), "write"),
    "auth/authenticate": "anyone",
}
# Who may use which route: anyone, or the least role that may; begin: any role, by a token and not by a session.
# A route that is not here fails the first test, so that somebody decides.
RULES: dict[str, dict[str, str]] = {
    **{path: {"GET": "anyone", "HEAD": "anyone"} for path in ("/healthz", "/livez", "/livez/{check}", "/readyz")},
    **{path: {"GET": "anyone", "HEAD": "anyone"} for path in ("/readyz/{check}", "/admin/healthz")},
    "/admin/healthz/leader": {"GET": "anyone", "HEAD": "anyone"},
    **{path: {"GET": "anyone", "HEAD": "anyone"} for path in ("/health", "/version")},
    **{f"/{version}/{call}": {"POST": rule} for version in ("v3", "v3beta") for call, rule in CALLS.items()},
    "/metrics": READS,
    "/openapi.json": READS,
    **dict.fromkeys(viewer.routes(), READS),
    "/v1/kv": {**READS, "DELETE": "write"},
    "/v1/kv/{key}": {**READS, "PUT": "write", "DELETE": "write"},
    "/v1/watch": {"GET": "read"},
    "/v1/txn": {"POST": "write"},
    "/v1/batch": {"POST": "write"},
    "/v1/leases": {**READS, "POST": "write"},
    "/v1/leases/{id}": {**READS, "DELETE": "write"},
    "/v1/leases/{id}/keepalive": {"POST": "write"},
    **dict.fromkeys(PUBLIC, ANYONE),
    "/admin/api/v1/access": ANYONE,
    "/admin/api/v1/nodes": READS,
    **{f"/admin/api/v1/{each}": READS for each in ("timeline", "figures", "heat", "history")},
    "/admin/api/v1/cluster": READS,
    "/admin/api/v1/leader/transfer": {"POST": "admin"},
    "/admin/api/v1/drain": {"POST": "admin", "DELETE": "admin"},
    "/admin/api/v1/backup": {"GET": "admin"},
    "/admin/api/v1/restore": {"POST": "admin"},
    "/admin/api/v1/members": {**READS, "POST": "admin", "DELETE": "admin"},
    "/admin/api/v1/members/{member}": {"DELETE": "admin"},
    "/admin/api/v1/members/{member}/promote": {"POST": "admin"},
    "/admin/api/v1/members/{member}/replace": {"POST": "admin"},
    SESSION: {**READS, "POST": "begin", "DELETE": "read"},
    "/admin/api/v1/session-key": READS,
    "/admin/api/v1/session-key/rotate": {"POST": "admin"},
    "/admin/api/v1/tokens": {"GET": "admin", "HEAD": "admin", "POST": "admin"},
    "/admin/api/v1/tokens/{token}": {"PATCH": "admin", "DELETE": "admin"},
    "/admin/api/v1/tokens/{token}/rotate": {"POST": "admin"},
}
# What a caller shows -> what that is good for; '' for nothing.
CALLERS = {
    "no token": "",
    "a wrong token": "",
    "another scheme": "",
    "a revoked token": "",
    "an expired token": "",
    "a former secret": "",
    "a secret in its time of grace": "write",
    "a read_only token": "read",
    "a read token": "read",
    "a write token": "write",
    "an admin token": "admin",
    "a full token": "admin",
    "the first token": "admin",
    "a session of the read_only token": "read session",
    "a session of the write token": "write session",
    "a session of the full token": "admin session",
    "a session of the first token": "admin session",
    "a session of the revoked token": "",
    "an ended session": "",
    "an expired session": "",
    "a session of a rotated key": "",
    "a session of an open node": "",
    "a session of another first token": "",
    "a forged session": "",
    "a session of 0.1.0": "",
}
TOKENS = {"read_only": "read_only", "full": "full", "revoked": "full", "spare": "full"}
PAGE = PUBLIC | {"/admin/api/v1/access"}
NEW_TOKENS = ("read", "write", "admin", "expired", "former", "grace")  # which feature level 0 does not know
WRITING = ("PUT", "POST", "DELETE", "PATCH")
ROLES = ("read", "write", "admin")
NAMES = {"former": "a former secret", "grace": "a secret in its time of grace"}
WAYS = ("at once", "in two pieces", "behind another")
CODES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 405: "method_not_allowed"}
MESSAGES = {3: NO_USER, 7: DENIED, 16: BAD_TOKEN}
PATHS = {"{key}": "a", "{check}": "startup", "{id}": "7", "{member}": "n2", "{token}": "ab12cd34"}


def expectation(path: str, rule: str | None, method: str, right: str) -> int:
    """200 where the caller gets past the door, 401 or 403 where not."""
    role = right.partition(" ")[0]
    if rule == "anyone":
        return 200
    if not role:
        return 401
    if rule == "begin" and right.endswith("session"):
        return 403
    if rule is None:  # no such method here: to readers a method that is unknown is none that reads
        rule = "read" if method in READS else "write"
        others = ["read" if each == "begin" else each for each in RULES[path].values()]
        rule = max(rule, min(others, key=ROLES.index), key=ROLES.index)
    return 200 if rule == "begin" or ROLES.index(role) >= ROLES.index(rule) else 403


@dataclass
class Callers:
    """A group with tokens, and what each caller shows."""

    group: SingleGroup
    shows: dict[str, dict[str, str]]


async def made() -> Callers:
    group = SingleGroup()
    group.store.apply([LEVEL, 1])
    bearers = {"the first token": {"Authorization": f"Bearer {FIRST}"}}
    for number, (name, role) in enumerate(TOKENS.items()):
        group.store.apply([TOKEN_CREATE, [f"id{number}", name, role, hashlib.sha256(name.encode()).digest(), 1]])
        bearers[f"a {name} token"] = {"Authorization": f"Bearer kvnode_id{number}_{name}"}
    for name in NEW_TOKENS:
        role, digest, past = "write", hashlib.sha256(name.encode()).digest(), int(time.time() * 1000) - 1
        fields = [name, name, name if name in ROLES else role, digest, 1, [], 0, b"", 0]
        if name == "expired":
            fields[6] = past
        if name in ("former", "grace"):
            fields[3], fields[7], fields[8] = bytes(32), digest, past + (3_600_000 if name == "grace" else 0)
        group.store.apply([TOKEN_PUT, [b"", fields]])
        article = "an" if name[0] in "ae" else "a"
        bearers[NAMES.get(name, f"{article} {name} token")] = {"Authorization": f"Bearer kvnode_{name}_{name}"}
    shows: dict[str, dict[str, str]] = {"no token": {}, "a wrong token": {"Authorization": f"Bearer {FIRST}x"}}
    shows["another scheme"] = {"Authorization": f"Basic {FIRST}"}
    async with serve(group, token=FIRST) as node:
        shows["a session of a rotated key"] = await cookie(node, bearers["the first token"])
        await group.session.rotate(None, 0)
        for name, bearer in bearers.items():
            if name not in ("an expired token", "a former secret"):
                shows[f"a session of {name.replace('a ', 'the ', 1)}"] = await cookie(node, bearer)
    async with serve(group) as node:
        shows["a session of an open node"] = await cookie(node, {})
    async with serve(group, token="another-first-token") as node:
        shows["a session of another first token"] = await cookie(node, {"Authorization": "Bearer another-first-token"})
    key, number = group.session.keys[0], group.session.known.number
    good = read(shows["a session of the first token"], group)
    assert good.key_number == number == 2
    shows["an expired session"] = signed(key, good._replace(ends_at_s=int(time.time()) - 1))
    shows["a forged session"] = signed(b"2" * 31 + b"3", good._replace(id=b"f" * 16))
    shows["a session of 0.1.0"] = signed_0_1_0(key)
    ended = read(shows["a session of the spare token"], group)
    shows["an ended session"] = shows["a session of the spare token"]
    group.store.apply([END_SESSION, [ended.token_id, ended.id, ended.ends_at_s]])
    group.store.apply([TOKEN_REVOKE, f"id{[*TOKENS].index('revoked')}"])
    return Callers(group, shows | bearers)


async def cookie(node: Served, bearer: dict[str, str]) -> dict[str, str]:
    reply = await node.ask("POST", SESSION, bearer)
    assert reply.status == 200
    return {"Cookie": reply.headers["set-cookie"].partition(";")[0]}


def read(shown: dict[str, str], group: SingleGroup) -> Session:
    found = session_of(shown["Cookie"].partition("=")[2], group.session.keys, group.session.known.number, 0.0)
    assert found is not None
    return found[0]


def signed(key: bytes, session: Session) -> dict[str, str]:
    return {"Cookie": f"kvnode_session={sign(key, session)}"}


def signed_0_1_0(key: bytes) -> dict[str, str]:
    from kvnode.state.session_keys import _signature, _text

    payload = b"\x01" + (2**33).to_bytes(8, "big") + b"admin"
    return {"Cookie": f"kvnode_session={_text(payload)}.{_text(_signature(key, payload))}"}


class Asking:
    """Requests on one connection for as long as the node keeps it, each taken in the way that is named."""

    def __init__(self, node: Served, way: str) -> None:
        self.node, self.way = node, way
        self._stack = AsyncExitStack()
        self._wire: Wire | None = None

    async def __aenter__(self) -> Asking:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def __call__(self, method: str, target: str, headers: dict[str, str]) -> Reply:
        """With a body where the method has one."""
        if self._wire is None:
            self._wire = await self._stack.enter_async_context(self.node.connect())
        wire, has_body = self._wire, method in WRITING
        kind = "application/octet-stream" if target.startswith("/admin/api/v1/restore") else "application/json"
        lines = {"Host": "n", **headers, **({"Content-Type": kind, "Content-Length": "2"} if has_body else {})}
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {text}\r\n" for name, text in lines.items())
        body = b"{}" if has_body else b""
        if self.way == "behind another":
            wire.send(b"GET /livez HTTP/1.1\r\nHost: n\r\n\r\n" + head.encode() + b"\r\n" + body)
            assert (await wire.reply()).status == 200
        else:
            wire.send(head.encode() + b"\r\n" + (body[:1] if self.way == "in two pieces" else body))
            if self.way == "in two pieces":  # taken before the rest came, or answered
                await until(lambda: self._is_taken() or buffered(wire) != b"")
                wire.send(body[1:])
        reply = await wire.reply(bodiless=method == "HEAD")
        if reply.headers.get("connection") == "close":
            self._wire = None
        return reply

    def _is_taken(self) -> bool:
        return any(each._request_in_progress for each in self.node.server.connections)


def buffered(wire: Wire) -> bytes:
    return bytes(wire.reader._buffer)  # type: ignore[attr-defined]


async def test_every_route_has_a_rule() -> None:
    async with serve(SingleGroup(), token=FIRST) as node:
        methods = node.server.app._table.methods
        assert {path: sorted(each) for path, each in methods.items()} == {
            path: sorted(rule) for path, rule in RULES.items()
        }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("caller", CALLERS)
async def test_the_matrix(caller: str, way: str) -> None:
    """A parameter that no route takes is asked for, so that whatever is let in comes to nothing: 400, 404 or 405.

    But for probes, which take any parameter.
    """
    callers, right = await made(), CALLERS[caller]
    async with serve(callers.group, token=FIRST) as node, Asking(node, way) as ask:
        proposals, mark = callers.group.proposals, callers.group.store.mark
        for path, rules in RULES.items():
            if path in AUTHENTICATE:  # has its own test: it is no probe, and takes no parameter
                continue
            target = path
            for name, text in PATHS.items():
                target = target.replace(name, text)
            # What is refused, and the older paths of what is served, are the same endpoints: a part of this is enough.
            again = path.startswith("/v3beta/") or path.removeprefix("/v3/") in REFUSED
            for method in ("POST",) if again else METHODS:
                if way == "in two pieces" and method not in WRITING:
                    continue
                rule = "anyone" if "anyone" in rules.values() else rules.get(method)
                reply = await ask(method, f"{target}?no-such-parameter=1", callers.shows[caller])
                expected, what = expectation(path, rule, method, right), (method, path, reply)
                if path.startswith("/v3") and method != "HEAD" and expected in (401, 403):
                    no_token = expected == 401 and "Authorization" not in callers.shows[caller]
                    code, status = (3, 400) if no_token else (16, 401) if expected == 401 else (7, 403)
                    assert (reply.status, reply.json["code"]) == (status, code), what
                    assert reply.json["message"] == MESSAGES[code], what
                    continue
                if expected != 200:
                    assert reply.status == expected or path.startswith("/v3"), what
                elif rule == "anyone":
                    takes_any = (200, 404) if target not in PAGE else (400,)
                    assert reply.status in (takes_any if method in READS else (405,)), what
                elif method in rules:
                    assert reply.status == 400, what
                else:
                    assert reply.status == 405, what
                if method != "HEAD" and reply.status in CODES and not path.startswith("/v3"):
                    assert reply.json["error"] == CODES[reply.status], what
        assert (callers.group.proposals, callers.group.store.mark) == (proposals, mark)


LOOK_ALIKES = [
    prefix + path
    for path in ("/admin/api/v1/backup", "/admin/api/v1/tokens")
    for prefix in ("/", "/.", "/./", "/x/..", "/livez/..", "/livez/%2e%2e", "/readyz/leader/../..", "/admin/healthz/..")
] + [
    *("/admin/api/v1/backup/", "/admin/api/v1/tokens/", "/admin/api/v1/tokens/x/..", "/admin//api/v1/backup"),
    *("/ADMIN/api/v1/backup", "/admin/api/v1/Backup", "/admin/api/v1/%62ackup", "/admin/api/v1%2fbackup"),
    *("/admin/api/v1/backup%00", "/admin/api/v1/backup;x", "/admin/api/v1/backup%3f", "/admin/api/v1/backup#x"),
    *("/admin/api/v1/./backup", "/admin/api/v1/x/../backup", "/admin\\api\\v1\\backup", "admin/api/v1/backup"),
    *("x://h//admin/api/v1/backup", "1x://h/admin/api/v1/backup", "http:/admin/api/v1/backup", "?/admin/api/v1/backup"),
    *("/v1/kv/../../admin/api/v1/backup", "/v1/kv/%2e%2e/%2e%2e/admin/api/v1/tokens", "/v1/watch/../tokens"),
]  # fmt: skip
ABSOLUTE = [
    f"{origin}/admin/api/v1/{path}"
    for origin in ("http://n", "HTTP://other", "https://u:p@n:1", "ws://n")
    for path in ("backup", "tokens")
]


@pytest.mark.parametrize(
    "caller", ["no token", "a read_only token", "a session of the read_only token", "a revoked token"]
)
async def test_no_spelling_of_a_path_gets_past_the_rules(caller: str) -> None:
    callers = await made()
    async with serve(callers.group, token=FIRST) as node:
        for target in LOOK_ALIKES:
            reply = await node.ask("GET", target, callers.shows[caller])
            assert reply.status in (400, 401, 403, 404), (target, reply)
            assert reply.status != 404 or reply.json["error"] in ("not_found", "unknown_endpoint", "key_not_found")
            if not CALLERS[caller] and not target.startswith(("/livez/", "/readyz/")):
                assert reply.status in (400, 401), (target, reply)
        for target in ABSOLUTE:
            assert (await node.ask("GET", target, callers.shows[caller])).status in (401, 403), target
        for method in ("CONNECT", "MOVE", "get", "QUERY"):
            reply = await node.ask(method, "/admin/api/v1/tokens", callers.shows[caller])
            assert reply.status in (400, 401, 403), (method, reply)


async def test_what_looks_like_an_api_path_is_a_key_and_nothing_else() -> None:
    callers = await made()
    async with serve(callers.group, token=FIRST) as node:
        for key in ("../../admin/api/v1/backup", "%2e%2e/%2e%2e/admin/api/v1/tokens", "admin/healthz", "/livez"):
            target = f"/v1/kv/{key}"
            assert (await node.ask("PUT", target, callers.shows["no token"], b"1")).status == 401
            assert (await node.ask("PUT", target, callers.shows["a read_only token"], b"1")).status == 403
            assert (await node.ask("PUT", target, callers.shows["a full token"], b"1")).status == 200
            assert (await node.ask("GET", target, callers.shows["a read_only token"])).body == b"1"
