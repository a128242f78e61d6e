"""etcd's calls on leases, also under the older paths that etcd keeps.

Ids are numbers of 64 bits with a sign, which a client may choose. A lease's time is kept by the leader; a node that
does not lead shows the ttl as granted.
"""

from __future__ import annotations

from binascii import b2a_base64
from random import SystemRandom
from typing import Any, Final

from aiohttp import web

from kvnode.errors import KvnodeError
from kvnode.http.answer import Answer
from kvnode.http.body import read_body
from kvnode.http.budget import Budgets
from kvnode.http.credentials import check_still_admitted
from kvnode.http.gateway.errors import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    LEASE_EXISTS,
    LEASE_NOT_FOUND,
    NOT_FOUND,
    OUT_OF_RANGE,
    TOO_LARGE,
    TTL_TOO_LARGE,
    Status,
    stream_failure,
)
from kvnode.http.gateway.header import Headers
from kvnode.http.gateway.keys import check_lease, message_answer, refusal
from kvnode.http.gateway.message import boolean, int64, message, messages, table
from kvnode.http.gateway.stream import Chunks
from kvnode.http.group import Group
from kvnode.http.leases import remaining_s
from kvnode.http.rights import READ, WRITE, Rights, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.state.commands import Grant, Renew, Revoke
from kvnode.state.limits import LEASE_TTL_S_MAX, LEASES_MAX
from kvnode.state.results import Granted, LeaseExists, LeaseMissing, Result, Revoked
from kvnode.state.spans import signed, unsigned

TTL_S_MIN: Final = 2  # etcd's, with its election timeout of a second; a shorter one is raised to it
# An id that a client leaves to the node is drawn by lot, as etcd's are: far above those that the store counts, which
# other clients can guess, and below 2^53, up to where JSON's numbers are exact for /v1.
OWN_ID_MIN: Final = 2**52
OWN_ID_MAX: Final = 2**53 - 1
TRIES: Final = 3  # with a million leases one in four thousand million ids is in use
BODY_BYTES_MAX: Final = 65_536
KEEPALIVES_MAX: Final = 128  # in one body; each is a write
KEYS_MAX: Final = 65_536  # of a lease, in one answer: 50 ms at the most
PAGE_LEASES: Final = 4_096  # listed before others get their turn
LEASE_BYTES: Final = 32  # of one in a list

_randrange: Final = SystemRandom().randrange
_GRANT: Final = table(TTL=int64, ID=int64)
_ID: Final = table(ID=int64)
_TIME_TO_LIVE: Final = table(ID=int64, keys=boolean)


def routes(group: Group, budgets: Budgets, headers: Headers) -> dict[str, Methods]:
    leases = Leases(group, budgets, headers)
    calls = {
        "grant": Endpoint(leases.grant, right=WRITE, scoped=True),
        "revoke": Endpoint(leases.revoke, right=WRITE, scoped=True),
        "keepalive": Endpoint(leases.keep_alive, right=WRITE, scoped=True),
        "timetolive": Endpoint(leases.time_to_live, right=READ, scoped=True),
        "leases": Endpoint(leases.list, right=READ),  # also of those whose keys a token with prefixes may not see
    }
    paths: dict[str, Methods] = {
        f"/v3/kv/lease/{name}": {"POST": calls[name]} for name in ("revoke", "timetolive", "leases")
    }
    for name, call in calls.items():
        paths[f"/v3/lease/{name}"] = {"POST": call}
    return paths


class Leases:
    """The handlers."""

    __slots__ = ("_budgets", "_group", "_headers")

    def __init__(self, group: Group, budgets: Budgets, headers: Headers) -> None:
        self._group = group
        self._budgets = budgets
        self._headers = headers

    async def _sent(self, request: web.BaseRequest, fields: Any) -> dict[str, Any]:
        sent = message(await read_body(request, BODY_BYTES_MAX), fields)
        self._headers.check_ready()
        return sent

    async def grant(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        sent = await self._sent(request, _GRANT)
        ttl_s = sent.get("TTL", 0)
        if ttl_s > LEASE_TTL_S_MAX:
            raise Status(OUT_OF_RANGE, TTL_TOO_LARGE)
        asked, rights = unsigned(sent.get("ID", 0)), rights_of(request)
        for _ in range(TRIES):
            lease = asked or _randrange(OWN_ID_MIN, OWN_ID_MAX)
            command = Grant(max(ttl_s, TTL_S_MIN), None, lease).encode()
            result = await self._group.propose(rights.on_leases(self._group.store, command))
            if not isinstance(result, LeaseExists):
                break
            if asked:
                raise Status(FAILED_PRECONDITION, LEASE_EXISTS)
        if not isinstance(result, Granted):
            raise refusal(result)
        granted = b',"ID":"%d","TTL":"%d"' % (signed(result.lease), result.ttl_s)
        return message_answer(self._headers.present(), granted)

    async def revoke(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        lease = (await self._sent(request, _ID)).get("ID", 0)
        if not lease:
            raise Status(NOT_FOUND, LEASE_NOT_FOUND)
        rights = rights_of(request)
        check_lease(self._group, rights, unsigned(lease))
        command = rights.on_leases(self._group.store, Revoke(unsigned(lease)).encode(), (unsigned(lease),))
        result = await self._group.propose(command)
        if not isinstance(result, Revoked):
            raise refusal(result)
        return message_answer(self._headers.of(result.revision))

    async def keep_alive(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        """Renews each lease that the body names, and ends. As etcd does, which answers no body before it has ended."""
        try:
            sent = messages(await read_body(request, BODY_BYTES_MAX), _ID, KEEPALIVES_MAX)
            self._headers.check_ready()
            rights = rights_of(request)
            kept = [await self._kept(rights, each.get("ID", 0)) for each in sent]
        except KvnodeError as error:
            return stream_failure(request, error)
        return Chunks(kept)

    async def _kept(self, rights: Rights, lease: int) -> bytes:
        result: Result | None = None
        if lease:
            check_lease(self._group, rights, unsigned(lease))
            command = rights.on_leases(self._group.store, Renew(unsigned(lease)).encode(), (unsigned(lease),))
            result = await self._group.propose(command)
        named = b',"ID":"%d"' % lease if lease else b""
        if isinstance(result, Granted):
            named += b',"TTL":"%d"' % result.ttl_s
        elif result is not None and not isinstance(result, LeaseMissing):
            raise refusal(result)
        return b'{"result":{"header":%b%b}}\n' % (self._headers.present().encode(), named)

    async def time_to_live(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        sent = await self._sent(request, _TIME_TO_LIVE)
        lease = sent.get("ID", 0)
        await self._group.read_barrier()
        check_still_admitted(request)
        header, leases, lease_id = self._headers.present(), self._group.store.leases, unsigned(lease)
        named = b',"ID":"%d"' % lease if lease else b""
        found = leases.get(lease_id) if lease else None
        if found is None:
            return message_answer(header, named, b',"TTL":"-1"')
        check_lease(self._group, rights_of(request), lease_id)
        left_s = min(found.ttl_s, remaining_s(self._group, lease_id))
        pieces = [named, b',"TTL":"%d","grantedTTL":"%d"' % (left_s, found.ttl_s)]
        count = leases.key_count(lease_id) if sent.get("keys") else 0
        if count > KEYS_MAX:
            raise Status(INVALID_ARGUMENT, TOO_LARGE)
        if not count:
            return message_answer(header, *pieces)
        await self._budgets.turns.take()
        keys = [b2a_base64(key.encode(), newline=False) for key in leases.keys(lease_id, count)]
        hold = self._budgets.answers.hold(sum(map(len, keys)) + 3 * len(keys))
        return message_answer(header, *pieces, b',"keys":["%b"]' % b'","'.join(keys)).holding(hold)

    async def list(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        await self._sent(request, {})
        await self._group.read_barrier()
        leases = self._group.store.leases
        hold = self._budgets.answers.hold(LEASE_BYTES * min(len(leases), LEASES_MAX))
        found: list[bytes] = []
        after = 0
        while True:
            await self._budgets.turns.take()
            page = self._group.store.leases.ids(after, PAGE_LEASES)
            found += [b'{"ID":"%d"}' % signed(lease_id) for lease_id in page]
            if len(page) < PAGE_LEASES:
                break
            after = page[-1]
        check_still_admitted(request)
        fields = (b',"leases":[', b",".join(found), b"]") if found else ()
        return message_answer(self._headers.present(), *fields).holding(hold)
