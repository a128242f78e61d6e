"""How the messages between nodes (`raft/messages.py`) travel: in frames.

    frame   = length u32 big-endian | check 4 bytes | body | tag 16 bytes       body: msgpack array [kind, field, ...]

The tag is a keyed BLAKE2b (RFC 7693) over the frame's number on its connection, its length and its body; the check is
the beginning of the same hash before the body is in it. The number is not sent: both sides count. So a frame that was
altered, dropped, repeated, moved, made up, or sent on another connection is known before it is decoded, and so is a
length that was altered, for which a reader would wait instead. Frames of kvnode 0.1 and of the handshake have neither.

A frame is at most `FRAME_BYTES_MAX`; nothing from the network is ever unpickled, and a frame that does not
decode to a list of the right length closes its connection.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Final

import msgpack

from kvnode.logs.rate_limited import printable
from kvnode.raft.messages import EXPLAINED, FRAME_BYTES_MAX, SENTENCE_CHARS_MAX, Message, fits

LENGTH_BYTES: Final = 4
CHECK_BYTES: Final = 4  # of one guess that a connection has; a wrong one costs no more than the connection
TAG_BYTES: Final = 16
_HEAD_BYTES: Final = LENGTH_BYTES + CHECK_BYTES


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
    if not isinstance(message, list) or not message or not fits(message):
        raise BadFrame("A frame holds no message of this protocol.")
    if message[0] in EXPLAINED:
        message[-2], message[-1] = printable(message[-2]), printable(message[-1], SENTENCE_CHARS_MAX)
    return message


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
            data = self._gathered(data)
            if not data:
                return []
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

    def _gathered(self, data: bytes) -> bytes:
        """The unfinished frame and `data` behind it; nothing as long as that does not finish it."""
        self._rest += data
        if len(self._rest) < self._need:
            return b""
        whole = bytes(self._rest)
        self._rest.clear()
        return whole

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
            data = self._gathered(data)
            if not data:
                return []
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
