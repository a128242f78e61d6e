"""Administration: what the cluster looks like from here, handing over the leadership, draining a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from kvnode.config import values
from kvnode.config.values import Malformed
from kvnode.errors import BadRequest
from kvnode.http.answer import Answer, json_answer
from kvnode.http.audit import Noted
from kvnode.http.document import read_object
from kvnode.http.group import Group
from kvnode.http.paths import Query
from kvnode.http.rights import READ
from kvnode.http.route import Endpoint, Methods
from kvnode.node.status import is_leader

REQUEST_BYTES_MAX: Final = 65_536
TRANSFER_TIMEOUT_S: Final = 5.0
# One Raft group holds all keys; the API has room for more.
GROUP_ID: Final = "default"
_DRAIN: Final = frozenset(("node", "force"))
_UNDRAIN: Final = frozenset(("node",))


def routes(group: Group, node_id: str, version: str) -> dict[str, Methods]:
    def cluster(request: web.BaseRequest, rest: str, query: str) -> Answer:
        status = group.status()
        document = {
            "node_id": node_id,
            "version": version,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "groups": [
                {
                    "group_id": GROUP_ID,
                    "leader_id": status.leader_id,
                    "term": status.term,
                    # Level 0 is said by saying nothing, as nodes of 0.1 do.
                    **({"feature_level": status.feature_level} if status.feature_level else {}),
                    "members": [asdict(member) for member in group.members()],
                    "is_leader": is_leader(status),
                }
            ],
        }
        return json_answer(200, document)

    async def transfer(request: web.BaseRequest, rest: str, query: str) -> Answer:
        leader_id, term = await group.transfer(await _transfer_target(request), TRANSFER_TIMEOUT_S)
        return Noted(json_answer(200, {"leader_id": leader_id, "term": term}), f"made {leader_id} the leader")

    async def drain(request: web.BaseRequest, rest: str, query: str) -> Answer:
        """Probes fail first; then leadership moves. A node that has to go on leading says why, and still drains."""
        document = await read_object(request, REQUEST_BYTES_MAX, _DRAIN, optional=True)
        drained = await group.drain(_node(document), _force(document))
        return Noted(json_answer(200, asdict(drained)), f"drained {drained.node}")

    async def undrain(request: web.BaseRequest, rest: str, query: str) -> Answer:
        """The node is named in the query or, as for draining it, in the body, which some proxies drop."""
        document = await read_object(request, REQUEST_BYTES_MAX, _UNDRAIN, optional=True)
        parameters = Query(query)
        if "node" in parameters and "node" in document:
            raise BadRequest("The node is named in the query and in the body; name it once.")
        named = _node(dict(parameters)) if "node" in parameters else _node(document)
        undrained = await group.undrain(named)
        return Noted(json_answer(200, asdict(undrained)), f"undrained {undrained.node}")

    look = Endpoint(cluster, right=READ, scoped=True)
    return {
        "/admin/api/v1/cluster": {"GET": look, "HEAD": look},
        "/admin/api/v1/leader/transfer": {"POST": transfer},
        "/admin/api/v1/drain": {"POST": drain, "DELETE": Endpoint(undrain, "node")},
    }


def _node(document: Mapping[str, Any], field: str = "node") -> str | None:
    """The node that is meant, None where none is named."""
    node = document.get(field)
    if node is None:
        return None
    try:
        return values.name(node if isinstance(node, str) else "")
    except Malformed as problem:
        raise BadRequest(f'"{field}" is the name of a node: {problem}.') from None


def _force(document: Mapping[str, Any]) -> bool:
    force = document.get("force", False)
    if not isinstance(force, bool):
        raise BadRequest('"force" is true or false.')
    return force


async def _transfer_target(request: web.BaseRequest) -> str | None:
    """The node that is to lead, None where the body leaves the choice to the leader."""
    return _node(await read_object(request, REQUEST_BYTES_MAX, frozenset(("to",)), optional=True), "to")
