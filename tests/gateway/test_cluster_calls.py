"""What etcd's clients ask before anything else: version, health, members, status, a token; and how it is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from typing import cast

import pytest
from aiohttp import web

from kvnode.errors import (
    BadRequest,
    Compacted,
    DiskFull,
    KvnodeError,
    LeaseNotFound,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ShuttingDown,
    Starting,
    TooLarge,
    TooManyLeases,
    Unavailable,
    Unverified,
)
from kvnode.http.gateway.cluster import REFUSED
from kvnode.http.gateway.errors import failure, stream_failure
from kvnode.http.gateway.header import numbered
from kvnode.state.commands import TOKEN_CREATE, TOKEN_REVOKE
from tests.gateway.calls import call, error, leveled
from tests.http.serving import Served, serve

FIRST = "the-first-token-of-this-cluster"


@pytest.fixture
async def node() -> AsyncIterator[Served]:
    async with serve(leveled()) as served:
        yield served


async def test_version_is_one_that_clients_choose_v3_by(node: Served) -> None:
    for method in ("GET", "HEAD"):
        assert (await node.ask(method, "/version?x=1")).status == 200
    assert (await node.ask("GET", "/version")).json == {"etcdserver": "3.5.0", "etcdcluster": "3.5.0"}


async def test_health_says_whether_the_node_can_serve() -> None:
    group = leveled()
    async with serve(group, token=FIRST) as node:  # which are asked for none
        reply = await node.ask("GET", "/health?serializable=true")
        assert (reply.status, reply.json) == (200, {"health": "true", "reason": ""})
        group.becomes(role="follower", leader_id=None)
        reply = await node.ask("GET", "/health")
        assert (reply.status, reply.json) == (503, {"health": "false", "reason": "RAFT NO LEADER"})
        assert (await node.ask("POST", "/health")).status == 405
        assert (await node.ask("GET", "/version")).status == 200


async def test_every_member_is_named_with_its_url(node: Served) -> None:
    status, answer = await call(node, "cluster/member/list")
    assert status == 200
    header = {
        "cluster_id": str(numbered("c")),
        "member_id": str(numbered("c", "n1")),
        "raft_term": "3",
    }
    n1 = {"ID": str(numbered("c", "n1")), "name": "n1", "peerURLs": ["http://127.0.0.1:7001"]}
    n2 = {"ID": str(numbered("c", "n2")), "name": "n2", "peerURLs": ["http://127.0.0.1:7002"]}
    answer["header"].pop("revision", None)
    assert answer == {"header": header, "members": [n1 | {"clientURLs": ["http://127.0.0.1:8001"]}, n2]}
    assert all(0 < int(number) < 2**63 for number in (header["cluster_id"], n1["ID"], n2["ID"]))
    assert (await call(node, "cluster/member/list", {"linearizable": True}))[1]["members"] == answer["members"]


async def test_status_says_who_leads_and_how_far_the_node_is() -> None:
    group = leveled()
    async with serve(group) as node:
        status, answer = await call(node, "maintenance/status", {})
        assert status == 200
        assert answer.pop("header")["raft_term"] == "3"
        leader = str(numbered("c", "n1"))
        figures = {"raftIndex": "7", "raftTerm": "3", "raftAppliedIndex": "7", "dbSize": "1", "dbSizeInUse": "1"}
        assert answer == {"version": "3.5.0", "leader": leader, **figures}
        group.becomes(role="follower", leader_id=None)
        status, answer = await call(node, "maintenance/status", {})
        assert (status, answer["errors"]) == (200, ["etcdserver: no leader"])
        assert "leader" not in answer


async def test_a_token_is_its_own_password_and_ends_when_it_is_revoked() -> None:
    group = leveled()
    group.store.apply([TOKEN_CREATE, ["ab", "patroni", "full", hashlib.sha256(b"secret").digest(), 1]])
    async with serve(group, token=FIRST) as node:
        for name, password in (("root", FIRST), ("patroni", "kvnode_ab_secret")):
            status, answer = await call(node, "auth/authenticate", {"name": name, "password": password})
            assert (status, answer["token"]) == (200, password)
            for shown in (answer["token"], f"Bearer {answer['token']}"):
                assert (await call(node, "maintenance/status", {}, {"Authorization": shown}))[0] == 200
        wrong = error(3, "etcdserver: authentication failed, invalid user ID or password")
        for document in (
            {"name": "root", "password": "x"},
            {"name": "root"},
            {"name": "root", "password": "kvnode_ab_"},
        ):
            assert await call(node, "auth/authenticate", document) == (400, wrong)
        no_user = error(3, "etcdserver: user name is empty")
        assert await call(node, "auth/authenticate", {"password": FIRST}) == (400, no_user)
        assert await call(node, "maintenance/status", {}) == (400, no_user)
        assert await call(node, "maintenance/status", {}, {"Token": FIRST}) == (400, no_user)
        group.store.apply([TOKEN_REVOKE, "ab"])
        for header in ("kvnode_ab_secret", "Bearer kvnode_ab_secret", "nonsense.1", f"Basic {FIRST}"):
            answer = await call(node, "maintenance/status", {}, {"Authorization": header})
            assert answer == (401, error(16, "etcdserver: invalid auth token"))


async def test_without_tokens_there_is_nothing_to_authenticate(node: Served) -> None:
    off = error(9, "etcdserver: authentication is not enabled")
    assert await call(node, "auth/authenticate", {"name": "root", "password": "x"}) == (400, off)
    assert (await call(node, "maintenance/status", {}, {"Authorization": "nonsense"}))[0] == 200


async def test_what_is_not_served_is_refused_in_etcds_form(node: Served) -> None:
    for path in REFUSED:
        status, answer = await call(node, path, {})
        assert (status, answer["code"]) == (501, 12)
        assert answer["error"] == answer["message"]
    assert await call(node, "nothing", {}) == (404, error(5, "Not Found"))
    assert await call(node, "cluster/member/list/", {}) == (404, error(5, "Not Found"))
    reply = await node.ask("GET", "/v3/cluster/member/list")
    assert (reply.status, reply.headers["allow"], reply.json["code"]) == (405, "POST", 12)
    assert (await node.ask("POST", "/v3alpha/kv/range", None, b"{}")).status == 404
    status, answer = await call(node, "maintenance/status?x=1", {})
    assert (status, answer["code"]) == (400, 3)
    reply = await node.ask("POST", "/v3/maintenance/status", None, b"nonsense")
    assert (reply.status, reply.json["code"]) == (400, 3)


ERRORS: list[tuple[KvnodeError, int, int, str]] = [
    (BadRequest("A sentence."), 400, 3, "A sentence."),
    (TooLarge("A sentence."), 400, 3, "etcdserver: request is too large"),
    (LeaseNotFound("A sentence."), 404, 5, "etcdserver: requested lease not found"),
    (TooManyLeases("A sentence."), 429, 8, "A sentence."),
    (DiskFull("A sentence."), 429, 8, "etcdserver: mvcc: database space exceeded"),
    (Compacted("A sentence.", 7), 400, 11, "etcdserver: mvcc: required revision has been compacted"),
    (NoLeader("A sentence."), 503, 14, "etcdserver: no leader"),
    (NotLeader("A sentence."), 503, 14, "etcdserver: no leader"),
    (Unverified("A sentence."), 503, 14, "etcdserver: request timed out"),
    (Unavailable("A sentence."), 503, 14, "etcdserver: request timed out"),
    (Overloaded("A sentence."), 503, 14, "A sentence."),
    (Starting("A sentence."), 503, 14, "A sentence."),
    (ShuttingDown("A sentence."), 503, 14, "etcdserver: server stopped"),
    (OutcomeUnknown("A sentence."), 500, 2, "context deadline exceeded"),
]


@pytest.mark.parametrize(
    ("raised", "status", "code", "message"), ERRORS, ids=[type(each[0]).__name__ for each in ERRORS]
)
def test_each_failure_has_etcds_code_and_text(raised: KvnodeError, status: int, code: int, message: str) -> None:
    answer = failure(cast(web.BaseRequest, None), raised)
    assert (answer.status, json.loads(answer.body)) == (status, error(code, message))
    assert (b"Retry-After" in answer.headers) is (status == 503)
    inner = json.loads(stream_failure(cast(web.BaseRequest, None), raised).body)["error"]
    assert (inner["grpc_code"], inner["http_code"], inner["message"]) == (code, status, message)


async def test_each_call_is_counted_under_both_of_its_paths(node: Served) -> None:
    for path in ("/v3/maintenance/status", "/v3beta/maintenance/status"):
        assert (await node.ask("POST", path, None, b"{}")).status == 200
    page = (await node.ask("GET", "/metrics")).body.decode()
    assert 'kvnode_etcd_requests_total{call="maintenance/status"} 2.0' in page
    assert 'kvnode_etcd_requests_total{call="kv/put"} 0.0' in page
    assert "compaction" not in page
