"""Leases: /v1/leases. A lease's time is kept by the leader; a node that does not lead shows the ttl as granted."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest, LeaseNotFound
from kvnode.http.answer import Answer, json_answer
from kvnode.http.budget import Budgets, Turns
from kvnode.http.consistency import consistency
from kvnode.http.document import read_object, refuse_fields, ttl_in, whole_parameter
from kvnode.http.etags import refuse_conditions
from kvnode.http.group import Group
from kvnode.http.paths import Query
from kvnode.http.rights import READ, WRITE, Rights, rights_of
from kvnode.http.route import Endpoint, Handler, Methods
from kvnode.http.writing import idempotency_key, not_written
from kvnode.state.commands import Grant, Renew, Revoke
from kvnode.state.limits import LEASE_ID_MAX, TTL_S_MAX
from kvnode.state.results import Granted, Revoked

BODY_BYTES_MAX: Final = 65_536
PAGE_LEASES: Final = 1_000
KEYS_SHOWN: Final = 1_000

_TTL: Final = frozenset(("ttl",))


def routes(group: Group, budgets: Budgets) -> dict[str, Methods]:
    leases = Leases(group, budgets.turns)
    some = Endpoint(leases.list, "cursor", "consistency", right=READ, scoped=True)
    one = Endpoint(leases.get, "consistency", right=READ, scoped=True)

    def write(handler: Handler) -> Endpoint:
        return Endpoint(handler, right=WRITE, scoped=True)

    return {
        "/v1/leases": {"GET": some, "HEAD": some, "POST": write(leases.grant)},
        "/v1/leases/{id}": {"GET": one, "HEAD": one, "DELETE": write(leases.revoke)},
        "/v1/leases/{id}/keepalive": {"POST": write(leases.keepalive)},
    }


class Leases:
    """The handlers."""

    __slots__ = ("_group", "_turns")

    def __init__(self, group: Group, turns: Turns) -> None:
        self._group = group
        self._turns = turns

    async def grant(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        refuse_conditions(request)
        idempotency, rights = idempotency_key(request, self._group), rights_of(request)
        document = await read_object(request, BODY_BYTES_MAX, _TTL)
        return await self._timed(rights, Grant(ttl_in(document, "The body"), idempotency))

    async def keepalive(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        lease, rights = _id(rest), rights_of(request)
        refuse_conditions(request)
        await refuse_fields(request)
        rights.check_lease(self._group.store, lease)
        return await self._timed(rights, Renew(lease, idempotency_key(request, self._group)), lease)

    async def _timed(self, rights: Rights, command: Grant | Renew, *leases: int) -> Answer:
        """A grant or a renewal: the whole ttl is before the lease again."""
        result = await self._group.propose(rights.on_leases(self._group.store, command.encode(), leases))
        if type(result) is not Granted:
            raise not_written(result)
        return json_answer(200, {"id": result.lease, "ttl": result.ttl_s, "remaining": result.ttl_s})

    async def revoke(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        lease, rights = _id(rest), rights_of(request)
        refuse_conditions(request)
        await refuse_fields(request)
        rights.check_lease(self._group.store, lease)
        command = Revoke(lease, idempotency_key(request, self._group)).encode()
        result = await self._group.propose(rights.on_leases(self._group.store, command, (lease,)))
        if type(result) is not Revoked:
            raise not_written(result)
        outcome = {"id": result.lease, "ttl": result.ttl_s, "remaining": 0}
        headers = b"Kvnode-Revision: %d\r\n" % result.revision
        return json_answer(200, outcome | {"deleted": result.deleted, "revision": result.revision}, headers)

    async def get(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        lease_id = _id(rest)
        headers = await consistency(self._group, Query(query))
        await self._turns.take()
        rights_of(request).check_lease(self._group.store, lease_id)
        fields = self._fields(lease_id)
        if fields is None:
            missing = LeaseNotFound("The lease does not exist, or not any more.")
            missing.applied_lag = self._group.applied_lag() if headers else None
            raise missing
        leases = self._group.store.leases
        fields |= {"keys": leases.keys(lease_id, KEYS_SHOWN), "key_count": leases.key_count(lease_id)}
        return json_answer(200, fields, headers)

    async def list(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        """In the order of their ids, PAGE_LEASES to a page; "cursor" is where the next one begins."""
        parameters = Query(query)
        after = whole_parameter(parameters["cursor"], LEASE_ID_MAX, "cursor") if "cursor" in parameters else 0
        headers = await consistency(self._group, parameters)
        await self._turns.take()
        leases, rights = self._group.store.leases, rights_of(request)
        ids = leases.ids(after, PAGE_LEASES + 1)
        shown = ids[:PAGE_LEASES]
        if rights.prefixes:  # a page may have none of them, and a cursor all the same
            shown = [lease_id for lease_id in shown if leases.usable(lease_id, rights.owner, rights.prefixes)]
        page: dict[str, Any] = {"leases": [self._fields(lease_id) for lease_id in shown]}
        if len(ids) > PAGE_LEASES:
            page["cursor"] = str(ids[PAGE_LEASES - 1])
        return json_answer(200, page, headers)

    def _fields(self, lease_id: int) -> dict[str, Any] | None:
        lease = self._group.store.leases.get(lease_id)
        if lease is None:
            return None
        return {"id": lease_id, "ttl": lease.ttl_s, "remaining": remaining_s(self._group, lease_id)}


def remaining_s(group: Group, lease_id: int) -> int:
    """Whole seconds, rounded up: on the leader the time left, on other nodes the ttl as granted."""
    left_s = group.lease_left_s(lease_id)
    lease = group.store.leases.get(lease_id)
    return -int(-left_s // 1) if left_s is not None else lease.ttl_s if lease is not None else 0


def leasing(query: Query) -> tuple[int, int]:
    """(lease, ttl in seconds) that a PUT's query asks for, 0 for what it does not."""
    if "lease" in query and "ttl" in query:
        raise BadRequest("A key has a 'lease' or a 'ttl'; send one of them.")
    lease = whole_parameter(query["lease"], LEASE_ID_MAX, "query parameter 'lease'") if "lease" in query else 0
    return lease, whole_parameter(query["ttl"], TTL_S_MAX, "query parameter 'ttl'") if "ttl" in query else 0


def _id(text: str) -> int:
    return whole_parameter(text, LEASE_ID_MAX, "id of a lease")
