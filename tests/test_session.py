"""The session key as replicated state, and what is signed with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode import session
from kvnode.commands import SESSION
from kvnode.errors import StartupError
from kvnode.results import Invalid, Turned
from kvnode.store import KeyValueStore

ONE, TWO = b"1" * 32, b"2" * 32
keys = st.binary(min_size=32, max_size=32)
subjects = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=64)


def turn(store: KeyValueStore, after: int, key: bytes, grace_s: int = 0) -> object:
    return store.apply([*session.command(after, key, session.fingerprint_of(key), grace_s)])


def test_the_first_proposal_that_is_applied_wins_and_no_revision_passes() -> None:
    store = KeyValueStore()
    assert turn(store, 0, ONE) == Turned(1, True)
    assert turn(store, 0, TWO) == Turned(1, False)
    assert session.usable(store.session, ()) == (ONE,)
    assert store.revision == 0


def test_the_key_before_is_accepted_until_it_is_forgotten() -> None:
    store = KeyValueStore()
    turn(store, 0, ONE)
    assert turn(store, 1, TWO, 60) == Turned(2, True)
    assert session.usable(store.session, ()) == (TWO, ONE)
    forget = [*session.command(1, b"", b"", 0)]
    assert store.apply(forget) == Turned(2, False)  # of another rotation
    forget = [*session.command(2, b"", b"", 0)]
    assert store.apply(forget) == Turned(2, True)
    assert session.usable(store.session, ()) == (TWO,)
    turn(store, 2, ONE)  # no grace: at once
    assert session.usable(store.session, ()) == (ONE,)


def test_a_snapshot_carries_the_key_and_older_snapshots_have_none() -> None:
    store = KeyValueStore()
    turn(store, 0, ONE)
    turn(store, 1, TWO, 60)
    chunks = list(store.view().chunks())
    assert KeyValueStore.load(chunks).session == store.session
    import msgpack

    header = msgpack.unpackb(chunks[0])
    assert KeyValueStore.load([msgpack.packb([3, *header[1:6]]), *chunks[1:]]).session == session.NONE
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
    assert store.session == session.NONE


def test_configured_keys_stay_out_of_the_state_and_are_found_by_fingerprint() -> None:
    new, old = session.keys_of(b"the-newest-of-two-keys\nthe-one-that-came-before\n")
    store = KeyValueStore()
    store.apply([*session.command(0, b"", session.fingerprint_of(old), 0)])
    store.apply([*session.command(1, b"", session.fingerprint_of(new), 60)])
    assert all(old not in chunk and new not in chunk for chunk in store.view().chunks())
    assert session.usable(store.session, (new, old)) == (new, old)
    assert session.usable(store.session, (new,)) == (new,)
    assert session.usable(store.session, (old,)) == ()  # what may only be accepted must not sign
    assert session.usable(store.session, ()) == ()
    assert session.keys_of(b"") == ()
    for text in (b"short", b"a-key-of-more-than-16 and-one-more-than-16 and-a-third-one-as-well"):
        with pytest.raises(StartupError, match="session key"):
            session.keys_of(text)


@given(key=keys, other=keys, subject=subjects, ends=st.integers(1, 2**40))
def test_a_token_is_good_under_its_key_until_its_time(key: bytes, other: bytes, subject: str, ends: int) -> None:
    token = session.sign(key, subject, ends)
    assert session.subject_of(token, [other, key], ends - 1) == subject
    assert session.subject_of(token, [key], ends) is None
    assert session.subject_of(token, [], ends - 1) is None
    if other != key:
        assert session.subject_of(token, [other], ends - 1) is None


@given(place=st.integers(0, 200), byte=st.characters(codec="ascii"), rest=st.text(max_size=600))
def test_what_was_altered_is_no_token(place: int, byte: str, rest: str) -> None:
    token = session.sign(ONE, "admin", 2**33)
    place %= len(token)
    altered = token[:place] + byte + token[place + 1 :]
    for text in (altered, rest, token + rest):
        assert session.subject_of(text, [ONE], 0.0) == ("admin" if text == token else None)


def test_what_the_log_holds_does_not_sign() -> None:
    signs = session.signing_key(b"the cluster's secret", ONE)
    token = session.sign(signs, "admin", 2**33)
    assert session.subject_of(token, [signs], 0.0) == "admin"
    for other in (ONE, session.signing_key(b"", ONE), session.signing_key(b"another secret", ONE)):
        assert session.subject_of(token, [other], 0.0) is None
        assert session.subject_of(session.sign(other, "admin", 2**33), [signs], 0.0) is None
    assert session.signing_key(b"the cluster's secret", TWO) != signs
