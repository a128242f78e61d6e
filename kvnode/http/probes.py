"""Probes: what load balancers and orchestrators ask. They need no credentials and never write to the log.

All of them answer at once from local state, but for one: the leader probe of a node that claims leadership
waits for a majority to confirm the claim, up to its deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from kvnode.errors import NotFound
from kvnode.http import checks
from kvnode.http.answer import JSON_TYPE, TEXT_TYPE, Answer, json_bytes
from kvnode.http.group import Group
from kvnode.http.later import Later
from kvnode.http.paths import Query, decode
from kvnode.http.route import Endpoint, Handler, Methods
from kvnode.metrics.meters import HttpMeters

# The confirmation keeps its own deadline; this much later the answer goes out without it.
GRACE_S: Final = 0.1

_REPORT_PARAMETERS: Final = ("verbose", "exclude")

_REFUSALS: Final = {
    reason: TEXT_TYPE + f"Kvnode-Reason: {reason}\r\n".encode()
    for reason in ("follower", "no-leader", "unverified", "draining", "transferring", "starting", "storage")
}


class LeaderProbe:
    """Whether this node is the leader now, by a majority's word and not by its own."""

    __slots__ = ("group", "timeout_s")

    def __init__(self, group: Group, timeout_s: float) -> None:
        self.group = group
        self.timeout_s = timeout_s

    def ask(self) -> str | asyncio.Future[int | None]:
        """A `Kvnode-Reason` from local state alone, or the majority's word, within `timeout_s`, for `confirmed`."""
        return self.group.leader_refusal() or self.group.verify_leader(self.timeout_s)

    def confirmed(self, index: int | None) -> str | None:
        """What came of it: None for the leader, otherwise a `Kvnode-Reason`."""
        # The node may have begun to drain, or have lost the leadership, while the round was on its way.
        refusal = self.group.leader_refusal()
        return "unverified" if refusal is None and index is None else refusal


def routes(group: Group, leader_probe: LeaderProbe | None, timeout_s: float, meters: HttpMeters) -> dict[str, Methods]:
    """The probe paths. Without a leader probe its path is 404 for every method.

    `timeout_s` is the deadline of every probe: GRACE_S after it a balancer has its answer, even if the node is stuck.
    """

    patience = Patience(timeout_s + GRACE_S)
    results = meters.probes
    # All that a probe may say is on the page of metrics before it is said: an alert can see it rise from 0.
    results.update({("leader", result): 0 for result in ("ok", *_REFUSALS)})
    results.update({(name, result): 0 for name in ("healthz", "livez", "readyz") for result in ("ok", "error")})

    def health(request: web.BaseRequest, rest: str, query: str) -> Answer:
        return Answer(200, TEXT_TYPE, b"ok\n")

    def leader(request: web.BaseRequest, rest: str, query: str) -> Answer | Later[int | None]:
        assert leader_probe is not None
        began_at = time.monotonic()
        asked = leader_probe.ask()
        if isinstance(asked, str):
            return verdict(asked, began_at)
        patience.end(asked)

        def answer(index: int | None) -> Answer:
            return verdict(leader_probe.confirmed(index), began_at)

        return Later(asked, answer)

    def verdict(refusal: str | None, began_at: float) -> Answer:
        meters.probe_s.observe(time.monotonic() - began_at)
        if refusal is None:
            results["leader", "ok"] += 1
            return Answer(200, TEXT_TYPE, b"ok\n")
        results["leader", refusal] += 1
        return Answer(503, _REFUSALS[refusal], b"not leader\n")

    table: dict[str, Methods] = {
        "/admin/healthz": _reading(health),
        "/healthz": _reading(_report(group, "healthz", checks.STARTUP, results), *_REPORT_PARAMETERS),
        "/livez": _reading(_report(group, "livez", checks.LIVE, results), *_REPORT_PARAMETERS),
        "/livez/{check}": _reading(_report_one(group, checks.LIVE)),
        "/readyz": _reading(_report(group, "readyz", checks.READY, results), *_REPORT_PARAMETERS),
        "/readyz/{check}": _reading(_report_one(group, checks.READY)),
    }
    if leader_probe is not None:
        table["/admin/healthz/leader"] = _reading(leader)
    return table


class Patience:
    """Gives None to what has no result after `limit_s`. One timer for all: one for each is a fifth of a probe."""

    __slots__ = ("_asked", "_limit_s", "_timer")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._asked: deque[tuple[float, asyncio.Future[int | None]]] = deque()  # when each is given up
        self._timer: asyncio.TimerHandle | None = None

    def end(self, asked: asyncio.Future[int | None]) -> None:
        waiting, loop = self._asked, asked.get_loop()
        while waiting and waiting[0][1].done():
            waiting.popleft()
        waiting.append((loop.time() + self._limit_s, asked))
        if self._timer is None:
            self._timer = loop.call_later(self._limit_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, waiting, now = None, self._asked, loop.time()
        while waiting and (waiting[0][0] <= now or waiting[0][1].done()):
            asked = waiting.popleft()[1]
            if not asked.done():
                asked.set_result(None)
        if waiting:
            self._timer = loop.call_at(waiting[0][0], self._look, loop)


def _reading(handler: Handler, *parameters: str) -> Methods:
    """Balancers add query parameters of their own: those that a probe does not know change nothing."""
    endpoint = Endpoint(handler, *parameters, checks=False)
    return {"GET": endpoint, "HEAD": endpoint}


def _report(group: Group, name: str, wanted: Mapping[str, checks.Check], results: Counter[tuple[str, str]]) -> Handler:
    def report(request: web.BaseRequest, rest: str, query: str) -> Answer:
        parameters = Query(query, _REPORT_PARAMETERS)
        excluded = parameters.all("exclude")
        status = group.status()
        found = {check: run(status) for check, run in wanted.items() if check not in excluded}
        failed = any(failure is not None for failure in found.values())
        results[name, "error" if failed else "ok"] += 1
        if parameters.flag("verbose"):
            return _verbose(name, wanted, found, status.warnings if wanted is checks.READY else ())
        return _json(found, status.warnings if wanted is checks.READY else ())

    return report


def _report_one(group: Group, known: Mapping[str, checks.Check]) -> Handler:
    def report_one(request: web.BaseRequest, rest: str, query: str) -> Answer:
        check = decode(rest, "name of the check")
        if check not in known:
            raise NotFound(f"There is no such check; there are {', '.join(known)}.")
        return _json({check: known[check](group.status())})

    return report_one


def _json(found: Mapping[str, str | None], warnings: Sequence[str] = ()) -> Answer:
    """`found`: each check's failure, or None. Warnings are listed, and change no verdict."""
    failures = [failure for failure in found.values() if failure is not None]
    # Until the session key is there, name that first: everything else may be waiting for it.
    failures.sort(key=lambda failure: failure is not found.get("session_key"))
    document: dict[str, Any] = {
        "status": "error" if failures else "ok",
        "message": failures[0] if failures else "ok",
        "checks": [
            {"name": name, "status": "ok" if failure is None else "error", "message": failure or "ok"}
            for name, failure in found.items()
        ],
    }
    if warnings:
        document["warnings"] = list(warnings)
    return Answer(503 if failures else 200, JSON_TYPE, json_bytes(document))


def _verbose(
    name: str, wanted: Mapping[str, checks.Check], found: Mapping[str, str | None], warnings: Sequence[str]
) -> Answer:
    """One line for each check, as `kubectl get --raw '/readyz?verbose'` prints them."""
    lines = []
    for check in wanted:
        failure = found.get(check)
        if check not in found:
            lines.append(f"[+]{check} excluded: ok")
        elif failure is None:
            lines.append(f"[+]{check} ok")
        else:
            lines.append(f"[-]{check} failed: {failure}")
    lines += [f"[!]warning: {warning}" for warning in warnings]
    failed = any(failure is not None for failure in found.values())
    lines.append(f"{name} check {'failed' if failed else 'passed'}")
    return Answer(503 if failed else 200, TEXT_TYPE, ("\n".join(lines) + "\n").encode("utf-8", "replace"))
