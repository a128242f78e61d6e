"""A node's files under every accident that one disk call can have: power lost, a process killed, EIO, a full disk, rot.

`script` makes every kind of change once; each test lets one accident strike at one of its disk calls, at every one
in turn, and judges what a start then finds. What was promised must be there, in order; term and vote never go back;
and damage is either refused, by name, or of nothing that was promised.
"""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from kvnode.errors import StartupError
from kvnode.storage import segments, tail
from kvnode.storage.segments import Segments
from kvnode.storage.snapshots import Snapshots
from tests.simulation.clock import patched
from tests.simulation.disk import Crash, Fault, MemoryDisk
from tests.simulation.member import Broken, Member, script

DRAWS = 2  # how often each accident strikes at each call, with another chance each time


def calls_of_the_script(kinds: frozenset[str] | None = None) -> int:
    disk = MemoryDisk()
    never = Fault(at=-1, kinds=kinds)
    disk.faults.append(never)
    script(Member(disk))
    return -1 - never.at


def strike(fault: Fault, seed: int) -> tuple[Member, BaseException | None]:
    """The script on a disk that fails so, and what became of it."""
    member = Member(MemoryDisk())
    member.disk.draw = random.Random(seed)
    member.disk.faults.append(fault)
    try:
        script(member)
    except (Crash, OSError) as end:
        return member, end
    return member, None


def start_again(member: Member, draw: random.Random, power: bool) -> None:
    """The machine or the process is restarted, also within the starts themselves, until one start gets through."""
    for within in (1, 2, draw.randint(3, 12), draw.randint(3, 25), None):
        if power:
            member.disk.crash(draw)
        else:
            member.disk.kill()
        if within is not None:
            member.disk.faults.append(Fault(at=within))
        try:
            member.start()
        except Crash:
            continue
        member.disk.faults.clear()
        return
    raise AssertionError("unreachable: the last start has no fault")


def live_on(member: Member, draw: random.Random) -> None:
    """After an accident a node is a node like any other: what it promises now holds too."""
    member.vote(member.journal.getCurrentTerm() + 1, "n2")
    member.write(20, 20, term=member.journal.getCurrentTerm())
    member.land()
    member.disk.crash(draw)
    member.start()


@pytest.mark.parametrize("power", [True, False], ids=["power", "process"])
def test_a_crash_at_every_disk_call_loses_nothing_that_was_promised(power: bool) -> None:
    calls = calls_of_the_script()
    assert calls > 150
    for at in range(1, calls + 1):
        for seed in range(DRAWS):
            draw = random.Random(f"{at} {seed}")
            member, end = strike(Fault(at), seed)
            assert isinstance(end, Crash)
            try:
                start_again(member, draw, power)
                live_on(member, draw)
            except (Broken, StartupError) as finding:
                pytest.fail(f"after a crash in call {at} ({end}), draw {seed}: {finding}")


@pytest.mark.parametrize("power", [True, False], ids=["power", "process"])
@pytest.mark.parametrize("stays", [False, True], ids=["once", "from then on"])
def test_an_error_at_every_disk_call_stops_the_node_and_loses_nothing(stays: bool, power: bool) -> None:
    """Never swallowed and never retried; and what the page cache still shows after it is not believed (fsyncgate)."""
    for at in range(1, calls_of_the_script() + 1):
        for seed in range(DRAWS):
            draw = random.Random(f"{at} {seed}")
            member, end = strike(fault := Fault(at, errno.EIO, stays=stays), seed)
            assert isinstance(end, OSError), f"the error of call {at} ({fault.struck}) went unnoticed"
            assert end.errno == errno.EIO
            try:
                start_again(member, draw, power)
                live_on(member, draw)
            except (Broken, StartupError) as finding:
                pytest.fail(f"after an error in call {at} ({fault.struck}), draw {seed}: {finding}")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["ENOSPC", "EDQUOT"])
def test_a_full_disk_at_every_append_is_waited_out_or_said(number: int) -> None:
    """A refused flight leaves the files as they were and is written again; anything else that needs room says so."""
    whole = Member(MemoryDisk())
    script(whole)
    refused = 0
    appends = frozenset({"append"})
    for at in range(1, calls_of_the_script(appends) + 1):
        for seed in range(DRAWS):
            member, end = strike(fault := Fault(at, number, kinds=appends), seed)
            refused += member.refused
            if fault.struck.startswith("append journal-"):
                assert end is None, f"the node did not wait for room in {fault.struck}: {end}"
                assert member.refused == 1
                assert member.files() == whole.files()
            elif fault.struck.startswith(f"append {tail.FILE}"):
                assert end is None, "a note is worth no stop"
                member.disk.crash(random.Random(seed))
                member.start()
            else:
                assert isinstance(end, OSError)
                assert member.files().keys() <= {*member.files(), "identity.json.part"}
                start_again(member, random.Random(seed), power=True)
    assert refused > 20


def test_a_sync_that_finds_no_room_is_an_error_like_any_other() -> None:
    """Delayed allocation: the bytes were taken, and what the file holds now nobody knows."""
    syncs = frozenset({"sync", "truncate"})
    for at in range(1, calls_of_the_script(syncs) + 1):
        member, end = strike(fault := Fault(at, errno.ENOSPC, kinds=syncs), at)
        if fault.struck != f"sync {tail.FILE}.part":
            assert isinstance(end, OSError)
            assert end.errno == errno.ENOSPC, fault.struck
            assert member.refused == 0
        start_again(member, random.Random(at), power=True)
        live_on(member, random.Random(at))


# --- rot --------------------------------------------------------------------------------------------------


def script_until(call: int) -> Member:
    """Power fails at this call; what the disk then has is what was synced, and it is whole."""
    member, _ = strike(Fault(call), 0)
    member.disk.crash(random.Random(call))
    return member


def rot(member: Member, name: str, offset: int, bit: int) -> str | None:
    """The sentence of a start after one bit of one file has turned, or None where it started and holds its promises."""
    files = member.files()
    disk = MemoryDisk()
    for other, data in files.items():
        disk.replace(other, data)
    disk.damage(name, offset, bit)
    successor = Member(disk, member.segment_bytes)
    successor.history = list(member.history)
    successor.landed, successor.snapshot_index = member.landed, member.snapshot_index
    try:
        successor.start()
    except StartupError as refusal:
        return str(refusal)
    assert successor.cluster_id == member.cluster_id, "of the identity, what it says the same without may change"
    return None


@pytest.mark.parametrize("when", ["stopped", "cut off"])
def test_no_flipped_bit_is_accepted_where_it_matters(when: str) -> None:
    calls = calls_of_the_script()
    moments = [calls + 1] if when == "stopped" else list(range(20, calls, 13))
    refused = accepted = 0
    for moment in moments:
        member = script_until(moment)
        *older, _ = ["", "", *sorted(name for name in member.files() if re.fullmatch(r"snapshot-\d+-\d+", name))]
        for name, data in member.files().items():
            step = 1 if when == "stopped" else 7
            for offset in range(moment % step, len(data), step):
                said = rot(member, name, offset, bit=(offset + moment) % 8)
                if said is None:
                    accepted += 1
                    if when == "stopped":
                        assert name in older or name == "identity.json", name
                    continue
                refused += 1
                if name != "identity.json":  # which says whose the journal is: then that is the one which does not fit
                    assert name in said
                    assert re.search(r"byte \d+|belongs to", said), said
                assert re.search(
                    r"restore|remove this file|own --data-dir|--data-dir of its own|correct --peers", said
                ), said
    assert refused > 2 * accepted


def test_every_bit_of_the_last_segment_and_its_note() -> None:
    member = script_until(calls_of_the_script() + 1)
    name = max(name for name in member.files() if name.startswith("journal-"))
    for file in (name, tail.FILE):
        for offset in range(len(member.files()[file])):
            for bit in range(8):
                said = rot(member, file, offset, bit)
                assert said is not None, f"bit {bit} of byte {offset} of {file} may be what it likes"
                assert file in said


def test_a_snapshot_that_is_not_needed_any_more_may_rot() -> None:
    member = script_until(calls_of_the_script() + 1)
    older, newest = sorted(name for name in member.files() if name.startswith("snapshot-"))
    assert rot(member, older, 30, 1) is None
    assert newest in str(rot(member, newest, 30, 1))


# --- each rule, switched off ----------------------------------------------------------------------------------


def without_syncing_the_directory() -> AbstractContextManager[None]:
    return patched(MemoryDisk, sync_directory=lambda self: self._call("sync_directory"))


def without_syncing_files() -> AbstractContextManager[None]:
    return patched(MemoryDisk, sync=lambda self, name: self._call("sync", name))


def without_settling_at_the_start() -> AbstractContextManager[None]:
    return patched(MemoryDisk, settle=lambda self, name: self._call("settle", name))


def without_the_hard_state_in_a_new_segment() -> AbstractContextManager[None]:
    rotate = Segments._rotate
    return patched(Segments, _rotate=lambda self, state: rotate(self, b""))


def with_publishing_before_the_bytes_are_there() -> AbstractContextManager[None]:
    return patched(
        Snapshots, _publish=lambda self, part, name: (self.disk.rename(part, name), self.disk.sync_directory())
    )


def with_dropping_before_the_snapshot_is_there() -> AbstractContextManager[None]:
    snapshot = Member.snapshot

    def early(self: Member, index: int, keep: int) -> None:
        self.journal.compact(index - keep)
        self.land()
        snapshot(self, index, keep)

    return patched(Member, snapshot=early)


def with_retrying_after_an_error() -> AbstractContextManager[None]:
    return patched(segments, NO_SPACE=(errno.ENOSPC, errno.EDQUOT, errno.EIO))


def without_waiting_for_the_flight() -> AbstractContextManager[None]:
    land = Member.land

    def early(self: Member) -> None:
        self.landed = len(self.history) - 1
        land(self)

    return patched(Member, land=early)


@pytest.mark.parametrize(
    "switched_off",
    [
        without_syncing_the_directory,
        without_syncing_files,
        without_the_hard_state_in_a_new_segment,
        with_publishing_before_the_bytes_are_there,
        with_dropping_before_the_snapshot_is_there,
        without_waiting_for_the_flight,
    ],
)
def test_crashes_find_a_rule_that_is_switched_off(switched_off: Callable[[], AbstractContextManager[None]]) -> None:
    with switched_off(), pytest.raises(pytest.fail.Exception, match="after a crash"):
        test_a_crash_at_every_disk_call_loses_nothing_that_was_promised(power=True)


@pytest.mark.parametrize("switched_off", [without_settling_at_the_start, with_retrying_after_an_error])
def test_errors_find_a_rule_that_is_switched_off(switched_off: Callable[[], AbstractContextManager[None]]) -> None:
    with switched_off(), pytest.raises((pytest.fail.Exception, AssertionError)):
        test_an_error_at_every_disk_call_stops_the_node_and_loses_nothing(stays=False, power=False)


@pytest.mark.parametrize(
    "switched_off",
    [
        lambda: patched(tail, damage=lambda data, end, durable_bytes: None),
        lambda: patched(tail, _is_one_bit_off=lambda data, at: False),
    ],
    ids=["any tail may be cut", "one bit is not told"],
)
def test_rot_finds_a_rule_that_is_switched_off(switched_off: Callable[[], AbstractContextManager[None]]) -> None:
    with switched_off(), pytest.raises((Broken, AssertionError)):
        test_no_flipped_bit_is_accepted_where_it_matters("cut off")
