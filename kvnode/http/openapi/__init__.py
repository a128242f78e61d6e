"""The description of the whole HTTP surface in OpenAPI 3.1, at /openapi.json.

`operations.py` has one entry for each route and method, `parameters.py` and `schemas.py` what those name, `document.py`
makes the document of the route table and these: a route without an entry is in it and says so, and fails a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from aiohttp import web

from kvnode.http.answer import JSON_TYPE, Answer, json_bytes
from kvnode.http.rights import READ
from kvnode.http.route import Endpoint, Methods

PATH: Final = "/openapi.json"


def routes(tables: Iterable[Mapping[str, Methods]], status_of: Mapping[str, int], version: str) -> dict[str, Methods]:
    """`tables`: all other routes. `status_of`: the error table."""
    made: list[bytes] = []

    def describe(request: web.BaseRequest, rest: str, query: str) -> Answer:
        if not made:
            from kvnode.http.openapi.document import document  # a node is seldom asked, and starts without it

            made.append(json_bytes(document([*tables, own], status_of, version)))
        return Answer(200, JSON_TYPE, made[0])

    one = Endpoint(describe, right=READ, scoped=True)
    own: dict[str, Methods] = {PATH: {"GET": one, "HEAD": one}}
    return own
