"""What a node remembers of late: sampling that finds what is busy, within its bounds, and figures that are true."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from kvnode.http.recent import merged_changes, merged_heat
from kvnode.metrics.meters import SECONDS, Histogram
from kvnode.metrics.recent import MINUTES, PREFIXES_MAX, SAMPLES_PER_S, Figures, Traffic, prefix_of


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def traffic(clock: Clock) -> Traffic:
    random.seed(7)
    return Traffic(clock, clock)


def read(traffic: Traffic, key: str) -> bool:
    """As a handler does it; whether a sample was taken."""
    traffic.left -= 1
    if traffic.left <= 0:
        traffic.read(key)
        return True
    return False


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("app/users/17/name", "app/users/"),
        ("app/one", "app/"),
        ("plain", ""),
        ("/a", "/"),
        ("//", "//"),
        ("a" * 300 + "/b", "a" * 128),
    ],
)
def test_the_beginning_of_a_key_ends_with_its_second_slash(key: str, prefix: str) -> None:
    assert prefix_of(key) == prefix
    assert key.startswith(prefix)


def test_few_requests_are_counted_one_by_one(traffic: Traffic, clock: Clock) -> None:
    for number in range(100):
        assert read(traffic, f"app/{number}")
        clock.now += 0.1
    traffic.wrote_each(["app/x/y", "shop/z"])
    assert traffic.reads == 100
    counts: dict[str, list[int]] = {}
    for _, rows in traffic.minutes():
        for prefix, reads, writes in rows:
            counts.setdefault(prefix, [0, 0])
            counts[prefix][0] += reads
            counts[prefix][1] += writes
    assert counts == {"app/": [100, 0], "app/x/": [0, 1], "shop/": [0, 1]}


def test_of_many_requests_few_are_looked_at_and_the_sum_is_true(traffic: Traffic, clock: Clock) -> None:
    """20,000 a second for ten seconds, three of four of them for one kind of keys."""
    samples = 0
    for second in range(10):
        for number in range(20_000):
            clock.now = 1_000_000.0 + second + number / 20_000
            samples += read(traffic, "busy/x" if random.random() < 0.75 else f"rare/{number % 9}/x")
    assert samples < 10 * SAMPLES_PER_S * 6, "the first seconds of a rush double the distance some times"
    assert traffic.reads == pytest.approx(200_000, rel=0.1)
    busy = sum(reads for _, rows in traffic.minutes() for prefix, reads, _ in rows if prefix == "busy/")
    assert busy == pytest.approx(150_000, rel=0.15)


def test_a_quiet_time_after_a_busy_one_is_seen_at_once(traffic: Traffic, clock: Clock) -> None:
    for number in range(50_000):
        clock.now += 1 / 25_000
        read(traffic, f"busy/{number}")
    clock.now += 5
    traffic.settle()
    assert read(traffic, "quiet/x")
    assert any(prefix == "quiet/" for _, rows in traffic.minutes() for prefix, _, _ in rows)
    assert traffic.reads == pytest.approx(50_000, rel=0.1)


def test_memory_is_bounded_and_what_is_busy_stays_among_many_that_are_rare(traffic: Traffic, clock: Clock) -> None:
    for minute in range(MINUTES + 5):
        clock.now = 1_000_000.0 + 60 * minute
        for number in range(300):
            clock.now += 0.1
            read(traffic, f"r{minute}-{number}/x")
            if number % 3 == 0:
                read(traffic, "busy/x")
    minutes = traffic.minutes()
    assert len(minutes) <= MINUTES
    for _, rows in minutes:
        assert len(rows) <= PREFIXES_MAX
        assert all(reads <= 100 for _, reads, _ in rows), "never more than there were"
        assert next(reads for prefix, reads, _ in rows if prefix == "busy/") > 0


def test_rates_and_quantiles_are_those_of_the_step() -> None:
    figures, commit, fsync = Figures(SECONDS), Histogram(SECONDS), Histogram(SECONDS)
    figures.take(1_000, 10.0, 0, 0, commit.counts, [])
    for _ in range(98):
        commit.observe(0.0015)
    commit.observe(0.2)
    commit.observe(0.2)
    fsync.observe(0.0004)
    figures.take(6_000, 15.0, 100, 1_000, commit.counts, fsync.counts)
    figures.take(11_000, 20.0, 100, 1_000, commit.counts, fsync.counts)
    first, second = figures.since(0)
    assert (first["at_ms"], first["writes_per_s"], first["reads_per_s"]) == (6_000, 20.0, 200.0)
    assert 1 <= first["write_p50_ms"] <= 2
    assert 128 <= first["write_p99_ms"] <= 256
    assert 0 < first["fsync_p99_ms"] <= 0.5
    assert (second["writes_per_s"], second["write_p50_ms"], second["fsync_p50_ms"]) == (0.0, None, None)
    assert figures.since(6_000) == [second]
    for step in range(400):
        figures.take(20_000 + step, 30.0 + step, 100, 1_000, commit.counts, fsync.counts)
    assert len(figures.since(0)) == 180


def rows_of(*reports: dict[str, list[tuple[str, int, int]]], minute: int = 100) -> dict[str, dict[str, object]]:
    return {
        f"n{number}": {"minutes": [[minute, [list(each) for each in report["rows"]]]]}
        for number, report in enumerate(reports)
    }


def test_the_heat_of_all_nodes_is_one_and_what_may_not_be_seen_is_in_no_sum() -> None:
    reports = rows_of(
        {"rows": [("a/x/", 3, 1), ("b/", 5, 0)]},
        {"rows": [("a/x/", 4, 2)]},
    )
    rows = merged_heat(reports, 101, lambda prefix: True)
    assert [(row["prefix"], row["reads"][-2], row["writes"][-2]) for row in rows] == [("a/x/", 7, 3), ("b/", 5, 0)]
    assert [row["prefix"] for row in merged_heat(reports, 101, lambda prefix: prefix.startswith("a/"))] == ["a/x/"]
    assert merged_heat(reports, 100 + MINUTES, lambda prefix: True) == []
    many = rows_of({"rows": [*((f"user/{number}/", 1, 1) for number in range(40)), ("b/", 1, 0)]})
    assert [(row["prefix"], row["reads"][-1]) for row in merged_heat(many, 100, lambda prefix: True)] == [
        ("b/", 1),
        ("user/", 40),
    ]
    narrow = merged_heat(many, 100, lambda prefix: prefix.startswith("user/1"))
    assert {row["prefix"] for row in narrow} == {f"user/{number}/" for number in (1, *range(10, 20))}


def change(term: int, leader: str | None, reason: str, **more: object) -> dict[str, object]:
    return {"at_ms": term * 1000, "term": term, "leader_id": leader, "previous_id": None, "reason": reason, **more}


def reports() -> Iterator[tuple[str, dict[str, object]]]:
    yield (
        "n1",
        {
            "changes": [
                change(1, "n1", "own"),
                change(1, None, "own", previous_id="n1"),
                change(2, None, "own", previous_id="n1"),
                change(2, "n2", "seen"),
            ]
        },
    )
    yield "n2", {"changes": [change(1, "n1", "seen"), change(2, "n2", "own")]}
    yield "n3", {}


def test_a_change_of_leadership_is_told_once_by_the_node_that_knows_it_best() -> None:
    merged = merged_changes(dict(reports()))
    assert [(each["term"], each["leader_id"], each["reason"]) for each in merged] == [
        (1, "n1", "own"),
        (1, None, "own"),
        (2, "n2", "own"),
    ]
