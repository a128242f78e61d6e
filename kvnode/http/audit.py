"""The audit log: one line for each administrative action, with who asked, from where, and what came of it.

It is the logger `kvnode.audit`, at every --log-level. Reading the state of the cluster is no action; taking a
backup is one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from kvnode.errors import KvnodeError
from kvnode.http.answer import Answer
from kvnode.http.backup import PATH as BACKUP_PATH
from kvnode.http.credentials import shown
from kvnode.http.door import READING, Door
from kvnode.http.route import Endpoint, Methods, as_endpoint
from kvnode.logs.rate_limited import LINES, RateLimitedLog, printable

log = logging.getLogger("kvnode.audit")

# Where nodes ask for tokens, each line names one. Where they are open, anybody can cause lines: what was refused counts
# among the lines about strangers, and of what was done 300 a minute are written, which is more than people do by hand.
ANONYMOUS: Final = RateLimitedLog(300)
WHY_CHARS_MAX: Final = 300
TARGET_CHARS_MAX: Final = 120  # the longest route has 40, and a name behind it up to 63
TARGET_CHARS_MAX_KNOWN: Final = 400  # of one whose token says who it is


class Noted(Answer):
    """An answer whose audit line says what was made or ended, by its name: `what` begins with a verb."""

    __slots__ = ("what",)

    def __init__(self, answer: Answer, what: str) -> None:
        super().__init__(answer.status, answer.headers, answer.body)
        self.what = what


def audited(table: Mapping[str, Methods], door: Door) -> dict[str, Methods]:
    """The same routes, whose actions leave a line."""
    return {
        path: {
            method: _noting(as_endpoint(each), method, path, door)
            if method not in READING or path == BACKUP_PATH
            else each
            for method, each in methods.items()
        }
        for path, methods in table.items()
    }


def _noting(endpoint: Endpoint, method: str, path: str, door: Door) -> Endpoint:
    before, _, behind = path.partition("{")

    async def noting(request: web.BaseRequest, rest: str, query: str) -> Answer:
        admission, client = door.who(request)
        who = f"{admission or 'anonymous'} at {client}"
        chars_max = TARGET_CHARS_MAX if admission is None else TARGET_CHARS_MAX_KNOWN
        named = before + rest + behind.partition("}")[2]
        target = printable(named + (f"?{query}" if query else ""), chars_max)
        fields: dict[str, object] = {"event": "audit", "token": None, "client": client}
        fields |= {"method": method, "target": target}
        if admission is not None:
            fields["token"] = admission.token.id
            if admission.session is not None:
                fields["session"] = shown(admission.session)
        said = (who, method, target)
        try:
            if query:
                endpoint.check(query)  # here, so that an action which is refused for its query leaves its line too
            outcome = endpoint.handler(request, rest, query)
            answer = outcome if isinstance(outcome, Answer) else await outcome
        except KvnodeError as error:
            extra = {"fields": fields | {"error": error.code}}
            if admission is None and not LINES.admits(client, f"{method} {path} refused with {error.code}"):
                raise
            why = printable(error.message, WHY_CHARS_MAX)  # it names what the request named in its body
            log.info("%s: %s %s: %s (%s): %s", *said, error.code, error.outcome, why, extra=extra)
            raise
        except (Exception, asyncio.CancelledError) as error:
            # The request's own time was over, its client went away, or the node failed: it is done, or it is not.
            why = "cut_off" if isinstance(error, asyncio.CancelledError) else "internal"
            if admission is None and not ANONYMOUS.admits_one_of_many("changes by anonymous clients"):
                raise
            log.info("%s: %s %s: %s (unknown).", *said, why, extra={"fields": fields | {"error": why}})
            raise
        if admission is None and not ANONYMOUS.admits_one_of_many("changes by anonymous clients"):
            return answer
        what = ""
        fields["status"] = answer.status
        if isinstance(answer, Noted):
            what = f": {answer.what}"
            fields["what"] = answer.what
        log.info("%s: %s %s: %d%s.", *said, answer.status, what, extra={"fields": fields})
        return answer

    return Endpoint(noting, *endpoint.parameters, right=endpoint.right, scoped=endpoint.scoped, checks=False)
