"""GET /metrics: what this node counts, as text for Prometheus, or as OpenMetrics where Accept asks for that."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from kvnode.http import checks
from kvnode.http.answer import PRIVATE, Answer
from kvnode.http.budget import Budgets
from kvnode.http.group import Group
from kvnode.http.rights import READ, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.logs import writer
from kvnode.metrics.meters import HttpMeters

if TYPE_CHECKING:
    from kvnode.metrics.families import Reading
    from kvnode.metrics.page import MetricsPage


def routes(group: Group, meters: HttpMeters, budgets: Budgets, version: str) -> dict[str, Methods]:
    page: MetricsPage | None = None
    # One at a time: a page takes its worker some milliseconds, and several workers would take the interpreter from
    # the event loop in turns.
    rendering = asyncio.Lock()
    # When it was begun; for which Accept, and whether for a token with prefixes; the page.
    newest: tuple[float, tuple[str, bool], tuple[str, bytes]] = (0.0, ("", False), ("", b""))

    async def metrics(request: web.BaseRequest, rest: str, query: str) -> Answer:
        nonlocal newest, page
        came, accept = monotonic(), request.headers.get(hdrs.ACCEPT, "")
        asked = accept, bool(rights_of(request).prefixes)
        async with rendering:
            loop = asyncio.get_running_loop()
            if page is None:
                page = await loop.run_in_executor(None, page_of_version, version)
            began, made_for, rendered = newest
            if began < came or made_for != asked:  # else it was made for another one that waited as long
                began, reading = monotonic(), read(group, meters, budgets)
                if asked[1]:
                    reading = replace(reading, keys=None, leases=None)
                # In a worker: nothing but text, which no write should have to wait for.
                rendered = await loop.run_in_executor(None, page.render, reading, accept)
                newest = began, asked, rendered
        content_type, text = rendered
        return Answer(200, b"Content-Type: %b\r\n" % content_type.encode() + PRIVATE, text)

    page_of = Endpoint(metrics, right=READ, scoped=True)
    return {"/metrics": {"GET": page_of, "HEAD": page_of}}


def page_of_version(version: str) -> MetricsPage:
    """Loads `prometheus_client`, which no node needs before it is asked."""
    from kvnode.metrics.page import MetricsPage

    return MetricsPage(version)


def read(group: Group, meters: HttpMeters, budgets: Budgets) -> Reading:
    from kvnode.metrics.families import Reading

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
        budgets=budgets.levels(),
        over_budget=budgets.refusals(),
        watchers=len(watches),
        watch_changes=len(watches.history),
        watches_ended=dict(watches.ended),
        log_lines_dropped=writer.dropped(),
    )
