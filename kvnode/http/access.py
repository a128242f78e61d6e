"""What the sender of a request may do here: the one thing that is answered with and without a token.

A page has to know whether to ask for a token before it can have one. An answer that is always 200 says so without
anybody being refused.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from kvnode.http.answer import Answer, json_answer
from kvnode.http.credentials import Credentials
from kvnode.http.door import ACCESS_PATH as PATH
from kvnode.http.rights import ALL, READ
from kvnode.http.route import Endpoint, Methods


def routes(credentials: Credentials) -> dict[str, Methods]:
    def access(request: web.BaseRequest, rest: str, query: str) -> Answer:
        asks = credentials.first is not None
        admission = credentials.admission(request) if asks else None
        if asks and admission is None:
            return json_answer(200, {"asks_for_tokens": True, "admitted": False})
        rights = ALL if admission is None else admission.rights
        role = "full" if admission is None else admission.token.role
        document: dict[str, Any] = {"asks_for_tokens": asks, "admitted": True, "role": role, "may": rights.may()}
        document["prefixes"] = list(rights.prefixes)
        if admission is not None:
            document |= {"name": admission.token.name, "session": admission.session is not None}
        return json_answer(200, document)

    look = Endpoint(access, right=READ, scoped=True)
    return {PATH: {"GET": look, "HEAD": look}}
