"""etcd's v3 JSON gateway on the node's own port: the same store, revisions and leases as /v1, in etcd's words.

`message.py` reads requests, `header.py` begins answers, `errors.py` words failures; the rest is the calls, by noun.
"""

from __future__ import annotations

from kvnode.http.budget import Budgets
from kvnode.http.credentials import Credentials
from kvnode.http.gateway import cluster, keys, leases, txn, watch
from kvnode.http.gateway.header import Headers
from kvnode.http.group import Group
from kvnode.http.route import Methods
from kvnode.metrics.recent import Traffic


def routes(
    group: Group, budgets: Budgets, credentials: Credentials, heartbeat_s: float, traffic: Traffic
) -> dict[str, Methods]:
    headers = Headers(group)
    known = {
        **cluster.routes(group, headers, credentials),
        **keys.routes(group, budgets, headers, traffic),
        **txn.routes(group, budgets, headers, traffic),
        **leases.routes(group, budgets, headers),
        **watch.routes(group, headers, heartbeat_s),
    }
    # etcd 3.5 takes its calls under the path of 3.3 as well, and some clients (tooz) send them there.
    older = {path.replace("/v3/", "/v3beta/", 1): methods for path, methods in known.items()}
    return older | known
