"""The fields that are read of the answers which are handed on as they came; a list's own shape is that of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Shape = Mapping[str, Any]  # field -> None, or the shape of each of its rows


def _of(*fields: str, **rows: Shape) -> Shape:
    return {**dict.fromkeys(fields), **rows}


ANY: Final = _of()
_MEMBER: Final = _of("id", "role", "raft", "http", "applied_index", "lag", "reachable")
CLUSTER: Final = _of("node_id", "version", "timestamp", groups=_of("leader_id", "term", members=_MEMBER))
MEMBERS: Final = _of(members=_of("id", "role", "raft", "http"))
DRAINED: Final = _of("node", "draining", "leads", "leader_id", "message")
RESTORED: Final = _of("items", "revision", "backup_revision")
SESSION_KEY: Final = _of("number", "fingerprint", "origin", "previous", "grace_s", "error")
TOKENS: Final = _of(tokens=_of("id", "role", "created_ms", "name"))
TOKEN: Final = _of("id", "name", "role", "prefixes", "expires_ms")
MADE_TOKEN: Final = _of("id", "token")
REVOKED_TOKEN: Final = _of("revoked")


def fits(document: object, shape: Shape) -> bool:
    """Whether it is an object with these fields, and maybe others."""
    if not isinstance(document, dict) or not shape.keys() <= document.keys():
        return False
    lists = {name: rows for name, rows in shape.items() if rows is not None}
    return all(
        isinstance(document[name], list) and all(fits(row, rows) for row in document[name])
        for name, rows in lists.items()
    )
