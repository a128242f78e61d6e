"""X-Request-Id, as one node's HTTP server handles it."""

from __future__ import annotations

import logging

import pytest

from kvnode.logs import request_ids, writer
from tests.http.serving import Served


async def test_an_id_comes_back_and_none_is_made_where_nobody_asked(node: Served) -> None:
    async with node.connect() as wire:
        reply = await wire.ask("PUT", "/v1/kv/a", {"X-Request-Id": "order-17"}, b"1")
        assert (reply.status, reply.headers["x-request-id"]) == (200, "order-17")
        # The next request of the same connection is another one.
        assert "x-request-id" not in (await wire.ask("GET", "/v1/kv/a")).headers
        refused = await wire.ask("GET", "/nowhere", {"X-Request-Id": "order-18"})
        assert (refused.status, refused.headers["x-request-id"]) == (404, "order-18")


@pytest.mark.parametrize("unfit", ["", "x" * 129, "caf\u00e9", "a\tb"])
async def test_an_id_that_cannot_be_used_is_replaced_and_refuses_nothing(node: Served, unfit: str) -> None:
    reply = await node.ask("PUT", "/v1/kv/a", {"X-Request-Id": unfit}, b"1")
    assert reply.status == 200
    made = reply.headers["x-request-id"]
    assert made != unfit
    assert len(made) == 16
    assert int(made, 16) >= 0


async def test_what_fails_unexpectedly_is_logged_under_its_id(node: Served, caplog: pytest.LogCaptureFixture) -> None:
    node.group.raises = RuntimeError("a fault of the node")
    lines = []
    for form in (writer._Text(), writer._Json("n1")):
        caplog.handler.setFormatter(form)
        caplog.clear()
        await node.ask("PUT", "/v1/kv/a", {"X-Request-Id": "order-19"}, b"1")
        lines.append(caplog.text)
    assert all("order-19" in line for line in lines)


async def test_requests_are_logged_only_where_that_was_asked_for(
    node: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for level, expected in ((logging.WARNING, 0), (logging.INFO, 1)):
        caplog.clear()
        with caplog.at_level(level, request_ids.log.name):
            await node.ask("PUT", "/v1/kv/a%0Ab", {"X-Request-Id": "order-20"}, b"1")
        assert sum("/v1/kv/a%0Ab 200" in record.getMessage() for record in caplog.records) == expected
