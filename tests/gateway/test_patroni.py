"""Patroni on kvnode: what its users do, and kvnode's own faults meanwhile. `make patroni` prints the times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, wait_until
from tests.gateway.patroni import NEEDS, Postgres, installed, timed

# Patroni waits in rounds of ten seconds, and a killed primary holds its lock for thirty.
pytestmark = [pytest.mark.skipif(not installed(), reason=NEEDS), pytest.mark.timeout(300)]

WATCHED_S = 25.0  # two rounds of Patroni's loop (loop_wait 10 s), and what it retries in (10 s)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Postgres]]:
    """Three nodes of kvnode and two of PostgreSQL, with Patroni's defaults (ttl 30, loop_wait 10, retry_timeout 10)."""
    folder = tmp_path_factory.mktemp("patroni")
    with Cluster(folder / "store") as store:
        store.start(60.0)
        with Postgres(store) as postgres:
            postgres.start("pg1")
            timed("bootstrap: the first primary", lambda: postgres.primary() == "pg1", 60)
            postgres.start("pg2")
            timed("bootstrap: the replica streams", lambda: postgres.streams("pg2"), 60)
            postgres.sql("pg1", "create table t (n int)")
            yield store, postgres


def write(postgres: Postgres, number: int) -> None:
    name = wait_until(postgres.primary, 60, "there is a primary")
    wait_until(lambda: postgres.sql(name, "select pg_is_in_recovery()") == "f", 30, "the primary is promoted")
    postgres.sql(name, f"insert into t values ({number})")


def test_edit_config_reaches_every_member(running: tuple[Cluster, Postgres]) -> None:
    _, postgres = running
    postgres.ctl("edit-config", "--force", "-p", "work_mem=9MB")
    timed(
        "edit-config: on both members",
        lambda: all(postgres.sql(name, "show work_mem") == "9MB" for name in postgres.members),
        30,
    )


def test_pause_and_resume(running: tuple[Cluster, Postgres]) -> None:
    _, postgres = running
    timed("pause", lambda: "Success" in postgres.ctl("pause", "--wait"), 60)
    assert postgres.configuration("pg1")["pause"] is True
    timed("resume", lambda: "Success" in postgres.ctl("resume", "--wait"), 60)
    assert not postgres.configuration("pg1").get("pause")
    write(postgres, 1)


@pytest.mark.parametrize("fault", ["killed", "frozen", "stopped", "rolled"])
def test_no_failover_of_postgresql_while_kvnode_changes_its_leader(
    running: tuple[Cluster, Postgres], fault: str
) -> None:
    store, postgres = running
    with postgres.undisturbed():
        leader = store.leader()
        if fault == "killed":
            store.kill(leader)
        elif fault == "frozen":
            store.freeze(leader)
        elif fault == "stopped":
            store.terminate(leader)
        else:
            for name in [*store.followers(), leader]:
                store.terminate(name)
                store.restart(name)
        longest_s = postgres.watch_for(WATCHED_S)
        print(f"{longest_s:7.1f} s  kvnode's leader {fault}: the longest time without a yes from the primary")
        assert longest_s < 5
    if fault == "frozen":
        store.thaw(leader)
    elif fault != "rolled":
        store.restart(leader)
    store.wait_ready()
    write(postgres, 2)


def test_a_switchover(running: tuple[Cluster, Postgres]) -> None:
    _, postgres = running
    old = wait_until(postgres.primary, 30, "there is a primary")
    new = next(name for name in postgres.members if name != old)
    wait_until(lambda: postgres.streams(new), 60, "the replica streams")
    postgres.ctl("switchover", "--leader", old, "--candidate", new, "--force", "pg")
    timed("switchover: the other one is the primary", lambda: postgres.primary() == new, 60)
    timed("switchover: the old one streams", lambda: postgres.streams(old), 60)
    write(postgres, 3)


def test_the_primary_dies_and_comes_back(running: tuple[Cluster, Postgres], tmp_path: Path) -> None:
    _, postgres = running
    old = wait_until(postgres.primary, 30, "there is a primary")
    new = next(name for name in postgres.members if name != old)
    wait_until(lambda: postgres.streams(new), 60, "the replica streams")
    write(postgres, 4)
    wait_until(lambda: postgres.sql(new, "select count(*) from t where n = 4") == "1", 20, "the replica has the row")
    postgres.kill(old)
    timed("the primary killed: the other one is the primary", lambda: postgres.primary() == new, 90)
    write(postgres, 5)
    postgres.start(old)
    timed("the killed one is back and streams", lambda: postgres.streams(old), 90)
    wait_until(lambda: postgres.sql(old, "select count(*) from t where n = 5") == "1", 20, "it has what it missed")


def test_a_running_cluster_moves_to_another_store(running: tuple[Cluster, Postgres], tmp_path: Path) -> None:
    """PostgreSQL goes on, and so does its configuration: the steps of docs/ETCD.md."""
    _, postgres = running
    primary = wait_until(postgres.primary, 30, "there is a primary")
    timeline = postgres.timeline(primary)
    begun = postgres.sql(primary, "select pg_postmaster_start_time()")
    postgres.ctl("pause", "--wait")
    with Cluster(tmp_path / "new") as store:
        store.start(60.0)
        postgres.move(store)
        timed("moved: the primary holds the new store's leader key", lambda: postgres.primary() == primary, 90)
        timed(
            "moved: all members are on the new store",
            lambda: all(f"| {name} " in postgres.ctl("list") for name in postgres.members),
            60,
        )
        postgres.ctl("resume", "--wait")
        assert postgres.sql(primary, "select pg_postmaster_start_time()") == begun
        assert postgres.timeline(primary) == timeline
        assert postgres.sql(primary, "show work_mem") == "9MB"
        write(postgres, 6)
        for name in postgres.members:
            postgres.kill(name)
