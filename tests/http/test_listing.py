"""GET /v1/kv: ranges, pages, bounds."""

from __future__ import annotations

import tracemalloc
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote

import pytest

from kvnode.state.commands import PUT
from kvnode.state.limits import VALUE_BYTES_MAX
from tests.http.serving import Served, serve
from tests.http.single import SingleGroup


def fill(node: Served, *keys: str) -> None:
    for key in keys:
        node.group.store.apply([PUT, key, key.encode(), "", None])


async def names(node: Served, query: str) -> list[str]:
    reply = await node.ask("GET", f"/v1/kv?{query}")
    assert reply.status == 200
    return [item["key"] for item in reply.json["items"]]


async def test_a_listing_in_full(node: Served) -> None:
    fill(node, "b", "a", "b")
    reply = await node.ask("GET", "/v1/kv")
    assert reply.json == {
        "items": [
            {"key": "a", "value": b64encode(b"a").decode(), "create_revision": 2, "mod_revision": 2, "version": 1},
            {"key": "b", "value": b64encode(b"b").decode(), "create_revision": 1, "mod_revision": 3, "version": 2},
        ],
        "revision": 3,
        "watch_from": 4,
    }
    assert reply.headers["kvnode-revision"] == "3"
    keys_only = await node.ask("GET", "/v1/kv?keys_only=true&limit=1")
    assert keys_only.json["items"] == [{"key": "a", "create_revision": 2, "mod_revision": 2, "version": 1}]


async def test_ranges_and_prefixes(node: Served) -> None:
    fill(node, "a", "a/", "a/1", "a/2", "a0", "b", "é", "\U0010ffff", "\U0010ffffx", "c d", "c+d")
    assert await names(node, "prefix=a/") == ["a/", "a/1", "a/2"]
    assert await names(node, "prefix=a%2F&start=a/1") == ["a/1", "a/2"]
    assert await names(node, "prefix=a/&end=a/2") == ["a/", "a/1"]
    assert await names(node, "start=c&end=d") == ["c d", "c+d"]
    assert await names(node, "prefix=c+d") == ["c d"]
    assert await names(node, "prefix=c%2Bd") == ["c+d"]
    assert await names(node, "prefix=%F4%8F%BF%BF") == ["\U0010ffff", "\U0010ffffx"]
    assert await names(node, "start=z&end=a") == []
    assert await names(node, "prefix=b&start=a&end=zzz") == ["b"]


async def test_pages_join_without_gap_or_repeat(node: Served) -> None:
    keys = [f"k{'/' * (i % 3)}{i}\0" for i in range(25)]
    fill(node, *keys)
    seen: list[str] = []
    query = "limit=4&prefix=k"
    for _ in range(20):
        page = (await node.ask("GET", f"/v1/kv?{query}")).json
        seen += [item["key"] for item in page["items"]]
        if "cursor" not in page:
            break
        assert len(page["items"]) == 4
        query = f"limit=4&prefix=k&cursor={quote(page['cursor'])}"
    assert seen == sorted(keys)


async def test_every_page_names_the_revision_behind_the_first_one(node: Served) -> None:
    fill(node, *"abcdef")
    page = (await node.ask("GET", "/v1/kv?limit=2")).json
    first = page["watch_from"]
    assert first == page["revision"] + 1 == 7
    for pages in range(1, 10):
        if "cursor" not in page:
            break
        fill(node, "a")  # behind the page that shows it: the listing does not have it any more
        page = (await node.ask("GET", f"/v1/kv?limit=2&cursor={quote(page['cursor'])}")).json
        assert (page["watch_from"], page["revision"]) == (first, 6 + pages)
    assert pages == 3


async def test_a_page_that_is_older_than_the_first_is_watched_from_where_it_is(node: Served) -> None:
    fill(node, *"abc")
    ahead = (await node.ask("GET", "/v1/kv?limit=1")).json["cursor"].replace("4.", "900.")  # of a node that is ahead
    assert (await node.ask("GET", f"/v1/kv?cursor={ahead}&consistency=stale")).json["watch_from"] == 4


async def test_a_cursor_of_0_1_0_goes_on_and_names_no_revision_that_it_does_not_know(node: Served) -> None:
    fill(node, *"abcd")
    page = (await node.ask("GET", f"/v1/kv?limit=2&cursor={urlsafe_b64encode(b'a').decode()}")).json
    assert [item["key"] for item in page["items"]] == ["b", "c"]
    assert "watch_from" not in page
    assert "." not in page["cursor"]
    rest = (await node.ask("GET", f"/v1/kv?cursor={page['cursor']}")).json
    assert [item["key"] for item in rest["items"]] == ["d"]


async def test_limits(node: Served) -> None:
    fill(node, *(f"{i:04}" for i in range(1001)))
    assert len(await names(node, "")) == 100
    assert len(await names(node, "limit=1000")) == 1000
    exact = (await node.ask("GET", "/v1/kv?limit=1&start=1000")).json
    assert len(exact["items"]) == 1
    assert "cursor" not in exact


async def test_a_page_of_large_values_ends_early(node: Served) -> None:
    for i in range(5):
        node.group.store.apply([PUT, f"k{i}", b"x" * VALUE_BYTES_MAX, "", None])
    page = (await node.ask("GET", "/v1/kv")).json
    assert [item["key"] for item in page["items"]] == ["k0", "k1"]
    assert await names(node, f"cursor={page['cursor']}") == ["k2", "k3"]
    assert len(await names(node, "keys_only")) == 5


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=-1",
        "limit=",
        "limit=٣",
        "keys_only=maybe",
        "cursor=%C3%A9",
        "cursor=_",
        "cursor=.YQ==",
        "cursor=-1.YQ==",
        "cursor=1.5.YQ==",
        f"cursor={'9' * 20}.YQ==",
        "cursor=٣.YQ==",
        "cursor=_w==",
        "prefix=%ff",
        "consistency=x",
        "prefix=a&prefix=b",
    ],
)
async def test_bad_values_are_refused(node: Served, query: str) -> None:
    reply = await node.ask("GET", "/v1/kv?" + quote(query, safe="=&%"))
    assert (reply.status, reply.json["error"]) == (400, "bad_request"), reply


async def test_a_page_holds_one_value_at_a_time_and_not_all_that_it_could_have() -> None:
    group = SingleGroup()
    for number in range(40):
        group.store.apply([PUT, f"k{number:02}", bytes(1_048_576), "", None])
    async with serve(group) as node:
        tracemalloc.start()
        try:
            page = await node.ask("GET", "/v1/kv?keys_only=true")
            _, most_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(page.json["items"]) == 40
    assert most_bytes < 8 * 1_048_576
