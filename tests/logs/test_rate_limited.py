"""What strangers can make a node write: rare, short, printable, and counted where it is left out."""

from __future__ import annotations

import logging

import pytest

from kvnode.logs import writer
from kvnode.logs.rate_limited import (
    KEYS_MAX,
    LINES_MAX,
    TEXT_CHARS_MAX,
    RateLimitedLog,
    printable,
)

log = logging.getLogger("kvnode.test")


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock) -> RateLimitedLog:
    return RateLimitedLog(clock=clock)


def test_the_same_about_the_same_address_is_said_once_a_minute(lines: RateLimitedLog, clock: Clock) -> None:
    assert lines.admits("a", "kind")
    assert not lines.admits("a", "kind")
    assert lines.admits("b", "kind")
    assert lines.admits("a", "another kind")
    clock.now += 60
    assert lines.admits("a", "kind")


def test_all_addresses_together_have_a_cap_that_known_ones_do_not_share(lines: RateLimitedLog, clock: Clock) -> None:
    assert sum(lines.admits(f"address {n}", "kind") for n in range(10 * LINES_MAX)) == LINES_MAX
    assert not lines.admits_one_of_many("faults")
    assert lines.admits("n2", "kind", capped=False)
    clock.now += 60
    assert lines.admits("another", "kind")


def test_what_is_remembered_is_bounded(lines: RateLimitedLog, clock: Clock) -> None:
    for n in range(3 * KEYS_MAX):
        clock.now += 1
        lines.admits(f"address {n}", "kind")
        lines.admits(f"address {n}", f"kind {n}")
    assert len(lines._written) <= KEYS_MAX


def test_what_was_left_out_is_counted_by_kind(lines: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(4):
        lines.write(log, logging.WARNING, "a", "one kind", "said once")
    for _ in range(3):
        lines.write(log, logging.WARNING, "a", "another", "said once too")
    lines.report()
    lines.report()
    assert [record.getMessage() for record in caplog.records] == [
        "said once",
        "said once too",
        "5 lines were left out of this log (one kind: 3, another: 2).",
    ]


HOSTILE = ("a\nb", "a\r\nb", "a\x1b[2Jb", "a\x9bb", "a\u202eb", "a\u2028b", "a\x00b")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_foreign_text_cannot_end_a_line_or_reach_the_terminal(hostile: str) -> None:
    assert printable(hostile).isprintable()
    record = logging.LogRecord("kvnode.test", logging.INFO, "", 0, "said %s", (hostile,), None)
    assert writer._Text().format(record).isprintable()
    assert "\n" not in writer._Json("n1").format(record)


def test_foreign_text_is_cut() -> None:
    assert printable("x" * TEXT_CHARS_MAX) == "x" * TEXT_CHARS_MAX
    assert printable("x" * 10_000) == "x" * TEXT_CHARS_MAX + "…"
