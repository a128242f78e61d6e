"""The commands of the replicated state machine: frozen, bounded, and their one encoding.

A command is a msgpack array whose first element is its kind; a kind's fields are only ever appended to,
so that an older node's journal stays readable. `entries.py` has how commands travel through the log.
"""

from __future__ import annotations

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
