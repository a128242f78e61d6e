"""Changes as text: JSON objects with the fields of a listing, and Server-Sent Events (HTML Standard, 9.2).

    id: 7                                     the revision; with several changes in one, on the last of them alone
    event: put                                put, delete or expire
    data: {"key":"a","value":"MQ==",…}

An id says that everything up to its revision has been told. So a client that comes back with the last one that it got
(`Last-Event-ID`) loses nothing; and since the changes of one revision stand together, one that keeps those without
an id until the id comes, and drops them when it does not, is told nothing twice either.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from kvnode.http.answer import json_bytes, json_string
from kvnode.state.changes import CHANGE_PUT, KIND_NAMES, Change
from kvnode.state.items import MARKS, content_of
from kvnode.watch.audience import Piece, Texts
from kvnode.watch.watcher import Ending

EVENTS = "events"  # the name of this face's texts of a piece

SENTENCES = {
    "slow": "The client did not read as fast as the keys change: go on from this revision.",
    "shutting_down": "This node is shutting down: go on from this revision on another one.",
    "no_leader": "This node has not heard from a leader for a while: go on from this revision on another one.",
    "revoked": "What this watch was let in with has ended (its token was revoked, or its session is over): go on "
    "from this revision with another one.",
    "compacted": "This node does not know any more what happened from the revision asked for up to the oldest: try "
    "another node, or list the keys and watch from the listing's watch_from.",
}


def fields(change: Change) -> tuple[bytes, ...]:
    """The fields of one change as a JSON object has them, in pieces; a key that went away has no value.

    Nothing is copied of the value but what is base64 of it: as text it would be copied three times, 10 ms for 1 MiB.
    """
    kind, key, revision, packed, _ = change
    name = json_string(key)
    if kind != CHANGE_PUT:
        return (f'"key":{name},"mod_revision":{revision}'.encode(),)
    create_revision, mod_revision, version, _ = MARKS.unpack_from(packed)
    content_type, value = content_of(packed)
    marks = f'"create_revision":{create_revision},"mod_revision":{mod_revision},"version":{version}'
    typed = f'","content_type":{json_string(content_type)},{marks}'
    return f'"key":{name},"value":"'.encode(), b64encode(value), typed.encode()


def event(kind: str, document: Any, revision: int | None) -> bytes:
    """One event; without a revision it leaves the client's last id as it is."""
    return _head(kind, revision) + json_bytes(document) + b"\n"


def _head(kind: str, revision: int | None) -> bytes:
    identity = b"" if revision is None else b"id: %d\n" % revision
    return b"%bevent: %b\ndata: " % (identity, kind.encode())


def text_of(piece: Piece, texts: Texts) -> bytes:
    """The events of one revision; encoded once for all watchers that take them in the same turns."""
    if EVENTS in piece.texts:
        return piece.texts[EVENTS]
    last = len(piece.block) - 1
    made: list[bytes] = []
    for number, change in enumerate(piece.block):
        made += (_head(KIND_NAMES[change[0]], piece.revision if number == last else None), b"{", *fields(change))
        made.append(b"}\n\n")
    text = b"".join(made)
    texts.keep(piece, EVENTS, text)
    return text


def end_of(ending: Ending, revision: int) -> bytes:
    """What a stream ends with. `compacted` has no id: another node may still go on from the one before it."""
    sentence = SENTENCES[ending.reason]
    if ending.reason == "compacted":
        return event("compacted", {"oldest_revision": ending.oldest, "message": sentence}, None)
    document = {"reason": ending.reason, "message": sentence, "from_revision": revision + 1}
    return event("end", document, revision)
