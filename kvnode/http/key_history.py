"""GET /admin/api/v1/history: what happened to one key, as far back as this node remembers."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest
from kvnode.http.answer import Answer, json_answer
from kvnode.http.budget import Budgets
from kvnode.http.consistency import consistency
from kvnode.http.document import whole_parameter
from kvnode.http.group import Group
from kvnode.http.paths import Query
from kvnode.http.rights import READ, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.state.changes import CHANGE_PUT, KIND_NAMES, Change
from kvnode.state.items import MARKS, content_of
from kvnode.state.limits import KEY_BYTES_MAX, text_fault

PATH: Final = "/admin/api/v1/history"
CHANGES_MAX: Final = 100
CHANGES_DEFAULT: Final = 20
# Of each value: enough to see what it is. A hundred of the largest would be a hundred MiB; GET /v1/kv/{key}?revision=
# gives any of them whole.
VALUE_BYTES: Final = 2_048


def routes(group: Group, budgets: Budgets) -> dict[str, Methods]:
    async def history(request: web.BaseRequest, rest: str, query: str) -> Answer:
        parameters = Query(query)
        key = parameters.get("key", "")
        if text_fault("key", key, 1, KEY_BYTES_MAX) is not None:
            raise BadRequest(f"The query parameter 'key' is a key of 1 to {KEY_BYTES_MAX} bytes.")
        rights_of(request).check_key(key)
        limit = whole_parameter(parameters.get("limit", str(CHANGES_DEFAULT)), CHANGES_MAX, "query parameter 'limit'")
        headers = await consistency(group, parameters)
        await budgets.turns.take()  # it may look through all that is kept of the past
        past = group.watches.history
        changes = [_shown(change) for change in past.of(key, limit)]
        document = {
            "key": key,
            "changes": changes,
            "oldest_revision": past.oldest,
            "revision": group.store.revision,
        }
        return json_answer(200, document, headers)

    some = Endpoint(history, "key", "limit", "consistency", right=READ, scoped=True)
    return {PATH: {"GET": some, "HEAD": some}}


def _shown(change: Change) -> dict[str, Any]:
    kind, _, revision, packed, _ = change
    shown: dict[str, Any] = {"event": KIND_NAMES[kind], "revision": revision}
    if kind == CHANGE_PUT:
        create_revision, _, version, _ = MARKS.unpack_from(packed)
        content_type, value = content_of(packed)
        shown |= {
            "create_revision": create_revision,
            "version": version,
            "content_type": content_type,
            "size": len(value),
            "value": b64encode(value[:VALUE_BYTES]).decode(),  # all of it where it is no longer than VALUE_BYTES
        }
    return shown
