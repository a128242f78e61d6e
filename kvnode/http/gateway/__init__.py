"""etcd's v3 JSON gateway on the node's own port: the same store, revisions and leases as /v1, in etcd's words.

`message.py` reads requests, `header.py` begins answers, `errors.py` words failures; the rest is the calls, by noun.
"""

from __future__ import annotations

from kvnode.http.budget import Budgets
from kvnode.http.credentials import Credentials
from kvnode.http.gateway import cluster
from kvnode.http.gateway.header import Headers
from kvnode.http.group import Group
from kvnode.http.route import Methods


def routes(group: Group, budgets: Budgets, credentials: Credentials) -> dict[str, Methods]:
    headers = Headers(group)
    return {**cluster.routes(group, headers, credentials)}
