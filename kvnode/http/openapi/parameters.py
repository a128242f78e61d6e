"""What a request may carry beside its body: in the path, the query and the headers."""

from __future__ import annotations

from typing import Final

from kvnode.http import checks
from kvnode.http.listing import PAGE_KEYS_DEFAULT, PAGE_KEYS_MAX
from kvnode.http.openapi.shapes import Schema, text, whole
from kvnode.http.timeout import SECONDS
from kvnode.http.watch import WAIT_S_MAX
from kvnode.state.limits import (
    IDEMPOTENCY_KEY_CHARS_MAX,
    KEY_BYTES_MAX,
    LEASE_ID_MAX,
    TOKEN_NAME_BYTES_MAX,
    TTL_S_MAX,
)

_FLAG: Final[Schema] = {"enum": ["", "true", "1", "false", "0"], "default": "false"}
_NODE: Final = text(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_TAGS: Final = text(pattern='^(\\*|"[0-9]{1,18}"(, "[0-9]{1,18}"){0,15})$')
_KEY_NOTE: Final = f"1 to {KEY_BYTES_MAX} bytes of UTF-8, percent-encoded; kept exactly as it is, slashes included."


def _path(name: str, schema: Schema, about: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": about}


def _query(name: str, schema: Schema, about: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": about}


def _header(name: str, schema: Schema, about: str) -> Schema:
    return {"name": name, "in": "header", "schema": schema, "description": about}


PARAMETERS: Final[dict[str, Schema]] = {
    "key": _path("key", text(minLength=1, maxLength=KEY_BYTES_MAX), _KEY_NOTE),
    "id": _path("id", whole(1, LEASE_ID_MAX), "The id of a lease: 64 bits, as etcd's clients may choose it."),
    "member": _path("member", _NODE, "The name of a node."),
    "token": _path("token", text(minLength=1, maxLength=TOKEN_NAME_BYTES_MAX), "The id of a token, or its name."),
    "livez_check": _path("check", {"enum": list(checks.LIVE)}, "The one check to run."),
    "readyz_check": _path("check", {"enum": list(checks.READY)}, "The one check to run."),
    "ttl": _query("ttl", whole(1, TTL_S_MAX), "Seconds after which the key goes away; not together with `lease`."),
    "lease": _query("lease", whole(1, LEASE_ID_MAX), "The lease that the key goes away with; not together with `ttl`."),
    "consistency": _query(
        "consistency",
        {"enum": ["linearizable", "stale"], "default": "linearizable"},
        "`stale` answers at once, from this node's own memory.",
    ),
    "revision": _query("revision", whole(1), "As the key was then: as far back as this node's history goes."),
    "prefix": _query("prefix", text(default=""), "Only keys that begin with it."),
    "prefix_to_delete": {
        **_query("prefix", text(minLength=1, maxLength=KEY_BYTES_MAX), "The keys that begin with it go."),
        "required": True,
    },
    "watched_prefix": _query(
        "prefix", text(default="", maxLength=KEY_BYTES_MAX), "Keys that begin with it; not together with `key`."
    ),
    "watched_key": _query("key", text(minLength=1, maxLength=KEY_BYTES_MAX), "One key; not together with `prefix`."),
    "start": _query("start", text(), "The first key that may be in the listing."),
    "end": _query("end", text(), "The first key behind the listing."),
    "limit": {
        **_query("limit", whole(1, PAGE_KEYS_MAX), "Keys in a page; 2 MiB of values end it earlier."),
        "schema": {**whole(1, PAGE_KEYS_MAX), "default": PAGE_KEYS_DEFAULT},
    },
    "cursor": _query("cursor", text(), "From the page before: this one goes on behind it."),
    "lease_cursor": _query("cursor", whole(1, LEASE_ID_MAX), "From the page before: this one goes on behind it."),
    "sizes": _query("sizes", _FLAG, "Adds the bytes of each value, also where the values are left out."),
    "since_ms": _query("since_ms", whole(0, 10**15 - 1), "Only samples after this time, in milliseconds since 1970."),
    "key_of_history": {**_query("key", text(minLength=1, maxLength=KEY_BYTES_MAX), "The key."), "required": True},
    "limit_of_history": _query("limit", whole(1, 100), "Changes at most; 20 without it."),
    "keys_only": _query("keys_only", _FLAG, "Leaves the values out."),
    "count": _query(
        "count",
        {**_FLAG, "enum": [*_FLAG["enum"], "only"]},
        "How many keys are in the whole range; `only` leaves the items out.",
    ),
    "from_revision": _query(
        "from_revision", whole(1), "The first revision to be told of; without it, what happens from now on."
    ),
    "wait": _query(
        "wait",
        text(pattern="^([0-9]|[1-5][0-9])(\\.[0-9]{1,3})?s$"),
        f"One answer instead of a stream: as soon as there is a change, or after so long, up to {WAIT_S_MAX:g}s. "
        "A number with its unit, such as `500ms` or `30s`.",
    ),
    "verbose": _query("verbose", _FLAG, "Text, one line for each check."),
    "exclude": _query("exclude", text(), "A check to leave out; may be repeated."),
    "force": _query("force", _FLAG, "Although the member still runs, or others do not."),
    "member_to_remove": _query("id", _NODE, "The member, where the body does not name it."),
    "node_to_undrain": _query("node", _NODE, "The node, where the body does not name it."),
    "If-Match": _header("If-Match", _TAGS, "Only while the key's ETag is one of these; `*`: only while it exists."),
    "If-None-Match": _header("If-None-Match", _TAGS, "304 where the key's ETag is one of these."),
    "If-None-Match-any": _header(
        "If-None-Match", {"type": "string", "enum": ["*"]}, "Only while the key does not exist."
    ),
    "Idempotency-Key": _header(
        "Idempotency-Key",
        text(pattern=f"^[!-~]([ -~]{{0,{IDEMPOTENCY_KEY_CHARS_MAX - 2}}}[!-~])?$"),
        "A repetition under the same key gets the first outcome, and nothing is written twice.",
    ),
    "Kvnode-Timeout": _header(
        "Kvnode-Timeout",
        text(pattern=f"^{SECONDS}$"),
        "How long the sender waits, in seconds: the node answers before that, `not_applied` where this is certain.",
    ),
    "Last-Event-ID": _header("Last-Event-ID", whole(0), "The last id that came: counts before `from_revision`."),
}
