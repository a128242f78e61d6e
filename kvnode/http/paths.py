"""The raw request target: the path as it was sent, keys and query parameters decoded exactly once.

aiohttp's own URL and router normalise (`a/../b` becomes `b`, `%2e` a dot), which would make one key of several.
So the raw path is matched, and only the part behind `/v1/kv/` is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from kvnode.errors import BadRequest
from kvnode.state.limits import KEY_BYTES_MAX

_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PARAMETERS_MAX: Final = 64


def split_target(target: str) -> tuple[str, str]:
    """(path, query) of a request target, both still encoded. Copes with the absolute form (RFC 9112, 3.2.2)."""
    if not target.startswith("/"):
        scheme, separator, rest = target.partition("://")
        if separator and scheme.isalpha():
            slash, question = rest.find("/"), rest.find("?")
            if question >= 0 and (slash < 0 or question < slash):
                return "/", rest[question + 1 :]
            target = rest[slash:] if slash >= 0 else "/"
    path, _, query = target.partition("?")
    return path, query


def decode(raw: str, what: str) -> str:
    """Percent-decodes once. BadRequest for a broken escape or bytes that are not UTF-8; `what` names the part."""
    if raw.isascii() and "%" not in raw:
        return raw
    if _BAD_ESCAPE.search(raw):
        raise BadRequest(
            f"The {what} has a '%' that is not followed by two hexadecimal digits; send '%' itself as %25."
        )
    try:
        # Bytes that a client sent without encoding them arrive as surrogates when they are not UTF-8.
        return unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode()
    except UnicodeDecodeError:
        raise BadRequest(f"The {what} is not UTF-8 text after percent-decoding.") from None


def decode_key(raw: str) -> str:
    """The key in the rest of a raw path, kept to the character. '+' is a plus. BadRequest outside 1 to 1,024 bytes."""
    if 0 < len(raw) <= KEY_BYTES_MAX and raw.isascii() and "%" not in raw:
        return raw  # nearly always
    key = decode(raw, "key")
    if not key:
        raise BadRequest("The key is empty; put it behind /v1/kv/ in the path.")
    if len(key) > KEY_BYTES_MAX or (not key.isascii() and len(key.encode()) > KEY_BYTES_MAX):
        raise BadRequest(f"The key is longer than {KEY_BYTES_MAX} bytes of UTF-8.")
    return key


class Query(Mapping[str, str]):
    """Query parameters by name. '+' is a space here, as in every HTML form and HTTP library."""

    __slots__ = ("_values",)

    def __init__(self, raw: str, only: Collection[str] = ()) -> None:
        """`only`: the names to read, where any other names are allowed beside them; () reads all."""
        pieces = raw.split("&")
        if only:
            pieces = [piece for piece in pieces if piece.partition("=")[0] in only]
        if len(pieces) > _PARAMETERS_MAX:
            raise BadRequest(f"The query has more than {_PARAMETERS_MAX} parameters.")
        self._values: dict[str, list[str]] = {}
        for piece in pieces:
            if piece:
                name, _, value = piece.replace("+", " ").partition("=")
                self._values.setdefault(decode(name, "query"), []).append(decode(value, "query"))

    def __getitem__(self, name: str) -> str:
        """The one value of `name`; BadRequest where it was given twice, because either could be meant."""
        values = self._values[name]
        if len(values) > 1:
            raise BadRequest(f"The query parameter '{name}' is given more than once.")
        return values[0]

    def all(self, name: str) -> list[str]:
        """Every value of a parameter that may be repeated."""
        return self._values.get(name, [])

    def flag(self, name: str) -> bool:
        """A switch: `?name`, `?name=true` and `?name=1` are on."""
        value = self.get(name, "false")
        if value in ("", "true", "1"):
            return True
        if value in ("false", "0"):
            return False
        raise BadRequest(f"The query parameter '{name}' is true or false.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
