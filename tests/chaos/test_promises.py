"""Every part of the verdict but linearizability, against what a good cluster shows and against doctored evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.batches import Batch, Tally
from tests.chaos.chronicle import Change, Chronicle
from tests.chaos.clients import Reply, told
from tests.chaos.diary import Diary, Fault
from tests.chaos.history import Operation
from tests.chaos.leases import Holding, Lease, broken_ids, broken_leases, broken_tokens
from tests.chaos.prober import Claim, Write, broken_promises
from tests.chaos.watches import Watched, broken_watches

# --- what was applied, by version -----------------------------------------------------------------------------------


def tally(*steps: tuple[str, int, int] | str, floor: int = 0) -> Tally:
    """A key's writes: those acknowledged as (value, version, revision), those in doubt by their value alone."""
    made = Tally("k")
    for step in steps:
        if isinstance(step, str):
            made.in_doubt(step)
        else:
            made.done(*step, floor)
    return made


@pytest.mark.parametrize(
    ("writes", "value", "version"),
    [
        (tally(("a", 1, 1), ("b", 2, 2)), "b", 2),
        (tally(("a", 1, 1), "u", ("b", 2, 2)), "b", 2),
        (tally(("a", 1, 1), "u", ("b", 3, 3)), "b", 3),
        (tally(("a", 1, 1), "u", ("b", 2, 2)), "u", 3),  # it was carried out late
        (tally("u", "v"), "v", 2),
        (tally("u", "v"), None, 0),
    ],
)
def test_each_acknowledged_write_once_and_each_doubtful_one_at_most_once(
    writes: Tally, value: str | None, version: int
) -> None:
    writes.found(value, version, "n1")
    assert writes.findings == []


@pytest.mark.parametrize(
    ("writes", "value", "version"),
    [
        (tally(("a", 1, 1), ("b", 3, 2)), "b", 3),  # one of them twice
        (tally(("a", 1, 1), ("b", 1, 2)), "b", 1),  # the first was lost
        (tally(("a", 1, 1), "u", ("b", 4, 3)), "b", 4),  # the doubtful one twice
        (tally("u", ("a", 2, 2), ("b", 2, 3)), "b", 2),
        (tally(("a", 1, 2), ("b", 2, 1)), "b", 2),  # revisions go back
        (tally(("a", 1, 2), floor=5), "a", 1),  # it took place before it was asked for
        (tally(("a", 1, 1)), None, 0),
        (tally(("a", 1, 1)), "a", 2),
        (tally(("a", 1, 1)), "x", 1),  # refused, and there
        (tally(("a", 1, 1), ("b", 2, 2)), "a", 2),
        (tally(("a", 1, 1), "u"), "u", 1),
        (tally(("a", 1, 1), "u"), "a", 2),
    ],
)
def test_a_write_that_is_lost_or_there_twice_is_found(writes: Tally, value: str | None, version: int) -> None:
    writes.found(value, version, "n1")
    assert writes.findings


def batch_reply(*results: dict[str, object], status: int = 200) -> Reply:
    return Reply(status, {}, json.dumps({"results": results}).encode())


def test_a_batch_that_is_answered_otherwise_when_it_is_sent_again_is_found() -> None:
    batch = Batch("b", [Tally("x"), Tally("y")], 0)
    first = {"key": "x", "version": 1, "revision": 5}
    batch.answered(batch_reply(first, {"key": "y", "error": "outcome_unknown", "outcome": "unknown"}))
    assert (batch.open, batch.in_doubt) == (1, True)
    batch.answered(batch_reply(first, {"key": "y", "version": 3, "revision": 6}))
    assert (batch.open, batch.in_doubt) == (0, False)
    for wrong in ({**first, "revision": 7}, {**first, "version": 2}, {**first, "key": "y"}):
        with pytest.raises(ValueError, match="x"):
            batch.answered(batch_reply(wrong, {"key": "y", "version": 3, "revision": 6}))
    with pytest.raises(ValueError, match="400"):
        batch.answered(batch_reply(status=400))


# --- transactions ---------------------------------------------------------------------------------------------------

READ = Operation(0, 0, "n1", "get", "k", 0.0, way="txn")


def read_reply(*seen: tuple[str, int, int]) -> Reply:
    results = [{"get": {"key": "k", "value": value, "mod_revision": at, "version": v}} for value, at, v in seen]
    return Reply(200, {}, json.dumps({"succeeded": True, "revision": 9, "results": results}).encode())


def test_keys_that_are_written_together_are_read_as_one() -> None:
    seen = told(READ, read_reply(*[("YXw=", 4, 2)] * 3))
    assert (seen.outcome, seen.found, seen.revision, seen.store_revision) == ("ok", "a", 4, 9)


@pytest.mark.parametrize("other", [("Ynw=", 4, 2), ("YXw=", 5, 2), ("YXw=", 4, 1)])
def test_half_a_transaction_is_found(other: tuple[str, int, int]) -> None:
    with pytest.raises(ValueError, match="not the same"):
        told(READ, read_reply(("YXw=", 4, 2), other, ("YXw=", 4, 2)))


# --- watches --------------------------------------------------------------------------------------------------------

Telling = tuple[int, str, str, str, int]  # revision, kind, key, value, version
HISTORY: list[Telling] = [
    (1, "put", "key/a", "1", 1),
    (2, "put", "batch", "x", 1),
    (3, "put", "key/a", "2", 2),
    (4, "delete", "key/a", "", 0),
    (5, "put", "key/a", "3", 1),
]


def watch(chronicle: Chronicle, name: str, prefix: str, history: list[Telling]) -> Watched:
    watched = Watched(name, prefix, chronicle, revisions={"key/": []})
    for revision, kind, key, value, version in history:
        if key.startswith(prefix):
            watched.block(revision, ((kind, key, value),), {version} if kind == "put" else set())
    return watched


def watched_findings(
    complete: list[Telling],
    partial: list[Telling] = HISTORY,
    acknowledged: list[Telling] = HISTORY,
    doubtful: tuple[Change, ...] = (),
) -> list[str]:
    chronicle = Chronicle()
    for change in doubtful:
        chronicle.doubtful((change,))
    for revision, kind, key, value, version in acknowledged[:3]:
        chronicle.acknowledged(revision, ((kind, key, value),), version)
    watches = watch(chronicle, "all", "", complete), watch(chronicle, "some", "key/", partial)
    for revision, kind, key, value, version in acknowledged[3:]:
        chronicle.acknowledged(revision, ((kind, key, value),), version)
    return broken_watches([watches[0]], [watches[1]], [], 5) + chronicle.conclude([])


def test_a_watch_that_is_told_the_history_is_fine() -> None:
    assert watched_findings(HISTORY) == []
    late: Telling = (5, "put", "key/a", "u", 1)
    assert watched_findings([*HISTORY[:4], late], [*HISTORY[:4], late], HISTORY[:4], (("put", "key/a", "u"),)) == []


def test_an_empty_store_may_begin_at_revision_1() -> None:
    later: list[Telling] = [(revision + 1, *rest) for revision, *rest in HISTORY]  # type: ignore[misc]
    assert watch(Chronicle(), "all", "", later).findings == []
    assert "revision 3 after 0" in watch(Chronicle(), "all", "", later[1:]).findings[0]


def altered(number: int, **fields: object) -> list[Telling]:
    revision, kind, key, value, version = HISTORY[number]
    given = {"revision": revision, "kind": kind, "key": key, "value": value, "version": version} | fields
    return [*HISTORY[:number], tuple(given.values()), *HISTORY[number + 1 :]]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("complete", "what"),
    [
        ([*HISTORY[:2], *HISTORY[3:]], "revision 4 after 2"),
        ([*HISTORY[:2], HISTORY[1], *HISTORY[2:]], "revision 2 after 2"),
        ([HISTORY[0], HISTORY[2], HISTORY[1], *HISTORY[3:]], "revision 2 after 3"),
        (HISTORY[:4], "ends at 4"),
        (altered(2, value="9"), "is told as|was told as|told differently"),
        (altered(1, version=2), "version {2} of batch"),
        (altered(1, key="other"), "was told as"),
        ([*HISTORY[:3], (4, "delete", "key/b", "", 0), HISTORY[4]], "which was not there"),
        ([*HISTORY, (6, "put", "batch", "x", 2)], "nobody's"),  # an acknowledged write, carried out again
    ],
)
def test_a_watch_that_is_told_something_else_is_found(complete: list[Telling], what: str) -> None:
    findings = watched_findings(complete)
    assert any(part in finding for finding in findings for part in what.split("|")), findings


def test_a_change_that_a_watch_of_some_keys_misses_is_found() -> None:
    assert any("missed the revisions [3]" in finding for finding in watched_findings(HISTORY, altered(2, key="x")))


def test_a_doubtful_write_that_is_carried_out_twice_is_found() -> None:
    twice: list[Telling] = [*HISTORY, (6, "put", "key/a", "u", 2), (7, "put", "key/a", "u", 3)]
    findings = watched_findings(twice, twice, HISTORY, (("put", "key/a", "u"),))
    assert [finding[:10] for finding in findings if "nobody's" in finding] == ["revision 7"]


def test_an_acknowledged_change_that_no_watch_is_told_is_found() -> None:
    chronicle = Chronicle()
    chronicle.acknowledged(7, (("put", "k", "v"),), 1)
    assert "never told" in chronicle.conclude([])[0]
    assert "twice" in _twice(chronicle)


def _twice(chronicle: Chronicle) -> str:
    chronicle.acknowledged(7, (("put", "other", "v"),), 1)
    return chronicle.findings[-1]


def test_compacted_is_allowed_where_numbers_leapt_and_nowhere_else() -> None:
    chronicle = Chronicle()
    watched = watch(chronicle, "all", "", HISTORY)
    watched.missed(1_006)
    watched.block(1_006, (("put", "key/a", "9"),), {7})
    assert broken_watches([watched], [], [(5, 1_005)], 1_006) == []
    assert "without a reason" in broken_watches([watched], [], [], 1_006)[0]
    assert "without a reason" in broken_watches([watched], [], [(2_000, 3_000)], 1_006)[0]


# --- leases and locks -----------------------------------------------------------------------------------------------

REIGN = [Claim(at / 2, at / 2 + 0.1, "n1", 1) for at in range(60)]


def test_a_lease_that_is_over_in_its_time_is_fine() -> None:
    assert broken_leases([Lease("k", 2, 1.0, 1.1, held_at=3.0, gone_at=3.05)], REIGN) == []
    # A new leader begins its time anew, and without one it lasts.
    moved = [*REIGN[:5], *[Claim(at, at + 0.1, "n2", 2) for at in (6.0, 6.5, 7.0)]]
    assert broken_leases([Lease("k", 2, 1.0, 1.1, held_at=7.9, gone_at=8.0)], moved) == []
    # A leader that is frozen for two seconds, and goes on in its term: its clock stands still meanwhile.
    frozen = [*REIGN[:5], Claim(2.5, 4.6, "n1", 1), *REIGN[10:]]
    assert broken_leases([Lease("k", 2, 1.0, 1.1, held_at=7.9, gone_at=8.0)], frozen) == []


@pytest.mark.parametrize(
    ("lease", "what"),
    [
        (Lease("k", 2, 1.0, 1.1, held_at=2.0, gone_at=2.9), "before its"),
        (Lease("k", 2, 1.0, 1.1, held_at=9.0, gone_at=9.1), "after its time"),
        (Lease("k", 2, 1.0, 1.1, held_at=9.0), "after its time"),
    ],
)
def test_a_lease_that_is_over_early_or_late_is_found(lease: Lease, what: str) -> None:
    (finding,) = broken_leases([lease], REIGN)
    assert what in finding


def test_an_id_of_a_lease_that_is_given_twice_is_found() -> None:
    assert broken_ids([1, 2, 1_000_000_003]) == []
    assert "2 times: 2" in broken_ids([1, 2, 3, 2])[0]


def test_tokens_that_rise_are_fine() -> None:
    assert broken_tokens([Holding("a", 4, 0, 1), Holding("a", 9, 1.5, 2), Holding("b", 5, 1.6, 3)]) == []


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (Holding("a", 4, 1.5, 2), "did not rise"),
        (Holding("a", 3, 1.5, 2), "did not rise"),
        (Holding("a", 9, 0.5, 2), "two holders"),
    ],
)
def test_a_token_that_is_given_twice_or_two_holders_are_found(second: Holding, what: str) -> None:
    for order in (1, -1):
        (finding,) = broken_tokens([Holding("a", 4, 0, 1), second][::order])
        assert what in finding


# --- the leader probe -----------------------------------------------------------------------------------------------

SAID = [Claim(at / 10, at / 10 + 0.01, "n1", 1) for at in range(60)]


def promises(*outcomes: str, every_s: float = 0.5, fault: Callable[[], Fault] | None = None) -> list[str]:
    diary = Diary([fault()] if fault else [])
    writes = [Write("n1", 1, at * every_s, at * every_s + every_s - 0.1, each) for at, each in enumerate(outcomes)]
    return broken_promises(writes, SAID, diary)


def test_a_probe_whose_writes_succeed_or_that_changes_its_mind_is_fine() -> None:
    assert promises(*["ok"] * 8) == []
    assert promises("ok", "ok", "no_leader", "unanswered", "ok", "no_leader") == []
    assert broken_promises([Write("n1", 1, 0.0, 5.0, "unanswered")], SAID[:12], Diary()) == []


def test_a_probe_that_says_200_while_no_write_goes_through_is_found() -> None:
    assert "none of 7 writes" in promises("ok", *["disk_full"] * 7, "ok")[0]
    assert "none of 1 writes" in promises("unanswered", every_s=5.0)[0]
    assert promises("unanswered", every_s=5.0, fault=lambda: Fault("slow leader", "", 1.0, 2.0)) == []
    assert promises("unanswered", every_s=5.0, fault=lambda: Fault("kill all", "", 1.0, 2.0)) != []
    late = [replace_term(claim) for claim in SAID]
    assert broken_promises([Write("n1", 1, 0.0, 5.0, "unanswered")], [*SAID[:1], *late], Diary()) == []


def replace_term(claim: Claim) -> Claim:
    return claim._replace(term=2)


def test_an_operation_says_how_it_was_sent() -> None:
    assert "keyed txn put" in str(replace(READ, kind="put", way="keyed txn"))
