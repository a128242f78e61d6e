"""Keys as they were: reads at an old revision, out of the history that watches have.

Answered as far back as this node's history goes, and Compacted before that, also for what seems not to have changed
since: a restore puts old keys in the place of newer ones.
"""

from __future__ import annotations

from heapq import merge

from kvnode.errors import BadRequest, Compacted
from kvnode.http.document import whole_parameter
from kvnode.http.group import Group
from kvnode.http.paths import Query
from kvnode.state.etcd import Order, ReadBudget, select
from kvnode.state.etcd_requests import COUNT_ONLY, DESCEND, KEY, Range
from kvnode.state.items import Item, unpacked
from kvnode.state.results import RangeRead

REVISION_MAX = 2**53 - 1


def asked_revision(parameters: Query) -> int | None:
    """The revision that a read names, None for the present."""
    if "revision" not in parameters:
        return None
    return whole_parameter(parameters["revision"], REVISION_MAX, "query parameter 'revision'")


def item_at(group: Group, key: str, revision: int) -> Item | None:
    """The key as the store had it at `revision`, None where it did not exist then. BadRequest, Compacted."""
    _check(group, revision)
    following = group.watches.history.next(key, revision)
    if following is None:
        return group.store.get(key)
    return unpacked(following[4]) if following[4] else None


def range_at(group: Group, request: Range, revision: int, budget: ReadBudget) -> RangeRead:
    """A range as the store had it at `revision`. BadRequest for one to come, Compacted; OverBudget."""
    _check(group, revision)
    store, (start, end) = group.store, request.span
    before = group.watches.history.undone(request.span.holds, revision)
    order = Order(*request.packed[3:])
    descending = order.sort == DESCEND and order.sort_by == KEY
    there = sorted(((key, packed) for key, packed in before.items() if packed), reverse=descending)
    if end is None:
        now = store.packed(start)
        entries = [(start, now)] if now is not None else []
        count = len(entries)
    else:
        count = store.count(start, end or None)
    count += len(there) - sum(1 for key in before if store.packed(key) is not None)
    if order.flags & COUNT_ONLY:
        return RangeRead((), count, False, store.revision)
    source = entries if end is None else store.walk_packed(start, end or None, reverse=descending)
    unchanged = (entry for entry in source if entry[0] not in before)
    both = merge(unchanged, there, key=lambda entry: entry[0], reverse=descending) if there else unchanged
    return select(both, count, order, budget, store.revision)


def _check(group: Group, revision: int) -> None:
    store, history = group.store, group.watches.history
    if revision > store.revision:
        raise BadRequest(f"Revision {revision} is still to come: the store is at {store.revision}.")
    if revision + 1 < history.oldest:
        raise Compacted(
            "This node does not know any more what the key was at that revision; another node may.", history.oldest
        )
