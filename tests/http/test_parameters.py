"""Query parameters: a route takes those that it names and refuses all others; probes ignore what they do not know."""

from __future__ import annotations

import json

import pytest

from kvnode.http.console import PUBLIC
from kvnode.http.openapi.document import entry
from kvnode.http.openapi.parameters import PARAMETERS
from kvnode.http.viewer import PATH as VIEWER
from tests.http.serving import Served, serve
from tests.http.single import SingleGroup

PROBES = (
    "/admin/healthz",
    "/admin/healthz/leader",
    "/healthz",
    "/livez",
    "/readyz",
    "/livez/raft_tick",
    "/readyz/leader",
)
# Names that users bring along from elsewhere or mistype, each with what it must not turn into.
STRANGE = [
    "cas=0",
    "tttl=5",
    "prefx=a",
    "TTL=5",
    "ttl%20=5",
    "=5",
    "%3D=5",
    "_=1",
    "raw",
    "x&y",
    "consistency%00=stale",
]


CHECKS = ("/version", "/health")  # etcd's, to which balancers add parameters of their own
ETCDS = ("/v3/", "/v3beta/")


async def test_every_route_and_method_refuses_a_parameter_that_it_does_not_name(node: Served) -> None:
    tried = 0
    for path, methods in node.server.app._table.methods.items():
        target = path.replace("{check}", "leader").replace("{", "").replace("}", "")
        for method, endpoint in methods.items():
            reply = await node.ask(
                method, f"{target}?surely_unknown=1", body=b"{}" if method in ("PUT", "POST") else None
            )
            if target.startswith(("/healthz", "/livez", "/readyz", "/admin/healthz")) or path in CHECKS:
                assert reply.status != 400, (method, path)
                continue
            tried += 1
            assert reply.status == 400, (method, path)
            if path.startswith(ETCDS):
                assert "surely_unknown" in reply.json["error"], (method, path)
            elif method != "HEAD":
                assert reply.json["error"] == "bad_request", (method, path)
                for name in ("surely_unknown", *endpoint.parameters):
                    assert name in reply.json["message"], (method, path)
                assert reply.json.get("outcome") == ("not_applied" if method != "GET" else None)
    assert tried > 30


async def test_what_a_route_takes_is_what_its_description_names(node: Served) -> None:
    for path, methods in node.server.app._table.methods.items():
        for method, endpoint in methods.items():
            if path in PUBLIC or path in CHECKS or path.startswith((VIEWER, *ETCDS)):  # files, and what etcd describes
                assert not endpoint.parameters
                continue
            operation = entry(method, path)
            assert operation is not None
            described = {PARAMETERS[each]["name"] for each in operation.parameters if PARAMETERS[each]["in"] == "query"}
            assert endpoint.parameters == described, (method, path)


@pytest.mark.parametrize("query", STRANGE)
async def test_nothing_is_done_for_a_request_with_an_unknown_parameter(node: Served, query: str) -> None:
    await node.ask("PUT", "/v1/kv/kept", body=b"old")
    before = node.group.store.revision
    for method, target, body in (
        ("PUT", "/v1/kv/kept", b"new"),
        ("DELETE", "/v1/kv/kept", None),
        ("DELETE", "/v1/kv?prefix=k", None),
        ("POST", "/v1/leases", b'{"ttl":5}'),
        ("POST", "/v1/txn", b'{"success":[{"put":{"key":"kept","value":""}}]}'),
        ("POST", "/v1/batch", b'{"operations":[{"delete":{"key":"kept"}}]}'),
        ("GET", "/v1/watch?prefix=k", None),
        ("POST", "/admin/api/v1/drain", None),
    ):
        reply = await node.ask(method, f"{target}{'&' if '?' in target else '?'}{query}", body=body)
        assert (reply.status, reply.json["error"]) == (400, "bad_request"), (method, target)
    assert node.group.store.revision == before
    assert not node.group.present.draining
    assert (await node.ask("GET", "/v1/kv/kept")).body == b"old"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "/v1/kv/a?ttl=5&ttl=6"),
        ("PUT", "/v1/kv/a?ttl=5&tt%6C=5"),
        ("GET", "/v1/kv/a?consistency=stale&consistency=stale"),
        ("DELETE", "/v1/kv?prefix=a&prefix=b"),
        ("GET", "/v1/kv?limit=1&limit=1"),
        ("GET", "/v1/kv?count=only&limit=1&keys_only&keys_only"),
        ("GET", "/v1/watch?key=a&key=b"),
        ("DELETE", "/admin/api/v1/members?id=n1&id=n2"),
    ],
)
async def test_a_parameter_that_is_given_twice_is_refused(node: Served, method: str, target: str) -> None:
    reply = await node.ask(method, target, body=b"v" if method == "PUT" else None)
    assert reply.status == 400
    assert "more than once" in reply.json["message"]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("DELETE", "/v1/kv/a?ttl=5"),
        ("GET", "/v1/kv/a?ttl=5"),
        ("PUT", "/v1/kv/a?consistency=stale"),
        ("DELETE", "/v1/kv?prefix=a&limit=5"),
        ("POST", "/v1/leases?ttl=5"),
        ("GET", "/v1/kv?revision=5"),
        ("DELETE", "/admin/api/v1/members/n2?id=n3"),
        ("GET", "/metrics?name[]=up"),
        ("GET", "/openapi.json?v=1"),
    ],
)
async def test_a_parameter_of_another_method_or_path_is_unknown(node: Served, method: str, target: str) -> None:
    reply = await node.ask(method, target, body=b'{"ttl":5}' if method in ("PUT", "POST") else None)
    assert (reply.status, reply.json["error"]) == (400, "bad_request")
    assert "There is no query parameter" in reply.json["message"]


@pytest.mark.parametrize("query", ["", "&", "&&", "consistency=stale", "&consistency=stale&", "c%6fnsistency=st%61le"])
async def test_what_is_no_unknown_parameter_passes(node: Served, query: str) -> None:
    await node.ask("PUT", "/v1/kv/a?", body=b"v")
    assert (await node.ask("GET", f"/v1/kv/a?{query}")).body == b"v"


async def test_a_long_name_is_not_repeated_whole(node: Served) -> None:
    reply = await node.ask("GET", f"/v1/kv/a?{'n' * 5_000}=1")
    assert reply.status == 400
    assert len(reply.json["message"]) < 250
    assert (await node.ask("GET", "/v1/kv/a?%zz=1")).status == 400
    assert (await node.ask("GET", "/v1/kv/a?%ff=1")).status == 400


@pytest.mark.parametrize("path", PROBES)
@pytest.mark.parametrize(
    "query", ["_=1", "cb=%zz", "%ff=%ff", "x=1&x=2", "&".join(f"p{n}" for n in range(200)), "=", "?"]
)
async def test_a_probe_ignores_what_it_does_not_know(node: Served, path: str, query: str) -> None:
    plain = await node.ask("GET", path)
    for method in ("GET", "HEAD"):
        assert (await node.ask(method, f"{path}?{query}")).status == plain.status == 200
    assert (await node.ask("GET", f"{path}?{query}")).body == plain.body


async def test_a_probe_still_takes_its_own(node: Served) -> None:
    verbose = await node.ask("GET", "/readyz?cb=%zz&verbose&exclude=leader&exclude=storage&_=7")
    assert b"[+]leader excluded: ok\n" in verbose.body
    assert b"[+]storage excluded: ok\n" in verbose.body


async def test_the_right_to_ask_comes_before_what_is_asked() -> None:
    async with serve(SingleGroup(), token="t" * 40) as node:
        assert (await node.ask("GET", "/v1/kv/a?surely_unknown=1")).status == 401
        assert (await node.ask("GET", "/admin/healthz?surely_unknown=1")).status == 200


async def test_an_action_that_is_refused_for_its_query_is_in_the_audit_log(
    node: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "kvnode.audit"):
        assert (await node.ask("POST", "/admin/api/v1/drain?forse")).status == 400
    assert "POST /admin/api/v1/drain?forse: bad_request (not_applied)" in caplog.text
    assert json.loads((await node.ask("GET", "/readyz")).body)["status"] == "ok"
