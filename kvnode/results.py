"""What the state machine answers to a command, and how an answer is kept for a retry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgpack

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


@dataclass(frozen=True, slots=True)
class Written:
    """A put was applied: the store's new revision, the key's version (1 for a new key)."""

    revision: int
    version: int

    @property
    def created(self) -> bool:
        return self.version == 1


@dataclass(frozen=True, slots=True)
class Deleted:
    """`deleted` keys went away at `revision`; 0 keys leave the revision as it was."""

    deleted: int
    revision: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The expectation did not hold; `mod_revision` is the key's present one, 0 where it does not exist."""

    revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Invalid:
    """The command is not one that this state machine knows; it changed nothing, on any node."""

    revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reused:
    """The idempotency key belongs to another request, whose outcome stands; this one changed nothing."""

    revision: int


Result = Written | Deleted | Refused | Invalid | Reused

# The results that a retry can be given again (`outcomes.py`), by their number in a snapshot.
_REPEATABLE: Final[dict[int, type[Written] | type[Deleted] | type[Refused]]] = {1: Written, 2: Deleted, 3: Refused}


def encode_result(result: Result) -> bytes:
    """A result that is kept for a retry: `[number, field, field]`."""
    if isinstance(result, Written):
        return _pack((1, result.revision, result.version))
    if isinstance(result, Deleted):
        return _pack((2, result.deleted, result.revision))
    if isinstance(result, Refused):
        return _pack((3, result.revision, result.mod_revision))
    raise TypeError(f"{type(result).__name__} is no outcome that is kept")


def decode_result(encoded: bytes) -> Result | None:
    """The inverse; None for bytes that `encode_result` does not write."""
    try:
        number, first, second = msgpack.unpackb(encoded)
        kind = _REPEATABLE[number]
    except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException):
        return None
    return kind(first, second) if type(first) is type(second) is int and min(first, second) >= 0 else None
