"""The judge finds a history that breaks a promise, and lets one pass that does not."""

from __future__ import annotations

import pytest

from kvnode.state.changes import CHANGE_EXPIRE, CHANGE_PUT
from kvnode.state.items import packed
from tests.virtual.judge import Holding, Judge, Operation, Renewal, Violation, Watch
from tests.virtual.world import World


class History:
    """Changes as a node makes them, one each second, and what clients saw of them."""

    def __init__(self) -> None:
        self.world = World(0)
        self.judge = Judge(self.world)

    def put(self, key: str, value: bytes) -> int:
        return self._change(CHANGE_PUT, key, packed(value, "", 1, 1, 1))

    def expire(self, key: str) -> int:
        return self._change(CHANGE_EXPIRE, key, b"")

    def _change(self, kind: int, key: str, item: bytes) -> int:
        self.world.now += 1.0
        revision = len(self.judge.changes) + 1
        self.judge._changed("n1", [(kind, key, revision, item, b"")])
        return revision

    def operation(self, kind: str, called_at: float, returned_at: float, **known: object) -> None:
        operation = Operation(kind, ("x",), called_at, returned_at=returned_at, outcome="ok")
        for name, value in known.items():
            setattr(operation, name, value)
        self.judge.operations.append(operation)

    def breaks(self, sentence: str) -> None:
        with pytest.raises(Violation, match=sentence):
            self.judge.check()


@pytest.fixture
def history() -> History:
    """x is v1 at 1 s and v2 at 2 s, both acknowledged."""
    history = History()
    for number in (1, 2):
        revision = history.put("x", b"v%d" % number)
        history.operation("put", number - 0.5, number + 0.1, value=b"v%d" % number, revision=revision)
    history.judge.check()
    return history


def test_what_may_be_is_let_pass(history: History) -> None:
    history.operation("get", 1.5, 2.5, revision=1, seen=b"v1")  # at the same time as the second write
    history.operation("get", 1.5, 2.5, revision=2, seen=b"v2")
    history.operation("stale", 2.5, 2.6, revision=1, seen=b"v1")
    history.operation("get", 0.1, 0.2, revision=0)
    history.judge.check()


def test_a_linearizable_read_of_the_past(history: History) -> None:
    history.operation("get", 2.5, 2.6, revision=1, seen=b"v1")
    history.breaks("linearizable read of x .* saw")


def test_a_read_of_what_never_was(history: History) -> None:
    history.operation("stale", 2.5, 2.6, revision=1, seen=b"v2")
    history.breaks("stale read of x .* saw")


def test_a_read_of_the_future(history: History) -> None:
    history.operation("stale", 1.2, 1.4, revision=2, seen=b"v2")
    history.breaks("stale read")


def test_a_write_that_was_applied_twice(history: History) -> None:
    history.put("x", b"v1")
    history.breaks("was applied 2 times")


@pytest.mark.parametrize("outcome", ["not_applied", "refused"])
def test_a_write_that_was_refused_and_applied(history: History, outcome: str) -> None:
    revision = history.put("x", b"v3")
    history.operation("put", 2.5, 3.5, value=b"v3", revision=revision, outcome=outcome)
    history.breaks("was refused")


def test_a_write_that_was_acknowledged_and_is_lost(history: History) -> None:
    history.operation("put", 2.5, 3.5, value=b"v3", revision=3)
    history.breaks("was acknowledged at revision 3, and is not there")


def test_a_write_that_was_applied_before_it_was_sent(history: History) -> None:
    revision = history.put("x", b"v3")
    history.operation("put", 3.5, 3.6, value=b"v3", revision=revision)
    history.breaks("has revision 3, and those")


def test_a_comparison_that_did_not_hold(history: History) -> None:
    revision = history.put("x", b"v3")
    history.operation("cas", 2.5, 3.5, value=b"v3", revision=revision, expect=1)
    history.breaks("expected revision 1 and came behind revision 2")


@pytest.mark.parametrize("revisions", [(2, 1), (1, 1), (2, 2), (1, 3)])
def test_a_watch_that_is_out_of_order_or_repeats_or_lacks(history: History, revisions: tuple[int, ...]) -> None:
    history.put("x", b"v3")
    watch = Watch("x", 1, [("put", "x", revision, b"v%d" % revision) for revision in revisions])
    history.judge.watches.append(watch)
    history.breaks("a watch of 'x' was told")


def test_a_lease_that_ends_early(history: History) -> None:
    history.judge.renewals.append(Renewal("l", 2.5, 4.0))
    for number in range(3):
        history.put("y", b"%d" % number)
    history.expire("l")
    history.breaks("l expired at 6.000, 0.4")


def test_a_token_that_falls_and_two_holders(history: History) -> None:
    history.judge.holdings = [Holding("one", 5, 0.0, 1.0, 2.0), Holding("one", 4, 3.0, 4.0, 5.0)]
    history.breaks("had token 5 and then 4")
    history.judge.holdings = [Holding("one", 5, 0.0, 1.0, 4.5), Holding("one", 6, 3.0, 4.0, 5.0)]
    history.breaks("was held with token 5 until 4.500")


def test_a_probe_that_says_yes_in_a_term_that_is_over(history: History) -> None:
    history.judge._applied_in(7)
    history.world.now += 1.0
    history.judge.probed("n1", history.world.now, 7)
    with pytest.raises(Violation, match="said yes in term 6"):
        history.judge.probed("n1", history.world.now, 6)


def test_two_nodes_that_differ(history: History) -> None:
    history.judge._changed("n2", [(CHANGE_PUT, "x", 1, packed(b"other", "", 1, 1, 1), b"")])
    assert "n2 made other changes at revision 1 than n1" in str(history.world.found)


def test_a_lease_that_does_not_end_is_found(history: History) -> None:
    history.world.now = 9.0
    history.judge.renewals.append(Renewal("l0", 1.0, 2, known_at=1.1))
    history.judge.renewals.append(Renewal("l1", 1.0, 2, known_at=1.1))
    history.judge._applied_in(1)
    history.world.now = 11.9
    history.judge.check_ended(lambda key: True, mended_at=8.0)  # the leader has led for 2.9 s
    history.world.now = 12.1
    history.judge.check_ended(lambda key: False, mended_at=8.0)
    history.judge.unsure.add("l0")
    history.judge.check_ended(lambda key: key == "l0", mended_at=8.0)
    with pytest.raises(Violation, match=r"l1 is there at 12\.100; its lease was over by 12\.002"):
        history.judge.check_ended(lambda key: True, mended_at=8.0)


def test_a_watch_may_end_in_the_middle_of_a_revision(history: History) -> None:
    history.world.now = 5.0
    history.judge._changed("n1", [(CHANGE_EXPIRE, key, 3, b"", b"") for key in ("l1", "l2", "l3", "l4")])
    watch = Watch("l", 1, [("expire", "l1", 3, b"")])
    history.judge.watches.append(watch)
    history.judge.check()
    history.judge._changed("n1", [(CHANGE_EXPIRE, "l5", 4, b"", b"")])
    watch.events.append(("expire", "l5", 4, b""))
    history.breaks("a watch of 'l' was told")
