"""What clients of etcd ask about a cluster before they use it: its version, health, members, and a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from kvnode.http import checks
from kvnode.http.answer import Answer, json_answer
from kvnode.http.body import read_body
from kvnode.http.credentials import Credentials
from kvnode.http.gateway.errors import (
    AUTH_OFF,
    BAD_PASSWORD,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NO_LEADER,
    NO_USER,
    UNIMPLEMENTED,
    Status,
)
from kvnode.http.gateway.header import Headers
from kvnode.http.gateway.message import Fields, message, table, text
from kvnode.http.group import Group
from kvnode.http.rights import READ
from kvnode.http.route import Endpoint, Handler, Methods

# Clients choose their paths and calls by it: etcd's whose calls these are. Whole numbers alone: some read no others.
VERSION: Final = "3.5.0"
BODY_BYTES_MAX: Final = 65_536

_NOTHING: Final[Fields] = {}
_CREDENTIALS: Final = table(name=text, password=text)

_AUTH: Final = "users and roles are tokens here: kvnode token create"
# Calls of etcd's that a client may find, and what stands in their place.
REFUSED: Final[Mapping[str, str]] = {
    "kv/compaction": "each node keeps a bounded history by itself",
    **{f"auth/{call}": _AUTH for call in ("enable", "disable", "status")},
    **{f"auth/user/{call}": _AUTH for call in ("add", "get", "list", "delete", "changepw", "grant", "revoke")},
    **{f"auth/role/{call}": _AUTH for call in ("add", "get", "list", "delete", "grant", "revoke")},
    **{f"cluster/member/{call}": "use kvnode member" for call in ("add", "remove", "update", "promote")},
    **{f"maintenance/{call}": "there is nothing to do" for call in ("alarm", "defragment", "hash", "downgrade")},
    "maintenance/snapshot": "use kvnode backup",
    "maintenance/transfer-leadership": "use kvnode transfer",
    **{f"lock/{call}": "use a key with a lease, or kvnode lock" for call in ("lock", "unlock")},
    **{
        f"election/{call}": "use a key with a lease, or kvnode lock"
        for call in ("campaign", "proclaim", "leader", "observe", "resign")
    },
}


def routes(group: Group, headers: Headers, credentials: Credentials) -> dict[str, Methods]:
    cluster = Cluster(group, headers, credentials)
    version, health = Endpoint(cluster.version, checks=False), Endpoint(cluster.health, checks=False)

    def read(handler: Handler) -> Endpoint:
        return Endpoint(handler, right=READ, scoped=True)

    return {
        "/version": {"GET": version, "HEAD": version},
        "/health": {"GET": health, "HEAD": health},
        "/v3/cluster/member/list": {"POST": read(cluster.members)},
        "/v3/maintenance/status": {"POST": read(cluster.status)},
        "/v3/auth/authenticate": {"POST": read(cluster.authenticate)},
        **{f"/v3/{call}": {"POST": read(_refusing(call, instead))} for call, instead in REFUSED.items()},
    }


class Cluster:
    """The handlers."""

    __slots__ = ("_credentials", "_group", "_headers")

    def __init__(self, group: Group, headers: Headers, credentials: Credentials) -> None:
        self._group = group
        self._headers = headers
        self._credentials = credentials

    def version(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        return json_answer(200, {"etcdserver": VERSION, "etcdcluster": VERSION})

    def health(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        """As /readyz, in etcd's words."""
        status = self._group.status()
        failed = next((name for name, check in checks.READY.items() if check(status) is not None), None)
        if failed is None:
            return json_answer(200, {"health": "true", "reason": ""})
        reason = "RAFT NO LEADER" if failed == "leader" else failed.upper().replace("_", " ")
        return json_answer(503, {"health": "false", "reason": reason})

    async def members(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        """Every node with the URL that clients reach it by, which Patroni goes on with."""
        message(await read_body(request, BODY_BYTES_MAX), _NOTHING)
        members = []
        for member in self._group.members():
            shown: dict[str, Any] = {"ID": str(self._headers.member_id(member.id)), "name": member.id}
            shown["peerURLs"] = [f"http://{member.raft}"]
            if member.http is not None:
                shown["clientURLs"] = [member.http]
            if member.role == "learner":
                shown["isLearner"] = True
            members.append(shown)
        return self._answer(members=members)

    async def status(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        message(await read_body(request, BODY_BYTES_MAX), _NOTHING)
        status, levels = self._group.status(), self._group.levels()
        # etcd's database file: what is on this node's disk.
        size = max(1, 0 if levels is None else levels.journal_bytes + levels.snapshot_bytes)
        fields: dict[str, Any] = {"version": VERSION, "dbSize": str(size)}
        if status.leader_id is not None:
            fields["leader"] = str(self._headers.member_id(status.leader_id))
        fields |= {"raftIndex": str(status.commit_index), "raftTerm": str(status.term)}
        fields["raftAppliedIndex"] = str(status.applied_index)
        if status.leader_id is None:
            fields["errors"] = [NO_LEADER]
        fields["dbSizeInUse"] = str(size)
        if status.role == "learner":
            fields["isLearner"] = True
        return self._answer(**fields)

    async def authenticate(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        """A token as the password, whatever the name: the answer's token is that one, and ends when it is revoked."""
        sent = message(await read_body(request, BODY_BYTES_MAX), _CREDENTIALS)
        if self._credentials.first is None:
            raise Status(FAILED_PRECONDITION, AUTH_OFF)
        if not sent.get("name"):
            raise Status(INVALID_ARGUMENT, NO_USER)
        secret = sent.get("password", "")
        if self._credentials.by_secret(secret) is None:
            raise Status(INVALID_ARGUMENT, BAD_PASSWORD)
        return self._answer(token=secret)

    def _answer(self, **fields: Any) -> Answer:
        answer = json_answer(200, fields)
        answer.body = f'{{"header":{self._headers.present()},'.encode() + answer.body[1:]
        return answer


def _refusing(call: str, instead: str) -> Handler:
    """A call that etcd has, and this does not."""

    def refuse(request: web.BaseRequest, rest: str, query: str) -> Answer:
        raise Status(UNIMPLEMENTED, f"kvnode does not serve /v3/{call}: {instead}.")

    return refuse
