"""Frames between nodes: what a node sends comes back the same, and nothing else is ever taken for a message."""

from __future__ import annotations

import gc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.peers import frames
from kvnode.peers.frames import (
    BadFrame,
    FrameReader,
    SealedReader,
    Sealer,
    decode,
    encode,
    pack,
)
from kvnode.raft import messages

KEY = b"a key of thirty-two bytes, drawn"
numbers = st.integers(0, 2**63)
entries = st.lists(st.tuples(numbers, st.binary(min_size=1, max_size=20)).map(list), max_size=5)
any_message = st.one_of(
    st.tuples(st.just(messages.APPEND), numbers, numbers, numbers, numbers, numbers, entries),
    st.tuples(st.just(messages.ACK), numbers, st.booleans(), st.booleans(), numbers, numbers, numbers, st.booleans()),
    st.tuples(st.just(messages.VOTE), numbers, numbers, numbers, st.booleans()),
    st.tuples(st.just(messages.VOTED), numbers),
    st.tuples(st.just(messages.PRE_VOTE), numbers, numbers, numbers),
    st.tuples(st.just(messages.PRE_VOTED), numbers, numbers, st.booleans()),
    st.tuples(st.just(messages.READ_ANSWER), numbers, st.none() | numbers),
    st.tuples(st.just(messages.TRANSFER), numbers, st.none() | st.text(max_size=8)),
    st.tuples(st.just(messages.CHUNK), numbers, numbers, st.binary(max_size=50)),
).map(list)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


def body(message: list[Any]) -> bytes:
    (one,) = FrameReader().feed(encode(message))
    return one


@given(any_message)
def test_a_message_comes_back_the_same(message: list[Any]) -> None:
    assert decode(body(message)) == message


@given(st.binary(max_size=200))
def test_garbage_is_never_a_message(garbage: bytes) -> None:
    try:
        message = decode(garbage)
    except BadFrame:
        return
    assert encode(message), "what decodes must be one that a node could have sent"
    assert type(message[0]) is int


@pytest.mark.parametrize(
    "rest", [b"\xa1\xff", b"\xc7\x01\x05a", b"\x81\x90\x01", b"\x91" * 2_000], ids=["text", "ext", "map", "deep"]
)
def test_a_message_that_fails_half_way_leaves_nothing_behind(rest: bytes) -> None:
    """msgpack before 1.2.1 never freed what it had read up to there. Any stranger can send it."""
    body = b"\xdc" + (1_000).to_bytes(2, "big") + b"\x01" * 500 + rest + b"\x01" * 600
    gc.collect()
    before = sum(type(each) is list and len(each) == 1_000 for each in gc.get_objects())
    for _ in range(100):
        with pytest.raises(BadFrame):
            frames.decode(body)
    gc.collect()
    assert sum(type(each) is list and len(each) == 1_000 for each in gc.get_objects()) <= before


@given(anything)
def test_msgpack_of_another_shape_is_never_a_message(value: Any) -> None:
    kinds = {field for field in vars(messages).values() if type(field) is int}
    try:
        message = decode(msgpack.packb(value))
    except BadFrame:
        return
    assert message[0] in kinds
    assert len(message) > 1


@given(any_message, st.data())
def test_a_message_with_one_field_of_another_type_is_refused(message: list[Any], data: st.DataObject) -> None:
    position = data.draw(st.integers(1, len(message) - 1))
    message[position] = 0.5
    with pytest.raises(BadFrame):
        decode(msgpack.packb(message))


@given(any_message, st.binary(min_size=1, max_size=9))
def test_nothing_may_follow_a_message(message: list[Any], more: bytes) -> None:
    with pytest.raises(BadFrame):
        decode(body(message) + more)


@given(any_message)
def test_a_message_that_ends_too_early_is_refused(message: list[Any]) -> None:
    whole = body(message)
    for length in range(len(whole)):
        with pytest.raises(BadFrame):
            decode(whole[:length])


@pytest.mark.parametrize(
    "message",
    [
        [],
        [0],
        [messages.APPEND],
        [messages.VOTED, True],
        [messages.VOTED, None],
        [messages.VOTED, 1, 1],
        [messages.APPEND, 1, 1, 1, 1, 1, [[1, b""]]],  # the core reads the first byte of each command
        [messages.APPEND, 1, 1, 1, 1, 1, [[1, "text"]]],
        [messages.APPEND, 1, 1, 1, 1, 1, [[1]]],
        [messages.APPEND, 1, 1, 1, 1, 1, [1]],
        [True, 1],
        ["1", 1],
        {1: 1},
        [msgpack.ExtType(1, b"n1"), 1],
    ],
)
def test_near_misses_are_refused(message: Any) -> None:
    with pytest.raises(BadFrame):
        decode(msgpack.packb(message))


@given(st.lists(any_message, max_size=6), st.data())
def test_frames_come_out_whole_however_the_stream_is_cut(sent: list[list[Any]], data: st.DataObject) -> None:
    stream = b"".join(map(encode, sent))
    reader, received, start = FrameReader(), [], 0
    while start < len(stream):
        end = data.draw(st.integers(start + 1, len(stream)))
        received += [decode(one) for one in reader.feed(stream[start:end])]
        start = end
    assert received == sent


def test_a_length_over_the_bound_is_refused_before_its_bytes_arrive() -> None:
    with pytest.raises(BadFrame, match="over the bound of 10"):
        FrameReader(frame_bytes_max=10).feed(b"\0\0\0\x0b")


def test_a_message_over_the_bound_is_not_sent() -> None:
    with pytest.raises(BadFrame, match="over the bound"):
        encode((messages.CHUNK, 1, 0, bytes(messages.FRAME_BYTES_MAX)))


@given(st.lists(any_message, max_size=6), st.data())
def test_sealed_frames_come_out_whole_however_the_stream_is_cut(sent: list[list[Any]], data: st.DataObject) -> None:
    stream = sealed([pack(message) for message in sent])
    reader, received, start = SealedReader(KEY), [], 0
    while start < len(stream):
        end = data.draw(st.integers(start + 1, len(stream)))
        received += [decode(one) for one in reader.feed(stream[start:end])]
        start = end
    assert received == sent
    assert not reader.unfinished


@given(st.lists(any_message, min_size=1, max_size=4), st.data())
def test_no_bit_of_a_sealed_stream_can_be_altered(sent: list[list[Any]], data: st.DataObject) -> None:
    stream = bytearray(sealed([pack(message) for message in sent]))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BadFrame, match="on the way"):
        SealedReader(KEY).feed(bytes(stream))


@given(st.lists(any_message, min_size=1, max_size=4))
def test_a_sealed_stream_is_read_with_its_own_key_from_its_beginning_alone(sent: list[list[Any]]) -> None:
    bodies = [pack(message) for message in sent]
    for raw in (sealed(bodies, b"another key of thirty-two bytes "), sealed([b"before", *bodies])[30:]):
        with pytest.raises(BadFrame, match="on the way"):
            SealedReader(KEY).feed(raw)


def test_an_altered_length_is_known_before_anything_of_the_frame_arrives() -> None:
    head = bytearray(sealed([b"body"])[:8])
    head[1] ^= 1
    with pytest.raises(BadFrame, match="on the way"):
        SealedReader(KEY).feed(bytes(head))


def sealed(bodies: list[bytes], key: bytes = KEY) -> bytes:
    sealer, stream = Sealer(key), b""
    for one in bodies:
        head, tag = sealer.seal(one)
        stream += head + one + tag
    return stream


@pytest.mark.parametrize("begin", [(messages.TRANSFER_ANSWER, 1, None, 0), (messages.DRAIN_ANSWER, 1, "", None)])
def test_a_sentence_that_a_peer_explains_with_is_cut_and_printable(begin: tuple[object, ...]) -> None:
    """It stands in answers to clients and in the log."""
    message = frames.decode(frames.pack((*begin, "conflict", "\x1b[2J\n" + "x" * 10_000)))
    assert message[-1].isprintable()
    assert len(message[-1]) <= messages.SENTENCE_CHARS_MAX + 1
