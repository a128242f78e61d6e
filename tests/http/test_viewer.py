"""/docs: what the viewer's files are sent with, for whom, and what a node without them says."""

from __future__ import annotations

import re

import pytest

from kvnode.http import viewer
from tests.http.serving import Served, serve
from tests.http.single import SingleGroup

TYPES = {"js": "text/javascript", "css": "text/css", "/docs": "text/html"}


@pytest.mark.parametrize("path", sorted(viewer.routes()))
async def test_a_file_comes_with_its_type_a_policy_and_an_etag(path: str, node: Served) -> None:
    reply = await node.ask("GET", path)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith(TYPES[path.rpartition(".")[2]])
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' data:; object-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    again = await node.ask("GET", path, {"If-None-Match": reply.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


async def test_the_page_names_files_that_are_there_and_no_other_origin(node: Served) -> None:
    page = (await node.ask("GET", "/docs")).body.decode()
    named = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(named) == 4
    for name in named:
        assert (await node.ask("GET", f"/{name}")).status == 200, name
    assert "://" not in page + (await node.ask("GET", "/docs/start.js")).body.decode()


@pytest.mark.parametrize("path", sorted(viewer.routes()))
async def test_without_the_package_a_sentence_says_what_to_install(
    path: str, node: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "PACKAGE", "no_such_package")
    reply = await node.ask("GET", path)
    assert (reply.status, reply.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert reply.body.decode().count("\n") == 1
    assert "pip install 'kvnode[docs]'" in reply.body.decode()


async def test_it_is_for_those_who_may_read_the_document() -> None:
    async with serve(SingleGroup(), token="secret") as node:
        for path in (*viewer.routes(), "/openapi.json"):
            assert (await node.ask("GET", path)).status == 401
            assert (await node.ask("GET", path, {"Authorization": "Bearer secret"})).status == 200
            assert (await node.ask("POST", path, {"Authorization": "Bearer secret"})).status == 405
