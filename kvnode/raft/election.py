"""When a node may campaign: pre-vote, stickiness, and the two ways around them.

Pre-vote (Raft dissertation §9.6): a node whose election timer fired first asks whether it *would* be elected,
without raising its term. Stickiness (§4.2.3): a member that hears a live leader says no. So a node that comes
back from a partition, or cannot hear one link, never unseats a healthy leader.

A leader whose process hangs closes no connection. So a node that misses a few heartbeats asks early, and one that
missed them as well says yes: half of the shortest election timeout is enough to tell. What keeps this from unseating a
leader that is well: both measure the silence in their own ticks, so that a node which was stopped itself, and finds its
heartbeats late or still unread, counts little of that time; and the asked ones, who hear the leader, say no.

The core asks `may_campaign` on every tick while its election timer has fired (quirk Q4 in `replica`). A
leadership transfer goes around the gate for one term; a single-node cluster has nobody to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kvnode.raft.messages import PRE_VOTE, PRE_VOTED

if TYPE_CHECKING:
    from kvnode.raft.replica import Replica

# Of the shortest election timeout: a fit node, whose timer may have been set anew just now, has been elected by then.
UNFIT_TIMEOUTS: Final = 4
# Also of it: the silence at which a member agrees to another leader, and at which it asks, spread so that two seldom
# ask together. By default 0.3 s, and 0.35 to 0.41 s; heartbeats come every 0.1 s, and 0.2 s late is not yet silent.
SILENT_TIMEOUTS: Final = 1 / 2
ASK_TIMEOUTS: Final = 7 / 12
ASK_SPREAD_TIMEOUTS: Final = 1 / 10
# Where heartbeats are rare for such a timeout, so many of them.
SILENT_HEARTBEATS: Final = 3
ASK_HEARTBEATS: Final = 3.5
TICK_HEARTBEATS: Final = 0.5  # what one tick counts of a silence at most


class ElectionGate:
    """One node's gate. `clock` is monotonic, in seconds; `draw(least, most)` is a random number in between."""

    def __init__(
        self,
        core: Replica,
        clock: Callable[[], float],
        timeout_min_s: float,
        heartbeat_s: float,
        draw: Callable[[float, float], float],
    ) -> None:
        self._core = core
        self._ready = core.ready
        self._clock = clock
        self._timeout_min_s = timeout_min_s
        self._draw = draw
        self._asked_term = 0
        self._ask_again_at = 0.0
        self._asks_from = 0.0
        self._grants: set[str] = set()
        self._transfer_term = 0
        self._leader_heard_at: float | None = None
        self._silence_s = 0.0  # since then, in ticks
        self._ticked_at = clock()
        self._tick_s_max = heartbeat_s * TICK_HEARTBEATS
        self._silent_s = max(timeout_min_s * SILENT_TIMEOUTS, heartbeat_s * SILENT_HEARTBEATS)
        self._ask_least_s = max(timeout_min_s * ASK_TIMEOUTS, heartbeat_s * ASK_HEARTBEATS)
        self._ask_s = self._drawn_ask_s()
        self._yielded = False  # it stepped back for another one: this time the other one may
        self._unfit_since: float | None = None  # since when it would campaign, were it not for others who are fit

    def may_campaign(self) -> bool:
        """True once a majority would vote for this node in the next term; asks them where it has not yet."""
        core = self._core
        if not core.is_voter:
            return False  # a learner, one that was removed, or one that has yet to be told that it is a member
        proposed = core.term + 1
        peers = list(core.peer_ids)
        if not peers:
            return True
        if not core.can_vote:
            return False  # its own vote would not become durable, and its higher term would unseat a leader for nothing
        if self._transfer_term == proposed:
            return True
        if self._lets_others_go_first():
            return False
        if self._asked_term == proposed and len(self._grants) >= (len(peers) + 1) // 2:
            self._asked_term = 0
            return True
        now = self._clock()
        if now >= self._asks_from and (self._asked_term != proposed or now >= self._ask_again_at):
            if self._asked_term == proposed:
                self._yielded = False  # it had its turn
            self._asked_term = proposed
            self._grants.clear()
            # Unanswered questions are repeated: a randomised pause keeps two askers from marching in step.
            self._ask_again_at = now + self._timeout_min_s * self._draw(0.25, 0.5)
            last_term, last_index = core.last
            for peer in peers:
                self._ready.send(peer, (PRE_VOTE, proposed, last_index, last_term))
        return False

    def _lets_others_go_first(self) -> bool:
        """A node that drains, or whose disk is full, leads only where no other comes forward within UNFIT_TIMEOUTS."""
        if self._core.is_fit:
            self._unfit_since = None
            return False
        now = self._clock()
        if self._unfit_since is None:
            self._unfit_since = now
        return now - self._unfit_since < UNFIT_TIMEOUTS * self._timeout_min_s

    def answer(self, node_id: str, proposed: int, last_index: int, last_term: int) -> None:
        """A member asks: would you vote for me in the term `proposed`?"""
        core = self._core
        granted = (
            proposed > core.term
            and core.can_vote
            and not core.is_leader
            and not self.leader_is_alive()
            and (last_term, last_index) >= core.last
        )
        if granted and proposed == self._asked_term and not self._yielded:
            # Two that ask each other at the same moment would both be granted and split the real vote: one steps back
            # for a random while, and not twice in a row. A fixed order would be shorter, and fatal where those who
            # always come first cannot win: a hub that steps back for each spoke never leads, and no other one can.
            self._yielded = True
            self._asked_term = 0
            self._asks_from = self._clock() + self._timeout_min_s * self._draw(0.0, 0.25)
        self._ready.send(node_id, (PRE_VOTED, core.term, proposed, granted))

    def answered(self, node_id: str, proposed: int, granted: bool) -> None:
        """A member's answer; one for another term than the one now proposed counts for nothing."""
        if granted and proposed == self._asked_term == self._core.term + 1:
            self._grants.add(node_id)

    def tick(self) -> bool:
        """To be called by the clock, a few times in each heartbeat. True: the leader is silent, and this node asks."""
        now = self._clock()
        self._silence_s += min(now - self._ticked_at, self._tick_s_max)
        self._ticked_at = now
        if self._silence_s < self._ask_s or self._leader_heard_at is None:
            return False
        self._ask_s = self._drawn_ask_s()
        # Without a leader of this term an election is under way, or was lost: the core's timer is for these.
        return self._core.leader_id is not None and not self._core.is_leader

    def _drawn_ask_s(self) -> float:
        return self._ask_least_s + self._timeout_min_s * self._draw(0.0, ASK_SPREAD_TIMEOUTS)

    def leader_heard(self) -> None:
        """A message of the current term's leader arrived: what was asked before is void."""
        self._leader_heard_at = self._ticked_at = self._clock()
        self._silence_s = 0.0
        self._asked_term = 0
        self._unfit_since = None

    def leader_lost(self) -> None:
        """The leader's connections closed. Its process is gone, or will be heard again before anybody votes."""
        self._leader_heard_at = None

    def leader_is_alive(self) -> bool:
        heard = self._leader_heard_at
        return heard is not None and self._silence_s < self._silent_s and self._clock() - heard < self._timeout_min_s

    def leader_heard_age_s(self) -> float | None:
        return None if self._leader_heard_at is None else self._clock() - self._leader_heard_at

    def transfer_to_self(self, term: int) -> None:
        """The leader of `term` asked this node to take over: the next term's election needs no leave."""
        self._transfer_term = term + 1

    def is_transfer(self, term: int) -> bool:
        """This node campaigns in `term` because the leader asked it to."""
        return self._transfer_term == term
