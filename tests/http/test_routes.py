"""Every path with every method: what exists answers, what does not says so, and `Allow` is truthful."""

from __future__ import annotations

import pytest

from kvnode.client import LockLost, Untrusted
from kvnode.errors import Fatal, KvnodeError, StartupError
from kvnode.http import admin, kv, metrics, probes, sessions, watch
from kvnode.http.app import STATUS_OF
from kvnode.http.budget import Budgets
from kvnode.http.credentials import Credentials
from kvnode.http.route import RouteTable
from kvnode.metrics.meters import HttpMeters
from tests.http.serving import Served
from tests.http.single import SingleGroup

METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]
READING = "GET, HEAD"
OF_THE_CLIENT_ALONE = {LockLost, Untrusted}  # what no node ever answers
ALLOWED = {
    "/admin/healthz": READING,
    "/admin/healthz/leader": READING,
    "/healthz": READING,
    "/livez": READING,
    "/livez/raft_tick": READING,
    "/readyz": READING,
    "/readyz/leader": READING,
    "/metrics": READING,
    "/v1/kv": "GET, HEAD, DELETE",
    "/v1/txn": "POST",
    "/v1/batch": "POST",
    "/v1/leases": "GET, HEAD, POST",
    "/v1/leases/1": "GET, HEAD, DELETE",
    "/v1/leases/1/keepalive": "POST",
    "/v1/watch?wait=0s": "GET",
    "/v1/kv/a": "GET, HEAD, PUT, DELETE",
    "/v1/kv/a/b/": "GET, HEAD, PUT, DELETE",
    "/admin": READING,
    "/admin/": READING,
    "/admin/console/main.js": READING,
    "/admin/api/v1/access": READING,
    "/admin/api/v1/nodes": READING,
    "/admin/api/v1/timeline": READING,
    "/admin/api/v1/figures": READING,
    "/admin/api/v1/heat": READING,
    "/admin/api/v1/history?key=a": READING,
    "/admin/api/v1/cluster": READING,
    "/admin/api/v1/leader/transfer": "POST",
    "/admin/api/v1/drain": "POST, DELETE",
    "/admin/api/v1/restore": "POST",
    "/admin/api/v1/session": "GET, HEAD, POST, DELETE",
    "/admin/api/v1/session-key": READING,
    "/admin/api/v1/session-key/rotate": "POST",
}
UNKNOWN = [
    "/",
    "/v1",
    "/v1/",
    "/v1/kvx",
    "/V1/kv/a",
    "//v1/kv/a",
    "/v1//kv/a",
    "/livez2",
    *("/admin/x", "/admin/index.html", "/admin/console", "/admin/console/", "/admin/console/x.js", "/admin/healthz/x"),
    *("/admin//", "/admin/console/../main.js", "/admin/console/main.js/", "/admin/%2e", "/ADMIN/"),
]
UNKNOWN_ENDPOINTS = ["/admin/api", "/admin/api/", "/admin/api/v1", "/admin/api/v1/cluster/", "/admin/api/v2/cluster"]


def test_the_sweep_leaves_no_route_out() -> None:
    group = SingleGroup()
    table = RouteTable(
        probes.routes(group, probes.LeaderProbe(group, 0.2), 0.2, HttpMeters()),
        metrics.routes(group, HttpMeters(), Budgets(), "1"),
        kv.routes(group, Budgets()),
        watch.routes(group, Budgets()),
        admin.routes(group, "n1", "1"),
        sessions.routes(group, Credentials(group, "")),
    )
    for pattern in table.methods:
        swept = pattern.partition("{")[0]
        assert any(
            path.partition("?")[0] == pattern or (pattern.endswith("}") and path.startswith(swept)) for path in ALLOWED
        ), pattern


@pytest.mark.parametrize("path", ALLOWED)
async def test_methods_of_a_known_path(node: Served, path: str) -> None:
    allow = ALLOWED[path]
    for method in METHODS:
        # On a connection of its own: a node that has been told to drain ends each.
        reply = await node.ask(method, path, body=b"" if method in ("PUT", "POST") else None)
        if method in allow.split(", "):
            assert reply.status in (200, 308, 400, 401, 404), (
                method,
                path,
            )
            assert "allow" not in reply.headers
            if reply.status == 404 and method != "HEAD":
                assert reply.json["error"] in ("key_not_found", "lease_not_found")
        else:
            assert (reply.status, reply.headers["allow"]) == (405, allow), (method, path)
            if method != "HEAD":
                writing = method in ("PUT", "POST", "DELETE", "PATCH")
                assert reply.json["error"] == "method_not_allowed"
                assert method in reply.json["message"]
                assert reply.json.get("outcome") == ("not_applied" if writing else None)
        assert reply.headers["kvnode-node"] == "n1"


@pytest.mark.parametrize("path", UNKNOWN + UNKNOWN_ENDPOINTS)
async def test_an_unknown_path_is_json_404_whatever_the_method(node: Served, path: str) -> None:
    async with node.connect() as wire:
        for method in METHODS:
            reply = await wire.ask(method, path)
            assert reply.status == 404, (method, path)
            if method != "HEAD":
                assert reply.json["error"] == ("unknown_endpoint" if path in UNKNOWN_ENDPOINTS else "not_found")
                assert reply.json["message"].endswith(".")


async def test_other_forms_of_a_target(node: Served) -> None:
    assert (await node.ask("PUT", "http://anything:80/v1/kv/a?ttl=100", body=b"v")).status == 200
    assert (await node.ask("GET", "http://anything/v1/kv/a")).body == b"v"
    assert (await node.ask("GET", "http://anything")).status == 404
    assert (await node.ask("GET", "http://anything?/v1/kv/a")).status == 404
    assert (await node.ask("OPTIONS", "*")).status == 404
    assert (await node.ask("CONNECT", "anything:80")).status in (400, 404)


def leaves(error: type[KvnodeError]) -> list[type[KvnodeError]]:
    below = error.__subclasses__()
    return [leaf for sub in below for leaf in leaves(sub)] if below else [error]


def test_every_error_of_a_request_has_a_status() -> None:
    for error in leaves(KvnodeError):
        if error in OF_THE_CLIENT_ALONE:
            assert error.code not in STATUS_OF
            continue
        # These two, and what derives from them, are for the operator: a client only ever learns that the node failed.
        assert error.code in STATUS_OF or issubclass(error, StartupError | Fatal), error
