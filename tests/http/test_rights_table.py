"""Every route for a token with prefixes, inside and outside of them, by each way in which it may be shown.

Drawn from the route table: a route that has no line here fails, so that somebody decides.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, Final

import pytest

from kvnode.http import viewer
from kvnode.http.console import PUBLIC
from tests.http.serving import Reply, Wire, serve
from tests.http.single import SingleGroup
from tests.http.test_rights import FIRST, OWN, a_group, bearer, put_token

SESSION = "/admin/api/v1/session"
# What of a token with prefixes a route is for.
KEYLESS: Final = "names no key, and shows none"
NEVER: Final = "takes a token without prefixes, or an administrator's"
ANYBODY: Final = "needs no token"
READS: Final = ("GET", "HEAD")


class Keys:
    """What a request has to say to name a key under a prefix, and one that lies under none."""

    def __init__(self, inside: str, outside: str = "", inside_body: Any = None, outside_body: Any = None) -> None:
        self.inside, self.outside = (inside, inside_body), (outside or inside, outside_body)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def v3(call: str, inside: Any, outside: Any) -> Keys:
    return Keys(f"/v3/{call}", "", inside, outside)


def put(key: str) -> dict[str, str]:
    return {"key": b64(key), "value": b64("v")}


GET_KEY: Final = Keys("/v1/kv/app/1", "/v1/kv/c/1")
LIST: Final = Keys("/v1/kv?prefix=app/", "/v1/kv?prefix=a")
# Lease 1 has the key c/1, which others have put on it; lease 2 has app/1.
LEASE: Final = Keys("/v1/leases/2", "/v1/leases/1")
HISTORY: Final = Keys("/admin/api/v1/history?key=app/1", "/admin/api/v1/history?key=c/1")
TABLE: dict[tuple[str, str], Keys | str] = {
    **{("/v1/kv/{key}", method): GET_KEY for method in READS},
    ("/v1/kv/{key}", "PUT"): Keys("/v1/kv/app/9", "/v1/kv/c/9", "x", "x"),
    ("/v1/kv/{key}", "DELETE"): Keys("/v1/kv/app/9", "/v1/kv/c/1"),
    **{("/v1/kv", method): LIST for method in READS},
    ("/v1/kv", "DELETE"): Keys("/v1/kv?prefix=app/9", "/v1/kv?prefix=c"),
    ("/v1/watch", "GET"): Keys("/v1/watch?prefix=app/&wait=1ms", "/v1/watch?prefix=ap&wait=1ms"),
    ("/v1/txn", "POST"): Keys(
        "/v1/txn", "", {"success": [{"get": {"key": "app/1"}}]}, {"compare": [{"key": "c/1", "exists": True}]}
    ),
    ("/v1/batch", "POST"): Keys(
        "/v1/batch", "", {"operations": [{"delete": {"key": "app/9"}}]}, {"operations": [{"delete": {"key": "c/1"}}]}
    ),
    ("/v1/leases", "GET"): KEYLESS,
    ("/v1/leases", "HEAD"): KEYLESS,
    ("/v1/leases", "POST"): Keys("/v1/leases", "", {"ttl": 60}, {"ttl": 0}),
    **{("/v1/leases/{id}", method): LEASE for method in READS},
    ("/v1/leases/{id}/keepalive", "POST"): Keys("/v1/leases/2/keepalive", "/v1/leases/1/keepalive"),
    ("/v1/leases/{id}", "DELETE"): Keys("/v1/leases/3", "/v1/leases/1"),
    **{("/admin/api/v1/history", method): HISTORY for method in READS},
    **{
        (path, method): KEYLESS
        for path in (
            *("/metrics", "/openapi.json", *viewer.routes()),
            *(f"/admin/api/v1/{each}" for each in ("cluster", "nodes", "timeline", "figures", "heat", "members")),
            *(SESSION, "/admin/api/v1/session-key"),
        )
        for method in READS
    },
    (SESSION, "POST"): KEYLESS,
    (SESSION, "DELETE"): KEYLESS,
    ("/v3/kv/range", "POST"): v3("kv/range", {"key": b64("app/1")}, {"key": b64("app/"), "range_end": b64("d")}),
    ("/v3/kv/put", "POST"): v3("kv/put", put("app/9"), put("c/1")),
    ("/v3/kv/deleterange", "POST"): v3("kv/deleterange", {"key": b64("app/9")}, {"key": b64("c/1")}),
    ("/v3/kv/txn", "POST"): v3(
        "kv/txn",
        {"success": [{"requestRange": {"key": b64("app/1")}}]},
        {"success": [], "failure": [{"requestPut": put("c/1")}]},
    ),
    ("/v3/watch", "POST"): v3("watch", None, {"createRequest": {"key": b64("c/1")}}),
    ("/v3/lease/grant", "POST"): KEYLESS,
    **{(f"/v3/{kv}lease/revoke", "POST"): v3(f"{kv}lease/revoke", {"ID": "9"}, {"ID": "1"}) for kv in ("", "kv/")},
    **{
        (f"/v3/{kv}lease/timetolive", "POST"): v3(f"{kv}lease/timetolive", {"ID": "2"}, {"ID": "1"})
        for kv in ("", "kv/")
    },
    ("/v3/lease/keepalive", "POST"): v3("lease/keepalive", None, {"ID": "1"}),
    **{(f"/v3/{kv}lease/leases", "POST"): NEVER for kv in ("", "kv/")},
    **{(f"/v3/{call}", "POST"): KEYLESS for call in ("cluster/member/list", "maintenance/status")},
}
WAYS: Final = ("bearer", "cookie", "certificate")


def rule_of(path: str, method: str, needs_admin: bool) -> Keys | str | None:
    if path.startswith("/v3beta/"):
        path = path.replace("/v3beta/", "/v3/", 1)
    if path in PUBLIC or path in ("/admin/api/v1/access", "/v3/auth/authenticate", "/version", "/health"):
        return ANYBODY
    if path.startswith(("/livez", "/readyz", "/healthz", "/admin/healthz")):
        return ANYBODY
    if (path, method) not in TABLE and needs_admin:
        return NEVER
    return TABLE.get((path, method))


def made() -> SingleGroup:
    group = a_group(writer="write")
    put_token(group, "scoped", "write", OWN)
    for lease, key in ((1, "c/1"), (2, "app/1"), (3, "app/2")):
        group.store.apply([5, 60])
        group.store.apply([1, key, b"v", "", None, None, lease, 0])
    return group


def refused_calls(methods: dict[str, Any]) -> set[str]:
    """etcd's calls that are refused whoever asks: they name nothing."""
    from kvnode.http.gateway.cluster import REFUSED

    return {f"{root}{call}" for call in REFUSED for root in ("/v3/", "/v3beta/")} & methods.keys()


async def test_every_route_says_what_a_token_with_prefixes_may() -> None:
    async with serve(made(), token=FIRST) as node:
        table = node.server.app._table.methods
        refused = refused_calls(table)  # type: ignore[arg-type]
        for path, methods in table.items():
            for method, endpoint in methods.items():
                if path in refused:
                    continue
                rule = rule_of(path, method, endpoint.right == 2)
                assert rule is not None, f"{method} {path} has no line in this table"
                assert rule in (ANYBODY, NEVER) or endpoint.scoped, (method, path)
                assert rule != NEVER or not endpoint.scoped, (method, path)


@pytest.mark.parametrize("way", WAYS)
async def test_the_table(way: str) -> None:
    group = made()
    async with serve(group, token=FIRST) as node:
        headers: dict[str, str] = {}
        if way == "bearer":
            headers = bearer("scoped")
        elif way == "cookie":
            began = await node.ask("POST", SESSION, bearer("scoped"))
            headers = {"Cookie": began.headers["set-cookie"].partition(";")[0]}

        async def ask(method: str, asked: tuple[str, Any]) -> Reply:
            target, content = asked
            body = (
                None if content is None else content.encode() if type(content) is str else json.dumps(content).encode()
            )
            async with node.connect() as wire:
                if way == "certificate":
                    await _shows(node, wire)
                kind = {} if body is None else {"Content-Type": "application/json"}
                if target != "/v3/watch":
                    return await wire.ask(method, target, {**headers, **kind}, body)
                assert body is not None  # a stream, whose first message is the refusal
                head = "".join(f"{name}: {text}\r\n" for name, text in {**headers, **kind}.items())
                wire.send(f"POST {target} HTTP/1.1\r\nHost: n\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode())
                wire.send(body)
                said = b""
                async with asyncio.timeout(10.0):
                    while b"permission denied" not in said:
                        said += await wire.reader.readexactly(1)
                return Reply(403, {}, said)

        async def _shows(node: Any, wire: Wire) -> None:
            assert (await wire.ask("GET", "/livez")).status == 200
            (connection,) = [each for each in node.server.connections if each.idle_since is not None][-1:]
            connection.common_name = "scoped"

        table = node.server.app._table.methods
        for (path, method), rule in TABLE.items():
            if path not in table:
                continue  # etcd's API may be left out
            if rule == KEYLESS and (path, method) != (SESSION, "DELETE"):
                body = {} if method == "POST" and path.startswith("/v3/") else None
                reply = await ask(method, (path, body))
                expected = (403,) if (path, method, way) == (SESSION, "POST", "cookie") else (200, 400, 401)
                assert reply.status in expected, (method, path, reply)
                assert path == SESSION or reply.status != 401, (method, path, reply)
            if not isinstance(rule, Keys):
                continue
            mark, proposals = group.store.mark, group.proposals
            reply = await ask(method, rule.outside)
            if path != "/v1/leases":  # names no key
                assert reply.status == 403, (method, rule.outside, reply)
            assert (group.store.mark, group.proposals) == (mark, proposals), (method, rule.outside)
            if rule.inside[1] is not None or not path.startswith("/v3/"):
                reply = await ask(method, rule.inside)
                assert reply.status in (200, 404), (method, rule.inside, reply)
