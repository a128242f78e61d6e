"""The messages between nodes and their frames.

    frame   = length u32 big-endian | check 4 bytes | body | tag 16 bytes       body: msgpack array [kind, field, ...]

The tag is a keyed BLAKE2b (RFC 7693) over the frame's number on its connection, its length and its body; the check is
the beginning of the same hash before the body is in it. The number is not sent: both sides count. So a frame that was
altered, dropped, repeated, moved, made up, or sent on another connection is known before it is decoded, and so is a
length that was altered, for which a reader would wait instead. Frames of kvnode 0.1 and of the handshake have neither.

A frame is at most `FRAME_BYTES_MAX`; nothing from the network is ever unpickled, and a frame that does not
decode to a list of the right length closes its connection. Terms and indexes are Raft's.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from hmac import compare_digest
from itertools import product
from typing import Any, Final

import msgpack

from kvnode.logs.rate_limited import printable

FRAME_BYTES_MAX: Final = 8 * 1_048_576
LENGTH_BYTES: Final = 4
CHECK_BYTES: Final = 4  # of one guess that a connection has; a wrong one costs no more than the connection
TAG_BYTES: Final = 16
_HEAD_BYTES: Final = LENGTH_BYTES + CHECK_BYTES

# kind             fields behind it
APPEND: Final = 1  # term, prev index, prev term, commit index, read round, [[term, command], ...]
ACK: Final = 2  # term, success, reset, next index, read round, applied index, fit to lead
VOTE: Final = 3  # term, last index, last term, transfer
VOTED: Final = 4  # term
PRE_VOTE: Final = 5  # proposed term, last index, last term
PRE_VOTED: Final = 6  # own term, proposed term, granted
TERM_NOTICE: Final = 7  # term
TIMEOUT_NOW: Final = 8  # term
FORWARD: Final = 9  # term, sequence, group bytes
REFUSED: Final = 10  # sequence, error code, message
READ_INDEX: Final = 11  # request id
READ_ANSWER: Final = 12  # request id, index or None
TRANSFER: Final = 13  # request id, to or None
TRANSFER_ANSWER: Final = 14  # request id, leader id or None, term, error code, message
OFFER: Final = 15  # term, snapshot index, snapshot term, bytes
WANT: Final = 16  # snapshot index, offset
CHUNK: Final = 17  # snapshot index, offset, data
CHECKPOINT: Final = 18  # term, index, digest of all that was applied up to there
MEMBERS: Final = 19  # the latest configuration that is known to be committed, packed
CHANGE: Final = 20  # request id, what (`reconfiguration.Change`), packed
CHANGED: Final = 21  # request id, the configuration that came of it, packed, or None, error code, message
REQUESTS: Final = 22  # X-Request-Ids of a group that was forwarded
# From feature level 1 on:
DRAIN: Final = 23  # request id, what (`drain.Drains`), by force
DRAIN_ANSWER: Final = 24  # request id, what the node does now, leader id or None, error code, message
DRAINING: Final = 25  # whether the node that sends it drains
REPORT: Final = 26  # request id, which report (`node.reports`), since when in milliseconds
REPORT_ANSWER: Final = 27  # request id, the report, packed

_NO: Final = type(None)
# The types of each message's fields, its kind's own in front, in every combination that there may be.
_SHAPES: Final[dict[int, frozenset[tuple[type, ...]]]] = {
    kind: frozenset(product((int,), *(field if isinstance(field, tuple) else (field,) for field in fields)))
    for kind, fields in {
        APPEND: (int, int, int, int, int, list),
        ACK: (int, bool, bool, int, int, int, bool),
        VOTE: (int, int, int, bool),
        VOTED: (int,),
        PRE_VOTE: (int, int, int),
        PRE_VOTED: (int, int, bool),
        TERM_NOTICE: (int,),
        TIMEOUT_NOW: (int,),
        FORWARD: (int, int, bytes),
        REFUSED: (int, str, str),
        READ_INDEX: (int,),
        READ_ANSWER: (int, (int, _NO)),
        TRANSFER: (int, (str, _NO)),
        TRANSFER_ANSWER: (int, (str, _NO), int, str, str),
        OFFER: (int, int, int, int),
        WANT: (int, int),
        CHUNK: (int, int, bytes),
        CHECKPOINT: (int, int, int),
        MEMBERS: (bytes,),
        CHANGE: (int, bytes),
        CHANGED: (int, (bytes, _NO), str, str),
        REQUESTS: (list,),
        DRAIN: (int, int, bool),
        DRAIN_ANSWER: (int, str, (str, _NO), str, str),
        DRAINING: (bool,),
        REPORT: (int, str, int),
        REPORT_ANSWER: (int, bytes),
    }.items()
}

# They end with an error's code and sentence, which stand in answers to clients and in the log.
_EXPLAINED: Final = frozenset((REFUSED, TRANSFER_ANSWER, CHANGED, DRAIN_ANSWER))
SENTENCE_CHARS_MAX: Final = 512  # of a peer's: the longest that this version sends has about 300

Message = tuple[Any, ...] | list[Any]


class BadFrame(Exception):
    """Bytes that no node of this cluster would send; the text is one sentence for the log."""


UNPROVED: Final = "A frame was altered, lost, repeated, moved or made up on the way."

_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


def pack(message: Message) -> bytes:
    """The body of its frame. Raises BadFrame where it would be over the bound."""
    body: bytes = _packer.pack(message)
    if len(body) > FRAME_BYTES_MAX:
        raise BadFrame(f"A frame of {len(body)} bytes is over the bound of {FRAME_BYTES_MAX}.")
    return body


def encode(message: Message) -> bytes:
    """One frame without check and tag. Raises BadFrame where it would be over the bound."""
    body = pack(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def decode(body: bytes | memoryview) -> list[Any]:
    """The message in a frame's body. Raises BadFrame for anything that is not one."""
    try:
        message = msgpack.unpackb(body, use_list=True, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise BadFrame("A frame is not msgpack.") from error
    if not isinstance(message, list) or not message or not _fits(message):
        raise BadFrame("A frame holds no message of this protocol.")
    if message[0] in _EXPLAINED:
        message[-2], message[-1] = printable(message[-2]), printable(message[-1], SENTENCE_CHARS_MAX)
    return message


def _fits(message: list[Any]) -> bool:
    kind = message[0]
    if type(kind) is not int or tuple(map(type, message)) not in _SHAPES.get(kind, ()):
        return False
    for entry in message[6] if kind == APPEND else ():
        if type(entry) is not list or len(entry) != 2 or type(entry[0]) is not int:
            return False
        if type(entry[1]) is not bytes or not entry[1]:
            return False
    return True


class FrameReader:
    """Cuts a byte stream without checks and tags into frame bodies. Holds at most one unfinished frame."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.number = 0  # of the frame that is read now
        self._rest = bytearray()
        self._need = LENGTH_BYTES  # bytes until the unfinished frame is whole: no re-scan for each arriving piece

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completes. Raises BadFrame as soon as a length is over the bound."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        bodies = []
        start, size = 0, len(data)
        self._need = LENGTH_BYTES
        while size - start >= LENGTH_BYTES:
            length = int.from_bytes(data[start : start + LENGTH_BYTES], "big")
            if length > self.frame_bytes_max:
                raise BadFrame(f"A frame of {length} bytes is over the bound of {self.frame_bytes_max}.")
            end = start + LENGTH_BYTES + length
            if end > size:
                self._need = LENGTH_BYTES + length
                break
            bodies.append(data[start + LENGTH_BYTES : end])
            start = end
        if start < size:
            self._rest += data[start:]
        self.number += len(bodies)
        return bodies

    @property
    def unfinished(self) -> bool:
        return bool(self._rest)


_NUMBER_AND_LENGTH: Final = struct.Struct(">QI")
_LENGTH_AND_CHECK: Final = struct.Struct(f">I{CHECK_BYTES}s")


class Sealer:
    """Gives each frame of one connection its head and its tag. `key`: 32 bytes, of this connection and direction."""

    def __init__(self, key: bytes) -> None:
        self._keyed = blake2b(key=key, digest_size=TAG_BYTES)
        self._number = 0

    def seal(self, body: bytes) -> tuple[bytes, bytes]:
        """What goes before and behind the next frame's body."""
        length = len(body)
        state = self._keyed.copy()  # half the price of giving the key again
        state.update(_NUMBER_AND_LENGTH.pack(self._number, length))
        self._number += 1
        head = _LENGTH_AND_CHECK.pack(length, state.digest())  # which takes the beginning of the hash
        state.update(body)
        return head, state.digest()


class SealedReader(FrameReader):
    """Cuts a sealed stream into the bodies of frames that are proved. Holds at most one unfinished frame."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._keyed = blake2b(key=key, digest_size=TAG_BYTES)
        self._need = _HEAD_BYTES  # bytes until the unfinished frame, or its head, is whole

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completes. Raises BadFrame for the first that is not proved; then none is given."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        bodies = []
        start, size = 0, len(data)
        self._need = _HEAD_BYTES
        while size - start >= _HEAD_BYTES:
            length, check = _LENGTH_AND_CHECK.unpack_from(data, start)
            state = self._keyed.copy()
            state.update(_NUMBER_AND_LENGTH.pack(self.number, length))
            if not compare_digest(state.digest()[:CHECK_BYTES], check):
                raise BadFrame(UNPROVED)
            first = start + _HEAD_BYTES
            if length > self.frame_bytes_max:
                raise BadFrame(f"A frame of {length} bytes is over the bound of {self.frame_bytes_max}.")
            last = first + length
            if last + TAG_BYTES > size:
                self._need = _HEAD_BYTES + length + TAG_BYTES
                break
            body = data[first:last]
            state.update(body)
            start = last + TAG_BYTES
            if not compare_digest(state.digest(), data[last:start]):
                raise BadFrame(UNPROVED)
            self.number += 1
            bodies.append(body)
        if start < size:
            self._rest += data[start:]
        return bodies
