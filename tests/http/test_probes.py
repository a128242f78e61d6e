"""The probe matrix of the contract, to the byte."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from kvnode.http.checks import APPLIED_LAG_ENTRIES_MAX, TICK_AGE_S_MAX
from tests.http.serving import Served, serve
from tests.http.single import LEADING, SingleGroup

PLAIN = "text/plain; charset=utf-8"
FOLLOWING: dict[str, Any] = {"role": "follower", "leader_id": "n2", "serving": False, "leader_heard_age_s": 0.05}

# What the node is -> the reason, and whether the majority may be asked at all.
REFUSALS: list[tuple[str, dict[str, Any], bool, str, int]] = [
    ("follower", FOLLOWING, True, "follower", 0),
    ("candidate", {"role": "candidate", "leader_id": None}, True, "no-leader", 0),
    ("follower without a leader", {**FOLLOWING, "leader_id": None}, True, "no-leader", 0),
    ("leader cut off", {}, False, "unverified", 1),
    ("leader draining", {"draining": True}, True, "draining", 0),
    ("leader transferring", {"transferring": True}, True, "transferring", 0),
    ("leader before its first commit", {"serving": False}, True, "starting", 0),
    ("loading", {"started": False, "role": "follower", "leader_id": None}, True, "starting", 0),
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("name", "state", "confirms", "reason", "rounds"), REFUSALS, ids=[r[0] for r in REFUSALS])
async def test_leader_probe_refuses(
    node: Served, name: str, state: dict[str, Any], confirms: bool, reason: str, rounds: int, method: str
) -> None:
    node.group.becomes(**state)
    node.group.confirms = confirms
    reply = await node.ask(method, "/admin/healthz/leader")
    assert reply.status == 503
    assert reply.body == (b"not leader\n" if method == "GET" else b"")
    assert reply.headers["content-type"] == PLAIN
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["kvnode-reason"] == reason
    assert reply.headers["content-length"] == "11"
    assert node.group.verifications == rounds
    assert node.group.proposals == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/admin/healthz/leader", "/admin/healthz"])
async def test_a_confirmed_leader_is_ok(node: Served, method: str, path: str) -> None:
    reply = await node.ask(method, path)
    assert reply.status == 200
    assert reply.body == (b"ok\n" if method == "GET" else b"")
    assert reply.headers["content-type"] == PLAIN
    assert reply.headers["cache-control"] == "no-store"
    assert "kvnode-reason" not in reply.headers
    assert (reply.headers["kvnode-node"], reply.headers["kvnode-leader"], reply.headers["kvnode-term"]) == (
        "n1",
        "n1",
        "3",
    )


async def test_a_round_confirms_no_leader_that_stopped_being_one_meanwhile(node: Served) -> None:
    for change, reason in (({"draining": True}, "draining"), (FOLLOWING, "follower")):
        node.group.present = LEADING
        node.group.asked.clear()
        node.group.confirms = asyncio.get_running_loop().create_future()
        async with node.connect() as wire:
            asked = asyncio.create_task(wire.ask("GET", "/admin/healthz/leader"))
            async with asyncio.timeout(5):
                await node.group.asked.wait()
            node.group.becomes(**change)
            node.group.confirms.set_result(True)
            reply = await asked
        assert (reply.status, reply.headers["kvnode-reason"]) == (503, reason)


async def test_a_round_that_never_ends_does_not_hold_the_probe(node: Served) -> None:
    node.group.confirms = asyncio.get_running_loop().create_future()
    started = asyncio.get_running_loop().time()
    reply = await node.ask("GET", "/admin/healthz/leader")
    assert (reply.status, reply.headers["kvnode-reason"]) == (503, "unverified")
    assert asyncio.get_running_loop().time() - started < 2.0


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE"])
async def test_an_unwired_leader_probe_does_not_exist(method: str) -> None:
    async with serve(SingleGroup(), leader_probe=False) as node:
        reply = await node.ask(method, "/admin/healthz/leader")
        assert reply.status == 404
        assert "allow" not in reply.headers
        if method == "HEAD":
            assert reply.body == b""
        else:
            assert reply.json["error"] == "not_found"
            assert reply.json["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/admin/healthz/leader/",
        "/admin/healthz/lead",
        "/admin/healthz/x",
        "/admin/healthz/",
        "/admin//healthz/leader",
        "/admin/x/../healthz/leader",
        "/livez/",
        "/readyz/",
        "/readyz/x",
        "/readyz/leader/",
        "/healthz/",
        "/healthz/startup",
    ],
)
async def test_near_misses_are_json_404(node: Served, path: str) -> None:
    reply = await node.ask("GET", path)
    assert (reply.status, reply.json["error"]) == (404, "not_found")


UNREADY: list[tuple[str, dict[str, Any], str]] = [
    ("startup", {"started": False}, "Start-up"),
    ("storage", {"storage_error": "The disk is full"}, "The disk is full"),
    ("leader", {"leader_id": None, "leader_heard_age_s": None}, "No leader is known"),
    ("leader", {**FOLLOWING, "leader_heard_age_s": 1.3}, "n2"),
    ("applied_lag", {"leader_commit_index": 8 + APPLIED_LAG_ENTRIES_MAX}, "entries behind"),
    ("session_key", {"session_error": "Session key not resolved yet"}, "Session key not resolved yet"),
    ("membership", {"is_member": False}, "member"),
    ("draining", {"draining": True}, "draining"),
    ("blocking_errors", {"blocking_errors": ("Two nodes are called n1",)}, "Two nodes are called n1"),
]


@pytest.mark.parametrize(("check", "state", "message"), UNREADY)
async def test_readyz_names_what_is_wrong(node: Served, check: str, state: dict[str, Any], message: str) -> None:
    assert (await node.ask("GET", "/readyz")).status == 200
    assert (await node.ask("GET", f"/readyz/{check}")).status == 200
    node.group.becomes(**state)
    reply = await node.ask("GET", "/readyz")
    assert reply.status == 503
    assert reply.headers["cache-control"] == "no-store"
    assert reply.json["status"] == "error"
    assert message in reply.json["message"]
    order = ["startup", "storage", "leader", "applied_lag", "session_key", "membership", "draining", "blocking_errors"]
    assert [c["name"] for c in reply.json["checks"]] == order
    assert [c["name"] for c in reply.json["checks"] if c["status"] == "error"] == [check]
    one = await node.ask("GET", f"/readyz/{check}")
    assert (one.status, one.json["checks"][0]["name"], one.json["message"]) == (503, check, reply.json["message"])
    assert (await node.ask("GET", f"/readyz?exclude={check}")).status == 200
    assert (await node.ask("HEAD", "/readyz")).status == 503


async def test_a_follower_that_hears_its_leader_is_ready_and_at_the_bound_still(node: Served) -> None:
    node.group.becomes(**FOLLOWING, leader_commit_index=7 + APPLIED_LAG_ENTRIES_MAX)
    node.group.becomes(leader_heard_age_s=1.2)
    reply = await node.ask("GET", "/readyz")
    assert (reply.status, reply.json["status"], reply.json["message"]) == (200, "ok", "ok")


async def test_readyz_in_words(node: Served) -> None:
    node.group.becomes(leader_id=None, draining=True)
    reply = await node.ask("GET", "/readyz?verbose&exclude=draining&exclude=storage")
    assert reply.status == 503
    assert reply.headers["content-type"] == PLAIN
    assert reply.body.decode().splitlines() == [
        "[+]startup ok",
        "[+]storage excluded: ok",
        "[-]leader failed: No leader is known",
        "[+]applied_lag ok",
        "[+]session_key ok",
        "[+]membership ok",
        "[+]draining excluded: ok",
        "[+]blocking_errors ok",
        "readyz check failed",
    ]
    passed = await node.ask("GET", "/livez?verbose")
    assert (passed.status, passed.body) == (200, b"[+]event_loop ok\n[+]raft_tick ok\nlivez check passed\n")


async def test_liveness_depends_on_the_tick_and_on_no_peer(node: Served) -> None:
    node.group.becomes(
        role="candidate",
        leader_id=None,
        leader_heard_age_s=None,
        storage_error="The disk is full",
        blocking_errors=("x",),
        is_member=False,
        draining=True,
        leader_commit_index=10**6,
        tick_age_s=TICK_AGE_S_MAX,
    )
    for path in ("/livez", "/livez/raft_tick", "/livez/event_loop"):
        assert (await node.ask("GET", path)).status == 200
    node.group.becomes(tick_age_s=TICK_AGE_S_MAX + 0.1)
    assert (await node.ask("GET", "/livez")).status == 503
    assert (await node.ask("GET", "/livez/raft_tick")).status == 503
    assert (await node.ask("GET", "/livez/event_loop")).status == 200
    assert (await node.ask("GET", "/admin/healthz")).status == 200
    node.group.becomes(started=False)  # a long load is no reason for a restart
    assert (await node.ask("GET", "/livez")).status == 200


async def test_startup_probe(node: Served) -> None:
    reply = await node.ask("GET", "/healthz")
    found = [{"name": name, "status": "ok", "message": "ok"} for name in ("startup", "session_key")]
    assert (reply.status, reply.json["checks"]) == (200, found)
    node.group.present = replace(LEADING, started=False)
    reply = await node.ask("GET", "/healthz")
    assert (reply.status, reply.json["status"]) == (503, "error")
    # Until the key is there, it is what both probes say first, whatever else is not ready yet.
    node.group.becomes(leader_id=None, session_error="Session key not resolved yet")
    for path in ("/healthz", "/readyz"):
        reply = await node.ask("GET", path)
        assert (reply.status, reply.json["status"]) == (503, "error")
        assert reply.json["message"] == "Session key not resolved yet"


async def test_warnings_are_told_and_change_no_verdict(node: Served) -> None:
    assert "warnings" not in (await node.ask("GET", "/readyz")).json
    node.group.becomes(warnings=("Mind this",))
    reply = await node.ask("GET", "/readyz")
    assert (reply.status, reply.json["message"], reply.json["warnings"]) == (200, "ok", ["Mind this"])
    assert b"[!]warning: Mind this\nreadyz check passed\n" in (await node.ask("GET", "/readyz?verbose")).body
    assert "warnings" not in (await node.ask("GET", "/livez")).json
