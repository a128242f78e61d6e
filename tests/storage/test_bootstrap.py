"""Numbers are given once: no recovered cluster, nor one made of a backup, gives what the old one may have given."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.errors import StartupError
from kvnode.state.commands import GRANT, PUT
from kvnode.state.limits import COUNTER_MAX
from kvnode.state.results import Granted, Invalid, Written
from kvnode.state.store import KeyValueStore
from kvnode.storage import identity
from kvnode.storage.bootstrap import LEAP, LEAP_MAX
from kvnode.storage.disk import Directory
from kvnode.storage.recover import recover
from kvnode.storage.restore import restore
from kvnode.storage.snapshots import Snapshots

ADDRESS = ("127.0.0.1", 7001)


def sample() -> KeyValueStore:
    store = KeyValueStore()
    store.apply([PUT, "key", b"value", "", None])
    store.apply([GRANT, 60])
    return store


def held_in(directory: Path) -> KeyValueStore:
    disk = Directory(directory)
    try:
        return Snapshots(disk, identity.written(disk).cluster_id).recover()
    finally:
        disk.close()


def test_a_cluster_made_of_a_backup_leaps_over_revisions_and_lease_ids(tmp_path: Path) -> None:
    restore(tmp_path / "n1", "n1", ADDRESS, "", sample(), LEAP)
    store = held_in(tmp_path / "n1")
    assert store.apply([PUT, "key", b"new", "", None]) == Written(1 + LEAP + 1, 2)
    assert store.apply([GRANT, 60]) == Granted(1 + LEAP + 1, 60)
    assert 1 in store.leases, "a lease that the backup holds goes on under its id"


def test_a_mount_point_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of a container's volume, say. Simulated: to mount something takes root."""
    restore(tmp_path / "old", "n1", ADDRESS, "", sample(), 0)
    (tmp_path / "new").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(Path, "is_mount", lambda path: path.parent == tmp_path)
    with pytest.raises(StartupError, match=r"mount point.* folder in it, such as .*new/kvnode"):
        restore(tmp_path / "new", "n1", ADDRESS, "", sample(), LEAP)
    with pytest.raises(StartupError, match=r"mount point.* folder in it, such as .*old/kvnode"):
        recover(tmp_path / "old")
    assert sorted(tmp_path.rglob("*")) == before
    restore(tmp_path / "new" / "kvnode", "n1", ADDRESS, "", sample(), LEAP)


def test_links_that_lead_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for attempt in (
        lambda: restore(tmp_path / "loop", "n1", ADDRESS, "", sample(), 0),
        lambda: recover(tmp_path / "loop"),
    ):
        with pytest.raises(StartupError, match="lead in a circle"):
            attempt()


def test_a_recovered_cluster_leaps_over_revisions_and_lease_ids(tmp_path: Path) -> None:
    restore(tmp_path / "n1", "n1", ADDRESS, "", sample(), 0)
    assert recover(tmp_path / "n1").revision == 1 + LEAP
    store = held_in(tmp_path / "n1")
    assert store.apply([PUT, "key", b"new", "", None]) == Written(1 + LEAP + 1, 2)
    assert store.apply([GRANT, 60]) == Granted(1 + LEAP + 1, 60)


def test_a_leap_beyond_the_last_number_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = sample()
    store.leases.last_id = 2**53 - 2**32 - LEAP_MAX + 1
    with pytest.raises(StartupError, match="leap over fewer"):
        restore(tmp_path / "n1", "n1", ADDRESS, "", store, LEAP_MAX)
    assert not list(tmp_path.iterdir())


def test_a_recovery_goes_to_the_last_number_at_most(tmp_path: Path) -> None:
    store = sample()
    store.leases.last_id = COUNTER_MAX - 1  # as of a crafted backup that 0.1.0 took
    restore(tmp_path / "n1", "n1", ADDRESS, "", store, 0)
    recovered = recover(tmp_path / "n1")
    assert (recovered.revision, recovered.leap) == (1 + LEAP, LEAP)
    store = held_in(tmp_path / "n1")
    assert store.leases.last_id == COUNTER_MAX
    assert store.apply([PUT, "key", b"new", "", None]) == Written(1 + LEAP + 1, 2)
    assert isinstance(store.apply([GRANT, 60]), Invalid)
