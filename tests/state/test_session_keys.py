"""The session key and ended sessions as replicated state, and what is signed."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.errors import StartupError
from kvnode.state import session_keys
from kvnode.state.commands import (
    END_SESSION,
    LEVEL,
    SESSION,
    TOKEN_CREATE,
    TOKEN_REVOKE,
    EndSession,
)
from kvnode.state.entries import frees_space
from kvnode.state.limits import ENDED_SESSIONS_MAX
from kvnode.state.results import Invalid, KeyRotated, SessionEnded
from kvnode.state.session_keys import Session, session_of, sign
from kvnode.state.store import KeyValueStore

ONE, TWO = b"1" * 32, b"2" * 32
keys = st.binary(min_size=32, max_size=32)
sessions = st.builds(
    Session,
    id=st.binary(min_size=16, max_size=16),
    token_id=st.text(st.characters(codec="utf-8"), max_size=8),
    generation=st.binary(min_size=8, max_size=8),
    key_number=st.integers(1, 2**64 - 1),
    ends_at_s=st.integers(0, 2**64 - 1),
)


def turn(store: KeyValueStore, after: int, key: bytes, grace_s: int = 0) -> object:
    return store.apply([*session_keys.command(after, key, session_keys.fingerprint_of(key), grace_s)])


def test_the_first_proposal_that_is_applied_wins_and_no_revision_passes() -> None:
    store = KeyValueStore()
    assert turn(store, 0, ONE) == KeyRotated(1, True)
    assert turn(store, 0, TWO) == KeyRotated(1, False)
    assert session_keys.usable(store.session, ()) == (ONE,)
    assert store.revision == 0


def test_the_key_before_is_accepted_until_it_is_forgotten() -> None:
    store = KeyValueStore()
    turn(store, 0, ONE)
    assert turn(store, 1, TWO, 60) == KeyRotated(2, True)
    assert session_keys.usable(store.session, ()) == (TWO, ONE)
    forget = [*session_keys.command(1, b"", b"", 0)]
    assert store.apply(forget) == KeyRotated(2, False)  # of another rotation
    forget = [*session_keys.command(2, b"", b"", 0)]
    assert store.apply(forget) == KeyRotated(2, True)
    assert session_keys.usable(store.session, ()) == (TWO,)
    turn(store, 2, ONE)  # no grace: at once
    assert session_keys.usable(store.session, ()) == (ONE,)


def test_a_snapshot_carries_the_key_and_older_snapshots_have_none() -> None:
    store = KeyValueStore()
    turn(store, 0, ONE)
    turn(store, 1, TWO, 60)
    chunks = list(store.view().chunks())
    assert KeyValueStore.load(chunks).session == store.session
    header = msgpack.unpackb(chunks[0])
    assert KeyValueStore.load([msgpack.packb([3, *header[1:6]]), *chunks[1:]]).session == session_keys.NONE
    for damage in (None, [1], [1, b"", "", None, 0], [1, b"", b"", [b""], 0]):
        with pytest.raises(ValueError, match="session key"):
            KeyValueStore.load([msgpack.packb([*header[:6], {"session": damage}]), *chunks[1:]])


@pytest.mark.parametrize(
    "command",
    [
        [SESSION],
        [SESSION, 0, b"", b"", 0, None],
        [SESSION, -1, ONE, b"f", 0],
        [SESSION, 0, "1", b"f", 0],
        [SESSION, 0, ONE * 3, b"f", 0],
        [SESSION, 0, ONE, b"f", -1],
        [SESSION, 0, ONE, b"f", 10**9],
        [SESSION, True, ONE, b"f", 0],
    ],
)
def test_what_is_no_change_of_keys_is_refused(command: list[object]) -> None:
    store = KeyValueStore()
    assert isinstance(store.apply(command), Invalid)
    assert store.session == session_keys.NONE


def test_configured_keys_stay_out_of_the_state_and_are_found_by_fingerprint() -> None:
    new, old = session_keys.keys_of(b"the-newest-of-two-keys\nthe-one-that-came-before\n")
    store = KeyValueStore()
    store.apply([*session_keys.command(0, b"", session_keys.fingerprint_of(old), 0)])
    store.apply([*session_keys.command(1, b"", session_keys.fingerprint_of(new), 60)])
    assert all(old not in chunk and new not in chunk for chunk in store.view().chunks())
    assert session_keys.usable(store.session, (new, old)) == (new, old)
    assert session_keys.usable(store.session, (new,)) == (new,)
    assert session_keys.usable(store.session, (old,)) == ()  # what may only be accepted must not sign
    assert session_keys.usable(store.session, ()) == ()
    assert session_keys.keys_of(b"") == ()
    for text in (b"short", b"a-key-of-more-than-16 and-one-more-than-16 and-a-third-one-as-well"):
        with pytest.raises(StartupError, match="session key"):
            session_keys.keys_of(text)


@given(key=keys, other=keys, session=sessions, now=st.integers(0, 2**40))
def test_a_cookie_says_what_was_signed_until_its_time(key: bytes, other: bytes, session: Session, now: int) -> None:
    cookie, number = sign(key, session), session.key_number
    goes_on = session.ends_at_s > now
    assert session_of(cookie, [key], number, now) == ((session, key) if goes_on else None)
    assert session_of(cookie, [], number, now) is None
    if other != key:
        assert session_of(cookie, [other], number, now) is None
        # With the key before, in the time of grace; and never by a key that has another number now.
        assert session_of(cookie, [other, key], number + 1, now) == ((session, key) if goes_on else None)
        assert session_of(cookie, [other, key], number, now) is None
    assert session_of(cookie, [key], number + 1, now) is None, "the key was taken up again"


@given(place=st.integers(0, 200), byte=st.characters(codec="ascii"), rest=st.text(max_size=600))
def test_what_was_altered_is_no_cookie(place: int, byte: str, rest: str) -> None:
    session = Session(b"i" * 16, "a1b2c3d4", b"g" * 8, 1, 2**33)
    cookie = sign(ONE, session)
    place %= len(cookie)
    altered = cookie[:place] + byte + cookie[place + 1 :]
    for text in (altered, rest, cookie + rest):
        assert session_of(text, [ONE], 1, 0.0) == ((session, ONE) if text == cookie else None)


def test_what_the_log_holds_does_not_sign() -> None:
    signs = session_keys.signing_key(b"the cluster's secret", ONE)
    whose = Session(b"i" * 16, "a1b2c3d4", b"g" * 8, 1, 2**33)
    assert session_of(sign(signs, whose), [signs], 1, 0.0) == (whose, signs)
    for other in (ONE, session_keys.signing_key(b"", ONE), session_keys.signing_key(b"another secret", ONE)):
        assert session_of(sign(signs, whose), [other], 1, 0.0) is None
        assert session_of(sign(other, whose), [signs], 1, 0.0) is None
    assert session_keys.signing_key(b"the cluster's secret", TWO) != signs


@given(payload=st.binary(max_size=80))
def test_whatever_is_signed_with_the_key_raises_nothing(payload: bytes) -> None:
    """Cookies of other versions: version 1 named no token."""
    old = f"{session_keys._text(payload)}.{session_keys._text(session_keys._signature(ONE, payload))}"
    found = session_of(old, [ONE], 1, 0.0)
    assert found is None or (payload[:1] == b"\x02" and len(payload) >= 41)


def ended(store: KeyValueStore, token_id: str, session_id: bytes, ends_at_s: int) -> object:
    return store.apply([END_SESSION, [token_id, session_id, ends_at_s]])


def with_token() -> KeyValueStore:
    store = KeyValueStore()
    store.apply([LEVEL, 1])
    store.apply([TOKEN_CREATE, ["a1", "deploy", "full", bytes(32), 1]])
    return store


def test_an_ended_session_is_known_until_its_token_goes() -> None:
    store = with_token()
    session = Session(b"1" * 16, "a1", b"", 1, 1_000)
    other = session._replace(id=b"2" * 16)
    assert not store.ended_sessions.has(session)
    assert ended(store, "a1", session.id, 1_000) == SessionEnded(1) == ended(store, "a1", session.id, 1_000)
    assert store.ended_sessions.has(session)
    assert len(store.ended_sessions) == 1
    assert not store.ended_sessions.has(other)
    assert not store.ended_sessions.has(session._replace(token_id="first"))
    loaded = KeyValueStore.load(list(store.view().chunks()))
    assert loaded.ended_sessions.has(session)
    assert list(loaded.view().chunks()) == list(store.view().chunks())
    assert store.mark == loaded.mark != with_token().mark
    store.apply([TOKEN_REVOKE, "a1"])
    assert len(store.ended_sessions) == 0
    assert ended(store, "a1", session.id, 1_000) == SessionEnded(1)
    assert len(store.ended_sessions) == 0, "nothing is kept for tokens that are not there"
    for token_id in ("first", ""):
        ended(store, token_id, session.id, 1_000)
        assert store.ended_sessions.has(session._replace(token_id=token_id))


@given(times=st.lists(st.integers(1, 40), min_size=1, max_size=120))
def test_what_is_forgotten_of_ended_sessions_is_ended_too(times: list[int]) -> None:
    """However many sessions of a token are ended, and with whatever times, none goes on again, and few are kept."""
    store = with_token()
    ends = [Session(number.to_bytes(16, "big"), "a1", b"", 1, at) for number, at in enumerate(times)]
    for number, each in enumerate(ends):
        ended(store, "a1", each.id, each.ends_at_s)
        assert all(store.ended_sessions.has(before) for before in ends[: number + 1])
        assert len(store.ended_sessions) <= ENDED_SESSIONS_MAX
    later = Session(b"x" * 16, "a1", b"", 1, max(times) + 1)
    assert not store.ended_sessions.has(later), "a session that ends after all of them goes on"
    if len(times) <= ENDED_SESSIONS_MAX:
        assert not store.ended_sessions.has(later._replace(ends_at_s=min(times)))
    loaded = KeyValueStore.load(list(store.view().chunks()))
    assert loaded.ended_sessions.view() == store.ended_sessions.view()


def test_below_its_feature_level_the_end_of_a_session_is_an_unknown_command() -> None:
    """As members of that level answer it: a node that did otherwise would have another state than they."""
    store = KeyValueStore()
    assert ended(store, "first", b"1" * 16, 1_000) == store.apply([99])
    assert len(store.ended_sessions) == 0
    assert frees_space(EndSession("first", b"1" * 16, 7).encode()), "a full disk must not keep a stolen session valid"
    assert EndSession("first", b"1" * 16, 7).encode() == msgpack.packb([END_SESSION, ["first", b"1" * 16, 7]])


@pytest.mark.parametrize(
    "argument",
    [
        None, [], ["a1", b"1" * 16], ["a1", b"1" * 15, 1], ["a1", "1" * 16, 1], ["a1", b"1" * 16, 0],
        ["a1", b"1" * 16, 2**53], ["a1", b"1" * 16, True], ["a" * 33, b"1" * 16, 1], [None, b"1" * 16, 1],
    ],
)  # fmt: skip
def test_what_is_no_end_of_a_session_changes_nothing(argument: object) -> None:
    store = with_token()
    assert isinstance(store.apply([END_SESSION, argument]), Invalid)
    assert isinstance(store.apply([END_SESSION, ["a1", b"1" * 16, 5], "key"]), Invalid)
    assert len(store.ended_sessions) == 0


ENTRY = (9).to_bytes(8, "big") + b"1" * 16


@pytest.mark.parametrize(
    "entries",
    [
        None, {}, [[]], [["a1"]], [["a1", [0]]], [["a1", [-1, []]]], [["a1", [0, []]]], [["a1", [2**53, []]]],
        [["a1", [0, [b"short"]]]], [["a1", [9, [ENTRY]]]], [["a1", [0, [ENTRY, ENTRY]]]], [["a1", [True, [ENTRY]]]],
        [["a1", [0, [ENTRY]]], ["a1", [0, [ENTRY]]]], [[7, [0, [ENTRY]]]], [["a1", [0, [b"\xff" + ENTRY[1:]]]]],
        [["a1", [0, [bytes([0] * 7 + [n]) + b"1" * 16 for n in range(1, ENDED_SESSIONS_MAX + 2)]]]],
    ],
)  # fmt: skip
def test_a_snapshot_with_other_ended_sessions_is_refused(entries: object) -> None:
    header = [4, 0, 0, 0, 0, 0, {"level": 1, "ended_sessions": entries}]
    with pytest.raises(ValueError, match="sessions"):
        KeyValueStore.load([msgpack.packb(header)])
