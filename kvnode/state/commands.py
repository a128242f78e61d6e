"""The commands of the replicated state machine: frozen, bounded, and their one encoding.

A command is a msgpack array whose first element is its kind; a kind's fields are only ever appended to,
so that an older node's journal stays readable. `entries.py` has how commands travel through the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgpack

from kvnode.state.limits import (
    COUNTER_MAX,
    EXPIRED_MAX,
    KEY_BYTES_MAX,
    LEAP_MAX,
    LEASE_ID_0_1_MAX,
    LEASE_ID_MAX,
    MSGPACK_INT_MAX,
    VALUE_BYTES_MAX,
    chosen_ttl_fault,
    counter_fault,
    deletion_fault,
    end_session_fault,
    lease_fault,
    level_fault,
    put_token_fault,
    repeatable_fault,
    replace_fault,
    restore_end_fault,
    restore_fault,
    restore_piece_fault,
    session_key_fault,
    text_fault,
    token_fault,
    token_id_fault,
    value_fault,
    within_fault,
)

# The highest feature level that this version knows. 0 is what 0.1.0 knows, 1 adds LEVEL itself and what is gated by it.
# Commands and refusals that the level below does not know count only once the cluster has reached the level: until
# then some member would answer them otherwise, and its state would differ from then on.
FEATURE_LEVEL: Final = 1

PUT: Final = 1
DELETE: Final = 2
DELETE_PREFIX: Final = 3
TXN: Final = 4  # `transactions.py`
GRANT: Final = 5
RENEW: Final = 6
REVOKE: Final = 7
EXPIRE: Final = 8
SESSION: Final = 9  # `session_keys.py`
TOKEN_CREATE: Final = 10
TOKEN_REVOKE: Final = 11
REPLACE: Final = 12  # `admin_commands.py`
LEVEL: Final = 13  # `admin_commands.py`
END_SESSION: Final = 14  # `ended_sessions.py`; from feature level 1 on
RESTORE_BEGIN: Final = 15  # `staged_restore.py`; this and the three below from feature level 1 on
RESTORE_PIECE: Final = 16
RESTORE_COMMIT: Final = 17
RESTORE_ABORT: Final = 18
ADVANCE_CLOCK: Final = 19  # `idempotency.py`; from feature level 1 on
TOKEN_PUT: Final = 20  # `tokens.py`; from feature level 1 on
ETCD_TXN: Final = 21  # `etcd.py`; this and the two below from feature level 1 on
ETCD_DELETE: Final = 22
WITHIN: Final = 23  # a command in it, on leases, by a token with prefixes (`leases.py`)
# Fields up to the idempotency key, which is left out where there is none: older journals have no such field, and
# a write without a key does not carry an empty one. From feature level 1 on that field may be a list of the key and of
# whose write it is (`idempotency.py`).
FIELDS: Final = {
    PUT: 5, DELETE: 3, DELETE_PREFIX: 2, TXN: 4, GRANT: 2, RENEW: 2, REVOKE: 2, EXPIRE: 2, SESSION: 5,
    TOKEN_CREATE: 2, TOKEN_REVOKE: 2, REPLACE: 2, LEVEL: 2, END_SESSION: 2,
    RESTORE_BEGIN: 2, RESTORE_PIECE: 2, RESTORE_COMMIT: 2, RESTORE_ABORT: 2, ADVANCE_CLOCK: 2,
    TOKEN_PUT: 2, ETCD_TXN: 4, ETCD_DELETE: 2, WITHIN: 3,
}  # fmt: skip
PUT_FIELDS: Final = FIELDS[PUT]
DELETE_FIELDS: Final = FIELDS[DELETE]
# A field from feature level 1 on, behind an idempotency key that is never there: what it is, and its bounds.
APPENDED: Final = {
    EXPIRE: ("generation", 1, COUNTER_MAX), REPLACE: ("leap", 1, LEAP_MAX), GRANT: ("lease's id", 0, LEASE_ID_MAX),
}  # fmt: skip
# Commands that free space or withdraw access. A full disk does not refuse them, or a stolen token or session would
# stay valid. (The end of a session is noted in bounded space.)
FREEING: Final = frozenset(
    (DELETE, DELETE_PREFIX, REVOKE, EXPIRE, TOKEN_REVOKE, END_SESSION, RESTORE_ABORT, ETCD_DELETE)
)

# What a conditional write expects of the key's present `mod_revision`.
# None: nothing. A tuple: one of these revisions (an empty tuple never matches).
EXISTS: Final = -1  # the key must exist (If-Match: *)
ABSENT: Final = 0  # the key must not exist (If-None-Match: *)
Expect = tuple[int, ...] | None
# The key, or the key and whose write it is as a number up to SOURCE_MAX.
IdempotencyKey = str | tuple[str, int] | None

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
    idempotency_key: IdempotencyKey = None
    lease: int = 0
    ttl_s: int = 0

    def encode(self) -> bytes:
        start = (self.key, self.value, self.content_type, self.expect)
        return encode_put(*start, self.idempotency_key, self.lease, self.ttl_s)


def encode_put(
    key: str, value: bytes, content_type: str, expect: Expect, idempotency_key: IdempotencyKey, lease: int, ttl_s: int
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
    idempotency_key: IdempotencyKey = None

    def encode(self) -> bytes:
        return _with_key((DELETE, self.key, self.expect), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    """Remove all keys that start with `prefix` (1 to 1,024 bytes), in one revision."""

    prefix: str
    idempotency_key: IdempotencyKey = None

    def encode(self) -> bytes:
        return _with_key((DELETE_PREFIX, self.prefix), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class Grant:
    """A new lease of `ttl_s` seconds, 1 to TTL_S_MAX.

    `lease`, from feature level 1 on, is the id that a client of etcd's gateway chose, 0: the store chooses. Its ttl is
    up to LEASE_TTL_S_MAX; there is no idempotency key, as an id is given once.
    """

    ttl_s: int
    idempotency_key: IdempotencyKey = None
    lease: int | None = None

    def encode(self) -> bytes:
        if self.lease is not None:
            return bytes(_pack((GRANT, self.ttl_s, None, self.lease)))
        return _with_key((GRANT, self.ttl_s), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class Renew:
    """The lease's time begins again.

    A write like any other, although it changes no key: its place in the log decides between it and an expiry, and
    the next leader knows of it. (etcd renews in the leader's memory alone, and needs checkpoints to make up for it.)
    A keepalive costs its share of a group commit.
    """

    lease: int
    idempotency_key: IdempotencyKey = None

    def encode(self) -> bytes:
        return _with_key((RENEW, self.lease), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class Revoke:
    """The lease ends, and its keys with it, in one revision."""

    lease: int
    idempotency_key: IdempotencyKey = None

    def encode(self) -> bytes:
        return _with_key((REVOKE, self.lease), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class Expire:
    """Ends leases whose time is over: (id, renewals that the leader knew of). A lease renewed since then stays.

    `generation` is that of the leases that the leader knew (`leases.py`). Leases of a backup that was restored since
    then have another generation and stay, even with the same ids and renewals.
    """

    leases: tuple[tuple[int, int], ...]
    generation: int = 0

    def encode(self) -> bytes:
        if self.generation:  # above 0 from feature level 1 on
            return bytes(_pack((EXPIRE, self.leases, None, self.generation)))
        return bytes(_pack((EXPIRE, self.leases)))


@dataclass(frozen=True, slots=True)
class Replace:
    """All keys and leases give way to those of a backup (`beside.packed_contents`).

    `leap`, from feature level 1 on, is for a backup of another cluster: so many revisions and lease ids above both are
    left out, which that cluster may have given since.
    """

    contents: bytes
    leap: int = 0

    def encode(self) -> bytes:
        if self.leap:
            return bytes(_pack((REPLACE, self.contents, None, self.leap)))
        return bytes(_pack((REPLACE, self.contents)))


@dataclass(frozen=True, slots=True)
class CreateToken:
    """A new access token as version 0.1 knows it. The node that was asked draws its id and reads the clock."""

    id: str
    name: str
    role: str
    digest: bytes
    created_ms: int

    def encode(self) -> bytes:
        return bytes(_pack((TOKEN_CREATE, (self.id, self.name, self.role, self.digest, self.created_ms))))


@dataclass(frozen=True, slots=True)
class PutToken:
    """A token with all its fields (`tokens.Token`), new or in the place of the one with this id.

    `before` is that one's mark (`Token.mark`), b"" for a new one: where another change came first, this one is none.
    """

    before: bytes
    fields: tuple[Any, ...]

    def encode(self) -> bytes:
        return bytes(_pack((TOKEN_PUT, (self.before, self.fields))))


def encode_within(owner: str, prefixes: tuple[str, ...], leases: tuple[int, ...], command: bytes) -> bytes:
    """An encoded command that grants a lease, or names some, by a token with prefixes (`leases.Leases.usable`)."""
    return b"\x93" + _pack(WITHIN) + _pack((owner, prefixes, leases)) + command


@dataclass(frozen=True, slots=True)
class RaiseLevel:
    """The cluster has reached this feature level: every member knows it. Levels never fall."""

    level: int

    def encode(self) -> bytes:
        return bytes(_pack((LEVEL, self.level)))


@dataclass(frozen=True, slots=True)
class RevokeToken:
    """The token counts no more, from here in the log."""

    id: str

    def encode(self) -> bytes:
        return bytes(_pack((TOKEN_REVOKE, self.id)))


@dataclass(frozen=True, slots=True)
class EndSession:
    """The session counts no more, from here in the log (`ended_sessions.py`)."""

    token_id: str
    session_id: bytes
    ends_at_s: int  # when it would have been over by itself

    def encode(self) -> bytes:
        return bytes(_pack((END_SESSION, (self.token_id, self.session_id, self.ends_at_s))))


@dataclass(frozen=True, slots=True)
class BeginRestore:
    """A backup begins to come in (`staged_restore.py`), in place of one that has not come to its end.

    `revision`, `last_lease_id` and `renewals` (`leases.py`) are the backup's, and so many items and leases will follow.
    """

    id: bytes
    revision: int
    items: int
    leases: int
    last_lease_id: int
    renewals: int = 0

    def encode(self) -> bytes:
        fields = (self.id, self.revision, self.items, self.leases, self.last_lease_id)
        return bytes(_pack((RESTORE_BEGIN, (*fields, self.renewals) if self.renewals else fields)))


@dataclass(frozen=True, slots=True)
class RestorePiece:
    """The piece `number`, from 0, of the backup that has begun: one chunk of its leases or its items.

    Not compressed: each node decodes it in its loop, where a small one must not become a large one.
    """

    id: bytes
    number: int
    chunk: bytes

    def encode(self) -> bytes:
        return bytes(_pack((RESTORE_PIECE, (self.id, self.number, self.chunk))))


@dataclass(frozen=True, slots=True)
class CommitRestore:
    """What has come takes the place of all keys and leases, if it is whole and has that many pieces.

    `leap`: as of Replace.
    """

    id: bytes
    pieces: int
    leap: int = 0

    def encode(self) -> bytes:
        return bytes(_pack((RESTORE_COMMIT, (self.id, self.pieces, self.leap))))


@dataclass(frozen=True, slots=True)
class AbortRestore:
    """What has come of the backup is dropped; nothing else changes."""

    id: bytes

    def encode(self) -> bytes:
        return bytes(_pack((RESTORE_ABORT, (self.id, 0, 0))))


@dataclass(frozen=True, slots=True)
class AdvanceClock:
    """The replicated clock shows this second now, unless it shows a later one."""

    clock_s: int

    def encode(self) -> bytes:
        return bytes(_pack((ADVANCE_CLOCK, self.clock_s)))


def _with_key(fields: tuple[int | str | Expect, ...], idempotency_key: IdempotencyKey) -> bytes:
    return bytes(_pack(fields if idempotency_key is None else (*fields, idempotency_key)))


# --- what a decoded command must look like ---------------------------------------------------------


def command_fault(command: Any) -> str | None:
    """What is wrong with a decoded command; None if it is well formed. Does not look at the store. Total.

    Checks only the outer fields of a transaction; `transaction_fault` (`transactions.py`, `etcd.py`) checks the rest.
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
        expect, extra = command[4], command[PUT_FIELDS:]
        fault = value_fault(command[2], command[3])
        if fault is None and len(extra) == 3:
            fault = lease_fault(extra[1], extra[2])
        if fault is not None:
            return fault
    elif kind == SESSION:
        if len(command) != FIELDS[SESSION]:
            return "a change of the session key has five fields"
        return session_key_fault(*command[1:])
    elif type(kind) is not int or kind not in FIELDS:
        return "unknown command"
    else:
        fields = FIELDS[kind]
        if len(command) == fields + 2 and kind in APPENDED:
            fault = _appended_fault(kind, *command[fields:])
            if kind == GRANT:
                return fault or chosen_ttl_fault(command[1])
            return fault or _argument_fault(kind, command[1])
        if not fields <= len(command) <= fields + 1:
            return "a command has its fields, and one more for an idempotency key"
        expect, extra = command[2] if kind == DELETE else None, command[fields:]
    if expect is not None and (type(expect) is not list or not all(map(_is_expected, expect))):
        return "an expectation is a list of revisions"
    if extra and kind >= TOKEN_CREATE:
        return "a command on tokens, sessions, all contents, the clock or the feature level takes no idempotency key"
    if extra and (fault := repeatable_fault(extra[0])) is not None:
        return fault
    if kind <= DELETE:
        return text_fault("key", command[1], 1, KEY_BYTES_MAX)
    return _argument_fault(kind, command[1])


def _appended_fault(kind: int, idempotency_key: Any, number: Any) -> str | None:
    if idempotency_key is not None:
        return "an expiry with a generation, a replacement with a leap or a grant with an id has no idempotency key"
    return counter_fault(APPENDED[kind][0], number, *APPENDED[kind][1:])


def _is_expected(revision: Any) -> bool:
    return type(revision) is int and EXISTS <= revision <= MSGPACK_INT_MAX


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
    if kind == TOKEN_CREATE:
        return token_fault(argument)
    if kind == TOKEN_REVOKE:
        return token_id_fault(argument)
    if kind == WITHIN:
        return within_fault(argument)
    if kind == TOKEN_PUT:
        return put_token_fault(argument)
    if kind == LEVEL:
        return level_fault(argument)
    if kind == END_SESSION:
        return end_session_fault(argument)
    if kind == RESTORE_BEGIN:
        return restore_fault(argument)
    if kind == RESTORE_PIECE:
        return restore_piece_fault(argument)
    if kind in (RESTORE_COMMIT, RESTORE_ABORT):
        return restore_end_fault(argument)
    if kind == ADVANCE_CLOCK:
        return counter_fault("clock", argument, 1)
    if kind == ETCD_DELETE:
        return deletion_fault(argument)
    return replace_fault(argument) if kind == REPLACE else None


def unknown_to_0_1(command: list[Any]) -> bool:
    """Whether a command without a fault names a lease by an id that 0.1.0 takes for a fault: until feature level 1 no
    node may do more with it, nor remember an answer."""
    kind = command[0]
    if kind in (RENEW, REVOKE):
        return bool(command[1] > LEASE_ID_0_1_MAX)
    if kind == PUT:
        return len(command) > PUT_FIELDS + 1 and command[PUT_FIELDS + 1] > LEASE_ID_0_1_MAX
    if kind == TXN:
        return any(each[0] == PUT and each[4] > LEASE_ID_0_1_MAX for branch in command[2:4] for each in branch)
    return False


def expectation_holds(expect: list[int], mod_revision: int) -> bool:
    """Whether the key is as a conditional write expects it (`Expect`); its mod_revision is 0 without it."""
    if mod_revision == 0:
        return ABSENT in expect
    return mod_revision in expect or EXISTS in expect
