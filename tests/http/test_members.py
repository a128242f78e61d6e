"""Members over HTTP: what is asked of the group, and what is refused before it is asked."""

from __future__ import annotations

import pytest

from kvnode import errors
from tests.http.serving import Served

MEMBERS = "/admin/api/v1/members"
SHOWN = {
    "cluster_id": "c",
    "index": 9,
    "members": [
        {"id": "n1", "raft": "127.0.0.1:7001", "http": None, "role": "voter", "wanted": False, "since": 0},
    ],
}


async def test_the_members_are_those_of_the_configuration(node: Served) -> None:
    assert (await node.ask("GET", MEMBERS)).json == SHOWN


@pytest.mark.parametrize(
    ("method", "path", "body", "change"),
    [
        ("POST", "", b'{"id":"n4","raft":"h:7"}', ("add", "n4", ("h", 7), "", False, False)),
        (
            "POST",
            "",
            b'{"id":"n4","raft":"h:7","http":"http://h:8","learner":true}',
            ("add", "n4", ("h", 7), "http://h:8", True, False),
        ),
        ("POST", "", b'{"id":"n4","raft":"h:7","moved":true}', ("add", "n4", ("h", 7), "", False, True)),
        ("DELETE", "/n4", b"", ("remove", "n4", False)),
        ("DELETE", "/n4?force", b"", ("remove", "n4", True)),
        ("DELETE", "?id=n4&force=true", b"", ("remove", "n4", True)),
        ("DELETE", "", b'{"id":"n4","force":true}', ("remove", "n4", True)),
        ("POST", "/n4/promote", b"", ("promote", "n4")),
        ("POST", "/n4/replace", b"", ("replace", "n4")),
    ],
)
async def test_a_change_is_handed_on(
    node: Served, method: str, path: str, body: bytes, change: tuple[object, ...]
) -> None:
    reply = await node.ask(method, MEMBERS + path, body=body)
    assert (reply.status, reply.json) == (200, SHOWN)
    assert node.group.changes == [change]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "", b"", 400),
        ("POST", "", b"[]", 400),
        ("POST", "", b'{"id":"n4"}', 400),
        ("POST", "", b'{"id":"n 4","raft":"h:7"}', 400),
        ("POST", "", b'{"id":"n4","raft":"h"}', 400),
        ("POST", "", b'{"id":"n4","raft":"0.0.0.0:7"}', 400),
        ("POST", "", b'{"id":"n4","raft":"h:7","learner":"yes"}', 400),
        ("POST", "", b'{"id":"n4","raft":"h:7","http":"ftp://h"}', 400),
        ("POST", "", b'{"id":"n4","raft":"h:7","what":1}', 400),
        ("DELETE", "", b"", 400),
        ("DELETE", "/", b"", 400),
        ("POST", "/n4", b"", 405),
        ("POST", "/n4/demote", b"", 405),
        ("PUT", "", b"", 405),
        ("GET", "/n4", b"", 405),
    ],
)
async def test_what_makes_no_sense_is_not_handed_on(
    node: Served, method: str, path: str, body: bytes, status: int
) -> None:
    reply = await node.ask(method, MEMBERS + path, body=body)
    assert reply.status == status
    assert set(reply.json) >= {"error", "message"}
    assert node.group.changes == []


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (errors.Conflict("A change is under way."), 409, "not_applied"),
        (errors.NotFound("No such member."), 404, "not_applied"),
        (errors.NoLeader("No leader."), 503, "not_applied"),
        (errors.OutcomeUnknown("Nobody knows."), 504, "unknown"),
    ],
)
async def test_a_failure_says_whether_it_is_definite(
    node: Served, error: errors.KvnodeError, status: int, outcome: str
) -> None:
    node.group.raises = error
    reply = await node.ask("DELETE", MEMBERS + "/n4")
    assert (reply.status, reply.json["outcome"]) == (status, outcome)
