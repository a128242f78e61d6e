"""Each mutant breaks one promise; a test or a fuzz run must notice. The first eight survived all earlier tests."""

from __future__ import annotations

from tests.mutants.mutant import Mutant


def _test(file: str, name: str = "") -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, *(("-k", name) if name else ()))


def _fuzz(mix: str) -> tuple[str, ...]:
    return ("-m", "tests.virtual.fuzz", "--schedules", "1000", "--mix", mix)


_PROMISES = "tests/virtual/test_promises.py"
_LIVENESS = "tests/virtual/test_liveness.py"

MUTANTS = (
    Mutant(
        "an echo of the previous read round counts",
        "kvnode/raft/read_rounds.py",
        "number >= self.number:",
        "number >= self.number - 1:",
        _test(_PROMISES, "echo"),
    ),
    Mutant(
        "a follower's read joins the question in flight",
        "kvnode/node/read_index.py",
        "return self._asked.wait(self._number + 1, timeout_s)",
        "return self._asked.wait(self._number + (not self._in_flight), timeout_s)",
        _test(_PROMISES, "join"),
    ),
    Mutant(
        "an answer to any question counts",
        "kvnode/node/questions.py",
        "        self._close(number, fields)\n\n    def connected",
        "        for each in list(self._open):\n            self._close(each, fields)\n\n    def connected",
        _test(_PROMISES, "given_up"),
    ),
    Mutant(
        "a forwarded group is accepted in another term",
        "kvnode/node/writes.py",
        "if term != replica.term or not replica.is_leader or self.transferring:",
        "if not replica.is_leader or self.transferring:",
        _test(_PROMISES, "forwarded"),
    ),
    Mutant(
        "early acknowledgements survive a change of leader",
        "kvnode/raft/guard.py",
        "    def leadership_changed(self) -> None:",
        "    def leadership_changed(self) -> None:\n        return",
        _test(_PROMISES, "leaders_log"),
    ),
    Mutant(
        "the lock trusts its lease to the end",
        "kvnode/client/lock.py",
        "TRUSTED: Final = 0.75",
        "TRUSTED: Final = 1.0",
        _test("tests/client/test_lock.py"),
    ),
    Mutant(
        "restore forgets lease ids",
        "kvnode/storage/bootstrap.py",
        "    store.leases.last_id += leap\n",
        "",
        _test("tests/storage"),
    ),
    Mutant(
        "recover forgets lease ids",
        "kvnode/storage/recover.py",
        "    store.leases.last_id = min(store.leases.last_id + LEAP, COUNTER_MAX)\n",
        "",
        _test("tests/storage"),
    ),
    Mutant(
        "the idempotency window is 1,024 outcomes",
        "kvnode/state/limits.py",
        "OUTCOMES_MAX: Final = 131_072",
        "OUTCOMES_MAX: Final = 1_024",
        _test("tests/state/test_idempotency_window.py"),
    ),
    Mutant(
        "the idempotency window counts outcomes alone, not their age",
        "kvnode/state/idempotency.py",
        "        end = self._young_from if self._timed else self._oldest + len(self._order)\n",
        "        end = self._oldest + len(self._order)\n",
        _test("tests/state/test_idempotency_window.py"),
    ),
    # What was mended once, and must not come back.
    Mutant(
        "a leader whose disk hangs keeps its leadership",
        "kvnode/node/transfer.py",
        "        if engine.storage.hangs:\n",
        "        if False:\n",
        _test(_LIVENESS, "makes_way"),
    ),
    Mutant(
        "the leader probe does not look at the disk",
        "kvnode/node/status.py",
        "    if status.storage_error is not None:\n        # Before",
        "    if False:\n        # Before",
        _test(_LIVENESS, "makes_way"),
    ),
    Mutant(
        "a node that drains never leads",
        "kvnode/raft/election.py",
        "        return now - self._unfit_since < UNFIT_TIMEOUTS * self._timeout_min_s\n",
        "        return True\n",
        _test(_LIVENESS, "drained"),
    ),
    # Of the log, the votes and what is acknowledged.
    Mutant(
        "a voter's other directory is let in before a level",
        "kvnode/node/promises.py",
        "        if fresh and (self.settled or is_another):\n",
        "        if fresh and self.settled:\n",
        _test("tests/node/test_promises.py"),
    ),
    Mutant(
        "an acknowledgement does not wait for the disk",
        "kvnode/raft/outbox.py",
        "        if not self._held and self._journal.clean:\n",
        "        if True:\n",
        _fuzz("disks"),
    ),
    Mutant(
        "a leader counts itself before its disk has the entry",
        "kvnode/raft/guard.py",
        "                next_index = limit  # G9",
        "                pass  # G9",
        _fuzz("disks"),
    ),
    Mutant(
        "a read round confirms without echoes",
        "kvnode/raft/read_rounds.py",
        "        if len(self._echoes) >= majority_of_others:\n",
        "        if True:\n",
        _fuzz("network"),
    ),
    Mutant(
        "leases go on from where the former leader was",
        "kvnode/node/lease_clock.py",
        "        ends = self._now_s + lease.ttl_s\n",
        "        ends = self._now_s + lease.ttl_s / 2\n",
        _fuzz("operators"),
    ),
    Mutant(
        "a stale leader keeps saying yes to the probe",
        "kvnode/node/group.py",
        "        return engine.reads.confirm(timeout_s)\n",
        "        refused = self._loop.create_future()\n        refused.set_result(0)\n        return refused\n",
        _fuzz("network"),
    ),
    Mutant(
        "a group that was not seen is sent again in the same term",
        "kvnode/node/proposals.py",
        "            if all(write.waiter.done() for write in group.writes):\n                del self._sent[sequence]",
        "            if True:\n                self.taken_back(sequence)",
        _fuzz("latency"),
    ),
)
