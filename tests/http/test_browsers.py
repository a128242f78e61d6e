"""What a browser is told, and what a page of somebody else may make it do: headers of answers, Host, Origin."""

from __future__ import annotations

import hashlib
import logging

import pytest

from kvnode.state.commands import LEVEL, TOKEN_CREATE
from tests.http.serving import Reply, Served, serve
from tests.http.single import SingleGroup

FIRST = "the-first-token-of-this-cluster"
BEARER = {"Authorization": f"Bearer {FIRST}"}
SESSION = "/admin/api/v1/session"
ROTATE = "/admin/api/v1/session-key/rotate"
TRANSFER = "/admin/api/v1/leader/transfer"
JSON = {"Content-Type": "application/json"}

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


# --- Host: a node that asks for no token, on loopback ------------------------------------------------

OWN = (
    *("localhost", "LOCALHOST", "LocalHost:8001", "localhost.", "localhost.:8001", "127.0.0.1", "127.0.0.1:80"),
    *("127.1.2.3:65535", "127.0.0.1.", "[::1]", "[::1]:8001", "[0:0:0:0:0:0:0:1]", "kv.internal", "KV.internal:443"),
)
FOREIGN = (
    *(
        "rebind.evil.example",
        "rebind.evil.example:8001",
        "localhost.evil.example",
        "localhost-evil",
        "alocalhost",
        "n1",
    ),
    *(
        "127.0.0.1.evil.example",
        "128.0.0.1",
        "0.0.0.0",
        "10.0.0.1",
        "[::2]",
        "[::]",
        "[fe80::1]",
        "::1",
        "[::1",
        "::1]",
    ),
    *("user@localhost", "localhost@evil.example", "evil.example#localhost", "localhost/evil.example", "localhost:x"),
    *("localhost:8001:8001", "evil.example\\@localhost", "localhost evil.example", "localhost,evil.example", ".", ""),
    *("127.0.0.1%00.evil.example", "lo\u0441alhost", "2130706433", "127.1", "0177.0.0.1", "x.localhost", "a" * 300),
)


@pytest.mark.parametrize("host", OWN)
async def test_an_open_node_on_loopback_answers_to_loopback_names_and_its_own(host: str) -> None:
    async with serve(SingleGroup(), names=["kv.internal"]) as node, node.connect() as wire:
        for _ in range(2):
            assert (await wire.ask("PUT", "/v1/kv/a", {"Host": host}, b"1")).status == 200
            assert (await wire.ask("GET", f"http://{host}/v1/kv/a", {"Host": host})).status == 200


@pytest.mark.parametrize("host", FOREIGN)
async def test_a_name_that_points_here_is_no_way_in(host: str) -> None:
    """DNS rebinding: the browser takes the node for a part of the stranger's site, and reads its answers."""
    async with serve(SingleGroup(), names=["kv.internal"]) as node, node.connect() as wire:
        for before in (None, "localhost"):  # also behind one that passed on the same connection
            if before is not None:
                assert (await wire.ask("PUT", "/v1/kv/a", {"Host": before}, b"1")).status == 200
            for method, target in (
                *(("GET", "/v1/kv/a"), ("HEAD", "/v1/kv"), ("PUT", "/v1/kv/a"), ("GET", "/metrics")),
                *(("GET", "/admin/"), ("GET", "/admin/healthz/x"), ("POST", TRANSFER), ("GET", "/none")),
            ):
                reply = await wire.ask(method, target, {"Host": host}, b"2" if method in ("PUT", "POST") else None)
                assert reply.status == 403, (method, target)
                if method != "HEAD":
                    assert reply.json["error"] == "forbidden"
                    assert "localhost, 127.0.0.1 or [::1]" in reply.json["message"]
            for probe in ("/admin/healthz", "/admin/healthz/leader", "/healthz", "/livez", "/readyz?verbose"):
                assert (await wire.ask("GET", probe, {"Host": host})).status == 200, "balancers name what they like"
        item = node.group.store.get("a")
        assert item is not None
        assert item.value == b"1"


async def test_a_target_in_absolute_form_says_the_name(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(SingleGroup(), names=[]) as node, node.connect() as wire:
        assert (await wire.ask("GET", "http://localhost:8001/v1/kv", {"Host": "localhost"})).status == 200
        for target in (
            "http://evil.example/v1/kv",
            "http://localhost@evil.example/v1/kv",
            "http://evil.example?/v1/kv",
        ):
            assert (await wire.ask("GET", target, {"Host": "localhost"})).status == 403, target
        assert (await wire.ask("GET", "http://localhost/v1/kv", {"Host": "evil.example"})).status == 403
        wire.send(b"GET /v1/kv HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await wire.reply()).status == 200, "no browser leaves Host out"
    refused = [each for each in caplog.records if "no loopback name" in each.getMessage()]
    assert len(refused) == 1, "once a minute"


@pytest.mark.parametrize("names", [None, []])
async def test_tokens_or_an_address_off_loopback_leave_host_alone(names: list[str] | None) -> None:
    async with serve(SingleGroup(), token=FIRST if names is not None else "", names=names) as node:
        assert (await node.ask("GET", "/v1/kv", {"Host": "kv.example", **BEARER})).status == 200


# --- Origin ------------------------------------------------------------------------------------------

SAME: list[dict[str, str]] = [
    {}, {"Origin": "http://localhost:8001"}, {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8001"},
    {"Origin": "https://localhost:8001"},
]  # fmt: skip
ELSEWHERE: list[dict[str, str]] = [
    {"Origin": each}
    for each in (
        *("http://evil.example", "null", "", "http://localhost", "http://localhost:8002", "http://localhost:80011"),
        *("http://localhost:8001.evil.example", "http://localhost:8001@evil.example", "http://evil.example/localhost:8001"),
        *("file://", "moz-extension://x", "http://127.0.0.1:8001", "http://localhost:8001/", "localhost:8001", "ftp://x"),
        *("http://localhost:8001 http://evil.example", "http://evil.example, http://localhost:8001", "localhost"),
    )
] + [
    {"Sec-Fetch-Site": each} for each in ("cross-site", "same-site", "", "Same-Origin", "anything", "none, cross-site")
] + [
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8001"},
]  # fmt: skip
WRITES = (
    ("PUT", "/v1/kv/a"),
    ("DELETE", "/v1/kv/a"),
    ("POST", "/v1/batch"),
    ("POST", TRANSFER),
    ("DELETE", SESSION),
    ("PATCH", "/v1/kv/a"),
    ("MOVE", "/v1/kv/a"),
)


def with_levels() -> SingleGroup:
    group = SingleGroup()
    group.store.apply([LEVEL, 1])
    group.store.apply([TOKEN_CREATE, ["ab12", "reader", "read_only", hashlib.sha256(b"secret").digest(), 1]])
    return group


async def cookie(node: Served, bearer: dict[str, str] | None = None) -> dict[str, str]:
    reply = await node.ask("POST", SESSION, BEARER if bearer is None else bearer)
    assert reply.status == 200
    return {"Cookie": reply.headers["set-cookie"].partition(";")[0]}


@pytest.mark.parametrize("token", ["", FIRST])
@pytest.mark.parametrize("headers", ELSEWHERE)
async def test_a_page_of_another_origin_changes_nothing(token: str, headers: dict[str, str]) -> None:
    """With the cookie of whoever looks at it; or without one, on a node on their own machine that asks for nothing."""
    async with serve(with_levels(), token=token, names=[]) as node, node.connect() as wire:
        trusted = await cookie(node) if token else {}
        for method, target in WRITES:
            sent = {"Host": "localhost:8001", **JSON, **trusted, **headers}
            reply = await wire.ask(method, target, sent, b"{}")
            assert (reply.status, reply.json["error"]) == (403, "forbidden"), (method, target)
            assert "another origin" in reply.json["message"]
            assert "evil" not in reply.json["message"]
        assert node.group.proposals == 0
        for method, target in (("GET", "/v1/kv"), ("HEAD", "/v1/kv")):
            assert (await wire.ask(method, target, {"Host": "localhost:8001", **trusted, **headers})).status == 200
        for method in ("OPTIONS", "TRACE"):
            assert (await wire.ask(method, "/v1/kv", {"Host": "localhost:8001", **trusted, **headers})).status == 405
        if token:  # no page can make a browser send this header without a preflight
            assert (await wire.ask("PUT", "/v1/kv/a", {**BEARER, **headers}, b"1")).status == 200


@pytest.mark.parametrize("token", ["", FIRST])
@pytest.mark.parametrize("headers", SAME)
async def test_a_page_of_the_nodes_own_may_write(token: str, headers: dict[str, str]) -> None:
    async with serve(with_levels(), token=token, names=[]) as node, node.connect() as wire:
        trusted = await cookie(node) if token else {}
        reply = await wire.ask("PUT", "/v1/kv/a", {"Host": "localhost:8001", **trusted, **headers}, b"1")
        assert reply.status == 200


async def test_default_ports_and_a_balancer_that_takes_tls_off() -> None:
    async with serve(with_levels()) as node:
        for host, origin, status in (
            ("kv.example", "http://kv.example", 200),
            ("kv.example:80", "http://kv.example", 200),
            ("KV.example.", "http://kv.example", 200),
            ("kv.example", "https://kv.example", 200),
            ("kv.example:443", "https://kv.example", 200),
            ("kv.example:443", "http://kv.example", 403),
            ("kv.example", "http://kv.example:443", 403),
            ("", "http://", 403),
            ("[::1]:8001", "http://[::1]:8001", 200),
        ):
            reply = await node.ask("PUT", "/v1/kv/a", {"Host": host, "Origin": origin}, b"1")
            assert reply.status == status, (host, origin)


async def test_every_one_of_several_headers_must_be_right() -> None:
    async with serve(with_levels()) as node, node.connect() as wire:
        for extra in ("Origin: http://localhost\r\nOrigin: http://evil.example\r\n",
                      "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site\r\n"):  # fmt: skip
            wire.send(f"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\n{extra}Content-Length: 0\r\n\r\n".encode())
            assert (await wire.reply()).status == 403


# --- under a cookie ----------------------------------------------------------------------------------


async def test_under_a_cookie_a_body_is_what_no_form_can_send() -> None:
    async with serve(with_levels(), token=FIRST) as node, node.connect() as wire:
        trusted = await cookie(node)
        body = b'{"operations":[{"put":{"key":"a","value":"MQ=="}}]}'
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            None,
            "",
            "application/jsonx",
        ):
            headers = trusted if kind is None else {**trusted, "Content-Type": kind}
            for target in (
                "/v1/batch",
                TRANSFER,
                "/v1/txn",
                "/admin/api/v1/restore",
                ROTATE,
            ):
                reply = await wire.ask("POST", target, headers, body)
                assert (reply.status, reply.json["outcome"]) == (415, "not_applied"), (target, kind)
        assert node.group.proposals == 0
        assert (await wire.ask("POST", "/v1/batch", {**trusted, **JSON}, body)).status == 200
        charset = {"Content-Type": "Application/JSON; charset=utf-8"}
        assert (await wire.ask("POST", "/v1/batch", {**trusted, **charset}, body)).status == 200
        # Without a body there is nothing to say of it; values are of any type; a backup is not JSON.
        assert (await wire.ask("POST", ROTATE, trusted)).status == 200
        trusted = await cookie(node)
        assert (await wire.ask("PUT", "/v1/kv/a", {**trusted, "Content-Type": "text/html"}, b"1")).status == 200
        assert (await wire.ask("DELETE", "/v1/kv/a", trusted)).status == 200
        octets = {"Content-Type": "application/octet-stream"}
        assert (await wire.ask("POST", "/admin/api/v1/restore", {**trusted, **octets}, b"x")).status == 400
        # A token needs none of this: curl -d says that it sends a form.
        assert (await wire.ask("POST", "/v1/batch", {**BEARER, "Content-Type": "text/plain"}, body)).status == 200


async def test_the_page_before_counts_where_a_browser_says_nothing_else() -> None:
    async with serve(with_levels(), token=FIRST) as node, node.connect() as wire:
        trusted = {**await cookie(node), "Host": "localhost:8001"}
        for referer, status in (
            *(("http://evil.example/a", 403), ("http://localhost:8001/admin/", 200), ("http://localhost:8001", 200)),
            *(("http://localhost:8001.evil.example/", 403), ("about:blank", 403), ("", 403)),
        ):
            reply = await wire.ask("PUT", "/v1/kv/a", {**trusted, "Referer": referer}, b"1")
            assert reply.status == status, referer
        same = {"Sec-Fetch-Site": "same-origin", "Referer": "http://evil.example"}
        assert (await wire.ask("PUT", "/v1/kv/a", {**trusted, **same}, b"1")).status == 200


async def test_a_cookie_beside_another_of_its_name_is_nobodys() -> None:
    """A name of the same domain can put one there; which of the two is whose cannot be known."""
    async with serve(with_levels(), token=FIRST) as node, node.connect() as wire:
        good = (await cookie(node))["Cookie"]
        other = (await cookie(node, {"Authorization": "Bearer kvnode_ab12_secret"}))["Cookie"]
        for sent, status in (
            *((good, 200), (f"theme=dark; {good}; x=y", 200), (f"{good};{good}", 401), (f"{good}; {other}", 401)),
            *((f"__Host-{good}", 401), (f"{good}; __Host-{other}", 200), (f"x{good}", 401), (good.upper(), 401)),
        ):
            assert (await wire.ask("GET", SESSION, {"Cookie": sent})).status == status, sent
            assert (await wire.ask("GET", "/v1/kv", {"Cookie": sent})).status == status, sent
        wire.send(f"GET /v1/kv HTTP/1.1\r\nHost: n\r\nCookie: {good}\r\nCookie: {other}\r\n\r\n".encode())
        assert (await wire.reply()).status == 401


async def test_a_refused_page_leaves_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kvnode.audit"):
        async with serve(with_levels(), names=[]) as node, node.connect() as wire:
            for _ in range(5):
                await wire.ask("POST", TRANSFER, {"Host": "localhost", "Origin": "http://evil.example"})
    assert [each.getMessage() for each in caplog.records] == [
        f"Refused POST {TRANSFER} from 127.0.0.1: a page of another origin sent it."
    ]
