"""OpenStack's client of etcd's gateway, unmodified: each call that it has, to the leader and to a follower."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import Etcd3Exception

from tests.cluster import Cluster, wait_until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("etcd3gw")) as started:
        yield started.start()


@pytest.fixture(params=["leader", "follower"])
def client(request: pytest.FixtureRequest, cluster: Cluster) -> Any:
    name = cluster.leader() if request.param == "leader" else cluster.followers()[0]
    host, port = cluster.nodes[name].http
    made = Etcd3Client(host=host, port=port, timeout=10)
    made.delete_prefix("/")
    return made


def test_status_and_members(client: Any, cluster: Cluster) -> None:
    assert client.api_path == "/v3/"
    assert client.status()["version"] == "3.5.0"
    assert sorted(member["name"] for member in client.members()) == ["n1", "n2", "n3"]
    assert {url for member in client.members() for url in member["clientURLs"]} == {
        cluster.url(name) for name in cluster.nodes
    }


def test_put_get_and_delete(client: Any) -> None:
    assert client.put("/a", "1")
    assert client.put("/b", b"\x00\xff")
    assert client.get("/a") == [b"1"]
    ((value, marks),) = client.get("/b", metadata=True)
    assert (value, marks["key"], marks["version"]) == (b"\x00\xff", b"/b", "1")
    assert client.get("/no") == []
    assert [value for value, _ in client.get_all(sort_order="descend", sort_target="key")] == [b"\x00\xff", b"1"]
    assert client.delete("/a") is True
    assert client.delete("/a") is False
    for number in range(20):
        client.put(f"/prefix/{number}", str(number))
    assert len(client.get_prefix("/prefix/")) == 20
    assert client.delete_prefix("/prefix/") is True
    assert client.get_prefix("/prefix/") == []


def test_create_replace_and_transactions(client: Any) -> None:
    assert client.create("/once", "1") is True
    assert client.create("/once", "2") is False
    assert client.replace("/once", "1", "3") is True
    assert client.replace("/once", "1", "4") is False
    assert client.get("/once") == [b"3"]
    key, value = "L29uY2U=", "eA=="
    done = client.transaction(
        {
            "compare": [{"key": key, "result": "EQUAL", "target": "VERSION", "version": 2}],
            "success": [{"request_put": {"key": key, "value": value}}],
            "failure": [],
        }
    )
    assert done["succeeded"] is True
    with pytest.raises(Etcd3Exception):
        client.transaction({"success": [{"request_put": {"key": key}}, {"request_put": {"key": key}}]})


def test_leases(client: Any) -> None:
    lease = client.lease(ttl=60)
    assert client.put("/leased", "1", lease=lease)
    assert 0 < lease.ttl() <= 60
    assert lease.refresh() == 60
    assert lease.keys() == [b"/leased"]
    assert client.create("/leased/too", "1", lease=lease)
    assert lease.revoke() is True
    assert client.get("/leased") == []
    assert lease.refresh() == -1
    short = client.lease(ttl=2)
    client.put("/short", "1", lease=short)
    wait_until(lambda: client.get("/short") == [], 10.0, "the lease is over")


def test_locks(client: Any) -> None:
    first, second = client.lock("name", ttl=30), client.lock("name", ttl=30)
    assert first.acquire() is True
    assert first.is_acquired()
    assert second.acquire() is False
    assert first.refresh() == 30
    assert first.release() is True
    with second:
        assert second.is_acquired()
    assert not second.is_acquired()


def test_watches(client: Any) -> None:
    threading.Timer(0.3, client.put, ("/watched", "once")).start()
    assert client.watch_once("/watched", timeout=10)["kv"]["value"] == b"once"
    threading.Timer(0.3, client.put, ("/watched/below", "once")).start()
    assert client.watch_prefix_once("/watched/", timeout=10)["kv"]["key"] == b"/watched/below"
    events, cancel = client.watch("/watched")
    more, cancel_more = client.watch_prefix("/watched", start_revision=1)
    client.put("/watched", "1")
    client.delete("/watched")
    assert next(events)["kv"]["value"] == b"1"
    assert next(events)["type"] == "DELETE"
    assert next(more)["kv"]["key"] == b"/watched"
    cancel()
    cancel_more()
