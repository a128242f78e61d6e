"""The page's files: what they are sent with, and that they take no path from the API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import kvnode.http.console
from kvnode.http.console import PUBLIC
from tests.http.serving import Served, serve
from tests.http.single import SingleGroup

PAGE = Path(kvnode.http.console.__file__).parent / "page"


@pytest.mark.parametrize("path", sorted(PUBLIC - {"/admin"}))
async def test_a_file_comes_with_its_type_a_strict_policy_and_an_etag(path: str, node: Served) -> None:
    reply = await node.ask("GET", path)
    assert reply.status == 200
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", "": "text/html"}
    assert reply.headers["content-type"].startswith(types[Path(path).suffix])
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["kvnode-node"] == "n1"
    for known in (reply.headers["etag"], f"W/{reply.headers['etag']}", f'"x", {reply.headers["etag"]}'):
        again = await node.ask("GET", path, {"If-None-Match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", reply.headers["etag"])
    assert (await node.ask("GET", path, {"If-None-Match": '"x"'})).body == reply.body


async def test_the_address_as_people_type_it_leads_to_the_page(node: Served) -> None:
    reply = await node.ask("GET", "/admin")
    assert (reply.status, reply.headers["location"]) == (308, "/admin/")


async def test_every_file_is_served_and_every_name_in_a_file_is_one() -> None:
    names = {path.name for path in PAGE.iterdir()}
    assert {path.rpartition("/")[2] or "index.html" for path in PUBLIC - {"/admin"}} == names
    for name in names - {"icon.svg"}:
        text = (PAGE / name).read_text()
        for named in re.findall(r'(?:from "\./|(?:href|src)="console/|src: "console/)([^"]+)"', text):
            assert named in names, f"{name} names {named}"
        assert "://" not in re.sub(r"https\?:\\/\\/|http://www\.w3\.org/2000/svg", "", text), (
            f"{name} names another origin"
        )
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert forbidden not in text, f"{name} has {forbidden}"


async def test_without_a_token_the_page_is_there_and_the_api_is_not() -> None:
    async with serve(SingleGroup(), token="secret") as node:
        for path in PUBLIC:
            assert (await node.ask("GET", path)).status in (200, 308)
            assert (await node.ask("GET", path, {"Authorization": "Bearer wrong"})).status in (200, 308)
            assert (await node.ask("POST", path)).status == 405
        assert (await node.ask("GET", "/admin/api/v1/nodes")).status == 401
        assert (await node.ask("GET", "/admin/console/nothing.js")).status == 401
        access = "/admin/api/v1/access"
        assert (await node.ask("GET", access)).json == {"asks_for_tokens": True, "admitted": False}
        known = (await node.ask("GET", access, {"Authorization": "Bearer secret"})).json
        assert known["admitted"]
        assert not known["session"]


async def test_an_open_node_says_that_it_asks_for_nothing(node: Served) -> None:
    access = (await node.ask("GET", "/admin/api/v1/access")).json
    assert access["admitted"]
    assert not access["asks_for_tokens"]


async def test_a_member_whose_version_gives_no_report_is_shown_as_this_node_sees_it(node: Served) -> None:
    async def reports(what: str, since_ms: int = 0) -> dict[str, dict[str, Any]]:
        return {"n1": node.group.own_reports[what](since_ms), "n2": {}}

    node.group.reports = reports  # type: ignore[method-assign]
    older = (await node.ask("GET", "/admin/api/v1/nodes")).json["nodes"][1]
    assert (older["id"], older["role"], older["ready"], older["version"]) == ("n2", "follower", False, None)
    assert older["health"] == "Runs a version that says nothing of its health"


async def test_what_a_node_says_of_itself_is_shown(node: Served) -> None:
    async def reports(what: str, since_ms: int = 0) -> dict[str, dict[str, Any]]:
        own = node.group.own_reports[what](since_ms)
        return {"n1": own, "n2": own | {"draining": True, "ready": False, "health": "This node is draining", "lag": 4}}

    node.group.reports = reports  # type: ignore[method-assign]
    node.group.becomes(storage_error="The disk is full")
    first, second = (await node.ask("GET", "/admin/api/v1/nodes")).json["nodes"]
    assert (first["role"], first["ready"], first["health"]) == ("leader", False, "The disk is full")
    assert (second["role"], second["draining"], second["lag"]) == ("draining", True, 4)


async def test_a_member_that_does_not_answer_is_unreachable(node: Served) -> None:
    nodes = (await node.ask("GET", "/admin/api/v1/nodes")).json
    assert [(each["id"], each["role"], each["ready"]) for each in nodes["nodes"]] == [
        ("n1", "leader", True),
        ("n2", "unreachable", False),
    ]
    assert (nodes["leader_id"], nodes["term"], nodes["cluster_id"]) == ("n1", 3, "c")
