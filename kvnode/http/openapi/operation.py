"""How a route's entry is written, and the refusals that many of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvnode.http.openapi.shapes import Schema, ref

JSON: Final = "application/json"
TEXT: Final = "text/plain"
ANY: Final = "*/*"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is no refusal: its sentence, its schema by media type, and its own headers."""

    about: str
    content: dict[str, Schema]
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """`refusals`: the codes of the errors that it can end with. `body`: schema by media type."""

    name: str
    about: str
    replies: dict[int, Reply]
    refusals: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    body: dict[str, Schema] | None = None
    body_required: bool = True


def json(schema: str, about: str, *headers: str) -> dict[int, Reply]:
    return {200: Reply(about, {JSON: ref(schema)}, headers)}


def probe(name: str, about: str, *parameters: str) -> Operation:
    content = {JSON: ref("Report"), TEXT: {"type": "string"}} if "verbose" in parameters else {JSON: ref("Report")}
    replies = {200: Reply("All is well.", content), 503: Reply("Something is not.", content)}
    missing = ("not_found",) if any(each.endswith("_check") for each in parameters) else ()
    return Operation(name, about, replies, ("bad_request", "internal", *missing), parameters)


PLAIN: Final[dict[str, Schema]] = {TEXT: {"type": "string"}}
BYTES: Final[Schema] = {}  # any
BINARY: Final[Schema] = {"type": "string", "format": "binary"}

NOT_NOW: Final = (
    "no_leader", "not_leader", "unverified", "unavailable", "overloaded", "shutting_down", "starting",
)  # fmt: skip
LOCAL: Final = ("bad_request", "internal")
READ: Final = (*LOCAL, *NOT_NOW)
BODY: Final = ("too_large", "unsupported_media_type", "request_timeout")
WRITE: Final = (*READ, "idempotency_key_reused", "outcome_unknown", "disk_full")
LEASING: Final = ("lease_not_found", "too_many_leases")
ADMIN: Final = (*READ, *BODY, "conflict", "not_found", "outcome_unknown", "disk_full")
