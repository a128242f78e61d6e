"""The audit log: one line for each administrative action, with who asked, from where, and what came of it.

It is the logger `kvnode.audit`, whatever --log-level says. Reading the state of the cluster is no action; taking a
backup is one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from aiohttp import web

from kvnode.errors import KvnodeError
from kvnode.http.answer import Answer
from kvnode.http.door import FULL_ONLY, READING, Door
from kvnode.http.route import Endpoint, Methods, as_endpoint

log = logging.getLogger("kvnode.audit")


def audited(table: Mapping[str, Methods], door: Door) -> dict[str, Methods]:
    """The same routes, whose actions leave a line."""
    return {
        path: {
            method: _noting(as_endpoint(each), method, path, door)
            if method not in READING or path == FULL_ONLY[0]
            else each
            for method, each in methods.items()
        }
        for path, methods in table.items()
    }


def _noting(endpoint: Endpoint, method: str, path: str, door: Door) -> Endpoint:
    async def noting(request: web.BaseRequest, rest: str, query: str) -> Answer:
        token, client = door.who(request)
        who = f"{'anonymous' if token is None else f'token {token.id} ({token.name})'} at {client}"
        target = path.partition("{")[0] + rest[:200] + (f"?{query[:200]}" if query else "")
        fields = {"event": "audit", "token": token and token.id, "client": client, "method": method, "target": target}
        said = (who, method, target)
        try:
            if query:
                endpoint.check(query)  # here, so that an action which is refused for its query leaves its line too
            outcome = endpoint.handler(request, rest, query)
            answer = outcome if isinstance(outcome, Answer) else await outcome
        except KvnodeError as error:
            extra = {"fields": fields | {"error": error.code}}
            log.info("%s: %s %s: %s (%s).", *said, error.code, error.outcome, extra=extra)
            raise
        log.info("%s: %s %s: %d.", *said, answer.status, extra={"fields": fields | {"status": answer.status}})
        return answer

    return Endpoint(noting, *endpoint.parameters, checks=False)
