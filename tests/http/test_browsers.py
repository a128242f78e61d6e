"""What a browser is told, and what a page of somebody else may make it do: headers of answers, Host, Origin."""

from __future__ import annotations

import pytest

from tests.http.serving import Reply, Served

PAGE = b"<script>fetch('/v1/kv/a', {method: 'DELETE'})</script>"
SANDBOX = {
    "content-security-policy": "sandbox; default-src 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
}


def carries(reply: Reply, headers: dict[str, str]) -> None:
    assert {name: reply.headers.get(name) for name in headers} == headers


async def test_a_strangers_value_is_no_page_of_this_origin(node: Served) -> None:
    html = {"Content-Type": "text/html"}
    first = (await node.ask("PUT", "/v1/kv/a", html, PAGE)).headers["etag"]
    revision = first.strip('"')
    assert (await node.ask("PUT", "/v1/kv/a", html, b"newer")).status == 200
    for method, target, headers, status in (
        ("GET", "/v1/kv/a", {}, 200),
        ("GET", "/v1/kv/a?consistency=stale", {}, 200),
        ("GET", f"/v1/kv/a?revision={revision}", {}, 200),
        ("HEAD", "/v1/kv/a", {}, 200),
        ("GET", "/v1/kv/a", {"If-None-Match": "*"}, 304),
    ):
        reply = await node.ask(method, target, headers)
        assert reply.status == status, target
        carries(reply, SANDBOX)
        assert reply.headers.get("content-type", "text/html") == "text/html"


ADMIN = "/admin/api/v1"
TARGETS = (
    *("/v1/kv", "/v1/kv/none", "/v1/kv/%", "/nothing", "/v1/watch?wait=0s", "/openapi.json", "/metrics"),
    *("/readyz", "/livez/x", "/admin/healthz", f"{ADMIN}/cluster", f"{ADMIN}/tokens", f"{ADMIN}/session"),
)


@pytest.mark.parametrize("target", TARGETS)
async def test_every_other_answer_says_its_type_and_is_kept_by_no_cache(node: Served, target: str) -> None:
    carries(await node.ask("GET", target), {"x-content-type-options": "nosniff", "cache-control": "no-store"})
    reply = await node.ask("PUT", target, body=b"{}")
    carries(reply, {"x-content-type-options": "nosniff", "cache-control": "no-store"})


async def test_streams_say_their_type_and_are_kept_by_no_cache(node: Served) -> None:
    for target in ("/v1/watch?prefix=", "/admin/api/v1/backup"):
        async with node.connect() as wire:
            wire.send(f"GET {target} HTTP/1.1\r\nHost: n\r\n\r\n".encode())
            head = (await wire.reader.readuntil(b"\r\n\r\n")).lower()
            assert b"x-content-type-options: nosniff\r\n" in head
            assert head.count(b"cache-control: no-store\r\n") == 1


async def test_no_origin_is_ever_given_leave(node: Served) -> None:
    """A preflight is refused, and without leave no page of another origin reads an answer."""
    ask = {"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT"}
    for method, target in (("OPTIONS", "/v1/kv/a"), ("OPTIONS", "/v1/txn"), ("GET", "/v1/kv"), ("TRACE", "/v1/kv/a")):
        reply = await node.ask(method, target, ask)
        assert reply.status == (200 if method == "GET" else 405)
        assert not [name for name in reply.headers if name.startswith("access-control")]
        assert b"evil" not in reply.body
