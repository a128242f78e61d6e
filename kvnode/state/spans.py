"""Spans: which keys a request of etcd's means. Its bounds are bytes; kvnode's keys are text. Pure.

etcd names keys by `key` and `range_end`, both any bytes: the end of a prefix is its last byte + 1, which need not be
UTF-8 even where all keys are. Text in the order of its code points is in the order of its UTF-8 bytes, so a bound that
is no UTF-8 lies between two neighbouring texts, and the upper one bounds the same keys.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple

from kvnode.state.items import prefix_end
from kvnode.state.limits import KEY_BYTES_MAX

NO_END: Final = b"\0"  # as an end: all keys from the start on; "\0" is the least of keys, so with that start all keys
BEYOND: Final = "\U0010ffff" * (KEY_BYTES_MAX // 4 + 1)  # no key comes after it


class Span(NamedTuple):
    """Keys from `start` on and below `end`. An `end` of None: the one key `start`; of "": no end."""

    start: str
    end: str | None = None

    def holds(self, key: str) -> bool:
        if self.end is None:
            return key == self.start
        return self.start <= key and (not self.end or key < self.end)

    def under(self, prefix: str) -> bool:
        """Whether all keys that it may hold begin with `prefix`."""
        if self.end is None or not prefix:
            return self.start.startswith(prefix)
        following = prefix_end(prefix)
        return prefix <= self.start and (following is None or (self.end != "" and self.end <= following))


def span(key: bytes, range_end: bytes) -> Span:
    """The keys that etcd means by these. ValueError for one key that is no key (`key_of`)."""
    if not range_end:
        return Span(key_of(key))
    return Span(bound(key), "" if range_end == NO_END else bound(range_end))


def bound(raw: bytes) -> str:
    """The text that has the same keys below it, byte for byte. At most BOUND_BYTES_MAX bytes."""
    raw = raw[: KEY_BYTES_MAX + 1]  # a key that is as long has been decided by then
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        at = error.start
    before, odd = raw[:at].decode(), raw[at:]
    # Keys that begin with `before` are on the one side or the other by their next character alone.
    next_code = bisect_right(range(0x110000), odd, key=_encoded)
    if next_code < 0x110000:
        return before + ("\ue000" if 0xD800 <= next_code < 0xE000 else chr(next_code))
    return prefix_end(before) or BEYOND


def _encoded(code: int) -> bytes:
    return chr(code).encode("utf-8", "surrogatepass")


def key_of(key: bytes) -> str:
    """ValueError says what is wrong with a key that is empty, too long or no UTF-8."""
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise ValueError(f"a key is 1 to {KEY_BYTES_MAX} bytes")
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise ValueError("a key is UTF-8 text; give it in UTF-8") from None


def signed(lease: int) -> int:
    """The id of a lease as etcd's clients see it, who take its 64 bits for a number with a sign."""
    return lease - 2**64 if lease >= 2**63 else lease


def unsigned(lease: int) -> int:
    """The inverse of `signed`."""
    return lease & (2**64 - 1)
