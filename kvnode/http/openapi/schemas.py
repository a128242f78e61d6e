"""The JSON bodies by name. Fields that may be missing are said to be; there are no others."""

from __future__ import annotations

from typing import Final

from kvnode.http import batch
from kvnode.http.leases import KEYS_SHOWN, PAGE_LEASES
from kvnode.http.listing import PAGE_KEYS_MAX
from kvnode.http.openapi.shapes import Schema, closed, named, nullable, one_of, record, ref, several, text, whole
from kvnode.http.rights import ROLE_NAMES
from kvnode.http.tokens import EXPIRES_S_MAX, GRACE_S_MAX
from kvnode.node.status import Membership, MemberStatus
from kvnode.state.changes import KIND_NAMES
from kvnode.state.limits import (
    CONTENT_TYPE_BYTES_MAX,
    IDEMPOTENCY_KEY_CHARS_MAX,
    KEY_BYTES_MAX,
    LEASE_ID_MAX,
    OPERATIONS_MAX,
    PREFIXES_BYTES_MAX,
    PREFIXES_MAX,
    ROLES,
    SESSION_GRACE_S_MAX,
    TOKEN_NAME_BYTES_MAX,
    TTL_S_MAX,
)
from kvnode.state.transactions import OPERATORS

_NODE: Final = text("The name of a node.", pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_KEY: Final = text(f"1 to {KEY_BYTES_MAX} bytes of UTF-8.", minLength=1, maxLength=KEY_BYTES_MAX)
_BASE64: Final = text(
    "Base64, up to 1 MiB of bytes.", pattern="^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
)
_TEXT: Final = text("The value as text, up to 1 MiB of UTF-8.")
_TYPE: Final = text("Given back with the value.", pattern=f"^[ -~]{{0,{CONTENT_TYPE_BYTES_MAX}}}$")
_TTL: Final = whole(1, TTL_S_MAX, "Seconds.")
_LEASE: Final = whole(1, LEASE_ID_MAX)
_REVISION: Final = whole(1)
_REVISIONS: Final = {"create_revision": _REVISION, "mod_revision": _REVISION, "version": whole(1)}
_FLAG: Final[Schema] = {"type": "boolean"}

_ROLE: Final = {"enum": list(ROLES), "description": "read_only is another word for read, and full for admin."}
_PREFIXES: Final = several(text(minLength=1, maxLength=PREFIXES_BYTES_MAX), 0, PREFIXES_MAX)
_OF_TOKEN: Final = {"token": text("Its id."), "role": _ROLE, "prefixes": _PREFIXES}  # where the node asks for tokens
_TIME: Final = nullable(whole(about="Milliseconds since 1970."))
_TOKEN: Final = {
    "id": text(),
    "name": text(),
    "role": _ROLE,
    "prefixes": _PREFIXES,
    "created_ms": whole(),
    "expires_ms": _TIME,
    "expired": _FLAG,
    "former_until_ms": _TIME,
    "last_used_ms": _TIME,
}
_EXPIRES_S: Final = nullable(whole(1, EXPIRES_S_MAX, "Seconds from now; null for never."))

_LEASED: Final = {"id": _LEASE, "ttl": _TTL, "remaining": whole(0, about="Seconds, as far as this node knows.")}
_DELETED: Final = {"deleted": whole()}


_NAMED: Final = {"idempotency_key": text(minLength=1, maxLength=IDEMPOTENCY_KEY_CHARS_MAX, pattern="^[ -~]*$")}
_GET: Final = closed({"key": _KEY}, {"consistency": {"enum": ["linearizable", "stale"], "default": "linearizable"}})


def _put(more: dict[str, Schema] | None = None) -> Schema:
    """Either of `value` and `text`, at most one of `ttl` and `lease`; and maybe more."""
    extra = more or {}
    variants = [
        closed({"key": _KEY, **value}, {"content_type": _TYPE, **leasing, **extra}, title=f"{next(iter(value))}_{name}")
        for value in ({"value": _BASE64}, {"text": _TEXT})
        for name, leasing in (("for_a_time", {"ttl": _TTL}), ("on_a_lease", {"lease": _LEASE}))
    ]
    return {"anyOf": variants}


def _compare() -> Schema:
    numbers = ("version", "create_revision", "mod_revision")
    any_sign: Schema = {"op": {"enum": list(OPERATORS), "default": "="}}
    return {
        "oneOf": [
            *(closed({"key": _KEY, name: whole()}, any_sign, title=name) for name in numbers),
            closed({"key": _KEY, "exists": _FLAG}, {"op": {"enum": ["=", "!="], "default": "="}}, title="exists"),
            closed({"key": _KEY, "value": _BASE64}, any_sign, title="value"),
            closed({"key": _KEY, "text": _TEXT}, any_sign, title="text"),
        ]
    }


_SCHEMAS: Final[dict[str, Schema]] = {
    "Error": closed(
        {"error": text("A code that stays as it is, for programs."), "message": text("One sentence, for people.")},
        {
            "outcome": {
                "enum": ["not_applied", "unknown"],
                "description": "Of writes: it did not happen and never will, or nobody can tell.",
            },
            "oldest_revision": nullable(_REVISION),
        },
    ),
    "Put": _put(),
    "Written": closed({"key": _KEY, "revision": _REVISION, "version": whole(1), "created": _FLAG}, {"lease": _LEASE}),
    "DeletedOne": closed({"deleted": {"type": "integer", "enum": [1]}, "revision": _REVISION}),
    "Deleted": closed({**_DELETED, "revision": whole()}),
    "Item": closed(
        {"key": _KEY, **_REVISIONS},
        {"value": _BASE64, "content_type": _TYPE, "lease": _LEASE, "ttl": whole(), "size": whole()},
    ),
    "Page": {
        "anyOf": [
            closed(
                {"items": several(ref("Item"), 0, PAGE_KEYS_MAX), "revision": whole()},
                {
                    "cursor": text("Asks for the next page; none on the last."),
                    "count": whole(),
                    "watch_from": whole(
                        1,
                        about="Watch from this revision to miss nothing after the first page. Missing only behind a "
                        "cursor that a node of 0.1.0 gave out.",
                    ),
                },
                title="of_items",
            ),
            closed({"count": whole(), "revision": whole()}, title="of_a_count"),
        ]
    },
    "Compare": _compare(),
    "Operation": one_of(
        {
            "put": ref("Put"),
            "get": closed({"key": _KEY}),
            "delete": closed({"key": _KEY}),
            "delete_prefix": closed({"prefix": _KEY}),
        }
    ),
    "Txn": closed(
        {},
        {
            "compare": several(ref("Compare"), 0, OPERATIONS_MAX),
            "success": several(ref("Operation"), 0, OPERATIONS_MAX),
            "failure": several(ref("Operation"), 0, OPERATIONS_MAX),
        },
    ),
    "TxnResult": closed(
        {"succeeded": _FLAG, "revision": whole(), "results": several(ref("Outcome"), 0, OPERATIONS_MAX)}
    ),
    "Outcome": one_of(
        {
            "put": ref("Written"),
            "get": {
                "oneOf": [
                    closed({"key": _KEY, "exists": {"type": "boolean", "enum": [False]}}),
                    closed(
                        {
                            "key": _KEY,
                            "exists": {"type": "boolean", "enum": [True]},
                            "value": nullable(_BASE64),
                            **_REVISIONS,
                        }
                    ),
                ]
            },
            "delete": closed(_DELETED),
            "delete_prefix": closed(_DELETED),
        }
    ),
    "Batch": closed(
        {
            "operations": several(
                one_of({"put": _put(_NAMED), "delete": closed({"key": _KEY}, _NAMED), "get": _GET}),
                1,
                batch.OPERATIONS_MAX,
            )
        },
        {
            "independent": _FLAG
            | {"description": "What is wrong with one operation is its own outcome. Takes gets and keys."}
        },
    ),
    "Batched": closed(
        {
            "results": several(
                {
                    "oneOf": [
                        ref("Written"),
                        closed(
                            {"key": _KEY, "value": _BASE64, **_REVISIONS, "revision": whole()},
                            {"content_type": _TYPE, "lease": _LEASE, "ttl": whole()},
                        ),
                        closed({"key": _KEY, "deleted": {"type": "integer", "enum": [1]}, "revision": _REVISION}),
                        closed(
                            {
                                "key": _KEY,
                                "error": text(),
                                "message": text(),
                                "outcome": {"enum": ["not_applied", "unknown"]},
                            }
                        ),
                    ]
                },
                1,
                batch.OPERATIONS_MAX,
            )
        }
    ),
    "Grant": closed({"ttl": _TTL}),
    "Lease": closed(_LEASED),
    "LeaseWithKeys": closed({**_LEASED, "keys": several(_KEY, 0, KEYS_SHOWN), "key_count": whole()}),
    "Leases": closed({"leases": several(ref("Lease"), 0, PAGE_LEASES)}, {"cursor": text()}),
    "Revoked": closed({**_LEASED, "deleted": whole(), "revision": whole()}),
    "Event": {
        "oneOf": [
            closed(
                {
                    "event": {"type": "string", "enum": ["put"]},
                    "key": _KEY,
                    "value": _BASE64,
                    "content_type": _TYPE,
                    **_REVISIONS,
                }
            ),
            closed(
                {
                    "event": {"enum": [name for name in KIND_NAMES.values() if name != "put"]},
                    "key": _KEY,
                    "mod_revision": _REVISION,
                }
            ),
        ]
    },
    "Events": closed({"events": several(ref("Event")), "revision": whole(), "from_revision": whole(1)}),
    "Report": closed(
        {
            "status": {"enum": ["ok", "error"]},
            "message": text("The first failure, in plain words."),
            "checks": several(closed({"name": text(), "status": {"enum": ["ok", "error"]}, "message": text()})),
        }
    ),
    "Cluster": closed(
        {
            "node_id": _NODE,
            "version": text(),
            "timestamp": text(format="date-time"),
            "groups": several(
                closed(
                    {
                        "group_id": text(),
                        "leader_id": nullable(_NODE),
                        "term": whole(),
                        "members": several(record(MemberStatus)),
                        "is_leader": _FLAG,
                    },
                    {"feature_level": whole()},
                )
            ),
        }
    ),
    "Access": closed(
        {"asks_for_tokens": _FLAG, "admitted": _FLAG},
        {
            "role": text("What its token is good for; full where the node asks for none."),
            "may": several({"enum": list(ROLE_NAMES)}),
            "prefixes": _PREFIXES,
            "name": text("The token's."),
            "session": {"type": "boolean", "description": "Whether a session's cookie let it in."},
        },
    ),
    "Nodes": closed(
        {
            "node_id": _NODE,
            "cluster_id": text(),
            "version": text(),
            "leader_id": nullable(_NODE),
            "term": whole(),
            "nodes": several(
                closed(
                    {
                        "id": _NODE,
                        "role": {"enum": ["leader", "follower", "learner", "draining", "unreachable"]},
                        "raft": text(),
                        "http": nullable(text()),
                        "applied_index": nullable(whole()),
                        "lag": nullable(whole()),
                        "draining": _FLAG,
                        "ready": _FLAG,
                        "health": text("`Ready`, or why it is not, in one sentence."),
                        "warnings": several(text()),
                        "version": nullable(text()),
                    }
                )
            ),
        }
    ),
    "Timeline": closed(
        {
            "changes": several(
                closed(
                    {
                        "at_ms": whole(about="Milliseconds since 1970."),
                        "term": whole(),
                        "leader_id": nullable(text("null: the one before stopped leading, and no other led yet.")),
                        "previous_id": nullable(_NODE),
                        "reason": text(),
                        "leaderless_s": nullable({"type": "number", "description": "For how long no node led."}),
                    }
                )
            ),
            "unanswered": several(_NODE),
        }
    ),
    "Figures": closed(
        {
            "step_s": {"type": "number"},
            "span_s": {"type": "number"},
            "now_ms": whole(),
            "nodes": several(
                closed(
                    {
                        "node": _NODE,
                        "samples": several(
                            closed(
                                {
                                    "at_ms": whole(),
                                    "writes_per_s": {"type": "number"},
                                    "reads_per_s": {"type": "number"},
                                    **{
                                        f"{what}_p{part}_ms": nullable({"type": "number"})
                                        for what in ("write", "fsync")
                                        for part in (50, 99)
                                    },
                                }
                            )
                        ),
                    }
                )
            ),
            "unanswered": several(_NODE),
        }
    ),
    "Heat": closed(
        {
            "minutes": whole(),
            "last_minute_ms": whole(about="When the last column begins."),
            "rows": several(
                closed({"prefix": text(), "reads": several(whole(), 60, 60), "writes": several(whole(), 60, 60)})
            ),
            "unanswered": several(_NODE),
        }
    ),
    "History": closed(
        {
            "key": text(),
            "changes": several(
                closed(
                    {"event": {"enum": ["put", "delete", "expire"]}, "revision": whole()},
                    {
                        "create_revision": whole(),
                        "version": whole(1),
                        "content_type": text(),
                        "size": whole(),
                        "value": text("The first 2,048 bytes, in base64."),
                    },
                )
            ),
            "oldest_revision": whole(about="What happened before is not remembered here."),
            "revision": whole(),
        }
    ),
    "Transfer": closed({}, {"to": nullable(_NODE)}),
    "Transferred": closed({"leader_id": _NODE, "term": whole()}),
    "Drain": closed({}, {"node": nullable(_NODE), "force": _FLAG}),
    "Undrain": closed({}, {"node": nullable(_NODE)}),
    "Draining": closed(
        {
            "node": _NODE,
            "draining": {"type": "boolean"},
            "leader_id": nullable(text()),
            "leads": {"type": "boolean"},
            "message": nullable(text(about="Why it still leads.")),
        }
    ),
    "Restored": closed({"revision": whole(), "items": whole(), "backup_revision": whole()}),
    "SessionBegun": closed({"subject": text(), "ends_at": whole(about="Seconds since 1970.")}, _OF_TOKEN),
    "Session": closed({"subject": text("The name of its token; admin where the node asks for none.")}, _OF_TOKEN),
    "SessionEnded": closed({"ended": {"type": "boolean", "enum": [True]}}),
    "SessionKey": closed(
        {
            "number": whole(),
            "fingerprint": nullable(text()),
            "origin": nullable({"enum": ["cluster", "given"]}),
            "previous": nullable(text()),
            "grace_s": whole(0, SESSION_GRACE_S_MAX),
            "error": nullable(text()),
        }
    ),
    "Rotate": closed({}, {"grace_s": whole(0, SESSION_GRACE_S_MAX, "Seconds.")}),
    "WantedToken": closed(
        {"name": text("Whose it is; printable.", minLength=1, maxLength=TOKEN_NAME_BYTES_MAX), "role": _ROLE},
        {"prefixes": _PREFIXES, "expires_s": _EXPIRES_S},
    ),
    "ChangedToken": closed({}, {"role": _ROLE, "prefixes": _PREFIXES, "expires_s": _EXPIRES_S}),
    "RotatedToken": closed({}, {"grace_s": whole(0, GRACE_S_MAX, "Seconds.")}),
    "Token": closed(_TOKEN),
    "Tokens": closed(
        {"tokens": several(closed(_TOKEN)), "node": text("The node that answered."), "unanswered": several(_NODE)}
    ),
    "NewToken": closed(
        {**_TOKEN, "token": text("What a client sends: Authorization: Bearer TOKEN.")},
        {"warning": text("Where the node asks for no token.")},
    ),
    "RevokedToken": closed({"revoked": text()}),
    "Members": record(Membership),
    "NewMember": closed(
        {"id": _NODE, "raft": text("HOST:PORT, where it listens for its peers.")},
        {"http": text("Its URL."), "learner": _FLAG, "moved": _FLAG},
    ),
    "OldMember": closed({}, {"id": _NODE, "force": _FLAG}),
}

SCHEMAS: Final = named(_SCHEMAS)
