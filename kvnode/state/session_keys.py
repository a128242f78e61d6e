"""The cluster's session key as part of the replicated state, and what is signed with it. Pure: times come from outside.

One key for the whole cluster. Where no node was given one, the first leader proposes one and the first proposal that
is applied wins. Where the nodes were given one, it stays out of the log: only its fingerprint is replicated, so that
a node with another key knows that it has another.

    cookie  = payload "." signature                         both base64url without padding
    payload = version u8 | ends at, seconds since 1970 u64 | number of the key u64 | id | generation | token's id
    signature = HMAC-SHA256 under `signing_key` over "kvnode session" 0 payload

What is signed says who may and until when; whether the reason still holds is looked up at each use of it
(`http/credentials.py`). Version 1, of 0.1.0, named no token and is not accepted any more.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from kvnode.errors import StartupError
from kvnode.state.commands import SESSION
from kvnode.state.limits import (
    COUNTER_MAX,
    GENERATION_BYTES,
    SESSION_GRACE_S_MAX,
    SESSION_ID_BYTES,
    session_keys_fault,
)
from kvnode.state.results import KeyRotated

KEY_BYTES: Final = 32
GIVEN_BYTES_MIN: Final = 16
FINGERPRINT_BYTES: Final = 8
COOKIE_CHARS_MAX: Final = 512
_VERSION: Final = b"\x02"
_NUMBERS: Final = struct.Struct("!cQQ")
_PAYLOAD_BYTES_MIN: Final = _NUMBERS.size + SESSION_ID_BYTES + GENERATION_BYTES


class SessionKeys(NamedTuple):
    """What the cluster agreed on. `number` counts the keys it has had; 0: none yet.

    A key of b"" is one that the nodes were given; then the fingerprint alone says which. `previous` is (key,
    fingerprint) for as long as what it signed is accepted, `grace_s` seconds from the change of keys.
    """

    number: int = 0
    key: bytes = b""
    fingerprint: bytes = b""
    previous: tuple[bytes, bytes] | None = None
    grace_s: int = 0

    def turned(self, key: bytes, fingerprint: bytes, grace_s: int) -> SessionKeys:
        """Another key signs from now on."""
        previous = (self.key, self.fingerprint) if self.number and grace_s else None
        return SessionKeys(self.number + 1, key, fingerprint, previous, grace_s if previous else 0)

    def forgotten(self) -> SessionKeys:
        """The time of the previous key is over."""
        return self._replace(previous=None, grace_s=0)

    @property
    def packed(self) -> list[Any]:
        previous = None if self.previous is None else list(self.previous)
        return [self.number, self.key, self.fingerprint, previous, self.grace_s]


NONE: Final = SessionKeys()


def read_session_keys(packed: Any) -> SessionKeys:
    """The inverse of `packed`. ValueError where it is not that, or breaks a limit."""
    if (fault := session_keys_fault(packed)) is not None:
        raise ValueError(f"the snapshot breaks a limit: {fault}")
    number, key, fingerprint, previous, grace_s = packed
    return SessionKeys(number, key, fingerprint, None if previous is None else (previous[0], previous[1]), grace_s)


class Holder(Protocol):
    """What the command needs of the store."""

    session: SessionKeys


def change_session(store: Holder, request: list[Any]) -> KeyRotated:
    """Carries out a SESSION command without a fault; nothing changes where another came first."""
    _, after, key, fingerprint, grace_s = request
    keys = store.session
    if after == keys.number < COUNTER_MAX:
        store.session = keys.turned(key, fingerprint, grace_s) if fingerprint else keys.forgotten()
    return KeyRotated(store.session.number, after == keys.number < COUNTER_MAX)


def command(after: int, key: bytes, fingerprint: bytes, grace_s: int) -> tuple[int, int, bytes, bytes, int]:
    """To be encoded. `after` is the number of the key that this one replaces; no fingerprint: forget the previous."""
    assert 0 <= grace_s <= SESSION_GRACE_S_MAX
    return (SESSION, after, key, fingerprint, grace_s)


# --- keys ------------------------------------------------------------------------------------------


def keys_of(text: bytes) -> tuple[bytes, ...]:
    """The keys that a configured text stands for: one, or the newest and the one before it, apart by white space."""
    words = text.split()
    if len(words) > 2 or any(len(word) < GIVEN_BYTES_MIN for word in words):
        raise StartupError(
            f"The session key is one text of {GIVEN_BYTES_MIN} bytes or more, or two: the new one, and the one before "
            "it; make one with: openssl rand -hex 32."
        )
    return tuple(hashlib.blake2b(word, digest_size=KEY_BYTES, person=b"kvnode session").digest() for word in words)


def fingerprint_of(key: bytes) -> bytes:
    """Tells keys apart, and nothing of what they are."""
    return hashlib.blake2b(key, digest_size=FINGERPRINT_BYTES, person=b"kvnode keyprint").digest()


def usable(keys: SessionKeys, given: Iterable[bytes]) -> tuple[bytes, ...]:
    """The key that signs, then the one that is still accepted, as far as this node has them; empty: it has not."""
    mine = {fingerprint_of(key): key for key in given}
    found = keys.key or mine.get(keys.fingerprint, b"")
    if not keys.number or not found:
        return ()
    key, fingerprint = keys.previous or (b"", b"")
    before = key or mine.get(fingerprint, b"")
    return (found, before) if before else (found,)


def signing_key(secret: bytes, key: bytes) -> bytes:
    """What signs in the place of `key`: HKDF (RFC 5869, SHA-256) from the cluster's secret, salted with it.

    A key that the cluster generated is in its log, snapshots and journals. Reading those must not be enough to sign a
    cookie, so the signing key also needs the secret, which is in none of them.
    """
    return hmac.digest(hmac.digest(key, secret, "sha256"), b"kvnode session cookies\x01", "sha256")


# --- what is signed ---------------------------------------------------------------------------------


class Session(NamedTuple):
    """What a cookie says: it has the right of one token, and ends with it at the latest.

    `token_id` names the token (`tokens.ANONYMOUS`: the session began on a node that asked for none), and `generation`
    is what that token alone has under the key that signed (`Token.generation`): another token under the same id, as a
    node's first one after it was changed, ends the session. `key_number` is that key's (`SessionKeys.number`): a key
    that is taken up again, years later, accepts nothing that it signed before.
    """

    id: bytes  # SESSION_ID_BYTES random bytes: what it is ended by
    token_id: str
    generation: bytes
    key_number: int
    ends_at_s: int  # since 1970


def sign(key: bytes, session: Session) -> str:
    """The cookie: every node of the cluster accepts it for as long as the session goes on."""
    numbers = _NUMBERS.pack(_VERSION, session.ends_at_s, session.key_number)
    payload = numbers + session.id + session.generation + session.token_id.encode()
    return f"{_text(payload)}.{_text(_signature(key, payload))}"


def session_of(cookie: str, keys: Sequence[bytes], number: int, now_s: float) -> tuple[Session, bytes] | None:
    """The session and the key that signed it; None where no key of this cluster did, or its time is over. Never raises.

    `keys` are those of `usable`, and `number` is that of the first.
    """
    if len(cookie) > COOKIE_CHARS_MAX or not cookie.isascii():
        return None
    try:
        payload, signature = (urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in cookie.split("."))
    except ValueError:
        return None
    if f"{_text(payload)}.{_text(signature)}" != cookie:
        return None  # base64 has several spellings of the same bytes; what is signed has one
    found = None
    for index, key in enumerate(keys):
        if hmac.compare_digest(signature, _signature(key, payload)):
            found = (key, number - index)
    if found is None or payload[:1] != _VERSION or len(payload) < _PAYLOAD_BYTES_MIN:
        return None
    key, key_number = found
    _, ends_at_s, signed_with = _NUMBERS.unpack_from(payload)
    if signed_with != key_number or ends_at_s <= now_s:
        return None
    at = _NUMBERS.size
    session_id, generation = payload[at : at + SESSION_ID_BYTES], payload[at + SESSION_ID_BYTES : _PAYLOAD_BYTES_MIN]
    token_id = payload[_PAYLOAD_BYTES_MIN:].decode("utf-8", "replace")
    return Session(session_id, token_id, generation, key_number, ends_at_s), key


def _signature(key: bytes, payload: bytes) -> bytes:
    return hmac.new(key, b"kvnode session\x00" + payload, hashlib.sha256).digest()


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")
