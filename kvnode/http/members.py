"""Who the members are, and adding, removing and promoting one: on any node, done by the leader."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from aiohttp import web

from kvnode.config import values
from kvnode.config.values import HostPort, Malformed
from kvnode.errors import BadRequest
from kvnode.http.answer import Answer, json_answer
from kvnode.http.audit import Noted
from kvnode.http.document import read_object, refuse_fields
from kvnode.http.group import Group
from kvnode.http.paths import Query, decode
from kvnode.http.rights import READ
from kvnode.http.route import Endpoint, Methods
from kvnode.node.status import Membership

PATH: Final = "/admin/api/v1/members"
REQUEST_BYTES_MAX: Final = 65_536
_ADDED: Final = frozenset(("id", "raft", "http", "learner", "moved"))
_REMOVED: Final = frozenset(("id", "force"))


def routes(group: Group) -> dict[str, Methods]:
    def members(request: web.BaseRequest, rest: str, query: str) -> Answer:
        return _answer(group.membership())

    async def add(request: web.BaseRequest, rest: str, query: str) -> Answer:
        document = await read_object(request, REQUEST_BYTES_MAX, _ADDED, optional=True)
        node_id, address = _node_id(document.get("id")), _address(document.get("raft"))
        url, learner, moved = _url(document.get("http")), _flag(document, "learner"), _flag(document, "moved")
        membership = await group.add_member(node_id, address, url, learner, moved)
        return Noted(_answer(membership), f"added {node_id} at {values.show_host_port(address)}")

    async def remove(request: web.BaseRequest, rest: str, query: str) -> Answer:
        """The member is named in the path, in the query as `id`, or in the body."""
        document = await read_object(request, REQUEST_BYTES_MAX, _REMOVED, optional=True)
        parameters = Query(query)
        in_url = rest != "" or "id" in parameters
        if in_url and "id" in document:
            raise BadRequest("The member is named in the URL and in the body; name it once.")
        node_id = _node_id(decode(rest, "member") if rest else parameters.get("id", document.get("id")))
        force = parameters.flag("force") or _flag(document, "force")
        return Noted(_answer(await group.remove_member(node_id, force)), f"removed {node_id}")

    async def promote(request: web.BaseRequest, rest: str, query: str) -> Answer:
        node_id = await _named(request, rest)
        return Noted(_answer(await group.promote_member(node_id)), f"promoted {node_id}")

    async def replace(request: web.BaseRequest, rest: str, query: str) -> Answer:
        node_id = await _named(request, rest)
        return Noted(_answer(await group.replace_member(node_id)), f"replaced {node_id}")

    look = Endpoint(members, right=READ, scoped=True)
    return {
        PATH: {"GET": look, "HEAD": look, "POST": add, "DELETE": Endpoint(remove, "id", "force")},
        PATH + "/{member}": {"DELETE": Endpoint(remove, "force")},
        PATH + "/{member}/promote": {"POST": promote},
        PATH + "/{member}/replace": {"POST": replace},
    }


def _answer(membership: Membership) -> Answer:
    return json_answer(200, asdict(membership))


async def _named(request: web.BaseRequest, rest: str) -> str:
    """The member whom the path names, and the request says no more."""
    await refuse_fields(request)
    return _node_id(decode(rest, "member"))


def _node_id(value: object) -> str:
    try:
        return values.name(value if isinstance(value, str) else "")
    except Malformed as problem:
        raise BadRequest(f'"id" is the name of a node: {problem}.') from None


def _address(value: object) -> HostPort:
    try:
        address = values.host_port(value if isinstance(value, str) else "")
    except Malformed as problem:
        raise BadRequest(f'"raft" is the address where the node listens for its peers: {problem}.') from None
    if values.is_any_address(address[0]):
        raise BadRequest('"raft" is an address that the other members can dial, which this one is not.')
    return address


def _url(value: object) -> str:
    if value is None:
        return ""
    try:
        return values.base_url(value if isinstance(value, str) else "")
    except Malformed as problem:
        raise BadRequest(f'"http" is the URL of the node: {problem}.') from None


def _flag(document: dict[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool):
        raise BadRequest(f'"{name}" is true or false.')
    return value
