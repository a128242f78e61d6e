"""Every call of the client against a real node, its waiting face, and the way to the leader."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode import errors
from kvnode.client import Client, Found, Put, SyncClient, delete, delete_prefix, get, put, when
from tests.cli.scripted import Asked, Reply, scripted
from tests.cluster import Cluster


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a cluster of one, for all tests of this file: each has keys of its own."""
    folder: Path = tmp_path_factory.mktemp("client")
    with Cluster(folder, size=1).start() as cluster:
        yield cluster.url("n1")


async def test_a_key_on_a_ttl_and_on_a_lease(node: str) -> None:
    async with Client([node]) as client:
        alone = await client.put("lease/alone", b"1", ttl=60)
        item = await client.get("lease/alone")
        assert (item.lease, item.ttl) == (alone.lease, 60)
        lease = await client.leases.grant(120)
        assert (lease.ttl, lease.remaining) == (120, 120)
        for key in ("lease/a", "lease/b"):
            assert (await client.put(key, b"\xff", lease=lease.id)).lease == lease.id
        seen = await client.leases.get(lease.id)
        assert (seen.keys, seen.key_count) == (("lease/a", "lease/b"), 2)
        assert (await client.leases.keep_alive(lease.id)).remaining == 120
        assert {each.id async for each in client.leases.list()} >= {lease.id, alone.lease}
        assert await client.leases.revoke(lease.id) == 2
        for gone in (client.leases.get(lease.id), client.leases.keep_alive(lease.id), client.leases.revoke(lease.id)):
            with pytest.raises(errors.LeaseNotFound):
                await gone
        with pytest.raises(errors.LeaseNotFound):
            await client.put("lease/a", b"", lease=lease.id)


async def test_a_transaction_answers_with_what_each_operation_did(node: str) -> None:
    async with Client([node]) as client:
        await client.put("txn/tmp/1", b"")
        first = await client.txn(
            [when("txn/a", exists=False), when("txn/tmp/1", ">=", version=1)],
            [put("txn/a", b"\x00\xff", content_type="x/y", ttl=60), delete("txn/none"), delete_prefix("txn/tmp/")],
            [get("txn/a")],
        )
        assert first.succeeded
        created, none, cleared = first.results
        assert isinstance(created, Put)
        assert created.created
        assert created.lease is not None
        assert (none, cleared) == (0, 1)
        second = await client.txn([when("txn/a", "!=", value=b"\x00\xff")], [], [get("txn/a"), get("txn/none")])
        assert not second.succeeded
        assert second.results == (
            Found("txn/a", True, b"\x00\xff", first.revision, first.revision, 1),
            Found("txn/none", False),
        )
        assert (await client.get("txn/a")).content_type == "x/y"


async def test_a_batch_says_what_became_of_each_write(node: str) -> None:
    async with Client([node]) as client:
        written, missing, leaseless = await client.batch(
            [put("batch/a", b"1", ttl=60), delete("batch/none"), put("batch/b", b"2", lease=2**40)]
        )
        assert isinstance(written, Put)
        assert written.created
        assert isinstance(missing, errors.KeyNotFound)
        assert isinstance(leaseless, errors.LeaseNotFound)
        deleted, *_ = await client.batch([delete("batch/a")])
        assert isinstance(deleted, int)
        assert deleted > written.revision


async def test_a_range_in_pages_counted_and_deleted(node: str) -> None:
    async with Client([node]) as client:
        keys = [f"range/{i:04}" for i in range(1_203)]
        for at in range(0, len(keys), 1_000):
            await client.batch([put(key, key.encode()) for key in keys[at : at + 1_000]])
        assert [item.key async for item in client.iterate("range/")] == keys
        some = [item async for item in client.iterate(start="range/0100", end="range/0102", keys_only=True)]
        assert [(item.key, item.value) for item in some] == [("range/0100", b""), ("range/0101", b"")]
        assert await client.count("range/") == len(keys)
        assert await client.delete_prefix("range/") == len(keys)
        assert await client.count("range/") == 0
        with pytest.raises(errors.BadRequest):
            await client.delete_prefix("")


async def test_a_key_as_it_was(node: str) -> None:
    async with Client([node]) as client:
        first = await client.put("past/a", b"1")
        second = await client.put("past/a", b"2")
        gone = await client.delete("past/a")
        for revision, value in ((first.revision, b"1"), (second.revision, b"2")):
            item = await client.get("past/a", revision=revision)
            assert (item.value, item.mod_revision, item.revision) == (value, revision, revision)
        with pytest.raises(errors.KeyNotFound, match="at that revision"):
            await client.get("past/a", revision=gone)
        with pytest.raises(errors.BadRequest, match="still to come"):
            await client.get("past/a", revision=gone + 1_000)


def test_the_same_calls_without_a_loop(node: str) -> None:
    with SyncClient([node]) as client:
        done = client.put("sync/a", b"1", ttl=60)
        assert client.get("sync/a").value == b"1"
        assert client.leases.keep_alive(done.lease or 0).ttl == 60
        assert client.txn([when("sync/a", value=b"1")], [put("sync/b", b"2")]).succeeded
        assert [item.key for item in client.iterate("sync/")] == ["sync/a", "sync/b"]
        events = client.watch("sync/", from_revision=done.revision)
        assert [next(events).key for _ in range(2)] == ["sync/a", "sync/b"]
        events.close()  # type: ignore[attr-defined]
        with pytest.raises(errors.KeyNotFound):
            client.delete("sync/none")
        with client.lock("sync", ttl_s=5) as held:
            assert held.held
            assert client.get("locks/sync").mod_revision == held.token
        assert client.count("locks/sync") == 0


async def test_writes_go_to_the_leader_once_it_is_known_and_to_the_others_when_it_is_gone() -> None:
    def says(node: str, leader: str) -> Reply:
        headers = {"Kvnode-Node": node, "Kvnode-Leader": leader}
        return Reply(200, b'{"key":"k","revision":5,"version":2,"created":false}', headers)

    is_gone = asyncio.Event()

    async def third(asked: Asked) -> Reply | None:
        return None if is_gone.is_set() else says("n3", "n3")

    async def follower(asked: Asked) -> Reply:
        return says("n1", "n1" if is_gone.is_set() else "n3")

    async def other(asked: Asked) -> Reply:
        return says("n2", "n3")

    async with (
        scripted(follower) as n1,
        scripted(other) as n2,
        scripted(third) as n3,
        Client([n1.url, n2.url, n3.url], 5) as client,
    ):
        for _ in range(5):
            await client.put("k", b"v")
        # n1 said that n3 leads; which of the others that is shows by asking them.
        assert [len(each.asked) for each in (n1, n2, n3)] == [1, 1, 3]
        is_gone.set()
        for _ in range(2):
            await client.put("k", b"v")
        assert [len(each.asked) for each in (n1, n2, n3)] == [3, 1, 4]


async def test_any_number_of_watches_leaves_connections_for_calls(node: str) -> None:
    """aiohttp's pool has a hundred, and whoever comes later waits for one of them."""
    async with Client([node], 5) as client:

        async def first_of(number: int) -> bytes:
            async for event in client.watch(key=f"many/{number}", from_revision=1):
                return event.value
            raise AssertionError("the watch ended")

        watches = [asyncio.create_task(first_of(number)) for number in range(150)]
        await asyncio.sleep(0)
        for number in range(150):
            await client.put(f"many/{number}", b"%d" % number)
        assert await asyncio.gather(*watches) == [b"%d" % number for number in range(150)]


async def test_a_watch_behind_a_listing_in_pages_misses_nothing_between_them(node: str) -> None:
    keys = [f"paged/{number:04}" for number in range(1_001)]
    async with Client([node]) as client:
        for at in range(0, len(keys), 500):
            await client.batch([put(key, b"old") for key in keys[at : at + 500]])
        listing = client.iterate("paged/")
        held = {}
        async for item in listing:
            if not held:
                await client.put(keys[0], b"new")  # it was on the first page, whose second is still to come
            held[item.key] = item.value
        assert list(held) == keys
        async for event in client.watch("paged/", from_revision=listing.watch_from):
            held[event.key] = event.value
            break
        assert held[keys[0]] == b"new"
        first = await client.list("paged/", limit=1)
        await client.put(keys[0], b"newer")
        second = await client.list("paged/", limit=1, cursor=first.cursor)
        assert second.watch_from == first.watch_from == first.revision + 1
        empty = client.iterate("paged/none/")
        assert [item async for item in empty] == []
        assert empty.watch_from == second.revision + 1


def test_a_waiting_listing_names_the_revision_as_well(node: str) -> None:
    with SyncClient(node) as client:
        client.put("waiting/a", b"1")
        listing = client.iterate("waiting/")
        assert [item.key for item in listing] == ["waiting/a"]
        client.put("waiting/a", b"2")
        events = client.watch("waiting/", from_revision=listing.watch_from)
        assert next(events).value == b"2"
        events.close()  # type: ignore[attr-defined]


async def test_a_page_of_a_node_of_0_1_0_is_watched_from_behind_it_where_it_is_the_first() -> None:
    pages = iter(
        [
            b'{"items":[{"key":"a","create_revision":1,"mod_revision":1,"version":1}],"cursor":"YQ==","revision":5}',
            b'{"items":[{"key":"b","create_revision":2,"mod_revision":2,"version":1}],"revision":9}',
        ]
    )

    async def script(asked: Asked) -> Reply:
        return Reply(200, next(pages))

    async with scripted(script) as old, Client(old.url) as client:
        listing = client.iterate()
        assert [item.key async for item in listing] == ["a", "b"]
        assert listing.watch_from == 6
    # No cursor: one that another node gave out would be none to this one.
    assert ["cursor" in asked.raw_path for asked in old.asked] == [False, False]
    assert "start=a%00" in old.asked[1].raw_path
