"""Keys as they were: a read at an old revision, out of the history that watches have.

Answered as far back as this node's history goes, and Compacted before that, also for what seems not to have changed
since: a restore puts old keys in the place of newer ones.
"""

from __future__ import annotations

from kvnode.errors import BadRequest, Compacted
from kvnode.http.document import whole_parameter
from kvnode.http.group import Group
from kvnode.http.paths import Query
from kvnode.state.changes import CHANGE_PUT, Change
from kvnode.state.items import Item, unpacked

REVISION_MAX = 2**53 - 1


def asked_revision(parameters: Query) -> int | None:
    """The revision that a read names, None for the present."""
    if "revision" not in parameters:
        return None
    return whole_parameter(parameters["revision"], REVISION_MAX, "query parameter 'revision'")


def item_at(group: Group, key: str, revision: int) -> Item | None:
    """The key as the store had it at `revision`, None where it did not exist then. BadRequest, Compacted."""
    store, history = group.store, group.watches.history
    if revision > store.revision:
        raise BadRequest(f"Revision {revision} is still to come: the store is at {store.revision}.")
    item = store.get(key)
    if item is not None and item.mod_revision <= revision and revision + 1 >= history.oldest:
        return item
    if (change := history.last(key, revision)) is not None:
        return unpacked(change[3]) if change[0] == CHANGE_PUT else None
    if revision + 1 >= history.oldest:
        # All that happened since is known: whether the key was there then is told by what happened to it next.
        following = history.next(key, revision)
        was_missing = item is None if following is None else _creates(following)
        if was_missing:
            return None
    raise Compacted(
        "This node does not know any more what the key was at that revision; another node may.", history.oldest
    )


def _creates(change: Change) -> bool:
    return change[0] == CHANGE_PUT and unpacked(change[3]).create_revision == change[2]
