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
COMMAND_BYTES_MAX: Final = VALUE_BYTES_MAX + KEY_BYTES_MAX + CONTENT_TYPE_BYTES_MAX + 256

PUT: Final = 1
DELETE: Final = 2

ORIGIN_BYTES: Final = 8

# What a conditional write expects of the key's present `mod_revision`.
# None: nothing. A tuple: one of these revisions (an empty tuple never matches).
EXISTS: Final = -1  # the key must exist (If-Match: *)
ABSENT: Final = 0  # the key must not exist (If-None-Match: *)
Expect = tuple[int, ...] | None

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


@dataclass(frozen=True, slots=True)
class Put:
    """Set `key` to `value`. Key 1 to 1,024 bytes of UTF-8, value 0 to 1 MiB, content type up to 256 bytes."""

    key: str
    value: bytes
    content_type: str = ""
    expect: Expect = None

    def encode(self) -> bytes:
        return _pack((PUT, self.key, self.value, self.content_type, self.expect))


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove `key`."""

    key: str
    expect: Expect = None

    def encode(self) -> bytes:
        return _pack((DELETE, self.key, self.expect))


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


Result = Written | Deleted | Refused | Invalid


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
