"""Groups of commands and the payload of a Raft entry.

    entry  = [ group, group, ... ]              one entry = one group commit
    group  = [ origin, sequence, [command, ...] ]

`origin` is 8 random bytes drawn when a node process starts and `sequence` counts that process's groups,
so that every node can recognise its own writes when they come back through the log (`node/proposals.py`).
Because a msgpack array is a header and then its elements, groups and entries are built by joining bytes:
a command is encoded once, on the node that took it, and decoded once on each node that applies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from kvnode.state.commands import FIELDS, FREEING, REPLACE, WITHIN

ORIGIN_BYTES: Final = 8
ORIGIN_AT: Final = 3  # in an encoded group, behind the headers of an array and of bytes
# A command REPLACE begins so: an array of two or, with a leap, of four, its kind, and one of three forms of bytes.
_REPLACEMENTS: Final = tuple(bytes((array, REPLACE, form)) for array in (0x92, 0x94) for form in (0xC4, 0xC5, 0xC6))
_KIND: Final = bytes((REPLACE,))

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


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


def encode_unawaited(command: bytes) -> bytes:
    """A group of one encoded command that no node waits for: the leader's own."""
    return encode_group(bytes(ORIGIN_BYTES), 0, [command])


def encode_entry(groups: Sequence[bytes]) -> bytes:
    """Joins encoded groups into the payload of one Raft entry."""
    return b"".join((_array_header(len(groups)), *groups))


def frees_space(command: bytes) -> bool:
    """An encoded command that a node with a full disk still takes: it makes the store smaller."""
    kind = command[1]  # behind the array header of a short array, the kind is one byte
    return kind in FREEING or (kind == WITHIN and group_frees_space(encode_unawaited(command)))


def group_frees_space(group: bytes) -> bool:
    """The same of a whole encoded group."""
    groups = decode_entry(b"\x91" + group)
    return bool(groups) and all(_frees(command) for command in groups[0][2])


def _frees(command: Any) -> bool:
    """Whether a decoded command makes the store smaller, or the one does that a token with prefixes sends in it."""
    if type(command) is list and len(command) == FIELDS[WITHIN] and command[0] == WITHIN:
        command = command[2]
    return type(command) is list and bool(command) and type(command[0]) is int and command[0] in FREEING


def replacement_in(payload: bytes) -> bytes | None:
    """The contents that the first REPLACE of an entry brings; None where it has none. Nearly always at the price of a
    search, as values hold such bytes by chance alone.
    """
    if not _may_have_a_replacement(payload):
        return None
    commands = (command for _, _, commands in decode_entry(payload) for command in commands)
    found = (c[1] for c in commands if type(c) is list and len(c) in (2, 4) and c[0] == REPLACE and type(c[1]) is bytes)
    return next(found, None)


def _may_have_a_replacement(payload: bytes) -> bool:
    """By one byte, which memchr(3) finds twenty times faster than several; it is one of 256 in what is compressed. In a
    value that is full of it, by all three.
    """
    left, at = len(payload) >> 6, payload.find(_KIND, 1)
    while at > 0 and left:
        if payload[at - 1 : at + 2] in _REPLACEMENTS:
            return True
        left, at = left - 1, payload.find(_KIND, at + 1)
    return at > 0 and any(begin in payload for begin in _REPLACEMENTS)


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
