"""The commands of the replicated state machine: frozen, bounded, and their one encoding.

A command is a msgpack array whose first element is its kind; a kind's fields are only ever appended to,
so that an older node's journal stays readable. A Raft entry carries many commands, grouped by the node
that took them from clients:

    entry  = [ group, group, ... ]              one entry = one group commit
    group  = [ origin, sequence, [command, ...] ]

`origin` is 8 random bytes drawn when a node process starts and `sequence` counts that process's groups,
so that every node can recognise its own writes when they come back through the log (`raft/proposals.py`).
Because a msgpack array is a header and then its elements, groups and entries are built by joining bytes:
a command is encoded once, on the node that took it, and decoded once on each node that applies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

KEY_BYTES_MAX: Final = 1_024
VALUE_BYTES_MAX: Final = 1_048_576
CONTENT_TYPE_BYTES_MAX: Final = 256
IDEMPOTENCY_KEY_CHARS_MAX: Final = 64
COMMAND_BYTES_MAX: Final = VALUE_BYTES_MAX + KEY_BYTES_MAX + CONTENT_TYPE_BYTES_MAX + IDEMPOTENCY_KEY_CHARS_MAX + 256

PUT: Final = 1
DELETE: Final = 2
# Fields up to the idempotency key, which is left out where there is none: older journals have no such field, and
# a write without a key does not carry an empty one.
PUT_FIELDS: Final = 5
DELETE_FIELDS: Final = 3

ORIGIN_BYTES: Final = 8

# What a conditional write expects of the key's present `mod_revision`.
# None: nothing. A tuple: one of these revisions (an empty tuple never matches).
EXISTS: Final = -1  # the key must exist (If-Match: *)
ABSENT: Final = 0  # the key must not exist (If-None-Match: *)
Expect = tuple[int, ...] | None

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


@dataclass(frozen=True, slots=True)
class Put:
    """Set `key` to `value`. Key 1 to 1,024 bytes of UTF-8, value 0 to 1 MiB, content type up to 256 bytes.

    With an idempotency key (1 to 64 printable ASCII characters) it is carried out once, however often it is sent.
    """

    key: str
    value: bytes
    content_type: str = ""
    expect: Expect = None
    idempotency_key: str | None = None

    def encode(self) -> bytes:
        if self.idempotency_key is None:
            return _pack((PUT, self.key, self.value, self.content_type, self.expect))
        return _pack((PUT, self.key, self.value, self.content_type, self.expect, self.idempotency_key))


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove `key`. The idempotency key is as for a put."""

    key: str
    expect: Expect = None
    idempotency_key: str | None = None

    def encode(self) -> bytes:
        if self.idempotency_key is None:
            return _pack((DELETE, self.key, self.expect))
        return _pack((DELETE, self.key, self.expect, self.idempotency_key))


# --- what a decoded command must look like ---------------------------------------------------------


def command_fault(command: Any) -> str | None:
    """What is wrong with a decoded command, whatever the store holds; None where it can be carried out. Total."""
    if type(command) is not list or not command:
        return "unknown command"
    kind = command[0]
    if kind == PUT:
        if not PUT_FIELDS <= len(command) <= PUT_FIELDS + 1:
            return "a put has five fields, and a sixth for an idempotency key"
        value, expect, extra = command[2], command[4], command[PUT_FIELDS:]
        if type(value) is not bytes or len(value) > VALUE_BYTES_MAX:
            return f"a value is 0 to {VALUE_BYTES_MAX} bytes"
        fault = _text_fault("content type", command[3], 0, CONTENT_TYPE_BYTES_MAX)
        if fault is not None:
            return fault
    elif kind == DELETE:
        if not DELETE_FIELDS <= len(command) <= DELETE_FIELDS + 1:
            return "a delete has three fields, and a fourth for an idempotency key"
        expect, extra = command[2], command[DELETE_FIELDS:]
    else:
        return "unknown command"
    if expect is not None and (type(expect) is not list or not all(type(r) is int and r >= EXISTS for r in expect)):
        return "an expectation is a list of revisions"
    if extra and not _is_idempotency_key(extra[0]):
        return f"an idempotency key is 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters"
    return _text_fault("key", command[1], 1, KEY_BYTES_MAX)


def _is_idempotency_key(text: Any) -> bool:
    """Whether the field is one, or the None that leaves it out before a field of a later version."""
    if type(text) is not str:
        return text is None
    return 1 <= len(text) <= IDEMPOTENCY_KEY_CHARS_MAX and text.isascii() and text.isprintable()


def _text_fault(what: str, text: Any, bytes_min: int, bytes_max: int) -> str | None:
    """What is wrong with a text field, or None. ASCII, nearly every key, is checked without encoding it."""
    if type(text) is str:
        if text.isascii():
            size = len(text)
        else:
            try:
                size = len(text.encode())
            except UnicodeEncodeError:  # lone surrogates are not text
                size = -1
        if bytes_min <= size <= bytes_max:
            return None
    return f"a {what} is {bytes_min} to {bytes_max} bytes of UTF-8"


# --- what the state machine answers ---------------------------------------------------------------


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


# --- groups and entries ----------------------------------------------------------------------------


def _array_header(n: int) -> bytes:
    """The msgpack header of an array of `n` elements (msgpack spec, array format family)."""
    if n < 16:
        return bytes((0x90 | n,))
    if n < 65_536:
        return b"\xdc" + n.to_bytes(2, "big")
    return b"\xdd" + n.to_bytes(4, "big")


def encode_group(origin: bytes, sequence: int, commands: Sequence[bytes]) -> bytes:
    """Joins encoded commands into one group without decoding them."""
    return b"".join((b"\x93", _pack(origin), _pack(sequence), _array_header(len(commands)), *commands))


def encode_entry(groups: Sequence[bytes]) -> bytes:
    """Joins encoded groups into the payload of one Raft entry."""
    return b"".join((_array_header(len(groups)), *groups))


def frees_space(command: bytes) -> bool:
    """An encoded command that a node with a full disk still takes: it makes the store smaller."""
    return command[1] == DELETE  # behind the array header of a short array, the kind is one byte


def group_frees_space(group: bytes) -> bool:
    """The same of a whole encoded group."""
    groups = decode_entry(b"\x91" + group)
    return bool(groups) and all(type(c) is list and c and c[0] == DELETE for c in groups[0][2])


def decode_entry(payload: bytes | memoryview) -> list[Any]:
    """The groups of an entry as `[origin, sequence, [command, ...]]` lists; a malformed one is an empty list.

    Total on purpose: what is in the log must be applied the same way on every node, so bytes that no
    node of this version would write are a no-op everywhere rather than an exception somewhere.
    """
    try:
        groups = msgpack.unpackb(payload, use_list=True, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException):
        return []
    if not isinstance(groups, list):
        return []
    return [g for g in groups if isinstance(g, list) and len(g) == 3 and isinstance(g[2], list)]
