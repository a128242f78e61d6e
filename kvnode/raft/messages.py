"""The messages between nodes: their kinds, and the fields of each.

A message is a sequence, its kind first; terms and indexes are Raft's. Its frame on the wire is `peers/frames.py`.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Final

FRAME_BYTES_MAX: Final = 8 * 1_048_576

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
REPORT: Final = 26  # request id, which report (`node/reports.py`), since when in milliseconds
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
EXPLAINED: Final = frozenset((REFUSED, TRANSFER_ANSWER, CHANGED, DRAIN_ANSWER))
SENTENCE_CHARS_MAX: Final = 512  # of a peer's: the longest that this version sends has about 300

Message = tuple[Any, ...] | list[Any]


def fits(message: list[Any]) -> bool:
    """Whether a list that came from outside has the fields of its kind."""
    kind = message[0]
    if type(kind) is not int or tuple(map(type, message)) not in _SHAPES.get(kind, ()):
        return False
    for entry in message[6] if kind == APPEND else ():
        if type(entry) is not list or len(entry) != 2 or type(entry[0]) is not int:
            return False
        if type(entry[1]) is not bytes or not entry[1]:
            return False
    return True
