"""Each mutant breaks one promise; a test or a fuzz run must notice. All of them once survived every test there was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """`before` stands once in `file` and becomes `after`; `command` is Python's arguments, and must then fail."""

    name: str
    file: str
    before: str
    after: str
    command: tuple[str, ...]


def _test(file: str, name: str = "") -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, *(("-k", name) if name else ()))


_PROMISES = "tests/virtual/test_promises.py"

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
)
