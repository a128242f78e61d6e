"""One random schedule: a seed draws a cluster, a mix of faults and every step; then all heals and must be well.

Each schedule draws which faults it knows and how eager they are, rather than all of them a little: what needs
three of a kind in a row is then found as well.
"""

from __future__ import annotations

import errno
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from kvnode.node.compaction import Bounds
from tests.simulation.cluster import HEARTBEAT_S, Cluster
from tests.simulation.disk import Crash, Fault
from tests.simulation.oracle import Violation

STEPS = (150, 400)
LEADER_WITHIN_S = 12.0  # ten of the longest election timeouts
AGREE_WITHIN_HEARTBEATS = 80
LAST_TRIES = 3  # leaders that may come behind one another once all links are whole: not one after the other for ever
FRAMES_PER_HEARTBEAT_MAX = 8  # on one link of a cluster that has nothing to do


@dataclass
class Outcome:
    """What became of one seed. `finding` is None where every promise was kept."""

    seed: int
    finding: str | None = None
    trace: str = ""
    steps: list[str] = field(default_factory=list)
    writes: int = 0
    reads: int = 0
    terms: int = 0
    changes: int = 0  # configurations that a leader has appended
    accidents: int = 0  # nodes that their disks have ended, and bits that have turned


def run_schedule(seed: int, disk_faults: bool | None = None, members: bool | None = None) -> Outcome:
    """Everything that follows from `seed`.

    `disk_faults`: whether disks fail too; by default in every second one. `members`: whether they change; by default
    in every second pair, so that both go with both.
    """
    draw = random.Random(seed)
    outcome = Outcome(seed)
    ids = draw.choice(("ABC", "ABC", "ABCDE"))
    with Cluster.simulated(
        ids,
        seed=seed,
        patient=False,
        frame_entries=draw.choice((1, 2, 4_096)),
        window_bytes=draw.choice((120, 400, 1_000_000)),
        segment_bytes=draw.choice((300, 2_000, 1_000_000)),
        apply_bytes=draw.choice((1, 10, 1_000_000)),
        drift=draw.choice((0.0, 0.0, 0.1)),
        bounds=draw.choice((Bounds(), Bounds(), Bounds(entries=25, tail_entries=8), Bounds(bytes=120, tail_bytes=30))),
    ) as cluster:
        schedule = Schedule(
            cluster,
            draw,
            outcome.steps,
            disk_faults=seed % 2 == 1 if disk_faults is None else disk_faults,
            members=seed % 4 >= 2 if members is None else members,
        )
        try:
            schedule.disturb(draw.randrange(*STEPS))
            schedule.heal()
        except (Exception, Crash) as error:
            outcome.finding = f"{type(error).__name__}: {error}"
            outcome.trace = traceback.format_exc()
        outcome.writes = len(cluster.oracle.acknowledged)
        outcome.reads = len(cluster.oracle.confirmed)
        outcome.terms = len(cluster.oracle.leaders)
        outcome.accidents = schedule.accidents
        outcome.changes = schedule.changes
    return outcome


class Schedule:
    """The steps of one run. Each is noted in words before it is taken."""

    def __init__(
        self,
        cluster: Cluster,
        draw: random.Random,
        steps: list[str],
        disk_faults: bool = False,
        members: bool = False,
    ) -> None:
        self.cluster = cluster
        self.draw = draw
        self.steps = steps
        self.accidents = 0
        self.changes = 0
        self._invited: dict[str, set[int]] = {}  # added by one of these entries, and not started yet
        self._names = iter("FGHIJKLMNOPQRSTUVWXYZ")
        self._written = 0
        self._kept: list[tuple[tuple[str, str], bytes]] = []
        daily: dict[Callable[[], None], float] = {
            self._deliver: 40,
            self._let_time_pass: 22,
            self._write: 20,
            self._read: 8,
            self._live_on: draw.choice((3, 8, 15)),
        }
        faults: dict[Callable[[], None], float] = {
            self._cut: 2,
            self._join: 5,
            self._heal_links: 2,
            self._isolate: 1,
            self._partition: 2,
            self._mute: 1,
            self._duplicate: 4,
            self._lose: 2,
            self._replay: 4,
            self._usurp: 2,
            self._crash: 2,
            self._restart: 8,
            self._snapshot: 6,
            self._transfer: 2,
            self._campaign: 2,
            self._hasten: 2,
            self._sleep: 1,
            self._slow_disk: 2,
            self._flight: 12,
            self._hang: 2,
            self._thaw: 5,
        }
        if disk_faults:
            faults |= {
                self._fail_at_a_call: 8,
                self._fill: 2,
                self._make_room: 8,
                self._rot: 3,
                self._stop: 1,
                self._note: 4,
            }
        if members:
            faults |= {self._add: 4, self._start_invited: 8, self._promote: 5, self._remove: 4}
            faults.pop(self._rot, None)  # what may be lost with one disk is another question while majorities change
        healing = {
            self._thaw,
            self._start_invited,
            self._join,
            self._heal_links,
            self._restart,
            self._flight,
            self._make_room,
        }
        self._weights = daily | {
            fault: weight * (1 if fault in healing else draw.choice((0, 0.5, 1, 3))) for fault, weight in faults.items()
        }

    @property
    def ids(self) -> list[str]:
        return list(self.cluster.nodes)

    def disturb(self, steps: int) -> None:
        """`steps` steps, drawn one by one."""
        self.cluster.run(self.draw.choice((0.0, 1.5)))
        choices, weights = list(self._weights), list(self._weights.values())
        for step in self.draw.choices(choices, weights, k=steps):
            step()

    def heal(self) -> None:
        """All faults end: a leader within its time, one more write, everybody agrees, and then it is quiet."""
        cluster = self.cluster
        self._say("heal")
        hung = [name for name, node in cluster.nodes.items() if node.hung and node.replica is not None]
        if self._invited or self.changes or len(hung) > 1 or any(node.lost for node in cluster.nodes.values()):
            hung = []  # then those that are well may be no majority
        for node_id, node in cluster.nodes.items():
            self.accidents += node.disk.strikes
            node.disk.mend()
            node.hung = node_id in hung
            if node.lost or node.dismissed:
                continue
            node.quick = True
            if node.replica is None:
                cluster.restart(node_id)
            node.get_on()
        cluster.heal()
        for node_id in hung:
            self._must_go_on_without(node_id)
        for _ in range(LAST_TRIES):
            leader = cluster.run_until_led(LEADER_WITHIN_S)
            term = cluster[leader].term
            self._say(f"{leader} leads in term {term}")
            last = cluster.propose(leader, "last")
            for _ in range(AGREE_WITHIN_HEARTBEATS):
                self._start_invited()
                cluster.run(HEARTBEAT_S)
                level = all(cluster.nodes[node_id].applied_index >= last.index for node_id in cluster.up)
                if level and not cluster[leader].roster.current.members.keys() & self._invited.keys():
                    break
            # What was under way before the links were mended may still unseat that leader: a transfer, an election.
            if last.acknowledged or cluster[leader].term == term:
                break
        members = cluster[leader].roster.current.members
        if strangers := sorted(set(cluster.up) - set(members)):
            raise Violation(f"{' '.join(strangers)} were removed, and were not told")
        if missing := sorted(
            node_id for node_id in members if node_id not in cluster.up and not self._is_lost(node_id)
        ):
            raise Violation(f"{' '.join(missing)} are members, and do not run")
        cluster.must_agree(*cluster.up)
        if not last.acknowledged:
            raise Violation("the last write was never acknowledged")
        before = cluster.network.sent.copy()
        cluster.run(10 * HEARTBEAT_S)
        for link, sent in (cluster.network.sent - before).items():
            if sent > 10 * FRAMES_PER_HEARTBEAT_MAX:
                raise Violation(f"{sent} frames within ten heartbeats from {link[0]} to {link[1]}, with nothing to do")

    def _must_go_on_without(self, node_id: str) -> None:
        """The disk of this node alone hangs: the others find a leader that acknowledges; then it answers again."""
        cluster = self.cluster
        self._say(f"the disk of {node_id} still hangs")
        others = "".join(name for name in cluster.up if name != node_id)
        for _ in range(3):
            # It may lead until its disk has been silent for long enough: what it is asked then makes the disk begin.
            leader = cluster.run_until_led(LEADER_WITHIN_S)
            write = cluster.propose(leader, f"while {node_id} hangs {leader} {len(self.steps)}")
            cluster.run(3 * cluster.election_timeout_max_s)
            if write.acknowledged and node_id not in cluster.leaders:
                break
        else:
            raise Violation(f"{others} acknowledge nothing while the disk of {node_id} hangs")
        node = cluster.nodes[node_id]
        node.hung = False
        node.get_on()

    # --- days like any other ----------------------------------------------------------------------------

    def _deliver(self) -> None:
        link = self._busy_link()
        if link is None:
            return self._let_time_pass()
        count = self.draw.choice((1, 1, 2, 5, 20))
        at_once = self.draw.random() < 0.3
        self._say(f"deliver {count} from {link[0]} to {link[1]}{' at once' * at_once}")
        self.cluster.deliver(*link, count, at_once=at_once)

    def _let_time_pass(self) -> None:
        cluster = self.cluster
        seconds = self.draw.choice((0.0, 0.01, 0.05, 0.11))
        ids = [node_id for node_id in cluster.up if self.draw.random() < 0.7]
        self._say(f"{seconds} s for {''.join(ids)}")
        cluster.tick(*ids, after_s=seconds)

    def _write(self) -> None:
        if leaders := self.cluster.leaders:
            leader = self.draw.choice(leaders)
            for _ in range(self.draw.choice((1, 1, 3, 8))):
                self._written += 1
                self._say(f"{leader} is asked to write {self._written}")
                self.cluster.propose(leader, self._written)
            if self.draw.random() < 0.7:
                self.cluster.tick(leader, after_s=0.0)

    def _read(self) -> None:
        if leaders := self.cluster.leaders:
            leader = self.draw.choice(leaders)
            self._say(f"{leader} is asked to read")
            self.cluster.read(leader)
            if self.draw.random() < 0.7:
                self.cluster.tick(leader, after_s=0.0)

    def _live_on(self) -> None:
        """A stretch without new faults, for some or all: leaders are found and logs are repaired."""
        cluster = self.cluster
        up = cluster.up
        ids = self.draw.sample(up, self.draw.randint(min(2, len(up)), len(up)))
        rounds = self.draw.choice((1, 2, 4, 15))
        self._say(f"{rounds} heartbeats among {''.join(ids)}")
        cluster.settle(ids, rounds)

    # --- faults -----------------------------------------------------------------------------------------

    def _cut(self) -> None:
        a, b = self._pair()
        self._say(f"cut {a} to {b}")
        self.cluster.cut(a, b)
        if self.draw.random() < 0.5:
            self.cluster.cut(b, a)

    def _join(self) -> None:
        a, b = self._pair()
        self._say(f"join {a} and {b}")
        self.cluster.join(a, b)

    def _heal_links(self) -> None:
        self._say("heal all links")
        self.cluster.heal()

    def _isolate(self) -> None:
        node_id = self.draw.choice(self.ids)
        self._say(f"isolate {node_id}")
        self.cluster.isolate(node_id)

    def _partition(self) -> None:
        left = set(self.draw.sample(self.ids, len(self.ids) // 2))
        groups = "".join(sorted(left)), "".join(i for i in self.ids if i not in left)
        self._say(f"partition {groups[0]} from {groups[1]}")
        self.cluster.heal()
        self.cluster.partition(*groups)

    def _mute(self) -> None:
        a, b = self._pair()
        self._say(f"mute {a} to {b}")
        self.cluster.mute(a, b)

    def _duplicate(self) -> None:
        if link := self._busy_link():
            position = self.draw.randrange(len(self.cluster.network.flying[link]))
            self._say(f"duplicate frame {position} from {link[0]} to {link[1]}")
            self.cluster.duplicate(*link, position)

    def _lose(self) -> None:
        if link := self._busy_link():
            self._say(f"lose a frame from {link[0]} to {link[1]}")
            position = self.draw.randrange(len(self.cluster.network.flying[link]))
            self.cluster.network.lose(link, position)

    def _replay(self) -> None:
        """A frame is kept aside, or one that was kept arrives again, however old it is by now."""
        network = self.cluster.network
        if self._kept and self.draw.random() < 0.5:
            link, frame = self.draw.choice(self._kept)
            if link not in network.broken and self.cluster.nodes[link[1]].replica is not None:
                self._say(f"an old frame from {link[0]} to {link[1]} comes again")
                network.flying[link].append(frame)
        elif kept := self._busy_link():
            self._say(f"keep a frame from {kept[0]} to {kept[1]}")
            self._kept.append((kept, self.draw.choice(network.flying[kept])))

    def _usurp(self) -> None:
        """A leader is cut off with a write of its own, another one leads the rest, and then the old one is asked."""
        cluster = self.cluster
        if not cluster.leaders:
            return
        old = self.draw.choice(cluster.leaders)
        rest = [node_id for node_id in cluster.up if node_id != old]
        if not rest:
            return
        new = self.draw.choice(rest)
        self._say(f"cut {old} off; {new} campaigns among {''.join(rest)}")
        cluster.propose(old, f"by the old leader {len(self.steps)}")
        cluster.isolate(old)
        cluster.campaign(new)
        cluster.settle(rest, rounds=2)
        if cluster.nodes[new].is_leader:
            for _ in range(self.draw.choice((1, 4))):
                cluster.propose(new, f"by the new leader {len(self.steps)}")
            cluster.settle(rest, rounds=1)
        if cluster.nodes[old].is_leader:
            cluster.read(old)
            cluster.tick(old, after_s=0.0)
        if self.draw.random() < 0.7:
            self._say(f"{old} is back")
            cluster.rejoin(old)

    def _crash(self) -> None:
        if up := self.cluster.up:
            node_id = self.draw.choice(up)
            power = self.draw.random() < 0.8
            self._say(f"{'crash' if power else 'kill'} {node_id}")
            self.cluster.crash(node_id, power)
            if self.draw.random() < 0.5:
                self._say(f"restart {node_id}")
                self.cluster.restart(node_id)

    def _restart(self) -> None:
        if down := self._down():
            node_id = self.draw.choice(down)
            self._say(f"restart {node_id}")
            self.cluster.restart(node_id)

    def _snapshot(self) -> None:
        if up := self.cluster.up:
            node_id, keep = self.draw.choice(self.cluster.leaders or up), self.draw.choice((0, 1, 5, 20))
            self._say(f"{node_id} takes a snapshot and keeps {keep}")
            self.cluster.take_snapshot(node_id, keep)

    def _transfer(self) -> None:
        if leaders := self.cluster.leaders:
            leader = self.draw.choice(leaders)
            replica = self.cluster[leader]
            level = [peer for peer in replica.peer_ids if replica.match_index(peer) == replica.last[1]]
            if not replica.peer_ids:
                return
            target = self.draw.choice(level or replica.peer_ids)
            self._say(f"{leader} hands over to {target}")
            self.cluster[leader].transfer_to(target)

    def _campaign(self) -> None:
        """Whatever timers and manners say: safety must not rest on them."""
        if up := self.cluster.up:
            node_id = self.draw.choice(up)
            self._say(f"{node_id} campaigns")
            self.cluster.campaign(node_id)

    def _hasten(self) -> None:
        if up := self.cluster.up:
            node_id = self.draw.choice(up)
            self._say(f"{node_id} believes its leader gone")
            self.cluster.nodes[node_id].run(lambda replica: replica.hasten_election((0.0, 0.1)))

    def _sleep(self) -> None:
        seconds = self.draw.choice((0.7, 1.3, 3.0))
        self._say(f"everybody sleeps for {seconds} s")
        self.cluster.clock.pass_s(seconds)

    def _slow_disk(self) -> None:
        """From now on this node's flights take off and land by steps of their own; or no longer."""
        if up := self.cluster.up:
            node = self.cluster.nodes[self.draw.choice(up)]
            node.quick = not node.quick
            self._say(f"the disk of {node.node_id} is {'fast' if node.quick else 'slow'}")

    def _hang(self) -> None:
        """From now on no flight of this node lands, until its disk answers again or the machine is reset."""
        if up := self.cluster.up:
            node = self.cluster.nodes[self.draw.choice(up)]
            node.hung = True
            self._say(f"the disk of {node.node_id} hangs")

    def _thaw(self) -> None:
        for node_id, node in self.cluster.nodes.items():
            if node.hung:
                self._say(f"the disk of {node_id} answers again")
                node.hung = False

    def _flight(self) -> None:
        if up := self.cluster.up:
            node = self.cluster.nodes[self.draw.choice(up)]
            self._say(f"the disk of {node.node_id} gets on")
            node.end_flight()
            if self.draw.random() < 0.7:
                node.begin_flight()
            if node.jobs:
                node.work_on(self.draw.randrange(node.jobs))

    # --- members ----------------------------------------------------------------------------------------

    def _add(self) -> None:
        """A leader adds a learner: a node that never was, or once more one that was removed, with an empty disk."""
        cluster = self.cluster
        leader = self._may_change()
        if leader is None or len(cluster[leader].roster.current.members) >= 7:
            return
        members = cluster[leader].roster.current.members
        dismissed = [name for name, node in cluster.nodes.items() if node.dismissed and name not in members]
        name = self.draw.choice(dismissed) if dismissed and self.draw.random() < 0.3 else next(self._names, None)
        since = cluster[leader].last[1] + 1
        if name is not None and cluster.add_member(leader, name, voter=False):
            self._say(f"{leader} adds {name}")
            self.changes += 1
            self._invited.setdefault(name, set()).add(since)

    def _start_invited(self) -> None:
        """Those that somebody knows to be members start, and the others have to wait."""
        for name, since in list(self._invited.items()):
            if self.cluster.join_in(name, since):
                self._say(f"{name} joins in")
                del self._invited[name]

    def _promote(self) -> None:
        """Mostly one that has caught up; but safety must not rest on that."""
        leader = self._may_change()
        if leader is None:
            return
        replica = self.cluster[leader]
        learners = sorted(replica.roster.current.learners - self._invited.keys())
        ready = [name for name in learners if replica.match_index(name) >= replica.raftCommitIndex]
        if self.draw.random() < 0.2:
            ready = learners
        if ready and self.cluster.promote_member(leader, name := self.draw.choice(ready)):
            self._say(f"{leader} promotes {name}")
            self.changes += 1

    def _remove(self) -> None:
        leader = self._may_change()
        if leader is None:
            return
        others = sorted(self.cluster[leader].roster.current.members.keys() - {leader})
        if others and self.cluster.remove_member(leader, name := self.draw.choice(others)):
            self._say(f"{leader} removes {name}")
            self.changes += 1

    def _may_change(self) -> str | None:
        leaders = [leader for leader in self.cluster.leaders if self.cluster[leader].may_change_members]
        return self.draw.choice(leaders) if leaders else None

    def _is_lost(self, node_id: str) -> bool:
        return node_id in self.cluster.nodes and self.cluster.nodes[node_id].lost

    # --- disks ------------------------------------------------------------------------------------------

    def _fail_at_a_call(self) -> None:
        """A disk call that is not far away loses the power, or ends in EIO: once or from then on."""
        node = self.cluster.nodes[self.draw.choice(self.ids)]
        if not node.disk.faults and not node.lost:
            at = self.draw.choice((1, 2, 3, 5, 10, 30))
            kinds = self.draw.choice((None, None, {"append"}, {"sync"}, {"sync_directory"}, {"truncate"}, {"unlink"}))
            error = self.draw.choice((None, None, errno.EIO, errno.ENOSPC))
            if error == errno.ENOSPC:
                kinds = {"sync", "append"}
            stays = error == errno.EIO and self.draw.random() < 0.3
            named = "any" if kinds is None else "/".join(sorted(kinds))
            what = "power fails" if error is None else f"{errno.errorcode[error]} {'from then on' * stays}"
            self._say(f"on {node.node_id}, at {named} call {at}: {what}")
            node.disk.faults.append(Fault(at, error, None if kinds is None else frozenset(kinds), stays))

    def _fill(self) -> None:
        node = self.cluster.nodes[self.draw.choice(self.ids)]
        self._say(f"the disk of {node.node_id} is full")
        node.disk.full = True

    def _make_room(self) -> None:
        for node_id, node in self.cluster.nodes.items():
            if node.disk.full:
                self._say(f"the disk of {node_id} has room again")
                node.disk.full = False

    def _rot(self) -> None:
        """A bit of a node that is down turns. Only a minority may be lost: who stores on the others must find it."""
        cluster = self.cluster
        lost = sum(node.lost for node in cluster.nodes.values())
        down = [node_id for node_id in self._down() if any(cluster.nodes[node_id].disk.files().values())]
        if down and lost + 1 <= (len(self.ids) - 1) // 2:
            node = cluster.nodes[self.draw.choice(down)]
            name, data = self.draw.choice([file for file in node.disk.files().items() if file[1]])
            offset, bit = self.draw.randrange(len(data)), self.draw.randrange(8)
            self._say(f"bit {bit} of byte {offset} of {name} on {node.node_id} turns")
            self.accidents += 1
            if cluster.rot(node.node_id, name, offset, bit):
                self._say(f"{node.node_id} does not start, and is left down")

    def _stop(self) -> None:
        if up := self.cluster.up:
            node_id = self.draw.choice(up)
            self._say(f"stop {node_id} in good order")
            self.cluster.stop(node_id)

    def _note(self) -> None:
        if up := self.cluster.up:
            node_id = self.draw.choice(up)
            self._say(f"the journal of {node_id} is quiet")
            self.cluster.nodes[node_id].note()

    # --- chance -----------------------------------------------------------------------------------------

    def _down(self) -> list[str]:
        """Those that can be started."""
        return [
            node_id
            for node_id, node in self.cluster.nodes.items()
            if node.replica is None and not (node.lost or node.dismissed)
        ]

    def _pair(self) -> tuple[str, str]:
        a, b = self.draw.sample(self.ids, 2)
        return a, b

    def _busy_link(self) -> tuple[str, str] | None:
        busy = [link for link in self.cluster.network.busy() if self.cluster.nodes[link[1]].replica is not None]
        return self.draw.choice(busy) if busy else None

    def _say(self, step: str) -> None:
        self.steps.append(step)
