"""Calls that cannot be meant, each refused with one sentence before anything is sent.

They are `errors.BadRequest`, as what a node refuses is, and what Python programmers expect: TypeError, ValueError or
RuntimeError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from kvnode.errors import BadRequest


class WrongType(BadRequest, TypeError):
    """An argument is of another type than the call takes."""


class WrongValue(BadRequest, ValueError):
    """An argument is of the right type, and can be none of the values that the call takes."""


class WrongState(BadRequest, RuntimeError):
    """The client is not open, not any more, or is another loop's or process's."""


def text(what: str, given: Any) -> str:
    """A str; `what` names it, with its article."""
    if not isinstance(given, str):
        hint = ": decode it first" if isinstance(given, bytes | bytearray) else ""
        raise WrongType(f"{what} is a str, not {_kind(given)}{hint}.")
    return given


def header(what: str, given: Any) -> str:
    """The value of a header."""
    if not text(what, given).isprintable():
        raise WrongValue(f"{what} is one line of printable characters.")
    return str(given)


def octets(given: Any) -> bytes | bytearray | memoryview:
    """A key's value."""
    if isinstance(given, bytes | bytearray | memoryview):
        return given
    if given is None:
        raise WrongType("A value is bytes, not None: b'' is an empty one, and delete() removes the key.")
    hint = ": encode it first" if isinstance(given, str) else ""
    raise WrongType(f"A value is bytes, not {_kind(given)}{hint}.")


def whole(what: str, given: Any, least: int = 1) -> int:
    """An int from `least` on."""
    if not isinstance(given, int) or isinstance(given, bool):
        raise WrongType(f"{what} is an int, not {_kind(given)}.")
    if given < least:
        raise WrongValue(f"{what} is {least} or more, and this is {given}.")
    return given


def seconds(what: str, given: Any, *, may_be_zero: bool = False) -> float:
    """A finite number of seconds: NaN is neither below a bound nor above it, and no deadline ever comes."""
    if not isinstance(given, int | float) or isinstance(given, bool):
        raise WrongType(f"{what} is a number of seconds, not {_kind(given)}.")
    if not (math.isfinite(given) and (given > 0 or (may_be_zero and given == 0))):
        bound = "0 or more" if may_be_zero else "above 0"
        raise WrongValue(f"{what} is a finite number of seconds, {bound}, and this is {given}.")
    return given


def urls_in(given: Any) -> list[str]:
    """One URL, or several of them."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray):
        raise WrongType(f"The URLs are a list of str, or one str, not {_kind(given)}.")
    return [text("Each URL", each) for each in given]


def _kind(given: Any) -> str:
    return "None" if given is None else type(given).__name__
