"""Every key of the contract is its own and comes back as it was sent, through a real socket."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from tests.http.serving import Served, serve
from tests.http.single import SingleGroup

# raw path behind /v1/kv/ -> the key
SPELLINGS: list[tuple[str, str]] = [
    ("a//b", "a//b"),
    ("a/../b", "a/../b"),
    ("a/./b", "a/./b"),
    (".", "."),
    ("..", ".."),
    ("../../admin/healthz", "../../admin/healthz"),
    ("a/", "a/"),
    ("/a", "/a"),
    ("//", "//"),
    ("a%2Fb", "a/b"),
    ("a%2fb", "a/b"),
    ("%2e%2E", ".."),
    ("%C3%A9", "é"),
    ("a+b", "a+b"),
    ("a%20b", "a b"),
    ("a%2520b", "a%20b"),
    ("%25", "%"),
    ("%00", "\0"),
    ("a%3Fb%23c", "a?b#c"),
    ("%0D%0ASet-Cookie:x", "\r\nSet-Cookie:x"),
    ("a;b=c&d", "a;b=c&d"),
    ("~!$'()*,:@[]|{}^`\\\"<>", "~!$'()*,:@[]|{}^`\\\"<>"),
    ("%F0%9F%98%80", "\U0001f600"),
    ("%EF%BB%BFbom", "\ufeffbom"),
    ("k" * 1024, "k" * 1024),
    ("%C3%A9" * 512, "é" * 512),
]


@pytest.mark.parametrize(("raw", "key"), SPELLINGS, ids=[str(i) for i in range(len(SPELLINGS))])
async def test_a_key_is_kept_exactly(node: Served, raw: str, key: str) -> None:
    target = f"/v1/kv/{raw}"
    put = await node.ask("PUT", target, body=b"v")
    assert (put.status, put.json["key"]) == (200, key)
    assert [k for k, _ in node.group.store.range("", None, 10)] == [key]
    assert (await node.ask("GET", target)).body == b"v"
    assert (await node.ask("GET", "/v1/kv/" + quote(key, safe=""))).body == b"v"
    assert (await node.ask("DELETE", target)).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"?x=1",
        b"%",
        b"a%2",
        b"a%zz",
        b"%FF",
        b"%C3",
        b"\xff",
        "é".encode(),
        b"%ED%A0%80",
        b"k" * 1025,
        b"%C3%A9" * 513,
    ],
)
async def test_what_is_no_key_is_refused_with_a_sentence(node: Served, raw: bytes) -> None:
    for method in ("PUT", "GET", "DELETE"):
        reply = await node.ask(method, b"/v1/kv/" + raw, body=b"v" if method == "PUT" else None)
        assert (reply.status, reply.json["error"]) == (400, "bad_request")
        assert reply.json["message"].endswith(".")
    assert node.group.proposals == 0


# Any character a key can have: all of Unicode but the surrogates; the path-like ones often.
characters = st.one_of(st.sampled_from("/.%?#+&= \\\0"), st.characters(exclude_categories=["Cs"]))
odd_keys = st.text(characters, min_size=1, max_size=24).filter(lambda key: len(key.encode()) <= 1024)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(odd_keys, st.sampled_from(["", "/", ".", "/.~"])), min_size=1, max_size=8))
def test_odd_keys_round_trip(keys: list[tuple[str, str]]) -> None:
    async def round_trip() -> None:
        async with serve(SingleGroup()) as node, node.connect() as wire:
            for number, (key, safe) in enumerate(keys):
                target = "/v1/kv/" + quote(key, safe=safe)
                assert (await wire.ask("PUT", target, body=b"%d" % number)).json["key"] == key
                assert (await wire.ask("GET", target)).body == b"%d" % number
            expected = sorted({key for key, _ in keys}, key=str.encode)
            listed = (await wire.ask("GET", "/v1/kv?limit=1000")).json["items"]
            assert [item["key"] for item in listed] == expected

    asyncio.run(round_trip())


@pytest.mark.parametrize("key", ["a//b", "a/../b", "é/%2F", "trailing/", ".", "a b+c?d#e"])
async def test_an_http_library_reaches_odd_keys_too(node: Served, key: str) -> None:
    url = URL(f"http://127.0.0.1:{node.port}/v1/kv/{quote(key, safe='')}", encoded=True)
    async with aiohttp.ClientSession() as session:
        async with session.put(url, data=b"value") as reply:
            assert (await reply.json())["key"] == key
        async with session.get(url) as reply:
            assert await reply.read() == b"value"
