"""Every limit of what may enter the state machine, and what is wrong with a field that breaks one. Pure.

A field reaches the replicated state by way of a request, the log, a snapshot, a backup or an import. Each of these
asks here, so that no way in accepts what another refuses. `commands.py` and `transactions.py` know the shape
of a command; the numbers are all in this file. A `*_fault` function answers None or one clause that says what a sound
field looks like, and never repeats the field itself. It is total: it takes any object that msgpack or JSON can decode
to. Types are compared with `type(…) is int`, because True is an int to `isinstance`.
"""

from __future__ import annotations

from typing import Any, Final

# --- counters --------------------------------------------------------------------------------------

# Revisions, versions, ids of leases, their renewals, numbers of session keys. JSON keeps whole numbers exact up to
# 2^53, and nodes and clients add to a counter before they use it (a watch begins at a revision + 1, a restore leaps
# over 2^50 revisions at most): the last 2^32 below 2^53 are left to them.
#
# Accepted state must stay loadable after any later commands. So counters in a file from outside may be up to
# COUNTER_RESTORED_MAX only, a snapshot may hold all that `apply` can count to, and `apply` refuses to count beyond
# COUNTER_MAX. Between the two bounds are 2^52 - 2^32 changes, 142 years at a million each second. No cluster of 0.1.0
# gets there by itself, so these refusals need no feature level: nodes of both versions answer all else alike.
COUNTER_MAX: Final = 2**53 - 2**32
COUNTER_RESTORED_MAX: Final = 2**52
# Revisions and lease ids that are left out where a cluster is made of what an older one held. That one may have given
# more of them than the file or the node knows, to clients that still hold them: a fencing token, an ETag, a lease. So
# many are what a cluster gives in half a day of nothing but writes (22,000 a second were seen), and small against the
# bounds above: four million recoveries, one after the other, fit below them.
LEAP: Final = 1_000_000_000
LEAP_MAX: Final = 2**50
MSGPACK_INT_MAX: Final = 2**64 - 1

# --- keys and values -------------------------------------------------------------------------------

KEY_BYTES_MAX: Final = 1_024
VALUE_BYTES_MAX: Final = 1_048_576
CONTENT_TYPE_BYTES_MAX: Final = 256

# A chunk of a snapshot or a backup, which is a piece of a restore as well.
CHUNK_BYTES: Final = 65_536
# What a reader takes: a chunk that is nearly full, and the largest item. Version 0.1 counted a key by its characters
# and no content type, so that a nearly full chunk of it has up to seven times the bytes that it counted.
CHUNK_BYTES_MAX: Final = 7 * CHUNK_BYTES + VALUE_BYTES_MAX + KEY_BYTES_MAX + CONTENT_TYPE_BYTES_MAX + 64
# What one array of a snapshot may hold; 4,096 leases are the most that a node writes into one. Without a bound a
# small file could name a length that takes the memory of the node.
ARRAY_MAX: Final = 4_096

# --- leases ----------------------------------------------------------------------------------------

TTL_S_MAX: Final = 366 * 86_400
# Ids that the store chooses count up from 1 and stay below COUNTER_MAX. From feature level 1 on a client of etcd's
# gateway may choose one itself, any of 64 bits (etcd's negative ids are those from 2^63 on), with etcd's longest ttl.
LEASE_ID_0_1_MAX: Final = 2**53 - 1  # what 0.1.0 takes
LEASE_ID_MAX: Final = 2**64 - 1
LEASE_TTL_S_MAX: Final = 9_000_000_000
# Renewals of leases whose ids may come back count from here in one count for all (`leases.py`). No lease of 0.1.0 lives
# to be renewed so often: it would take 1.7 years at 20,000 renewals a second.
RENEWALS_SHARED_MIN: Final = 2**40
LEASES_MAX: Final = 1_048_576
EXPIRED_MAX: Final = 4_096  # leases in one expiry

# --- outcomes of idempotency keys (`idempotency.py`) --------------------------------------------------

IDEMPOTENCY_KEY_CHARS_MAX: Final = 64
# A client repeats a write in doubt for ten seconds (`client.calls.RESEND_S`), and a node may take five more to hand a
# repetition on; the rest is for groups that were delayed on their way to the leader. From feature level 1 on no outcome
# younger than this is forgotten. It is part of the replicated state: nodes that disagreed about the window would answer
# the same retry differently.
REPEAT_WINDOW_S: Final = 20
# Outcomes older than that are kept for late retries: at one keyed write a second, a day and a half of them. When full,
# they take up to 48 MB of memory and 14 MB of snapshot.
OUTCOMES_MAX: Final = 131_072
OUTCOMES_BYTES_MAX: Final = 32 * 1_048_576
# All of them while many are young: twice that. One client alone gets three quarters of it, 9,300 keyed writes a second
# for as long as it likes, and all together 12,400; 22,000 a second were seen, which fit for ten seconds.
# Full, it takes 67 MB of memory and 17 MB of snapshot.
OUTCOMES_YOUNG_MAX: Final = 262_144
OUTCOMES_YOUNG_BYTES_MAX: Final = 64 * 1_048_576
SOURCE_MAX: Final = 65_535  # whose write it is, as a number; 0: unknown
OUTCOME_FINGERPRINT_BYTES: Final = 16
RESULT_BYTES_MAX: Final = 38  # msgpack of a kind and at most four numbers, three of them of 64 bits
OUTCOME_BYTES_MAX: Final = IDEMPOTENCY_KEY_CHARS_MAX + OUTCOME_FINGERPRINT_BYTES + RESULT_BYTES_MAX

# --- tokens and the session key --------------------------------------------------------------------

ROLES_0_1: Final = ("read_only", "full")  # the words of version 0.1 for read and admin; a token keeps the word it has
ROLES: Final = ("read", "write", "admin", *ROLES_0_1)
ADMIN_ROLES: Final = ("admin", "full")
# Prefixes of one token. A team has a few, and each is looked at for each key of its requests. The bytes are what lets
# all tokens that there may be fit a snapshot's first chunk, together with their ended sessions.
PREFIXES_MAX: Final = 16
PREFIXES_BYTES_MAX: Final = 480
TOKEN_MARK_BYTES: Final = 8
TOKENS_MAX: Final = 1_024
TOKEN_ID_CHARS_MAX: Final = 32
TOKEN_NAME_BYTES_MAX: Final = 64
TOKEN_DIGEST_BYTES: Final = 32  # SHA-256
SESSION_KEY_BYTES_MAX: Final = 64
SESSION_GRACE_S_MAX: Final = 31 * 86_400
SESSION_ID_BYTES: Final = 16
GENERATION_BYTES: Final = 8  # of a token, in the sessions that it began
SESSION_ENDS_AT_MAX: Final = COUNTER_MAX  # seconds since 1970
# Sessions of one token that were ended and would not be over yet. Over it, those that would have ended first end by
# their time (`ended_sessions.py`). People sign out a few times a day. With all tokens that there may be it is 640 KB,
# which fits a snapshot's first chunk with them.
ENDED_SESSIONS_MAX: Final = 24
ENDED_SESSION_BYTES: Final = 8 + SESSION_ID_BYTES  # a time and an id

# --- commands --------------------------------------------------------------------------------------

COMMAND_BYTES_MAX: Final = VALUE_BYTES_MAX + KEY_BYTES_MAX + CONTENT_TYPE_BYTES_MAX + IDEMPOTENCY_KEY_CHARS_MAX + 256
OPERATIONS_MAX: Final = 128  # in each of a transaction's three lists, as etcd counts
# The outcome of a transaction has a result for each operation of one branch, and a few bytes of its own.
OUTCOME_LARGEST_BYTES: Final = OUTCOME_BYTES_MAX + OPERATIONS_MAX * RESULT_BYTES_MAX + 64
TRANSACTION_BYTES_MAX: Final = 2 * 1_048_576  # encoded
# Values that the reads of one transaction add up to: four of the largest. A read costs 20 bytes of request, so without
# this 3 KB ask for 128 MiB of answer. Counted before anything changes, in the same way on every node.
TRANSACTION_READ_BYTES_MAX: Final = 4 * 1_048_576
# etcd's transactions (`etcd.py`) are trees. etcd bounds each path by 128; this is for all paths together, so that one
# command stays a matter of milliseconds. Clients nest once: Patroni, to take its leader key.
OPERATIONS_NESTED_MAX: Final = 1_024  # operations, and as many comparisons
NESTING_MAX: Final = 16
# What each key that a transaction looks at counts for beside what it reads of it, so that a transaction that sorts,
# filters or compares ranges visits 65,536 keys at most (about 50 ms on every node).
VISIT_BYTES: Final = 64
# A bound of a range: a key, cut behind the longest, its last byte replaced by a character of up to four.
BOUND_BYTES_MAX: Final = KEY_BYTES_MAX + 4
INT64_MAX: Final = 2**63 - 1
REPLACE_BYTES_MAX: Final = 4 * 1_048_576  # one entry, well below a frame
RESTORE_ID_BYTES: Final = 16
LEVEL_MAX: Final = 65_535  # a feature level: far more than versions to come, and small beside the digest it goes into
CONTENTS_BYTES_MAX: Final = 64 * 1_048_576  # what a REPLACE may hold, so that a small one cannot fill a node's memory
CONTENTS_CHUNKS_MAX: Final = 16_384  # in it; chunks of items hold 64 KiB each, those of leases and outcomes are few


def counter_fault(what: str, number: Any, least: int = 0, most: int = COUNTER_MAX) -> str | None:
    if type(number) is int and least <= number <= most:
        return None
    return f"a {what} is a whole number from {least} to {most}"


def restored_fault(revision: int, last_lease_id: int) -> str | None:
    """What is wrong with the counters of a file from outside: a backup, also one inside a command."""
    if max(revision, last_lease_id) <= COUNTER_RESTORED_MAX:
        return None
    return f"a backup has a revision and lease ids up to {COUNTER_RESTORED_MAX}"


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


def value_fault(value: Any, content_type: Any) -> str | None:
    if type(value) is not bytes or len(value) > VALUE_BYTES_MAX:
        return f"a value is 0 to {VALUE_BYTES_MAX} bytes"
    return text_fault("content type", content_type, 0, CONTENT_TYPE_BYTES_MAX)


def item_fault(fields: Any, revision: int) -> str | None:
    """What is wrong with a key's item as a snapshot of `revision` holds it; whether its lease is there is not asked.

    Each put of a key has a revision of its own (a transaction writes a key once), so a key's version never exceeds
    the number of revisions from its creation to its last change.
    """
    try:
        key, value, content_type, create_revision, mod_revision, version, *more = fields
        (lease,) = more or (0,)
    except (TypeError, ValueError):
        return "an item has six or seven fields"
    if not (type(create_revision) is type(mod_revision) is type(version) is type(lease) is int):
        return "an item has whole numbers for its revisions, its version and its lease"
    if not (0 < create_revision <= mod_revision <= revision and 0 < version <= mod_revision - create_revision + 1):
        return "an item was created and changed up to the snapshot's revision, once for each of its versions"
    if more and not 0 < lease <= LEASE_ID_MAX:
        return "an item's lease is a number above 0"
    usual = type(key) is str and 0 < len(key) <= KEY_BYTES_MAX and key.isascii()
    if usual and content_type == "" and type(value) is bytes and len(value) <= VALUE_BYTES_MAX:
        return None  # as nearly all are, in fewer steps
    return text_fault("key", key, 1, KEY_BYTES_MAX) or value_fault(value, content_type)


def granted_fault(fields: Any, after: int, last_id: int, shared: int, owned: bool = True) -> str | None:
    """What is wrong with a lease as a snapshot holds it: `[id, ttl_s, renewals, private]`, ids in order, and a fifth
    field for those that have an owner, where that may be (`owned`).

    `shared`: how far the common count of renewals is (`leases.py`); without one no id was chosen by a client.
    """
    if type(fields) is not list or not 4 <= len(fields) <= 4 + owned or type(fields[3]) is not bool:
        return "a lease has an id, a ttl, a count of renewals and a mark"
    lease_id, ttl_s, renewals, _, *owner = fields
    if owner and (fault := token_id_fault(owner[0])) is not None:
        return fault
    if type(lease_id) is not int or not after < lease_id <= (LEASE_ID_MAX if shared else last_id):
        return "leases are in the order of their ids, none above the last one that was given"
    fault = chosen_ttl_fault(ttl_s)
    if fault is None and ttl_s > TTL_S_MAX and not shared:
        fault = f"a ttl is 1 to {TTL_S_MAX} seconds"
    return fault or counter_fault("count of renewals", renewals, 0, shared or COUNTER_MAX)


def renewals_fault(renewals: Any) -> str | None:
    """What is wrong with the count of renewals that all leases share, in a snapshot."""
    return counter_fault("count of renewals", renewals, RENEWALS_SHARED_MIN)


def generation_fault(generation: Any, revision: int) -> str | None:
    """What is wrong with the generation of the leases (`leases.py`) in a snapshot of `revision`."""
    return counter_fault("generation of leases", generation, 1, revision)


def bound_fault(bound: Any) -> str | None:
    """What is wrong with the start or the end of a range; an end may be None or empty as well (`spans.py`)."""
    return text_fault("bound of a range", bound, 0, BOUND_BYTES_MAX)


def span_fault(start: Any, end: Any) -> str | None:
    """What is wrong with the bounds of a range (`spans.Span`)."""
    if end is None:
        return text_fault("key", start, 1, KEY_BYTES_MAX)
    return bound_fault(start) or bound_fault(end)


def deletion_fault(fields: Any) -> str | None:
    """What is wrong with the deletion of a range: its bounds, and 1 where what was deleted is asked for, else 0."""
    if type(fields) is not list or len(fields) != 3 or type(fields[2]) is not int or fields[2] not in (0, 1):
        return "the deletion of a range has a start, an end and a flag"
    return span_fault(fields[0], fields[1])


def lease_fault(lease: Any, ttl_s: Any) -> str | None:
    """What is wrong with what a put asks for: a lease, a ttl of its own, or neither (both 0)."""
    if type(lease) is not int or type(ttl_s) is not int or not 0 <= lease <= LEASE_ID_MAX or (lease and ttl_s):
        return "a key has a lease or a ttl, and a lease is a number above 0"
    return None if 0 <= ttl_s <= TTL_S_MAX else f"a ttl is 1 to {TTL_S_MAX} seconds"


def chosen_ttl_fault(ttl_s: Any) -> str | None:
    """What is wrong with the ttl of a lease whose id may be chosen."""
    fits = type(ttl_s) is int and 1 <= ttl_s <= LEASE_TTL_S_MAX
    return None if fits else f"a ttl is 1 to {LEASE_TTL_S_MAX} seconds"


def idempotency_key_fault(text: Any) -> str | None:
    """Also None for the None that leaves the key out before a field of a later version."""
    if text is None or (
        type(text) is str and 1 <= len(text) <= IDEMPOTENCY_KEY_CHARS_MAX and text.isascii() and text.isprintable()
    ):
        return None
    return f"an idempotency key is 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters"


def repeatable_fault(field: Any) -> str | None:
    """What is wrong with what a command says of its repetitions: an idempotency key or, from feature level 1 on, a list
    of one and of whose write it is, as a number."""
    if type(field) is not list:
        return idempotency_key_fault(field)
    if len(field) != 2 or type(field[0]) is not str:
        return "a keyed write has an idempotency key and a number that says whose it is"
    return idempotency_key_fault(field[0]) or counter_fault("source of a write", field[1], 0, SOURCE_MAX)


def outcome_times_fault(fields: Any, timed: bool, count: int) -> str | None:
    """What is wrong with `idempotency.Times` as a list, in a snapshot with `count` outcomes."""
    fault = "the times of outcomes are a clock, seconds up to it with their counts in order, and another count"
    if not timed or type(fields) is not list or len(fields) != 3 or type(fields[1]) is not list:
        return fault
    clock_s, counts, young = fields
    if counter_fault("clock", clock_s) is not None or type(young) is not int or young < 0:
        return fault
    if not (clock_s or young) or len(counts) > REPEAT_WINDOW_S + 1:
        return fault
    before = max(0, clock_s - REPEAT_WINDOW_S - 1)
    for each in counts:
        if type(each) is not list or len(each) != 2 or type(each[0]) is not int or type(each[1]) is not int:
            return fault
        if not before < each[0] <= clock_s or each[1] < 1:
            return fault
        before, young = each[0], young + each[1]
    return None if young <= count else fault


def replace_fault(packed: Any) -> str | None:
    fits = type(packed) is bytes and len(packed) <= REPLACE_BYTES_MAX
    return None if fits else f"a backup in the log is {REPLACE_BYTES_MAX} bytes at most"


def restore_fault(fields: Any) -> str | None:
    """What is wrong with the beginning of a restore: its id, the backup's revision, how many items and leases it will
    bring, its last lease id, and how far its leases' common count of renewals is, where they have one."""
    if type(fields) is not list or len(fields) not in (5, 6):
        return "a restore has an id, a revision, two counts, a last lease id and perhaps a count of renewals"
    restore_id, revision, items, leases, last_lease_id, *renewals = fields
    if renewals and (fault := renewals_fault(renewals[0])) is not None:
        return fault
    if type(restore_id) is not bytes or len(restore_id) != RESTORE_ID_BYTES:
        return f"a restore's id is {RESTORE_ID_BYTES} bytes"
    return (
        counter_fault("backup's revision", revision, 0, COUNTER_RESTORED_MAX)
        or counter_fault("count of items", items)
        or counter_fault("count of leases", leases, 0, LEASES_MAX)
        or counter_fault("last lease id", last_lease_id, 0, COUNTER_RESTORED_MAX)
    )


def restore_piece_fault(fields: Any) -> str | None:
    """What is wrong with a piece of a restore from outside: the restore's id, its number, its bytes."""
    if type(fields) is not list or len(fields) != 3:
        return "a piece of a restore has the restore's id, a number and bytes"
    restore_id, number, chunk = fields
    if type(chunk) is not bytes or len(chunk) > CHUNK_BYTES_MAX:
        return f"a piece of a restore is {CHUNK_BYTES_MAX} bytes at most"
    return restore_end_fault([restore_id, number, 0])


def restore_end_fault(fields: Any) -> str | None:
    """What is wrong with the end of a restore: its id, how many pieces it has had, how many numbers it leaps over."""
    if type(fields) is not list or len(fields) != 3:
        return "the end of a restore has its id, a count of pieces and a leap"
    if type(fields[0]) is not bytes or len(fields[0]) != RESTORE_ID_BYTES:
        return f"a restore's id is {RESTORE_ID_BYTES} bytes"
    return counter_fault("number of a piece", fields[1]) or counter_fault("leap", fields[2], 0, LEAP_MAX)


def end_session_fault(fields: Any) -> str | None:
    """What is wrong with the end of a session: its token's id ('' without one), its own id, when it would be over."""
    if type(fields) is not list or len(fields) != 3:
        return "the end of a session has a token's id, its own id and a time"
    token_id, session_id, ends_at_s = fields
    if type(session_id) is not bytes or len(session_id) != SESSION_ID_BYTES:
        return f"a session's id is {SESSION_ID_BYTES} bytes"
    if type(ends_at_s) is not int or not 1 <= ends_at_s <= SESSION_ENDS_AT_MAX:
        return "a session ends at a time in seconds since 1970"
    return text_fault("token's id", token_id, 0, TOKEN_ID_CHARS_MAX)


def ended_sessions_fault(entry: Any) -> str | None:
    """What is wrong with an entry of `EndedSessions.view` as a list."""
    fault = "what was ended of a token is a time, and sessions that would end later, in their order"
    if type(entry) is not list or len(entry) != 2 or type(entry[1]) is not list or len(entry[1]) != 2:
        return fault
    token_id, (before, sessions) = entry
    if type(before) is not int or not 0 <= before <= SESSION_ENDS_AT_MAX or type(sessions) is not list:
        return fault
    if len(sessions) > ENDED_SESSIONS_MAX or not (before or sessions):
        return fault
    last = before.to_bytes(ENDED_SESSION_BYTES - SESSION_ID_BYTES, "big") + b"\xff" * SESSION_ID_BYTES
    for each in sessions:
        if type(each) is not bytes or len(each) != ENDED_SESSION_BYTES or each <= last:
            return fault
        last = each
    if int.from_bytes(last[:-SESSION_ID_BYTES], "big") > SESSION_ENDS_AT_MAX:
        return fault
    return text_fault("token's id", token_id, 0, TOKEN_ID_CHARS_MAX)


def level_fault(level: Any) -> str | None:
    fits = type(level) is int and 1 <= level <= LEVEL_MAX
    return None if fits else f"a feature level is a number from 1 to {LEVEL_MAX}"


def token_fault(fields: Any, roles: tuple[str, ...] = ROLES_0_1) -> str | None:
    """What is wrong with the five fields of a token that version 0.1 knows (`tokens.Token`) as a list."""
    if type(fields) is not list or len(fields) != 5:
        return "a token has an id, a name, a role, a hash and a time"
    token_id, name, role, digest, created_ms = fields
    if role not in roles or type(digest) is not bytes or len(digest) != TOKEN_DIGEST_BYTES:
        return "a token has a role and a SHA-256"
    if not _is_time_ms(created_ms):
        return "a token's time is in milliseconds since 1970"
    return token_id_fault(token_id) or text_fault("token's name", name, 1, TOKEN_NAME_BYTES_MAX)


def scoped_token_fault(fields: Any) -> str | None:
    """What is wrong with all nine fields of a token as a list: the five, prefixes, the time at which it expires (0:
    never), and the hash of its former secret with the time until which that counts (b"" and 0: none)."""
    if type(fields) is not list or len(fields) != 9:
        return "a token has nine fields"
    role, prefixes, (expires_ms, former, former_until_ms) = fields[2], fields[5], fields[6:]
    if (fault := token_fault(fields[:5], ROLES)) is not None:
        return fault
    if (fault := prefixes_fault(prefixes)) is not None:
        return fault
    if prefixes and role in ADMIN_ROLES:
        return "an administrator's token has no prefixes"
    if not _is_time_ms(expires_ms) or not _is_time_ms(former_until_ms):
        return "a token's times are in milliseconds since 1970"
    if type(former) is not bytes or len(former) != (TOKEN_DIGEST_BYTES if former_until_ms else 0):
        return "a token's former secret has a SHA-256 and a time"
    return None


def prefixes_fault(prefixes: Any) -> str | None:
    """What is wrong with a token's prefixes. They are sorted, none lies under another; () is all keys."""
    if type(prefixes) is not list or len(prefixes) > PREFIXES_MAX:
        return f"a token has up to {PREFIXES_MAX} prefixes"
    size, before = 0, None
    for prefix in prefixes:
        if (fault := text_fault("prefix", prefix, 1, PREFIXES_BYTES_MAX)) is not None:
            return fault
        if before is not None and (prefix <= before or prefix.startswith(before)):
            return "a token's prefixes are in order, and none is under another one"
        size += len(prefix.encode())
        before = prefix
    return None if size <= PREFIXES_BYTES_MAX else f"a token's prefixes are {PREFIXES_BYTES_MAX} bytes together at most"


def within_fault(argument: Any) -> str | None:
    """What is wrong with the argument of a WITHIN: a token's id, its prefixes, and the leases that the command in it
    names. That command is looked at when it is carried out."""
    if type(argument) is not list or len(argument) != 3 or type(argument[2]) is not list:
        return "a command within prefixes has a token's id, prefixes, leases and a command"
    owner, prefixes, leases = argument
    if len(leases) > OPERATIONS_MAX or any(lease_fault(lease, 0) or not lease for lease in leases):
        return f"a command names up to {OPERATIONS_MAX} leases"
    return token_id_fault(owner) or prefixes_fault(prefixes)


def put_token_fault(argument: Any) -> str | None:
    """What is wrong with the argument of a TOKEN_PUT: the mark of the token before (b"": there is none), the token."""
    if type(argument) is not list or len(argument) != 2 or type(argument[0]) is not bytes:
        return "a change of a token has the mark of the token before it, and the token"
    if len(argument[0]) not in (0, TOKEN_MARK_BYTES):
        return f"a token's mark is {TOKEN_MARK_BYTES} bytes"
    return scoped_token_fault(argument[1])


def _is_time_ms(time_ms: Any) -> bool:
    return type(time_ms) is int and 0 <= time_ms <= COUNTER_MAX


def token_id_fault(token_id: Any) -> str | None:
    return text_fault("token's id", token_id, 1, TOKEN_ID_CHARS_MAX)


def session_key_fault(after: Any, key: Any, fingerprint: Any, grace_s: Any) -> str | None:
    """What is wrong with a change of the session key that comes after the one with the number `after`."""
    numbers = type(after) is type(grace_s) is int and after >= 0 and 0 <= grace_s <= SESSION_GRACE_S_MAX
    texts = type(key) is type(fingerprint) is bytes and max(len(key), len(fingerprint)) <= SESSION_KEY_BYTES_MAX
    if numbers and texts:
        return None
    return "a session key has the number of the one before it, its bytes, its fingerprint and a grace time"


def session_keys_fault(packed: Any) -> str | None:
    """What is wrong with the session keys (`session.SessionKeys.packed`) that a snapshot holds."""
    if type(packed) is not list or len(packed) != 5:
        return "session keys have a number, a key, its fingerprint, the key before it and a grace time"
    number, key, fingerprint, previous, grace_s = packed
    if previous is not None and (type(previous) is not list or len(previous) != 2):
        return "a session key before the present one has its bytes and its fingerprint"
    pairs = [(key, fingerprint)] if previous is None else [(key, fingerprint), tuple(previous)]
    for each, mark in pairs:
        if (fault := session_key_fault(number, each, mark, grace_s)) is not None:
            return fault
        if not mark:
            return "a session key has a fingerprint"
    if (grace_s > 0) is (previous is None):
        return "a session key before the present one has a grace time, and none has none"
    return counter_fault("session key's number", number, 1)
