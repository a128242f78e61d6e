"""What must never happen, whatever the schedule. The judge sees every node's state machine and every client at once.

All changes of the store have a revision, and the first node that applies one tells when it happened. So the order of
everything is known, and no search is needed: an operation must fit into that order at some moment between its call
and its answer (linearizability: Herlihy and Wing, 1990; here with the order given).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kvnode.deadline import deadline, remaining_s
from kvnode.state.changes import CHANGE_EXPIRE, CHANGE_PUT, Change
from kvnode.state.items import unpacked
from tests.virtual.world import World

if TYPE_CHECKING:
    from kvnode.node.engine import Engine
    from kvnode.node.group import RaftGroup
    from tests.virtual.node import Node

DRIFT = 1e-3  # more than two clocks differ by
ANSWER_LATE_S = 0.3  # a node looks at its deadlines 40 times a second, and its loop may be busy
LEASE_OVER_S = 1.0  # where nothing is wrong any more, a lease has ended this long after its time is over
LEASE_TICK_S = 0.05  # a lease may seem to end this much early: times are told in whole milliseconds, and rounded


class Violation(AssertionError):
    """A promise was broken."""


Outcome = Literal["open", "ok", "refused", "not_applied", "unknown"]


@dataclass(eq=False)
class Operation:
    """One call as its client sees it. `refused`: by the state machine, after it had looked."""

    kind: str  # put, delete, cas, txn, get, stale
    keys: tuple[str, ...]
    called_at: float
    value: bytes = b""  # unlike any other that is ever written
    expect: int | None = None  # mod_revision; 0: that there is no such key
    outcome: Outcome = "open"
    returned_at: float = float("inf")
    revision: int = 0  # of a write; for a read: mod_revision, 0 where there was no such key
    seen: bytes | None = None
    node: str = ""


@dataclass(eq=False)
class Watch:
    """What one client was told, of keys with this prefix from this revision on."""

    prefix: str
    from_revision: int
    events: list[tuple[str, str, int, bytes]] = field(default_factory=list)
    over: str = ""  # why it ended


@dataclass(eq=False)
class Holding:
    """A lock as one holder sees it."""

    name: str
    token: int
    called_at: float
    acquired_at: float
    held_until: float  # the last moment at which the holder was told that it holds it


@dataclass(eq=False)
class Renewal:
    """Of the lease of a key: from `called_at` on it lasts for `ttl_s` at least; it was acknowledged at `known_at`."""

    key: str
    called_at: float
    ttl_s: float
    known_at: float = 0.0


class Judge:
    def __init__(self, world: World) -> None:
        self.world = world
        self.changes: dict[int, tuple[Change, ...]] = {}
        self.told_by: dict[int, str] = {}
        self._revisions: list[int] = []
        self._times: list[float] = []
        self._terms: list[tuple[float, int]] = []  # when an entry of a term was first applied anywhere
        self.operations: list[Operation] = []
        self.watches: list[Watch] = []
        self.holdings: list[Holding] = []
        self.renewals: list[Renewal] = []
        self.unsure: set[str] = set()  # keys with a lease of which the last call has no certain outcome
        self.revoked: set[str] = set()
        self.probes = 0
        self._groups: dict[str, RaftGroup] = {}
        self._engines: dict[str, Engine] = {}  # the latest that each node has had, also of a process that has ended
        self._highest = self._level = 0
        self.replaced = False  # all contents, by a restore

    # --- what nodes tell -----------------------------------------------------------------------------------------

    def attach(self, node: Node, group: RaftGroup) -> None:
        """From now on every change that this node's state machine makes is known."""
        publish, store = group.watches.publish, group.store
        self._groups[node.name] = group
        self._time_writes(node, group)

        def told() -> None:
            engine = group._engine
            if engine is not None:
                self._engines[node.name] = engine
                self._level_raised(node, engine)
                self._applied_in(engine.applied_term)
                self._applied(node.name, engine)
            if store.changes:
                self._changed(node.name, list(store.changes))
            publish()

        group.watches.publish = told  # type: ignore[method-assign]

    def _applied(self, name: str, engine: Engine) -> None:
        """Whoever is first to apply an entry finds it durable on a majority: no crash can take it away."""
        index = int(engine.replica.raftLastApplied) + 1  # the one that is being applied
        if index <= self._highest:
            return
        self._highest = index
        term = engine.replica.journal.term_at(index)
        # The latest configuration in the leader's log counts, also for entries before it (dissertation 4.1).
        configurations = [engine.roster.at(index), *(each.roster.current for each in self._engines.values())]
        majorities = {each.voters for each in configurations}
        holders = {each for voters in majorities for each in voters if self._holds(each, index, term)}
        if not any(len(holders & set(voters)) > len(voters) // 2 for voters in majorities):
            voters = configurations[0].voters
            self.world.found = Violation(
                f"{name} applied entry {index} of term {term} at {self.world.now:.3f}, which is durable on "
                f"{', '.join(sorted(holders)) or 'none'} of {len(voters)} voters"
            )

    def _holds(self, node: str, index: int, term: int | None) -> bool:
        """Whether that node would find the entry on its disk again, as far as it knew when it last ran."""
        group = self._groups.get(node)
        engine = None if group is None else group._engine
        if engine is not None:
            self._engines[node] = engine
        if node not in self._engines:
            return False
        journal = self._engines[node].replica.journal
        if index < journal[0][1]:
            return True  # a snapshot took its place
        return journal.durable_index >= index and journal.term_at(index) == term

    def remembers(self, name: str, engine: Engine, former: Engine | None) -> None:
        """A node has started: what its last process knew to be on the disk is there, and it has forgotten no vote."""
        if former is None:
            return
        now, before = engine.replica.journal, former.replica.journal
        for index in range(max(now[0][1], before[0][1]), before.durable_index + 1):
            if now.term_at(index) != before.term_at(index):
                self.world.found = Violation(
                    f"{name} was started at {self.world.now:.3f} without entry {index} of term "
                    f"{before.term_at(index)}, which was durable there (it has {now.term_at(index)})"
                )
                return
        promised = (before.getCurrentTerm(), before.getVotedForNodeId())
        found = (now.getCurrentTerm(), now.getVotedForNodeId())
        if before.clean and (found[0] < promised[0] or (found[0] == promised[0] and found[1] != promised[1])):
            self.world.found = Violation(f"{name} was started with term and vote {found}, and {promised} were durable")

    def _level_raised(self, node: Node, engine: Engine) -> None:
        """No member is of a version that knows less than the cluster."""
        level = engine.store.level
        if level <= self._level:
            return
        self._level = level
        versions = {name: node.cluster.nodes[name].level for name in engine.roster.current.members}
        if any(known < level for known in versions.values()):
            self.world.found = Violation(f"the cluster is at feature level {level}, and its members know {versions}")

    def _time_writes(self, node: Node, group: RaftGroup) -> None:
        """Every write has an outcome by its deadline, as far as its process has run."""
        propose = group.propose

        def timed(command: bytes, deadline_s: float = 5.0) -> Any:
            process, world = node.process, self.world
            assert process is not None
            left_s = deadline_s if deadline.get() is None else remaining_s(deadline_s)
            began_at, stalled_s = world.now, process.stalled_s
            future = propose(command, deadline_s)

            def done(_: Any) -> None:
                late_s = world.now - began_at - (process.stalled_s - stalled_s) - max(0.0, left_s)
                if late_s > ANSWER_LATE_S and not process.ended and not future.cancelled():
                    world.found = Violation(f"{node.name} told the outcome of a write {late_s:.3f} s too late")

            future.add_done_callback(done)
            return future

        group.propose = timed  # type: ignore[method-assign,assignment]

    def forget(self, node: str) -> None:
        """It has lost its disk."""
        self._groups.pop(node, None)
        self._engines.pop(node, None)

    def _applied_in(self, term: int) -> None:
        if not self._terms or self._terms[-1][1] < term:
            self._terms.append((self.world.now, term))

    def _changed(self, node: str, changes: list[Change]) -> None:
        by_revision: defaultdict[int, list[Change]] = defaultdict(list)
        for change in changes:
            by_revision[change[2]].append(change)
        for revision, block in by_revision.items():
            known = self.changes.get(revision)
            if known is None:
                self.changes[revision], self.told_by[revision] = tuple(block), node
                if self._revisions and revision < self._revisions[-1]:
                    continue  # a node that starts is told the past again, which a snapshot had hidden
                self._revisions.append(revision)
                self._times.append(self.world.now)
            elif known != tuple(block):
                self.world.found = Violation(
                    f"{node} made other changes at revision {revision} than {self.told_by[revision]}: "
                    f"{_shown(block)} and {_shown(known)}"
                )

    # --- what clients tell ---------------------------------------------------------------------------------------

    def begin(self, kind: str, *keys: str, **known: Any) -> Operation:
        operation = Operation(kind, keys, self.world.now, **known)
        self.operations.append(operation)
        return operation

    def end(self, operation: Operation, outcome: Outcome, **known: Any) -> None:
        operation.outcome, operation.returned_at = outcome, self.world.now
        for name, value in known.items():
            setattr(operation, name, value)
        self.world.trace("answer", operation.kind, *operation.keys, outcome, operation.revision, operation.seen)

    def probed(self, node: str, called_at: float, term: int) -> None:
        """A leader probe said yes, in this term."""
        self.probes += 1
        later = [each for when, each in self._terms if when < called_at and each > term]
        if later:
            raise Violation(
                f"the leader probe of {node} said yes in term {term} at {self.world.now:.3f}, and entries of term "
                f"{later[-1]} had been applied before it was asked"
            )

    def drained(self, nodes: list[Node]) -> None:
        """A node has drained without force: some other one is left that was ready."""
        groups = [node.group for node in nodes if not node.removed]
        if all(group is not None and group.draining and not group._leaving for group in groups):
            raise Violation(f"all nodes drain at {self.world.now:.3f}, and none was forced")

    # --- the verdict ---------------------------------------------------------------------------------------------

    def revision_at(self, when: float, inclusive: bool) -> int:
        """The store's at that moment, as the node that was furthest had it."""
        position = (bisect_right if inclusive else bisect_left)(self._times, when)
        return self._revisions[position - 1] if position else 0

    def check(self) -> None:
        """Raises Violation. After everything has ended."""
        histories = self._histories()
        written = Counter(value for history in histories.values() for _, value in history if value is not None)
        for operation in self.operations:
            if operation.kind in ("get", "stale"):
                self._check_read(operation, histories.get(operation.keys[0], []))
            else:
                self._check_write(operation, histories, written)
        for watch in self.watches:
            self._check_watch(watch)
        self._check_leases()
        self._check_locks()

    def _histories(self) -> dict[str, list[tuple[int, bytes | None]]]:
        """By key: (revision, value) of each change; None: it went away."""
        histories: defaultdict[str, list[tuple[int, bytes | None]]] = defaultdict(list)
        for revision in sorted(self.changes):
            for kind, key, _, packed, *_ in self.changes[revision]:
                histories[key].append((revision, unpacked(packed).value if kind == CHANGE_PUT else None))
        return histories

    def _check_read(self, read: Operation, history: list[tuple[int, bytes | None]]) -> None:
        if read.outcome != "ok":
            return
        stale = read.kind == "stale"
        first = 0 if stale else self.revision_at(read.called_at, inclusive=False)
        last = self.revision_at(read.returned_at, inclusive=True)
        possible: set[tuple[int, bytes | None]] = set()
        state: tuple[int, bytes | None] = (0, None)
        for revision, value in history:
            if revision > last:
                break
            if revision > first:
                possible.add(state)
            state = (0 if value is None else revision, value)
        possible.add(state)
        if (read.revision, read.seen) not in possible:
            raise Violation(
                f"a {'stale' if stale else 'linearizable'} read of {read.keys[0]} on {read.node or 'any node'}, "
                f"from {read.called_at:.3f} to {read.returned_at:.3f}, saw {(read.revision, read.seen)}; between "
                f"revisions {first} and {last} it was {sorted(possible, key=str)}"
            )

    def _check_write(
        self, write: Operation, histories: dict[str, list[tuple[int, bytes | None]]], written: Counter[bytes]
    ) -> None:
        where = f"the {write.kind} of {' and '.join(write.keys)} from {write.called_at:.3f} to {write.returned_at:.3f}"
        if write.value:
            count = written[write.value]
            if count > len(write.keys):
                raise Violation(f"{where} was applied {count // len(write.keys)} times: {write.value!r}")
            if count not in (0, len(write.keys)):
                raise Violation(f"{where} was applied in part: {write.value!r}")
            if write.outcome in ("refused", "not_applied") and count:
                raise Violation(f"{where} was refused ({write.outcome}), and was applied: {write.value!r}")
            if write.outcome == "ok" and not count:
                raise Violation(f"{where} was acknowledged at revision {write.revision}, and is not there")
        if write.outcome != "ok":
            return
        block = self.changes.get(write.revision, ())
        if {change[1] for change in block} & set(write.keys) != set(write.keys):
            raise Violation(f"{where} was acknowledged at revision {write.revision}, which changed {_shown(block)}")
        first = self.revision_at(write.called_at, inclusive=False)
        last = self.revision_at(write.returned_at, inclusive=True)
        if not first < write.revision <= last:
            raise Violation(f"{where} has revision {write.revision}, and those from {first + 1} to {last} are possible")
        if write.expect is not None:
            before = (0, None)
            for revision, value in histories[write.keys[0]]:
                if revision < write.revision:
                    before = (0 if value is None else revision, value)  # type: ignore[assignment]
            if before[0] != write.expect:
                raise Violation(f"{where} expected revision {write.expect} and came behind revision {before[0]}")

    def _check_watch(self, watch: Watch) -> None:
        names = {CHANGE_PUT: "put", CHANGE_EXPIRE: "expire"}
        if not watch.events:
            return
        last = watch.events[-1][2]
        expected = [
            (names.get(kind, "delete"), key, revision, unpacked(packed).value if kind == CHANGE_PUT else b"")
            for revision in sorted(self.changes)
            if watch.from_revision <= revision <= last
            for kind, key, _, packed, *_ in self.changes[revision]
            if key.startswith(watch.prefix)
        ]
        # It may end in the middle of a revision, in which several leases are over, say.
        untold = [event for event in expected[len(watch.events) :] if event[2] < last]
        if watch.events != expected[: len(watch.events)] or untold:
            for position, (told, due) in enumerate(zip(watch.events, expected, strict=False)):
                if told != due:
                    raise Violation(f"a watch of {watch.prefix!r} was told {told} where {due} is due ({position})")
            raise Violation(f"a watch of {watch.prefix!r} was told {len(watch.events)} of {len(expected)} changes")

    def _check_leases(self) -> None:
        by_key: defaultdict[str, list[Renewal]] = defaultdict(list)
        for renewal in self.renewals:
            by_key[renewal.key].append(renewal)
        for revision, when in zip(self._revisions, self._times, strict=True):
            for kind, key, *_ in self.changes[revision]:
                if kind != CHANGE_EXPIRE or key in self.revoked:
                    continue
                for renewal in by_key.get(key, ()):
                    ends_at = renewal.called_at + renewal.ttl_s * (1 - DRIFT) - LEASE_TICK_S
                    if renewal.called_at < when < ends_at:
                        raise Violation(
                            f"{key} expired at {when:.3f}, {ends_at - when:.3f} s before the end of the "
                            f"{renewal.ttl_s} s that were granted at {renewal.called_at:.3f} or later"
                        )

    def check_ended(self, is_there: Callable[[str], bool], mended_at: float) -> None:
        """Nothing has been wrong since then: of no key that is there, the lease was over long ago.

        Its time begins again in full with each leader. Where the last renewal was not acknowledged, nobody knows.
        """
        counted_from = max(mended_at, self._terms[-1][0] if self._terms else self.world.now)
        latest = {renewal.key: renewal for renewal in self.renewals if renewal.key not in self.unsure}
        for key, renewal in latest.items():
            over_at = max(counted_from, renewal.known_at) + renewal.ttl_s * (1 + DRIFT) + LEASE_OVER_S
            if self.world.now > over_at and is_there(key):
                raise Violation(f"{key} is there at {self.world.now:.3f}; its lease was over by {over_at:.3f}")

    def _check_locks(self) -> None:
        by_name: defaultdict[str, list[Holding]] = defaultdict(list)
        for holding in self.holdings:
            by_name[holding.name].append(holding)
        for name, holdings in by_name.items():
            holdings.sort(key=lambda each: each.acquired_at)
            for position, one in enumerate(holdings):
                for other in holdings[position + 1 :]:
                    if other.token <= one.token and other.called_at > one.acquired_at:
                        raise Violation(f"the lock {name} had token {one.token} and then {other.token}")
                    if other.token == one.token:
                        raise Violation(f"the lock {name} had token {one.token} twice")
                    if other.acquired_at < one.held_until:
                        raise Violation(
                            f"the lock {name} was held with token {one.token} until {one.held_until:.3f} and with "
                            f"{other.token} from {other.acquired_at:.3f}"
                        )


def _shown(changes: Any) -> str:
    return str([(kind, key, revision, packed[-24:]) for kind, key, revision, packed, *_ in changes])
