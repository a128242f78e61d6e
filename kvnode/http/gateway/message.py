"""Requests of etcd's gateway: protocol buffers as JSON, read as its own gateway reads them.

A field comes in under its own name or in camelCase; a number of 64 bits is a number or a string of digits; bytes are
base64; an enum is a word or a number; a field that is unknown or null is left out, and the last of two counts. Answers
are written by hand where they are made: numbers of 64 bits as strings, fields that are zero left out.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvnode.http.document import refuse_many_elements
from kvnode.http.gateway.errors import INVALID_ARGUMENT, Status

Decode = Callable[[str, Any], Any]
# JSON name -> (the field's own name, how it is read).
Fields = Mapping[str, tuple[str, Decode]]

INT64_MAX: Final = 2**63 - 1
NUMBER_CHARS_MAX: Final = 32  # reading a whole number takes the square of its length, and one of 64 bits has 20
_WHOLE: Final = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_SPACE: Final = " \t\r\n"
# What stands between the strings of `{"key":"…","value":"…"}`, without spaces and as Python's json writes it.
_PUTS: Final = frozenset(
    ((b"{", b"key", b":", b",", b"value", b":", b"}"), (b"{", b"key", b": ", b", ", b"value", b": ", b"}"))
)


def message(body: bytes, fields: Fields) -> dict[str, Any]:
    """The first message of a body, by the fields' own names; what stands behind it is ignored. No body is {}."""
    text = body.decode("utf-8", "replace").lstrip(_SPACE)
    if not text:
        return {}
    refuse_many_elements(body)
    return read(_first(text, 0)[0], fields)


def plain_put(body: bytes) -> tuple[bytes, bytes] | None:
    """(key, value) of the body that nearly every put has, without a parser. None: `message` is to read it.

    What is not ASCII, an escape or not base64 in any way is left to `message`, so that both say the same of it.
    """
    pieces = body.split(b'"', 9)
    if len(pieces) != 9:
        return None
    begin, key, colon, coded_key, comma, value, second, coded_value, end = pieces
    if (begin, key, colon, comma, value, second, end) not in _PUTS:
        return None
    try:
        return a2b_base64(coded_key, strict_mode=True), a2b_base64(coded_value, strict_mode=True)
    except ValueError:
        return None


def messages(body: bytes, fields: Fields, most: int) -> list[dict[str, Any]]:
    """All messages of a body, one behind the other, up to `most` of them."""
    text, at = body.decode("utf-8", "replace").strip(_SPACE), 0
    found: list[dict[str, Any]] = []
    refuse_many_elements(body)
    while at < len(text):
        if len(found) == most:
            raise Status(INVALID_ARGUMENT, f"The body has more than {most} messages.")
        document, at = _first(text, at)
        found.append(read(document, fields))
        while text[at : at + 1] in _SPACE and at < len(text):
            at += 1
    return found


def read(document: Any, fields: Fields) -> dict[str, Any]:
    """The fields that are known and set; the others have their zero."""
    if type(document) is not dict:
        raise Status(INVALID_ARGUMENT, "A message is a JSON object.")
    found = {}
    for name, value in document.items():
        known = fields.get(name)
        if known is not None and value is not None:
            found[known[0]] = known[1](name, value)
    return found


def table(**fields: Decode) -> Fields:
    """Fields by their own names and in camelCase."""
    known = {}
    for name, decode in fields.items():
        first, *others = name.split("_")
        known[name] = known[first + "".join(map(str.capitalize, others))] = (name, decode)
    return known


def data(name: str, value: Any) -> bytes:
    """bytes: base64, in either alphabet, with or without its padding."""
    if type(value) is not str:
        raise Status(INVALID_ARGUMENT, f'"{name}" is a string in base64.')
    try:
        return a2b_base64(value, strict_mode=True)
    except ValueError:
        pass
    try:  # what nearly nobody sends
        value = value.replace("\r", "").replace("\n", "").replace("-", "+").replace("_", "/").rstrip("=")
        return a2b_base64(value + "=" * (-len(value) % 4), strict_mode=True)
    except ValueError:
        raise Status(INVALID_ARGUMENT, f'"{name}" is not base64.') from None


def int64(name: str, value: Any) -> int:
    number = value
    if (type(value) is str and _WHOLE.fullmatch(value)) or (type(value) is float and value.is_integer()):
        number = int(value)
    if type(number) is not int or not -INT64_MAX - 1 <= number <= INT64_MAX:
        raise Status(INVALID_ARGUMENT, f'"{name}" is a whole number of 64 bits.')
    return number


def boolean(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise Status(INVALID_ARGUMENT, f'"{name}" is true or false.')
    return value


def text(name: str, value: Any) -> str:
    if type(value) is not str:
        raise Status(INVALID_ARGUMENT, f'"{name}" is a string.')
    return value


def enum(*words: str, strict: bool = False) -> Decode:
    """Its number. One that it does not have is its first, as where nothing is said, or (`strict`) refused."""

    def decode(name: str, value: Any) -> int:
        if type(value) is str and value in words:
            return words.index(value)
        if type(value) is not int or (strict and not 0 <= value < len(words)):
            raise Status(INVALID_ARGUMENT, f'"{name}" is one of {", ".join(words)}.')
        return value if 0 <= value < len(words) else 0

    return decode


def repeated(decode: Decode) -> Decode:
    def decode_all(name: str, value: Any) -> list[Any]:
        if type(value) is not list:
            raise Status(INVALID_ARGUMENT, f'"{name}" is a list.')
        return [decode(name, each) for each in value]

    return decode_all


def nested(fields: Fields) -> Decode:
    return lambda name, value: read(value, fields)


def raw(name: str, value: Any) -> Any:
    """For a message that is read later: it may hold others of its own kind."""
    return value


def _first(text: str, at: int) -> tuple[Any, int]:
    try:
        return _JSON.raw_decode(text, at)
    except (ValueError, RecursionError):
        raise Status(INVALID_ARGUMENT, "The body is not JSON.") from None


def _whole_number(digits: str) -> int:
    if len(digits) > NUMBER_CHARS_MAX:
        raise ValueError
    return int(digits)


def _no_number(name: str) -> None:
    raise ValueError


# Made once: json.loads with arguments makes another one for each call, which takes longer than a small body.
_JSON: Final = json.JSONDecoder(parse_int=_whole_number, parse_constant=_no_number)
