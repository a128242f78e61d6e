"""What the nodes remember of late: who led, how busy they were, for which keys. Bounded rings, asked of all nodes.

None of it is in the log: each node keeps what it has seen itself since it began, and the node that is asked puts the
reports of all together. What a member says that has been away is missing, and named.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest
from kvnode.http.answer import Answer, json_answer
from kvnode.http.group import Group
from kvnode.http.paths import Query
from kvnode.http.rights import READ, rights_of
from kvnode.http.route import Endpoint, Handler, Methods
from kvnode.metrics.meters import HttpMeters
from kvnode.metrics.recent import MINUTES, SPAN_S, STEP_S

TIMELINE: Final = "/admin/api/v1/timeline"
FIGURES: Final = "/admin/api/v1/figures"
HEAT: Final = "/admin/api/v1/heat"
ROWS_MAX: Final = 16  # of a heat map that a person can take in
MILLISECONDS_DIGITS_MAX: Final = 15

Reports = Mapping[str, Mapping[str, Any]]


def routes(group: Group, meters: HttpMeters) -> dict[str, Methods]:
    group.own_reports.setdefault("timeline", lambda since_ms: {"changes": []})  # until the node has started
    group.own_reports["figures"] = lambda since_ms: {"samples": meters.figures.since(since_ms)}
    group.own_reports["heat"] = lambda since_ms: {"minutes": meters.traffic.minutes()}

    async def timeline(request: web.BaseRequest, rest: str, query: str) -> Answer:
        reports = await group.reports("timeline")
        return json_answer(200, {"changes": merged_changes(reports), "unanswered": unanswered(group, reports)})

    async def figures(request: web.BaseRequest, rest: str, query: str) -> Answer:
        since_ms = _since_ms(Query(query))
        reports = await group.reports("figures", since_ms)
        document = {
            "step_s": STEP_S,
            "span_s": SPAN_S,
            "now_ms": int(time.time() * 1000),
            "nodes": [{"node": name, "samples": _listed(report, "samples")} for name, report in reports.items()],
            "unanswered": unanswered(group, reports),
        }
        return json_answer(200, document)

    async def heat(request: web.BaseRequest, rest: str, query: str) -> Answer:
        rights = rights_of(request)
        reports = await group.reports("heat")
        last_minute = int(time.time() // 60)
        document = {
            "minutes": MINUTES,
            "last_minute_ms": last_minute * 60_000,
            "rows": merged_heat(reports, last_minute, rights.covers),
            "unanswered": unanswered(group, reports),
        }
        return json_answer(200, document)

    return {
        TIMELINE: _reading(timeline),
        FIGURES: _reading(figures, "since_ms"),
        HEAT: _reading(heat),
    }


def _reading(handler: Handler, *parameters: str) -> Methods:
    endpoint = Endpoint(handler, *parameters, right=READ, scoped=True)
    return {"GET": endpoint, "HEAD": endpoint}


async def record(group: Group, meters: HttpMeters) -> None:
    """Takes a sample every STEP_S. Ends by cancellation."""
    while True:
        raft, levels = group.meters(), group.levels()
        fsync = [] if levels is None else levels.fsync_s.counts
        meters.figures.take(
            int(time.time() * 1000), time.monotonic(), raft.applied, meters.traffic.reads, raft.commit_s.counts, fsync
        )
        meters.traffic.settle()
        await asyncio.sleep(STEP_S)


def merged_changes(reports: Reports) -> list[dict[str, Any]]:
    """One entry for each change of leadership, oldest first, by the node that knows it best.

    A node that began to lead, or stopped, knows when and why; the others tell of it where that one has been away since.
    """
    best: dict[tuple[int, bool], dict[str, Any]] = {}
    for node, report in reports.items():
        for change in _listed(report, "changes"):
            leader, term = change.get("leader_id"), change.get("term")
            if type(term) is not int:
                continue
            known = best.get((term, leader is None))
            at_first_hand = node in (leader, change.get("previous_id") if leader is None else None)
            if known is None or at_first_hand:
                best[term, leader is None] = change
    # Leave out a leader's end that the next leader's beginning says already.
    told = [
        change
        for (term, _), change in best.items()
        if change["leader_id"] is not None
        or (next_one := best.get((term, False))) is None
        or next_one["leader_id"] == change.get("previous_id")
    ]
    return sorted(told, key=lambda change: (change["at_ms"], change["term"]))


def merged_heat(reports: Reports, last_minute: int, may_see: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Rows of MINUTES reads and writes, the busiest beginnings of keys, in their order.

    What may not be seen is left out before anything is added up.
    """
    rows: dict[str, tuple[list[int], list[int]]] = {}
    for report in reports.values():
        for minute, counts in _listed(report, "minutes"):
            column = MINUTES - 1 - (last_minute - minute)
            if not 0 <= column < MINUTES:
                continue
            for prefix, reads, writes in counts:
                if may_see(prefix):
                    row = rows.setdefault(prefix, ([0] * MINUTES, [0] * MINUTES))
                    row[0][column] += reads
                    row[1][column] += writes
    rows = _folded(rows, may_see)
    busiest = sorted(rows, key=lambda prefix: sum(map(sum, rows[prefix])), reverse=True)[:ROWS_MAX]
    return [{"prefix": prefix, "reads": rows[prefix][0], "writes": rows[prefix][1]} for prefix in sorted(busiest)]


def _folded(
    rows: dict[str, tuple[list[int], list[int]]], may_see: Callable[[str], bool]
) -> dict[str, tuple[list[int], list[int]]]:
    """With more rows than there is room for, the families of most members become one row each: `user/17/`, `user/18/`
    and a hundred more are `user/`."""
    families: dict[str, list[str]] = {}
    for prefix in rows:
        families.setdefault(prefix[: prefix.find("/") + 1], []).append(prefix)
    for family, members in sorted(families.items(), key=lambda each: -len(each[1])):
        if len(rows) <= ROWS_MAX or len(members) < 3 or not family or not may_see(family):
            break
        counts = [rows.pop(member) for member in members]
        rows[family] = (
            [sum(column) for column in zip(*(reads for reads, _ in counts), strict=True)],
            [sum(column) for column in zip(*(writes for _, writes in counts), strict=True)],
        )
    return rows


def _listed(report: Mapping[str, Any], name: str) -> Sequence[Any]:
    found = report.get(name)
    return found if isinstance(found, list) else []


def unanswered(group: Group, reports: Reports) -> list[str]:
    """The members without a report."""
    return [member.id for member in group.members() if not reports.get(member.id)]


def _since_ms(parameters: Query) -> int:
    text = parameters.get("since_ms", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= MILLISECONDS_DIGITS_MAX):
        raise BadRequest("The query parameter 'since_ms' is a time in milliseconds since 1970.")
    return int(text)
