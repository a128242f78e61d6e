"""GET /metrics: what this node counts, as text for Prometheus, or as OpenMetrics where Accept asks for that."""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web

from kvnode import logs
from kvnode.http import checks
from kvnode.http.answer import PRIVATE, Answer
from kvnode.http.group import Group
from kvnode.http.route import Methods
from kvnode.meters import HttpMeters
from kvnode.metrics.families import Reading
from kvnode.metrics.page import Page


def routes(group: Group, meters: HttpMeters, version: str) -> dict[str, Methods]:
    page = Page(version)

    async def metrics(request: web.BaseRequest, rest: str, query: str) -> Answer:
        reading, accept = read(group, meters), request.headers.get(hdrs.ACCEPT, "")
        # In a worker: some milliseconds of nothing but text, which no write should have to wait for.
        loop = asyncio.get_running_loop()
        content_type, text = await loop.run_in_executor(None, page.render, reading, accept)
        return Answer(200, b"Content-Type: %b\r\n" % content_type.encode() + PRIVATE, text)

    return {"/metrics": {"GET": metrics, "HEAD": metrics}}


def read(group: Group, meters: HttpMeters) -> Reading:
    status, store, watches = group.status(), group.store, group.watches
    return Reading(
        status=status,
        members=group.members(),
        ready={name: check(status) is None for name, check in checks.READY.items()},
        raft=group.meters(),
        http=meters,
        levels=group.levels(),
        keys=len(store),
        revision=store.revision,
        leases=len(store.leases),
        watchers=len(watches),
        watch_changes=len(watches.history),
        watches_ended=dict(watches.ended),
        log_lines_dropped=logs.dropped(),
    )
