"""Faults, one after another and sometimes two at a time, chosen by a seed; each is undone before the next.

A seed repeats the choices and the pauses, not the run: which node leads at that moment is the cluster's own affair.
Every kind comes up once before any comes up again.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from http.client import HTTPException

from tests.chaos.diary import Diary, Fault, Majority
from tests.chaos.disk import HangingDisk, SmallDisk
from tests.chaos.members import Changes
from tests.chaos.network import Links, Network
from tests.cluster import LEADER_PROBE, Cluster, Refused
from tests.relays import Link

Kinds = dict[str, Callable[[], AbstractContextManager[str]]]

JUDGED_EVERY_S = 0.1
RETURN_DEADLINE_S = 60.0
SECOND_FAULT = 0.3  # how often another kind of trouble comes on top


class Nemesis:
    """Works in a thread of its own, until told to stop. `pace` stretches every pause and every fault; `only` names
    the kinds of faults to choose from, all where it is empty.

    AssertionError, from the cluster's verbs, means that a node was not where it ought to be: that is a finding.
    """

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        links: Links | None,
        full: dict[str, SmallDisk],
        hanging: dict[str, HangingDisk],
        changes: Changes | None = None,
        detours: Sequence[Link] = (),
        pace: float = 1.0,
        only: Collection[str] = (),
    ) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._links = links
        self._full = full
        self._hanging = hanging
        self._changes = changes
        self._detours = detours
        self._pace = pace
        self._stop = threading.Event()
        self._bag: list[tuple[str, str]] = []
        self.diary = Diary()
        self._majority = Majority(cluster, links, full, hanging, self.diary)
        self.kinds = self._kinds(only)

    def _kinds(self, only: Collection[str]) -> dict[str, Kinds]:
        """Every fault that this machine allows, by what it breaks: two at a time are never of one group."""
        most = len(self._cluster.nodes) // 2 + 1
        processes: Kinds = {
            "kill leader": partial(self._killed, 1),
            "kill follower": partial(self._killed, 1, leader=False),
            "kill most": partial(self._killed, most),
            "kill all": partial(self._killed, len(self._cluster.nodes)),
            "freeze leader": partial(self._frozen, 1),
            "freeze follower": partial(self._frozen, 1, leader=False),
            "freeze most": partial(self._frozen, most),
            "follower away": partial(self._killed, 1, leader=False, away_s=(9.0, 14.0)),
            "crash loop": self._crash_loop,
            "restart": self._restarted,
            "transfer": self._transferred,
        }
        links: Kinds = {
            "isolate leader": partial(self._cut_off, "isolate"),
            "isolate follower": partial(self._cut_off, "isolate", leader=False),
            "deafen leader": partial(self._cut_off, "deafen"),
            "mute leader": partial(self._cut_off, "mute"),
            "slow leader": partial(self._cut_off, "slow"),
            "slow follower": partial(self._cut_off, "slow", leader=False),
            "half-open links": self._halved,
            "cut one link": partial(self._link_cut, both=True),
            "cut one direction": partial(self._link_cut, both=False),
            "split all": self._all_split,
            "flap leader": self._flapping,
        }
        if isinstance(self._links, Network):
            links["unplug leader"] = partial(self._cut_off, "unplug")
            links["unplug follower"] = partial(self._cut_off, "unplug", leader=False)
        full: Kinds = {
            "disk full": self._disk_full,
            "disk nearly full": partial(self._disk_full, leave_bytes=1_500_000),
        }
        hanging: Kinds = {
            "leader's disk hangs": partial(self._disk_hung, leader=True),
            "follower's disk hangs": partial(self._disk_hung, leader=False),
        }
        members: Kinds = {
            "member added": self._added,
            "member removed": partial(self._renewed, "remove"),
            "member replaced": partial(self._renewed, "replace"),
            "cluster recovered": self._recovered,
        }
        groups = {
            "processes": processes,
            "clients": {"clients cut off": self._clients_cut_off} if self._detours else {},
            "links": links if self._links else {},
            "disks": (full if self._full else {}) | (hanging if self._hanging else {}),
            "members": members if self._changes else {},
        }
        allowed = {
            name: {kind: group[kind] for kind in group if not only or kind in only} for name, group in groups.items()
        }
        if not any(allowed.values()):
            raise ValueError(f"none of these faults can be made here: {', '.join(only)}")
        return {name: group for name, group in allowed.items() if group}

    # --- the schedule ---------------------------------------------------------------------------------------------

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> Diary:
        """One fault after another until `stop`; everything is undone when it returns or raises. May be called again."""
        self._stop.clear()
        while not self._pause(0.5, 2.5):
            for node in self._cluster.nodes.values():
                assert node.running, f"{node.id} ended by itself: {self._cluster.log(node.id)[-2000:]}"
            if not self._bag:
                self._bag = [(group, kind) for group, kinds in self.kinds.items() for kind in kinds]
                self._chance.shuffle(self._bag)
            group, kind = self._bag.pop()
            with ExitStack() as undo:
                self._begin(undo, group, kind)
                # Members change on a cluster that will be whole again: what is begun last is undone first.
                others = [other for other in self.kinds if other not in (group, "members")]
                if others and self._chance.random() < SECOND_FAULT:
                    self._pause(0.0, 1.0)
                    other = self._chance.choice(others)
                    self._begin(undo, other, self._chance.choice(sorted(self.kinds[other])))
                self._pause(0.5, 4.0)
                if self._chance.random() < 0.1:
                    self._pause(3.0, 6.0)  # longer than any deadline of a node
        self._majority.wait(RETURN_DEADLINE_S)
        return self.diary

    def _begin(self, undo: ExitStack, group: str, kind: str) -> None:
        fault = Fault(kind, "", time.monotonic())
        self.diary.faults.append(fault)
        undo.callback(lambda: setattr(fault, "ended", time.monotonic()))
        fault.what = undo.enter_context(self.kinds[group][kind]())
        self._majority.judge()

    def _pause(self, shortest_s: float, longest_s: float) -> bool:
        """True: it is time to stop."""
        until = time.monotonic() + self._chance.uniform(shortest_s, longest_s) * self._pace
        while (left_s := until - time.monotonic()) > 0 and not self._stop.wait(min(left_s, JUDGED_EVERY_S)):
            self._majority.judge()
        return self._stop.is_set()

    def _spawn(self, name: str) -> None:
        self._cluster.spawn(name)
        self._majority.starting.add(name)

    # --- victims --------------------------------------------------------------------------------------------------

    def _touchable(self) -> list[str]:
        """Nodes that other faults may be made with: no signal reaches a process whose disk hangs."""
        hung = {name for name, disk in self._hanging.items() if disk.hung}
        return [name for name in self._cluster.awake() if name not in hung | self._majority.newcomers]

    def _leader(self) -> str | None:
        return next((name for name in self._cluster.awake() if self._leads(name)), None)

    def _leads(self, name: str) -> bool:
        return self._cluster.probe(name, LEADER_PROBE, timeout_s=0.7) == 200

    def _victims(self, count: int, leader: bool = True) -> list[str]:
        """Nodes that are awake, the leader first where it is wanted, last where it is not."""
        names = self._touchable()
        self._chance.shuffle(names)
        present = self._leader()
        names.sort(key=lambda name: (name != present) == leader)
        return names[:count]

    def _victim(self, leader: bool = True) -> str:
        """One of them; any node, where none is awake."""
        return (self._victims(1, leader) or [self._chance.choice(sorted(self._cluster.nodes))])[0]

    # --- processes ------------------------------------------------------------------------------------------------

    @contextmanager
    def _killed(self, count: int, leader: bool = True, away_s: tuple[float, float] = (0.0, 0.0)) -> Iterator[str]:
        """`away_s`: long enough for the log to be compacted meanwhile, so that it takes a snapshot to come back."""
        victims = self._victims(count, leader)
        self._kill(victims)
        try:
            self._pause(*away_s)
            yield f"kill -9 {' '.join(victims)}"
        finally:
            for name in victims:
                self._spawn(name)

    def _kill(self, victims: list[str]) -> None:
        """SIGKILL to all of them before waiting for any."""
        for name in victims:
            self._cluster.nodes[name].process.kill()  # type: ignore[union-attr]
        for name in victims:
            code = self._cluster.wait_exit(name, 10.0)
            assert code == -signal.SIGKILL, (
                f"{name} had ended by itself with exit code {code}: {self._cluster.log(name)[-2000:]}"
            )

    @contextmanager
    def _frozen(self, count: int, leader: bool = True) -> Iterator[str]:
        victims = self._victims(count, leader)
        for name in victims:
            self._cluster.freeze(name)
        try:
            yield f"SIGSTOP {' '.join(victims)}"
        finally:
            for name in victims:
                self._cluster.thaw(name)

    @contextmanager
    def _crash_loop(self) -> Iterator[str]:
        """One node, killed again and again while it starts."""
        victim = self._victim(leader=self._chance.random() < 0.5)
        for _ in range(4):
            self._kill([victim])
            self._spawn(victim)
            self._pause(0.05, 1.0)
        yield f"kill -9 {victim}, four times"

    @contextmanager
    def _restarted(self) -> Iterator[str]:
        """A planned restart: SIGTERM and a new start."""
        victim = self._victim()
        if self._cluster.probe(victim, "/admin/healthz") != 200:
            yield f"SIGTERM {victim}, not sent: it is still starting, or out of reach"
            return
        code = self._cluster.terminate(victim)
        assert code == 0, f"{victim} ended with exit code {code} on SIGTERM: {self._cluster.log(victim)[-1000:]}"
        try:
            yield f"SIGTERM {victim}"
        finally:
            self._spawn(victim)

    @contextmanager
    def _transferred(self) -> Iterator[str]:
        try:
            yield f"transfer to {self._cluster.transfer()}"
        except (Refused, OSError) as why:  # a leader that is just being lost cannot hand over
            yield f"transfer, refused: {why}"

    # --- links ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _cut_off(self, verb: str, leader: bool = True) -> Iterator[str]:
        assert self._links is not None
        victim = self._victim(leader)
        getattr(self._links, verb)(victim)
        try:
            yield f"{verb} {victim}"
        finally:
            self._links.heal()

    @contextmanager
    def _halved(self) -> Iterator[str]:
        """Again and again one side of a node's connections breaks, and its peers do not hear of it."""
        assert self._links is not None
        victim = self._victim(leader=self._chance.random() < 0.7)
        for _ in range(4):
            peer = self._chance.choice([name for name in self._links.names if name != victim])
            self._links.halve(victim, peer)
            self._pause(0.05, 1.0)
        yield f"{victim} loses its half of its connections, four times"

    @contextmanager
    def _link_cut(self, both: bool) -> Iterator[str]:
        assert self._links is not None
        one, other = self._chance.sample(sorted(self._cluster.nodes), 2)
        self._links.cut(one, other)
        if both:
            self._links.cut(other, one)
        try:
            yield f"cut {one} {'<' if both else ''}-> {other}"
        finally:
            self._links.heal()

    @contextmanager
    def _all_split(self) -> Iterator[str]:
        assert self._links is not None
        for name in self._cluster.nodes:
            self._links.isolate(name)
        try:
            yield "nobody hears anybody"
        finally:
            self._links.heal()

    @contextmanager
    def _flapping(self) -> Iterator[str]:
        """The leader's links come and go, which must not make terms race."""
        assert self._links is not None
        victim = self._victim()
        for _ in range(5):
            self._links.isolate(victim)
            self._pause(0.1, 0.9)
            self._links.heal()
            self._pause(0.05, 0.5)
        yield f"isolate {victim}, five times"

    @contextmanager
    def _clients_cut_off(self) -> Iterator[str]:
        """Clients that hold locks reach no node for longer than their leases last; others do."""
        for link in self._detours:
            link.hold()
        try:
            self._pause(2.0, 8.0)
            yield "some clients are cut off"
        finally:
            for link in self._detours:
                link.release()

    # --- disks ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _disk_full(self, leave_bytes: int = 0) -> Iterator[str]:
        victims = self._chance.sample(sorted(self._full), self._chance.randint(1, len(self._full)))
        for name in victims:
            self._full[name].fill(leave_bytes)
        try:
            yield f"{leave_bytes} bytes left for {' '.join(victims)}"
        finally:
            for name in victims:
                self._full[name].free()

    @contextmanager
    def _disk_hung(self, leader: bool) -> Iterator[str]:
        """Nothing that is written on it ends; where it shall be the leader's, a node with such a disk leads first."""
        name = self._chance.choice(sorted(self._hanging))
        if leader and self._leader() != name:
            with suppress(Refused, OSError, HTTPException):
                self._cluster.transfer(name)
        self._hanging[name].hang()
        try:
            yield f"the disk of {name} hangs, {'which leads' if self._leader() == name else 'a follower'}"
        finally:
            self._hanging[name].thaw()

    # --- members --------------------------------------------------------------------------------------------------

    @contextmanager
    def _added(self) -> Iterator[str]:
        """A new node joins; it leaves again in the end."""
        assert self._changes is not None
        name = self._changes.spare
        with self._newcomer(name):
            self._changes.join(name)
            try:
                yield f"{name} joins"
            finally:
                self._changes.settle(name)
                self._changes.remove(name)
                self._changes.forget(name)

    @contextmanager
    def _renewed(self, how: str) -> Iterator[str]:
        """A member is removed, or killed with its disk wiped, and comes back with nothing under its own name."""
        assert self._changes is not None
        name = self._victim(leader=self._chance.random() < 0.3)
        with self._newcomer(name):
            if how == "remove":
                self._changes.remove(name)
                self._changes.wipe(name)
                self._changes.join(name)
            else:
                self._kill([name])
                self._changes.wipe(name)
                self._spawn(name)
            try:
                yield f"{how} {name}, which comes back with nothing"
            finally:
                if how == "replace":
                    self._changes.replace(name)
                self._changes.settle(name)

    @contextmanager
    def _newcomer(self, name: str) -> Iterator[None]:
        self._majority.newcomers.add(name)
        try:
            yield
        finally:
            self._majority.newcomers.discard(name)

    @contextmanager
    def _recovered(self) -> Iterator[str]:
        """All are killed, and the one whose log is the longest is made a cluster of one, which the others join."""
        assert self._changes is not None
        nodes = list(self._cluster.nodes)
        self._kill(nodes)
        self._majority.judge()
        kept = self._changes.best()
        self._changes.recover(kept)
        self._majority.starting.add(kept)
        others = [name for name in nodes if name != kept]
        self._majority.newcomers.update(others)
        try:
            yield f"kill -9 {' '.join(nodes)}; recover {kept}, which the others join"
        finally:
            for name in others:
                self._changes.settle(name)
                self._majority.newcomers.discard(name)
