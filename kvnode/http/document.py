"""A request's body as JSON: an object with known fields, each checked before anything is proposed."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest, TooLarge
from kvnode.http.body import connection_of, read_body
from kvnode.http.budget import SMALL_BYTES
from kvnode.state.limits import (
    CONTENT_TYPE_BYTES_MAX,
    KEY_BYTES_MAX,
    LEASE_ID_MAX,
    TTL_S_MAX,
    VALUE_BYTES_MAX,
    text_fault,
)

# Braces, brackets, commas and colons outside strings: the largest batch has 14,000, the largest transaction 6,000. Each
# becomes objects of Python, 100 bytes and more for two characters, and takes the loop a third of a microsecond: 8 MiB
# of empty objects would be 300 MB and half a second.
MARKS_MAX: Final = 32_768
STRINGS_MAX: Final = 32_768  # the largest batch has 10,000
NUMBER_CHARS_MAX: Final = 32  # reading a whole number takes the square of its length, and none here has more than 16

_MISSING: Final = object()


async def read_object(
    request: web.BaseRequest, bytes_max: int, fields: frozenset[str], *, optional: bool = False
) -> dict[str, Any]:
    """The body's JSON object, of any Content-Type (curl sends JSON as a form); {} for no body where `optional`.

    BadRequest, TooLarge, and Overloaded where too many large bodies wait to be parsed.
    """
    body = await read_body(request, bytes_max)
    if optional and not body.strip():
        return {}
    if len(body) > SMALL_BYTES:
        await connection_of(request).budgets.turns.take()
    return checked_object(parsed(body), "The body", fields)


async def refuse_fields(request: web.BaseRequest) -> None:
    """For a request that says all in its path: no body, or an empty object, which some clients send with every POST.

    A field that is ignored means another request than the one that is carried out: `{"ttl": 60}` would renew a lease of
    600 s for as long as before.
    """
    await read_object(request, SMALL_BYTES, frozenset(), optional=True)


def parsed(body: bytes) -> Any:
    """JSON (RFC 8259) of bounded size, each name once in an object. BadRequest; TooLarge for too many elements."""
    refuse_many_elements(body)
    try:
        return json.loads(body, object_pairs_hook=_object, parse_int=_whole_number, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None


def refuse_many_elements(body: bytes) -> None:
    """Counts them before they are made, in a few passes at the speed of C: a millisecond for each MiB."""
    if len(body) <= MARKS_MAX or _marks(body) <= MARKS_MAX:
        return
    if not body.lstrip().startswith(b"{"):
        raise BadRequest("The body is not a JSON object.")  # as a small one is
    # Keys and texts may hold such characters: what counts stands outside strings. Escapes first, as they hide quotes.
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 2 * STRINGS_MAX or _marks(b"".join(body.split(b'"')[::2])) > MARKS_MAX:
        raise TooLarge("The body has more elements than any request here needs; split it.")


def _marks(text: bytes) -> int:
    return text.count(b",") + text.count(b":") + text.count(b"{") + text.count(b"[")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise BadRequest("The body has an object that names a field twice; either could be meant.")
    return document


def _whole_number(digits: str) -> int:
    if len(digits) > NUMBER_CHARS_MAX:
        raise BadRequest(f"The body has a number of more than {NUMBER_CHARS_MAX} digits.")
    return int(digits)


def _no_number(name: str) -> None:
    raise BadRequest(f"The body has {name}, which is not JSON.")


def checked_object(document: Any, what: str, fields: frozenset[str]) -> dict[str, Any]:
    """`document`, a JSON object with none but these fields."""
    if type(document) is not dict:
        raise BadRequest(f"{what} is not a JSON object.")
    if not fields.issuperset(document):
        unknown = sorted(set(document) - fields)[0]
        takes = f"known: {', '.join(sorted(fields))}" if fields else "this request takes none"
        raise BadRequest(f"{what} has an unknown field {json.dumps(unknown[:64])}; {takes}.")
    return document


def key_in(document: Mapping[str, Any], what: str, name: str = "key") -> str:
    key = document.get(name)
    if type(key) is not str or text_fault(name, key, 1, KEY_BYTES_MAX) is not None:
        raise BadRequest(f'{what} needs a "{name}" of 1 to {KEY_BYTES_MAX} bytes of UTF-8.')
    return key


def value_in(document: Mapping[str, Any], what: str) -> bytes:
    """The bytes of "value" (base64) or of "text" (UTF-8)."""
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
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0
    if not 1 <= number <= most:
        raise BadRequest(f"The {name} is a whole number from 1 to {most}.")
    return number
