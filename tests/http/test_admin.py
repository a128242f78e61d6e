"""The administration API."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kvnode import errors
from tests.http.serving import Served

DRAIN = "/admin/api/v1/drain"
TRANSFER = "/admin/api/v1/leader/transfer"


async def test_the_cluster_as_this_node_sees_it(node: Served) -> None:
    reply = await node.ask("GET", "/admin/api/v1/cluster")
    document = reply.json
    moment = datetime.fromisoformat(document.pop("timestamp"))
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    member = {"raft": "127.0.0.1:7001", "http": "http://127.0.0.1:8001", "match_index": 7, "applied_index": 7, "lag": 0}
    unknown = {"raft": "127.0.0.1:7002", "http": None, "match_index": None, "applied_index": None, "lag": None}
    assert document == {
        "node_id": "n1",
        "version": "1.2.3",
        "groups": [
            {
                "group_id": "default",
                "leader_id": "n1",
                "term": 3,
                "members": [
                    {"id": "n1", "role": "leader", "reachable": True, "draining": False, **member},
                    {"id": "n2", "role": "unknown", "reachable": False, "draining": False, **unknown},
                ],
                "is_leader": True,
            }
        ],
    }
    node.group.becomes(role="follower", leader_id=None)
    group = (await node.ask("GET", "/admin/api/v1/cluster")).json["groups"][0]
    assert (group["leader_id"], group["is_leader"]) == (None, False)


async def test_a_transfer_answers_with_the_new_leader(node: Served) -> None:
    assert (await node.ask("POST", TRANSFER)).json == {"leader_id": "n2", "term": 4}
    assert (await node.ask("POST", TRANSFER, body=b"{}")).json == {"leader_id": "n2", "term": 4}
    assert (await node.ask("POST", TRANSFER, body=b'{"to":null}')).json == {"leader_id": "n2", "term": 4}
    assert (await node.ask("POST", TRANSFER, body=b'{"to":"n3"}')).json == {"leader_id": "n3", "term": 4}


async def test_a_transfer_that_cannot_be_is_definite(node: Served) -> None:
    node.group.raises = errors.Conflict("n9 is not a member.")
    reply = await node.ask("POST", TRANSFER, body=b'{"to":"n9"}')
    assert reply.status == 409
    assert reply.json == {"error": "conflict", "message": "n9 is not a member.", "outcome": "not_applied"}
    node.group.raises = errors.NoLeader("No leader is known.")
    reply = await node.ask("POST", TRANSFER)
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no", 400),
        (b"[]", 400),
        (b'{"to":1}', 400),
        (b'{"to":""}', 400),
        (b'{"too":"n1"}', 400),
        (b"\xff", 400),
        (b"[" * 60_000, 400),
        (b" " * 70_000, 413),
    ],
)
async def test_a_transfer_that_makes_no_sense(node: Served, body: bytes, status: int) -> None:
    node.group.raises = RuntimeError("must not be asked")
    assert (await node.ask("POST", TRANSFER, body=body)).status == status


async def test_drain_fails_the_probes_at_once_until_it_is_taken_back(node: Served) -> None:
    drained = {"node": "n1", "draining": True, "leader_id": "n2", "leads": False, "message": None}
    for body in (None, b"", b"{}", b'{"node":"n1"}', b'{"node":null,"force":false}', b'{"force":true}'):
        assert (await node.ask("POST", DRAIN, body=body)).json == drained
        assert (await node.ask("GET", "/admin/healthz/leader")).status == 503
        assert (await node.ask("GET", "/readyz/draining")).status == 503
        assert (await node.ask("GET", "/livez")).status == 200
        assert (await node.ask("GET", "/v1/watch?wait=0s")).json["error"] == "shutting_down"
        back = await node.ask("DELETE", DRAIN if body is None else DRAIN + "?node=n1")
        assert back.json == {**drained, "draining": False}
        assert (await node.ask("GET", "/readyz/draining")).status == 200
        assert (await node.ask("GET", "/v1/watch?wait=0s")).status == 200
    assert node.group.drained_with_force
    assert (await node.ask("DELETE", DRAIN, body=b'{"node":"n1"}')).status == 200


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("POST", "", b"no", 400),
        ("POST", "", b"[]", 400),
        ("POST", "", b'{"node":1}', 400),
        ("POST", "", b'{"node":""}', 400),
        ("POST", "", b'{"force":1}', 400),
        ("POST", "", b'{"forse":true}', 400),
        ("POST", "?node=n1", b"", 400),
        ("POST", "", b'{"node":"n9"}', 404),
        ("DELETE", "", b'{"force":true}', 400),
        ("DELETE", "?force", None, 400),
        ("DELETE", "?node=", None, 400),
        ("DELETE", "?node=n1", b'{"node":"n1"}', 400),
        ("DELETE", "?node=n9", None, 404),
    ],
)
async def test_a_drain_that_makes_no_sense(
    node: Served, method: str, target: str, body: bytes | None, status: int
) -> None:
    reply = await node.ask(method, DRAIN + target, body=body)
    assert (reply.status, reply.json["outcome"]) == (status, "not_applied")
    assert not node.group.draining


async def test_a_leader_that_nobody_takes_over_from_drains_all_the_same_and_says_why(node: Served) -> None:
    node.group.raises = errors.Conflict("Nobody answers.")
    kept = {"node": "n1", "draining": True, "leader_id": "n1", "leads": True, "message": "Nobody answers."}
    assert (await node.ask("POST", DRAIN)).json == kept
    assert (await node.ask("GET", "/admin/healthz/leader")).headers["kvnode-reason"] == "draining"
