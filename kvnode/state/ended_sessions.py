"""Sessions that were ended before their time, as part of the replicated state: every node refuses their cookies. Pure.

A live session is in no list: its cookie holds all of it. So an ended session must be remembered until its cookie
expires, and the state machine has no clock to tell when that is. Each token has room for ENDED_SESSIONS_MAX. When the
room is full, the session that would expire first is dropped, and from then on every session of this token that
expires no later counts as ended: forgetting ends sessions and never revives one. The room is per token, so that a
client that signs in and out all day cannot end the sessions of others.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kvnode.state.limits import (
    ENDED_SESSION_BYTES,
    ENDED_SESSIONS_MAX,
    SESSION_ID_BYTES,
    ended_sessions_fault,
)
from kvnode.state.results import Result, SessionEnded
from kvnode.state.session_keys import Session

_ENDS_AT_BYTES: Final = ENDED_SESSION_BYTES - SESSION_ID_BYTES


class Ended(NamedTuple):
    """Of one token: `before` is the time at or before which all its sessions are over, 0 for none; `sessions` are
    (ends_at_s, id) of single ones after that, packed, in order of their time."""

    before: int = 0
    sessions: tuple[bytes, ...] = ()


class EndedSessions:
    """Token's id -> what was ended of it, in the order in which tokens came first."""

    __slots__ = ("_of",)

    def __init__(self, entries: tuple[tuple[str, Ended], ...] = ()) -> None:
        self._of = dict(entries)

    def __len__(self) -> int:
        return sum(len(ended.sessions) for ended in self._of.values())

    def has(self, session: Session) -> bool:
        """Whether this session was ended."""
        ended = self._of.get(session.token_id)
        if ended is None:
            return False
        return session.ends_at_s <= ended.before or _packed(session.id, session.ends_at_s) in ended.sessions

    def end(self, argument: list[Any], revision: int, is_token: Callable[[str], bool]) -> Result:
        """Carries out an END_SESSION without a fault. Of a token that is gone there is nothing to remember."""
        token_id, session_id, ends_at_s = argument
        before, sessions = self._of.get(token_id, Ended())
        entry = _packed(session_id, ends_at_s)
        if is_token(token_id) and ends_at_s > before and entry not in sessions:
            kept = list(sessions)
            insort(kept, entry)
            if len(kept) > ENDED_SESSIONS_MAX:
                before = _ends_at_s(kept[0])
                kept = [each for each in kept if _ends_at_s(each) > before]
            self._of[token_id] = Ended(before, tuple(kept))
        return SessionEnded(revision)

    def forget(self, token_id: str) -> None:
        """The token was revoked, and all its sessions with it."""
        self._of.pop(token_id, None)

    def view(self) -> tuple[tuple[str, Ended], ...]:
        """All of it now, immutable; as many entries as there are tokens at most."""
        return tuple(self._of.items())

    @classmethod
    def load(cls, entries: Any) -> EndedSessions:
        """From what a snapshot holds of them. ValueError for anything else."""
        if type(entries) is not list or any(ended_sessions_fault(entry) for entry in entries):
            raise ValueError("the ended sessions in the snapshot are not a token's id, a time and sessions")
        ended = cls(tuple((token_id, Ended(before, tuple(sessions))) for token_id, (before, sessions) in entries))
        if len(ended._of) != len(entries):
            raise ValueError("the snapshot holds the ended sessions of a token twice")
        return ended


def _packed(session_id: bytes, ends_at_s: int) -> bytes:
    return ends_at_s.to_bytes(_ENDS_AT_BYTES, "big") + session_id


def _ends_at_s(entry: bytes) -> int:
    return int.from_bytes(entry[:_ENDS_AT_BYTES], "big")
