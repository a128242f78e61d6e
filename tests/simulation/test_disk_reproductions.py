"""What PySyncObj's core does wrong with files, on real files where that is cheap; and what kvnode does in its place.

R6 a dump outlives its process, R7 compaction in place, R8 a commit index that outlives its log, R9 callbacks and
apply, R11 a dump that cannot be read, R12 journals that cannot be opened, R14 the smaller ones. The other
numbers are in `test_reproductions` and `test_elections`.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pysyncobj.journal import FileJournal

from kvnode.errors import OutcomeUnknown, StartupError
from kvnode.node import compaction
from kvnode.node.proposals import Proposals
from kvnode.state.commands import Put
from kvnode.state.entries import encode_entry
from kvnode.state.store import KeyValueStore
from kvnode.storage import tail
from kvnode.storage.records import entry_record, state_record
from kvnode.storage.segments import Segments
from tests.node.test_proposals import Told
from tests.simulation.cluster import Cluster
from tests.simulation.disk import Crash, Fault, MemoryDisk
from tests.simulation.oracle import Violation
from tests.simulation.stock import StockCluster

# The bare core leaves its files open, above all those that it cannot read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

MakeStock = Callable[..., StockCluster]
MakeSimulation = Callable[..., Cluster]


CLUSTER_ID = b"0123456789abcdef"


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    """What a test leaves open is closed in that test, and not in another that would have to answer for it."""
    yield
    gc.collect()


def filled(disk: MemoryDisk, entries: int, segment_bytes: int) -> Segments:
    """A journal of so many entries, each of which was synced."""
    segments = Segments(disk, CLUSTER_ID, segment_bytes)
    segments.recover()
    for index in range(1, entries + 1):
        segments.append([*entry_record(b"command %d" % index, index, 1)], index, state_record(1, "A"), sync=True)
    return segments


def led_by_a(make_simulation: MakeSimulation, ids: str = "ABC") -> Cluster:
    cluster = make_simulation(ids)
    cluster.elect("A", votes_from=ids[1:])
    cluster.settle()
    return cluster


# --- R6: the forked dumper publishes after its parent is dead ------------------------------------------------

STOCK_NODE = """
import os, sys, time, logging
logging.disable(logging.CRITICAL)
from pysyncobj import SyncObj, SyncObjConf, SyncObjConsumer, replicated
folder, address, mode = sys.argv[1:]
fork = os.fork
def slowly():
    child = fork()
    while child == 0 and not os.path.exists(folder + "/go"):
        time.sleep(0.005)
    return child
os.fork = slowly
class Values(SyncObjConsumer):
    def __init__(self):
        super().__init__()
        self.values = set()
    @replicated
    def add(self, value):
        self.values.add(value)
values = Values()
core = SyncObj(address, [], consumers=[values], conf=SyncObjConf(
    autoTick=False, journalFile=folder + "/journal", fullDumpFile=folder + "/dump",
    appendEntriesPeriod=0.01, raftMinTimeout=0.05, raftMaxTimeout=0.1,
    logCompactionMinEntries=10**9, logCompactionMinTime=10**9))
def spin(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        core.doTick(0.001)
spin(core._isLeader)
spin(core.isReady)
if mode == "write":
    acknowledged = set()
    def add(value):
        values.add(value, callback=lambda result, error: error == 0 and acknowledged.add(value))
    add("before")
    spin(lambda: len(acknowledged) == 1)
    core.forceLogCompaction()
    core.doTick(0.0)
    for number in range(20):
        add(number)
    spin(lambda: len(acknowledged) == 21)
    print(len(acknowledged), flush=True)
    os.kill(os.getpid(), 9)
print(len(values.values))
"""


def test_r6_the_bare_core_forgets_what_it_acknowledged_after_its_dump_began(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def run(mode: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", STOCK_NODE, str(tmp_path), address, mode]
        with (tmp_path / f"{mode}.out").open("w+") as out:  # a pipe would wait for the orphan
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
            out.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read())

    killed = run("write")
    assert (killed.returncode, killed.stdout.split()) == (-signal.SIGKILL, ["21"]), killed.stdout
    (tmp_path / "go").touch()
    deadline = time.monotonic() + 20
    while not (tmp_path / "dump").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert run("read").stdout.split() == ["1"], "twenty acknowledged writes are gone"


@pytest.mark.parametrize("worker", ["has not begun", "is done", "is done after the crash"])
def test_r6_a_snapshot_that_a_crash_interrupts_costs_nothing(worker: str, make_simulation: MakeSimulation) -> None:
    cluster = led_by_a(make_simulation, "A")
    node = cluster.nodes["A"]
    for n in range(10):
        cluster.propose("A", f"before {n}")
    cluster.settle()
    node.quick = False
    cluster.take_snapshot("A")
    (job,) = node._jobs
    for n in range(20):
        cluster.propose("A", f"after {n}")
        for step in (node.begin_flight, node.end_flight, lambda: cluster.tick("A")):
            step()
    if worker == "is done":
        node.work_on()
    assert len(cluster.oracle.acknowledged) == 30
    cluster.crash("A", power=False)
    if worker == "is done after the crash":
        job.work()  # no thread outlives its process, but nothing should rest on that
    node.quick = True
    cluster.restart("A")
    cluster.campaign("A")
    cluster.settle()
    cluster.must_agree("A")


# --- R7: compaction rewrites the journal in place -------------------------------------------------------------


def test_r7_the_bare_core_loses_its_journal_when_it_dies_while_it_compacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal(str(tmp_path / "journal"))
    for index in range(1, 201):
        journal.add(b"\x00value", index, 1)
    add, left = FileJournal.add, [3]

    def dies(self: FileJournal, *entry: object) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        add(self, *entry)

    monkeypatch.setattr(FileJournal, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        journal.deleteEntriesTo(50)
    assert len(FileJournal(str(tmp_path / "journal"))) == 3, "of 150"


def test_r7_compaction_loses_nothing_wherever_it_is_interrupted() -> None:
    for at in range(1, 12):
        for power in (True, False):
            disk = MemoryDisk()
            segments = filled(disk, entries=60, segment_bytes=300)
            disk.faults.append(Fault(at))
            with suppress(Crash):
                segments.drop_before(50)
            disk.crash(random.Random(at)) if power else disk.kill()
            entries = Segments(disk, CLUSTER_ID).recover().entries
            assert [index for _, index, _ in entries if index >= 50] == list(range(50, 61))


# --- R8: a commit index of its own, newer than the log ----------------------------------------------------------


def test_r8_the_bare_core_acknowledges_alone_what_it_has_alone(tmp_path: Path, make_stock: MakeStock) -> None:
    journal = FileJournal(str(tmp_path / "A"))  # as a power cut leaves it: the journal's pages are lost, .meta is not
    journal.add(b"\x01", 1, 0)
    journal.add(b"\x01", 2, 1)
    journal.setRaftCommitIndex(50)
    journal.setCurrentTerm(1, None)
    journal._destroy()
    cluster = make_stock("ABC", journalFile=lambda node_id: str(tmp_path / node_id))
    cluster.elect("A", votes_from="BC")
    for node_id in "ABC":
        cluster.isolate(node_id)
    write = cluster.propose("A", "nobody else has this")
    cluster.tick("A")
    cluster.tick("A")
    assert write.acknowledged
    cluster.join("B", "C")
    cluster.elect("B", votes_from="C")
    with pytest.raises(Violation, match="divergent"):
        cluster.settle("BC")


def test_r8_nothing_is_taken_for_committed_because_it_once_was(make_simulation: MakeSimulation) -> None:
    cluster = led_by_a(make_simulation)
    for n in range(40):
        cluster.propose("A", n)
    cluster.settle()
    cluster.crash("A")
    cluster.restart("A")
    assert cluster["A"].raftCommitIndex == 1
    cluster.elect("A", votes_from="BC")
    for node_id in "ABC":
        cluster.isolate(node_id)
    write = cluster.propose("A", "nobody else has this")
    for _ in range(3):
        cluster.tick("A")
    assert not write.acknowledged


# --- R9: apply and the callbacks in it ---------------------------------------------------------------------------


def test_r9_the_bare_core_applies_twice_what_a_callback_stumbles_over(make_stock: MakeStock) -> None:
    cluster = make_stock("ABC")
    cluster.elect("A", votes_from="BC")
    cluster.settle()

    def stumbles(result: object, error: int) -> None:
        raise RuntimeError("the client has left")

    cluster["A"].machine.add("once", callback=stumbles)
    for _ in range(6):
        try:
            cluster.settle(rounds=1)
        except RuntimeError:
            pass
    assert cluster["A"].machine.values == ["once", "once"]
    assert cluster["B"].machine.values == ["once"]


def test_r9_a_client_that_left_changes_nothing() -> None:
    store = KeyValueStore()
    proposals = Proposals(b"origin-1", store.apply, lambda: 0.0)
    proposals.submit(Put("k", b"1", "").encode(), Told(left=True), 10.0)
    told = Told()
    proposals.submit(Put("k", b"2", "").encode(), told, 10.0)
    _, payload = proposals.take(term=1)
    proposals.applied(1, encode_entry([payload]))
    assert (store.revision, told.outcome.revision) == (2, 2)
    proposals.applied(1, b"\xc1 no command of ours")  # total: whatever is in the log, apply does not raise
    assert store.revision == 2


# --- R11: a dump that cannot be read -------------------------------------------------------------------------------


def test_r11_the_bare_core_starts_empty_on_a_torn_dump_and_says_nothing(tmp_path: Path, make_stock: MakeStock) -> None:
    files = {
        "journalFile": lambda node_id: str(tmp_path / f"{node_id}.journal"),
        "fullDumpFile": lambda node_id: str(tmp_path / f"{node_id}.dump"),
        "useFork": False,
    }
    cluster = make_stock("ABC", **files)
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    for n in range(30):
        cluster.propose("A", n)
    cluster.settle()
    cluster.take_snapshot("B")
    cluster.settle()
    assert len(cluster["B"].machine.values) == 30
    cluster["B"].destroy()
    os.truncate(tmp_path / "B.dump", 100)
    cluster.start_node("B", "AC")
    assert cluster["B"].machine.values == []
    assert cluster["B"].first_index > 2, "and its journal does not have them either"


def test_r11_a_torn_snapshot_is_a_reason_not_to_start(make_simulation: MakeSimulation) -> None:
    cluster = led_by_a(make_simulation)
    for n in range(30):
        cluster.propose("A", n)
    cluster.settle()
    cluster.take_snapshot("B")
    node = cluster.nodes["B"]
    newest = node.snapshots.newest
    assert newest is not None
    cluster.crash("B")
    node.disk.replace(newest.name, node.disk.files()[newest.name][:100])
    with pytest.raises(StartupError, match=rf"{newest.name} is damaged before byte \d+ .*restore|catch up"):
        cluster.restart("B")


# --- R12: journals that cannot be opened, or should not be ---------------------------------------------------------


def test_r12_the_bare_core_does_not_start_after_a_crash_and_starts_on_damage(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(Exception, match=r"mmap|unpack|empty"):
        FileJournal(str(tmp_path / "empty"))

    def filled_journal(name: str) -> Path:
        journal = FileJournal(str(tmp_path / name))
        for index in range(1, 200):
            journal.add(b"\x00" + b"v" * 100, index, 1)
        journal._destroy()
        return tmp_path / name

    path = filled_journal("altered")
    data = bytearray(path.read_bytes())
    data[5_000:5_007] = b"GARBAGE"
    path.write_bytes(data)
    assert len(FileJournal(str(path))) == 199, "accepted: there is no checksum"
    path = filled_journal("zeroed")
    data = bytearray(path.read_bytes())
    data[8_192:] = bytes(len(data) - 8_192)
    path.write_bytes(data)
    with pytest.raises(Exception, match=r".*"):
        FileJournal(str(path))


@pytest.mark.parametrize("kept_bytes", [0, 1, 33, 34, 300])
def test_r12_an_unfinished_tail_is_cut_and_damage_is_refused(kept_bytes: int) -> None:
    name = "journal-000000000001"
    disk = MemoryDisk()
    filled(disk, entries=60, segment_bytes=100_000)
    whole = disk.read(name)
    for tail_bytes in (0, 5_000):
        disk.replace(name, whole[:kept_bytes] + bytes(tail_bytes))
        if kept_bytes < 300:
            Segments(disk, CLUSTER_ID).recover()  # the very first flight, unfinished
    altered = bytearray(whole)
    altered[500:507] = b"GARBAGE"
    disk.replace(name, bytes(altered))
    with pytest.raises(StartupError, match=f"{name} is damaged at byte"):
        Segments(disk, CLUSTER_ID).recover()


def test_r12_offsets_do_not_end_at_four_gibibytes() -> None:
    disk = MemoryDisk()
    tail.write_mark(disk, CLUSTER_ID, tail.Durable(3, 2**40))
    assert tail.read_mark(disk, CLUSTER_ID) == (3, 2**40)


# --- R14: the smaller ones ------------------------------------------------------------------------------------------


def test_r14_the_bare_core_repairs_one_entry_per_heartbeat_and_never_answers(make_stock: MakeStock) -> None:
    cluster = make_stock("ABC")
    cluster.elect("A", votes_from="BC")
    cluster.settle()
    cluster.isolate("A")
    answers: list[int] = []
    cluster["A"].machine.add("on its way", callback=lambda result, error: answers.append(error))
    for n in range(60):
        cluster.propose("A", f"never committed {n}")
    cluster.tick("A")
    cluster.elect("B", votes_from="C")
    for n in range(60):
        cluster.propose("B", n)
    cluster.settle("BC")
    cluster.rejoin("A")
    with pytest.raises(Violation, match="did not catch up"):
        cluster.must_catch_up("A", within_heartbeats=40)
    cluster.take_snapshot("B")
    cluster.must_catch_up("A", within_heartbeats=40)
    cluster.settle(rounds=40)
    assert answers == [], "its client waits for ever"


def test_r14_any_number_of_divergent_entries_is_repaired_within_a_few_heartbeats(
    make_simulation: MakeSimulation,
) -> None:
    cluster = led_by_a(make_simulation)
    cluster.isolate("A")
    for n in range(200):
        cluster.propose("A", f"never committed {n}")
    cluster.tick("A")
    cluster.elect("B", votes_from="C")
    for n in range(300):
        cluster.propose("B", n)
    cluster.settle("BC")
    cluster.rejoin("A")
    cluster.must_catch_up("A", within_heartbeats=5)
    cluster.must_agree()


def test_r14_a_write_whose_entry_a_snapshot_replaced_is_answered() -> None:
    proposals = Proposals(b"origin-1", KeyValueStore().apply, lambda: 0.0)
    told = Told()
    proposals.submit(Put("k", b"1", "").encode(), told, 10.0)
    proposals.take(term=1)
    proposals.skipped()
    assert isinstance(told.outcome, OutcomeUnknown)


def test_r14_a_value_as_big_as_the_cores_chunks_goes_through(make_simulation: MakeSimulation) -> None:
    """The bare core cuts an entry of about 128 KiB into chunks that its followers cannot put together."""
    cluster = led_by_a(make_simulation)
    writes = [cluster.propose("A", "v" * size) for size in range(2 * 65_536 - 60, 2 * 65_536 + 1, 10)]
    cluster.settle()
    assert all(write.acknowledged for write in writes)
    cluster.must_agree()


def test_r14_a_snapshot_that_finds_no_room_is_not_tried_again_at_once(make_simulation: MakeSimulation) -> None:
    """The bare core forks a dumper at every tick."""
    cluster = led_by_a(make_simulation, "A")
    node = cluster.nodes["A"]
    for n in range(20):
        cluster.propose("A", n)
    cluster.settle()
    node.disk.full = True
    calls = node.disk.calls
    for _ in range(100):
        cluster.take_snapshot("A")
    assert node.disk.calls - calls < 20
    node.disk.full = False
    cluster.tick("A", after_s=compaction.AGAIN_S)
    cluster.take_snapshot("A")
    assert node.snapshots.newest is not None
