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

TTL_S_MAX: Final = 366 * 86_400
LEASE_ID_MAX: Final = 2**53 - 1  # JSON numbers are exact up to there
REPLACE_BYTES_MAX: Final = 4 * 1_048_576  # one entry, well below a frame
SESSION_KEY_BYTES_MAX: Final = 64
SESSION_GRACE_S_MAX: Final = 31 * 86_400
EXPIRED_MAX: Final = 4_096  # leases in one expiry

ROLES: Final = ("read_only", "full")
TOKEN_ID_CHARS_MAX: Final = 32
TOKEN_NAME_BYTES_MAX: Final = 64
TOKEN_DIGEST_BYTES: Final = 32  # SHA-256

PUT: Final = 1
DELETE: Final = 2
DELETE_PREFIX: Final = 3
TXN: Final = 4  # `transactions.py`
GRANT: Final = 5
RENEW: Final = 6
REVOKE: Final = 7
EXPIRE: Final = 8
SESSION: Final = 9  # `session.py`
TOKEN_CREATE: Final = 10
TOKEN_REVOKE: Final = 11
REPLACE: Final = 12  # `beside.py`
# Fields up to the idempotency key, which is left out where there is none: older journals have no such field, and
# a write without a key does not carry an empty one.
FIELDS: Final = {
    PUT: 5, DELETE: 3, DELETE_PREFIX: 2, TXN: 4, GRANT: 2, RENEW: 2, REVOKE: 2, EXPIRE: 2, SESSION: 5,
    TOKEN_CREATE: 2, TOKEN_REVOKE: 2, REPLACE: 2,
}  # fmt: skip
PUT_FIELDS: Final = FIELDS[PUT]
DELETE_FIELDS: Final = FIELDS[DELETE]
FREEING: Final = frozenset((DELETE, DELETE_PREFIX, REVOKE, EXPIRE, TOKEN_REVOKE))  # what makes the store smaller

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
    `lease` is the id of the lease that the key leaves with, `ttl_s` asks for a lease of its own; 0: neither.
    """

    key: str
    value: bytes
    content_type: str = ""
    expect: Expect = None
    idempotency_key: str | None = None
    lease: int = 0
    ttl_s: int = 0

    def encode(self) -> bytes:
        start = (self.key, self.value, self.content_type, self.expect)
        return encode_put(*start, self.idempotency_key, self.lease, self.ttl_s)


def encode_put(
    key: str, value: bytes, content_type: str, expect: Expect, idempotency_key: str | None, lease: int, ttl_s: int
) -> bytes:
    """`Put(…).encode()` in a fifth of the time: making a frozen record is most of that."""
    if lease or ttl_s:
        return _pack((PUT, key, value, content_type, expect, idempotency_key, lease, ttl_s))
    if idempotency_key is None:
        return _pack((PUT, key, value, content_type, expect))
    return _pack((PUT, key, value, content_type, expect, idempotency_key))


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove `key`. The idempotency key is as for a put."""

    key: str
    expect: Expect = None
    idempotency_key: str | None = None

    def encode(self) -> bytes:
        return _with_key((DELETE, self.key, self.expect), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    """Remove all keys that start with `prefix` (1 to 1,024 bytes), in one revision."""

    prefix: str
    idempotency_key: str | None = None

    def encode(self) -> bytes:
        return _with_key((DELETE_PREFIX, self.prefix), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class Grant:
    """A new lease of `ttl_s` seconds, 1 to TTL_S_MAX."""

    ttl_s: int
    idempotency_key: str | None = None

    def encode(self) -> bytes:
        return _with_key((GRANT, self.ttl_s), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class Renew:
    """The lease's time begins again.

    A write like any other, although it changes no key: its place in the log decides between it and an expiry, and
    the next leader knows of it. (etcd renews in the leader's memory alone, and needs checkpoints to make up for it.)
    A keepalive costs its share of a group commit.
    """

    lease: int
    idempotency_key: str | None = None

    def encode(self) -> bytes:
        return _with_key((RENEW, self.lease), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class Revoke:
    """The lease ends, and its keys with it, in one revision."""

    lease: int
    idempotency_key: str | None = None

    def encode(self) -> bytes:
        return _with_key((REVOKE, self.lease), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class Expire:
    """The time of these leases is over: (id, renewals that the leader knew of). One that was renewed since stays."""

    leases: tuple[tuple[int, int], ...]

    def encode(self) -> bytes:
        return bytes(_pack((EXPIRE, self.leases)))


@dataclass(frozen=True, slots=True)
class CreateToken:
    """A new access token (`tokens.py`). The node that was asked draws its id and reads the clock."""

    id: str
    name: str
    role: str
    digest: bytes
    created_ms: int

    def encode(self) -> bytes:
        return bytes(_pack((TOKEN_CREATE, (self.id, self.name, self.role, self.digest, self.created_ms))))


@dataclass(frozen=True, slots=True)
class RevokeToken:
    """The token counts no more, from here in the log."""

    id: str

    def encode(self) -> bytes:
        return bytes(_pack((TOKEN_REVOKE, self.id)))


def _with_key(fields: tuple[int | str | Expect, ...], idempotency_key: str | None) -> bytes:
    return bytes(_pack(fields if idempotency_key is None else (*fields, idempotency_key)))


# --- what a decoded command must look like ---------------------------------------------------------


def command_fault(command: Any) -> str | None:
    """What is wrong with a decoded command, whatever the store holds; None where it can be carried out. Total.

    Of a transaction this checks its outside alone: `transactions.transaction_fault` is for the rest.
    """
    if type(command) is not list or not command:
        return "unknown command"
    kind = command[0]
    if kind == PUT:
        if len(command) == PUT_FIELDS:
            _, key, value, content_type, expect = command
            sound = type(key) is str and 0 < len(key) <= KEY_BYTES_MAX and key.isascii() and type(value) is bytes
            if sound and expect is None and content_type == "" and len(value) <= VALUE_BYTES_MAX:
                return None  # a put as nearly all are, in fewer steps
        if not PUT_FIELDS <= len(command) <= PUT_FIELDS + 3 or len(command) == PUT_FIELDS + 2:
            return "a put has five fields, a sixth for an idempotency key, two more for a lease"
        value, expect, extra = command[2], command[4], command[PUT_FIELDS:]
        if type(value) is not bytes or len(value) > VALUE_BYTES_MAX:
            return f"a value is 0 to {VALUE_BYTES_MAX} bytes"
        fault = text_fault("content type", command[3], 0, CONTENT_TYPE_BYTES_MAX)
        if fault is None and len(extra) == 3:
            fault = lease_fault(extra[1], extra[2])
        if fault is not None:
            return fault
    elif kind == SESSION:
        return _session_fault(command)
    elif type(kind) is not int or kind not in FIELDS:
        return "unknown command"
    else:
        fields = FIELDS[kind]
        if not fields <= len(command) <= fields + 1:
            return "a command has its fields, and one more for an idempotency key"
        expect, extra = command[2] if kind == DELETE else None, command[fields:]
    if expect is not None and (type(expect) is not list or not all(type(r) is int and r >= EXISTS for r in expect)):
        return "an expectation is a list of revisions"
    if extra and kind >= TOKEN_CREATE:
        return "a command on tokens, or on all contents, takes no idempotency key"
    if extra and not _is_idempotency_key(extra[0]):
        return f"an idempotency key is 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters"
    if kind <= DELETE:
        return text_fault("key", command[1], 1, KEY_BYTES_MAX)
    return _argument_fault(kind, command[1])


def _argument_fault(kind: int, argument: Any) -> str | None:
    if kind == DELETE_PREFIX:
        return text_fault("prefix", argument, 1, KEY_BYTES_MAX)
    if kind == GRANT:
        return lease_fault(0, argument) if argument else "a lease has a ttl"
    if kind in (RENEW, REVOKE):
        return lease_fault(argument, 0) if argument else "a lease has an id"
    if kind == EXPIRE:
        pairs = argument if type(argument) is list and len(argument) <= EXPIRED_MAX else [None]
        if not all(type(p) is list and len(p) == 2 and type(p[0]) is type(p[1]) is int and min(p) >= 0 for p in pairs):
            return "an expiry is a list of leases and how often each was renewed"
    return token_fault(kind, argument) if kind >= TOKEN_CREATE else None


def token_fault(kind: int, argument: Any) -> str | None:
    if kind == REPLACE:
        fits = type(argument) is bytes and len(argument) <= REPLACE_BYTES_MAX
        return None if fits else f"a backup in the log is {REPLACE_BYTES_MAX} bytes at most"
    if kind == TOKEN_REVOKE:
        return text_fault("token's id", argument, 1, TOKEN_ID_CHARS_MAX)
    if type(argument) is not list or len(argument) != 5:
        return "a token has an id, a name, a role, a hash and a time"
    token_id, name, role, digest, created_ms = argument
    if role not in ROLES or type(digest) is not bytes or len(digest) != TOKEN_DIGEST_BYTES:
        return "a token has a role and a SHA-256"
    if type(created_ms) is not int or not 0 <= created_ms < 2**63:
        return "a token's time is in milliseconds since 1970"
    fault = text_fault("token's id", token_id, 1, TOKEN_ID_CHARS_MAX)
    return fault or text_fault("token's name", name, 1, TOKEN_NAME_BYTES_MAX)


def _session_fault(command: list[Any]) -> str | None:
    if len(command) == FIELDS[SESSION]:
        _, after, key, fingerprint, grace_s = command
        numbers = type(after) is type(grace_s) is int and after >= 0 and 0 <= grace_s <= SESSION_GRACE_S_MAX
        texts = type(key) is type(fingerprint) is bytes and max(len(key), len(fingerprint)) <= SESSION_KEY_BYTES_MAX
        if numbers and texts:
            return None
    return "a session key has the number of the one before it, its bytes, its fingerprint and a grace time"


def value_fault(value: Any, content_type: Any) -> str | None:
    if type(value) is not bytes or len(value) > VALUE_BYTES_MAX:
        return f"a value is 0 to {VALUE_BYTES_MAX} bytes"
    return text_fault("content type", content_type, 0, CONTENT_TYPE_BYTES_MAX)


def lease_fault(lease: Any, ttl_s: Any) -> str | None:
    if type(lease) is not int or type(ttl_s) is not int or not 0 <= lease <= LEASE_ID_MAX or (lease and ttl_s):
        return "a key has a lease or a ttl, and a lease is a number above 0"
    return None if 0 <= ttl_s <= TTL_S_MAX else f"a ttl is 1 to {TTL_S_MAX} seconds"


def expectation_holds(expect: list[int], mod_revision: int) -> bool:
    """Whether the key is as a conditional write expects it (`Expect`); its mod_revision is 0 without it."""
    if mod_revision == 0:
        return ABSENT in expect
    return mod_revision in expect or EXISTS in expect


def _is_idempotency_key(text: Any) -> bool:
    """Whether the field is one, or the None that leaves it out before a field of a later version."""
    if type(text) is not str:
        return text is None
    return 1 <= len(text) <= IDEMPOTENCY_KEY_CHARS_MAX and text.isascii() and text.isprintable()


def text_fault(what: str, text: Any, bytes_min: int, bytes_max: int) -> str | None:
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
