"""Every node in its own words: role, progress and health, asked of all of them at once.

/admin/api/v1/cluster is what one node sees. How far the others have applied only they and the leader know, and whether
they are ready only they themselves: so they are asked, and one that does not say so in time is `unreachable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from kvnode.http import checks
from kvnode.http.answer import Answer, json_answer
from kvnode.http.group import Group
from kvnode.http.rights import READ
from kvnode.http.route import Endpoint, Methods
from kvnode.node.status import MemberStatus, RaftStatus, applied_lag

PATH: Final = "/admin/api/v1/nodes"
REPORT: Final = "status"
_REPORTED: Final = ("applied_index", "lag", "ready", "health", "warnings", "version")


def routes(group: Group, node_id: str, version: str) -> dict[str, Methods]:
    group.own_reports[REPORT] = lambda since: own_report(group.status(), version)

    async def nodes(request: web.BaseRequest, rest: str, query: str) -> Answer:
        reports = await group.reports(REPORT)
        status = group.status()
        document = {
            "node_id": node_id,
            "cluster_id": status.cluster_id,
            "version": version,
            "leader_id": status.leader_id,
            "term": status.term,
            "nodes": [_shown(member, status, reports.get(member.id)) for member in group.members()],
        }
        return json_answer(200, document)

    look = Endpoint(nodes, right=READ, scoped=True)
    return {PATH: {"GET": look, "HEAD": look}}


def own_report(status: RaftStatus, version: str) -> dict[str, Any]:
    """What this node says of itself, to whichever node asks."""
    failures = [sentence for check in checks.READY.values() if (sentence := check(status)) is not None]
    return {
        "version": version,
        "ready": not failures,
        "health": failures[0] if failures else "Ready",
        "warnings": list(status.warnings),
        "draining": status.draining,
        "applied_index": status.applied_index,
        "lag": applied_lag(status),
    }


def _shown(member: MemberStatus, status: RaftStatus, report: Mapping[str, Any] | None) -> dict[str, Any]:
    """One node, by its own report where there is one; None: it has not answered, {}: its version gives none."""
    leads = member.id == status.leader_id
    draining = report.get("draining", member.draining) if report else member.draining
    if report is None:
        role, health = "unreachable", "Does not answer"
    else:
        role = "leader" if leads else "draining" if draining else "learner" if member.role == "learner" else "follower"
        health = "Runs a version that says nothing of its health"
    shown: dict[str, Any] = {
        "id": member.id,
        "role": role,
        "raft": member.raft,
        "http": member.http,
        "applied_index": member.applied_index,
        "lag": member.lag,
        "draining": draining,
        "ready": False,
        "health": health,
        "warnings": [],
        "version": None,
    }
    return shown | {name: report[name] for name in _REPORTED if report is not None and name in report}
