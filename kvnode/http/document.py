"""A request's body as JSON: an object with known fields, each checked before anything is proposed."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest, TooLarge
from kvnode.http.body import read_body
from kvnode.limits import CONTENT_TYPE_BYTES_MAX, KEY_BYTES_MAX, LEASE_ID_MAX, TTL_S_MAX, VALUE_BYTES_MAX, text_fault

_MISSING: Final = object()


async def read_object(
    request: web.BaseRequest, bytes_max: int, fields: frozenset[str], optional: bool = False
) -> dict[str, Any]:
    """The body's JSON object, whatever its Content-Type (curl sends JSON as a form). BadRequest, TooLarge.

    `optional`: no body is an empty object.
    """
    body = await read_body(request, bytes_max)
    if optional and not body.strip():
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
    return checked_object(document, "The body", fields)


def checked_object(document: Any, what: str, fields: frozenset[str]) -> dict[str, Any]:
    """`document`, a JSON object with none but these fields."""
    if type(document) is not dict:
        raise BadRequest(f"{what} is not a JSON object.")
    if not fields.issuperset(document):
        unknown = sorted(set(document) - fields)[0]
        raise BadRequest(f"{what} has an unknown field {json.dumps(unknown[:64])}; known: {', '.join(sorted(fields))}.")
    return document


def key_in(document: Mapping[str, Any], what: str, name: str = "key") -> str:
    key = document.get(name)
    if type(key) is not str or text_fault(name, key, 1, KEY_BYTES_MAX) is not None:
        raise BadRequest(f'{what} needs a "{name}" of 1 to {KEY_BYTES_MAX} bytes of UTF-8.')
    return key


def value_in(document: Mapping[str, Any], what: str) -> bytes:
    """The bytes of "value", in base64, or of "text", as it stands."""
    encoded, text = document.get("value", _MISSING), document.get("text", _MISSING)
    if (encoded is _MISSING) is (text is _MISSING):
        raise BadRequest(f'{what} needs either a "value" in base64 or a "text".')
    try:
        value = text.encode() if text is not _MISSING else b64decode(encoded.encode("ascii"), validate=True)
    except (AttributeError, ValueError):  # not a string, not base64, or a lone surrogate
        raise BadRequest(f'{what} has a "value" that is not base64, or a "text" that is not text.') from None
    if len(value) > VALUE_BYTES_MAX:
        raise TooLarge(f"{what} has a value of more than {VALUE_BYTES_MAX} bytes.")
    return bytes(value)


def content_type_in(document: Mapping[str, Any], what: str) -> str:
    content_type = document.get("content_type", "")
    fits = type(content_type) is str and len(content_type) <= CONTENT_TYPE_BYTES_MAX
    if not (fits and content_type.isascii() and (not content_type or content_type.isprintable())):
        raise BadRequest(f'{what}: a "content_type" is up to {CONTENT_TYPE_BYTES_MAX} printable characters.')

    return str(content_type)


def leasing_in(document: Mapping[str, Any], what: str) -> tuple[int, int]:
    """(lease, ttl in seconds), 0 for what is not asked for."""
    if "lease" in document and "ttl" in document:
        raise BadRequest(f'{what} has a "lease" and a "ttl"; send one of them.')
    lease = _whole(document["lease"], LEASE_ID_MAX, f'{what} has a "lease" that is no') if "lease" in document else 0
    return lease, ttl_in(document, what) if "ttl" in document else 0


def ttl_in(document: Mapping[str, Any], what: str) -> int:
    return _whole(document.get("ttl"), TTL_S_MAX, f'{what} needs a "ttl" in seconds, a')


def _whole(number: Any, most: int, what: str) -> int:
    if type(number) is not int or not 1 <= number <= most:
        raise BadRequest(f"{what} whole number from 1 to {most}.")
    return number


def whole_parameter(text: str, most: int, name: str) -> int:
    """A query parameter or part of a path that is a whole number from 1 to `most`."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 16 else 0
    if not 1 <= number <= most:
        raise BadRequest(f"The {name} is a whole number from 1 to {most}.")
    return number
