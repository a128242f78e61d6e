"""/docs in a real browser: the operations are shown, one can be tried out, and nothing goes wrong on the way."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

from tests.cluster import Cluster
from tests.console.browser import Visit, expect


def test_the_page_shows_every_operation_and_sends_one(
    make_cluster: Callable[..., Cluster], visit: Callable[..., Visit]
) -> None:
    cluster = make_cluster(size=1).start()
    cluster.put("greeting", b"hello")
    seen = visit(cluster.url("n1"), path="/docs")
    with urllib.request.urlopen(cluster.url("n1", "/openapi.json"), timeout=10) as answer:
        document = json.load(answer)
    operations = sum(len(methods) for methods in document["paths"].values())
    expect(seen.page.locator(".opblock")).to_have_count(operations)
    expect(seen.page.get_by_role("heading", name="kvnode")).to_be_visible()
    for tag in document["tags"]:
        expect(seen.page.locator(f'[data-tag="{tag["name"]}"]').first).to_be_visible()
    # step: a request is made from the page, of the node that it came from
    seen.page.locator("#operations-keys-get_key").get_by_role("button").first.click()
    operation = seen.page.locator("#operations-keys-get_key")
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_placeholder("key", exact=True).fill("greeting")
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
