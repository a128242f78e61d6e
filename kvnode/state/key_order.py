"""The keys in byte order: taking many out of it."""

from __future__ import annotations

from typing import TypeVar

from sortedcontainers import SortedList

K = TypeVar("K", str, int)


def forget(order: SortedList[K], keys: list[K]) -> None:
    """Takes out keys that are there, each named once, in any order: an expiry has them by lease.

    A run of neighbours goes in one cut, which is what a deleted prefix is; others one by one.
    """
    keys = sorted(keys)  # else the first and the last could enclose as many keys as there are, and other ones
    if len(keys) == 1:
        order.remove(keys[0])
    elif keys:
        first, last = order.bisect_left(keys[0]), order.bisect_left(keys[-1])
        if last - first == len(keys) - 1:
            del order[first : last + 1]
        else:
            for key in keys:
                order.remove(key)
