"""Who has forgotten its promises: a node that has the cluster's feature level in its log has not, applied or not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from kvnode.configuration import first_cluster
from kvnode.node.promises import Promises
from kvnode.peers.handshake import FORGETFUL, PeerRefused
from kvnode.raft.membership import Roster
from kvnode.state.commands import RaiseLevel
from kvnode.state.entries import ORIGIN_BYTES, encode_entry, encode_group
from kvnode.state.store import KeyValueStore
from kvnode.storage.identity import Claim, Identity, write, written
from kvnode.storage.journal import Journal
from kvnode.storage.records import NO_OP, REGULAR
from kvnode.storage.segments import Recovered
from tests.simulation.disk import MemoryDisk

LEVEL_ENTRY = bytes([REGULAR]) + encode_entry([encode_group(bytes(ORIGIN_BYTES), 0, [RaiseLevel(1).encode()])])


def memory_of(journal: Journal, *, began_empty: bool = True) -> Promises:
    peers = {name: ("127.0.0.1", 7000 + number) for number, name in enumerate(("n1", "n2", "n3"))}
    roster = Roster("n1", journal, first_cluster(peers))
    claimed = Claim("n1", b"0123456789abcdef", sorted(peers), began_empty=began_empty)
    disk = MemoryDisk()
    write(disk, claimed)
    return Promises(claimed, Identity(disk, threading.Lock()), journal, KeyValueStore(), roster, lambda: None)


def test_a_node_is_fresh_until_a_level_is_in_its_log() -> None:
    """Not when it is applied: a leader that has committed it may meet this node again before it has said so."""
    journal = Journal(Recovered())
    memory = memory_of(journal)
    assert memory.fresh
    journal.add(NO_OP, 2, 1)
    assert memory.fresh, "it remembers no cluster that has reached a level"
    journal.add(LEVEL_ENTRY, 3, 1)
    assert not memory.fresh
    journal.add(NO_OP, 4, 1)
    assert not memory.fresh


def test_a_log_that_another_leader_has_rewritten_is_read_again() -> None:
    journal = Journal(Recovered())
    memory = memory_of(journal)
    for index in (2, 3, 4):
        journal.add(NO_OP, index, 1)
    assert memory.fresh
    journal.deleteEntriesFrom(2)
    journal.add(LEVEL_ENTRY, 3, 2)
    journal.add(NO_OP, 4, 2)
    assert not memory.fresh


def test_a_node_that_did_not_begin_with_a_first_cluster_is_never_fresh() -> None:
    assert not memory_of(Journal(Recovered()), began_empty=False).fresh


def test_a_level_is_noted_once_and_by_a_worker_which_may_wait_for_its_disk() -> None:
    memory = memory_of(Journal(Recovered()))
    jobs: list[tuple[Callable[[], Any], Callable[[Any, Exception | None], None]]] = []

    def work(job: Callable[[], Any], then: Callable[[Any, Exception | None], None]) -> None:
        jobs.append((job, then))

    memory.look(work)
    assert jobs == [], "there is no level"
    memory._store.apply(msgpack.unpackb(RaiseLevel(1).encode()))
    memory.look(work)
    memory.look(work)
    assert memory.settled, "it refuses whom it must before that is on disk"
    ((_, then),) = jobs
    then(None, OSError(28, "No space left on device"))
    memory.look(work)
    job, then = jobs[1]
    then(job(), None)
    memory.look(work)
    assert len(jobs) == 2
    assert written(memory._identity._disk).settled


def test_another_directory_of_a_voter_that_was_met_is_refused_after_a_restart_too() -> None:
    first, second = b"1" * 16, b"2" * 16
    memory = memory_of(Journal(Recovered()))
    memory.meet("n2", first, True)
    memory.meet("n2", first, True)  # the same one, as often as it likes
    memory.meet("n3", b"", False)  # of a version that drew no id
    memory.meet("stranger", second, True)
    memory.look(lambda job, then: then(job(), None))
    memory.look(lambda job, then: pytest.fail("it is noted"))
    claimed = written(memory._identity._disk)
    assert claimed.met == {"n2": first}
    again = Promises(claimed, memory._identity, memory._journal, KeyValueStore(), memory._roster, lambda: None)
    for each in (memory, again):
        with pytest.raises(PeerRefused, match="kvnode member replace n2") as refused:
            each.meet("n2", second, True)
        assert refused.value.code == FORGETFUL
        each.meet("n2", first, True)
        each.meet("n3", second, True)  # whom it does not know it cannot tell from another


def test_a_node_that_was_refused_does_not_vote_after_a_restart_either() -> None:
    memory = memory_of(Journal(Recovered()))
    memory.refused(FORGETFUL)
    assert memory.lost
    memory.look(lambda job, then: then(None, OSError("full")))
    memory.look(lambda job, then: then(job(), None))
    memory.look(lambda job, then: pytest.fail("it is noted"))
    claimed = written(memory._identity._disk)
    again = Promises(claimed, memory._identity, Journal(Recovered()), KeyValueStore(), memory._roster, lambda: None)
    assert again.lost
    again.look(lambda job, then: pytest.fail("it is noted"))


def test_a_voter_that_was_replaced_is_known_by_its_new_directory() -> None:
    first, second, third = (each * 16 for each in (b"1", b"2", b"3"))
    memory = memory_of(Journal(Recovered()))
    memory.meet("n2", first, True)
    before = memory._roster.newest
    learner = replace(before.members["n2"], voter=False, wanted=True, since=5)
    memory._roster.told(before.having(learner, 5).packed)
    memory.meet("n2", second, True)
    memory._roster.told(memory._roster.newest.having(replace(learner, voter=True), 6).packed)
    memory.meet("n2", second, True)
    for other in (first, third):
        with pytest.raises(PeerRefused, match="is empty"):
            memory.meet("n2", other, True)


def test_what_is_noted_at_once_is_not_lost_to_each_other() -> None:
    disk = MemoryDisk()
    write(disk, Claim("n1", bytes(16), ["n1"], began_empty=True))
    identity = Identity(disk, threading.Lock())
    threads = [threading.Thread(target=each) for each in (identity.settle, lambda: identity.dismiss("It was removed."))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert (written(disk).settled, written(disk).dismissed) == (True, "It was removed.")
