"""Bounds that are bytes, over keys that are text: the same keys on each side as etcd would have there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.state.limits import BOUND_BYTES_MAX, KEY_BYTES_MAX, bound_fault
from kvnode.state.spans import BEYOND, Span, bound, key_of, signed, span, unsigned

chars = st.sampled_from("\0a\x7f\x80é߿ࠀ\ud7ff\ue000\uffff𐀀\U0010ffff") | st.characters(exclude_categories=["Cs"])
keys = st.text(chars, min_size=1, max_size=6)
# Near a key: itself, its prefixes' ends, cuts in the middle of a character, and bytes that no UTF-8 has.
near = st.builds(
    lambda key, cut, tail: key.encode()[:cut] + tail,
    keys,
    st.integers(0, 12),
    st.sampled_from([b"", b"\0", b"\x7f", b"\x80", b"\xbf", b"\xc1", b"\xed\xa0\x80", b"\xf4\x90", b"\xf5", b"\xff"]),
)
raws = near | st.binary(max_size=8)


@given(raws, keys)
def test_a_bound_has_the_same_keys_below_it_as_its_bytes(raw: bytes, key: str) -> None:
    text = bound(raw)
    assert (key < text) is (key.encode() < raw)
    assert bound_fault(text) is None


@given(raws, raws, keys)
def test_a_span_holds_what_lies_between_its_bytes(start: bytes, end: bytes, key: str) -> None:
    if end in (b"", b"\0"):
        return
    assert span(start, end).holds(key) is (start <= key.encode() < end)


@pytest.mark.parametrize("size", [KEY_BYTES_MAX - 1, KEY_BYTES_MAX, KEY_BYTES_MAX + 1, KEY_BYTES_MAX + 9])
@pytest.mark.parametrize("tail", [b"", b"\xff", b"\xe4\xbd"])
def test_a_bound_longer_than_any_key_is_cut_and_bounds_the_same(size: int, tail: bytes) -> None:
    raw = b"k" * size + tail
    text = bound(raw)
    assert len(text.encode()) <= BOUND_BYTES_MAX
    for key in ("k" * KEY_BYTES_MAX, "k" * (KEY_BYTES_MAX - 1), "k" * (KEY_BYTES_MAX - 1) + "l", "j", "l"):
        assert (key < text) is (key.encode() < raw)


def test_the_ends_that_etcd_gives_a_meaning() -> None:
    assert span(b"a", b"") == Span("a", None)
    assert span(b"a", b"\0") == Span("a", "")
    assert span(b"\0", b"\0").holds("\0")
    assert span(b"\0", b"\0").holds("\U0010ffff" * 256)
    assert span("é".encode(), b"\xc3\xaa") == Span("é", "ê")
    assert span(b"b", b"a").end == "a"
    assert not span(b"b", b"a").holds("b")
    assert bound(b"\xff") == BEYOND
    assert max("\U0010ffff" * 256, BEYOND) == BEYOND


@pytest.mark.parametrize("key", [b"", b"\xff", b"a\xed\xa0\x80", b"k" * (KEY_BYTES_MAX + 1)])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="a key is"):
        key_of(key)
    with pytest.raises(ValueError, match="a key is"):
        span(key, b"")


@given(keys | st.just(""), raws, raws, keys)
def test_a_span_under_a_prefix_holds_no_key_without_it(prefix: str, start: bytes, end: bytes, key: str) -> None:
    if end in (b"", b"\0"):
        end = b"\0"
    found = span(start, end)
    if found.under(prefix) and found.holds(key):
        assert key.startswith(prefix)


def test_which_spans_are_under_a_prefix() -> None:
    assert Span("app/x").under("app/")
    assert not Span("ap").under("app/")
    assert span(b"app/", b"app0").under("app/")
    assert span(b"app/b", b"app/c\xff").under("app/")
    assert not span(b"app/", b"app1").under("app/")
    assert not span(b"app/", b"\0").under("app/")
    assert span(b"\0", b"\0").under("")
    assert span("\U0010ffff".encode(), b"\0").under("\U0010ffff")


@given(st.integers(-(2**63), 2**63 - 1))
def test_the_id_of_a_lease_has_64_bits_with_and_without_a_sign(lease: int) -> None:
    assert signed(unsigned(lease)) == lease
    assert 0 <= unsigned(lease) < 2**64
