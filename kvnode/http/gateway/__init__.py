"""etcd's v3 JSON gateway on the node's own port: the same store, revisions and leases as /v1, in etcd's words.

`message.py` reads requests, `header.py` begins answers, `errors.py` words failures; the rest is the calls, by noun.
"""

from __future__ import annotations

from collections.abc import Awaitable

from aiohttp import web

from kvnode.http.answer import Answer
from kvnode.http.budget import Budgets
from kvnode.http.credentials import Credentials
from kvnode.http.gateway import cluster, keys, leases, txn, watch
from kvnode.http.gateway.header import Headers
from kvnode.http.group import Group
from kvnode.http.route import Endpoint, Methods, as_endpoint
from kvnode.metrics.meters import HttpMeters


def routes(
    group: Group, budgets: Budgets, credentials: Credentials, heartbeat_s: float, meters: HttpMeters
) -> dict[str, Methods]:
    headers, traffic = Headers(group), meters.traffic
    known = {
        **cluster.routes(group, headers, credentials),
        **keys.routes(group, budgets, headers, traffic),
        **txn.routes(group, budgets, headers, traffic),
        **leases.routes(group, budgets, headers),
        **watch.routes(group, headers, heartbeat_s),
    }
    for path, methods in known.items():
        call = path.removeprefix("/v3/")
        if call != path and call not in cluster.REFUSED:
            known[path] = {"POST": _counted(as_endpoint(methods["POST"]), call, meters.etcd_calls)}
    # etcd 3.5 takes its calls under the path of 3.3 as well, and some clients (tooz) send them there.
    older = {path.replace("/v3/", "/v3beta/", 1): methods for path, methods in known.items()}
    return older | known


def _counted(endpoint: Endpoint, call: str, calls: dict[str, int]) -> Endpoint:
    """The endpoint of a call, whose requests are counted."""
    handler = endpoint.handler
    calls[call] = 0

    def count(request: web.BaseRequest, rest: str, query: str) -> Answer | Awaitable[Answer]:
        calls[call] += 1
        return handler(request, rest, query)

    return Endpoint(count, right=endpoint.right, scoped=endpoint.scoped)
