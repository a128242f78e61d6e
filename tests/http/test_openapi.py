"""/openapi.json describes every route as it is: no route is missing, and a live node keeps to every word of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvnode.http.app import STATUS_OF
from kvnode.http.openapi.operations import OPERATIONS
from kvnode.http.openapi.parameters import PARAMETERS
from kvnode.http.openapi.schemas import SCHEMAS
from tests.cluster import Cluster
from tests.http.serving import Served

METHODS = {"get", "head", "put", "post", "patch", "delete"}
# What a request costs schemathesis to make up, not what it costs a node, decides how many of them a test can have:
# other methods are left to test_routes.py, and the 900 bodies that differ in one field to test_writes_of_many.py.
# Draining would fail the probes for all that comes after it. A made-up Kvnode-Timeout may leave a busy node too little
# time, which is an honest 503 or 504 and no fault.
SETTINGS = """
[generation]
deterministic = true

[phases.coverage]
unexpected-methods = []

[[operations]]
include-operation-id = ["transaction", "batch"]
phases.coverage.enabled = false
parameters = { "Kvnode-Timeout" = "30" }

[[operations]]
exclude-operation-id = ["transaction", "batch"]
phases.fuzzing.enabled = false

[[operations]]
include-operation-id = "watch"
parameters = { wait = "0s" }

[[operations]]
include-operation-id = ["drain", "undrain"]
enabled = false
"""
# Not all that fits the schemas is taken: two parameters may exclude each other, and a cursor is one that was given out.
CHECKS = "--checks=all", "--exclude-checks=positive_data_acceptance"


async def described(node: Served) -> dict[str, Any]:
    reply = await node.ask("GET", "/openapi.json")
    assert reply.status == 200
    document: dict[str, Any] = reply.json
    return document


async def test_every_route_and_method_is_described(node: Served) -> None:
    paths = (await described(node))["paths"]
    routed = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    missing = [
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method, operation in methods.items()
        if "operationId" not in operation
    ]
    assert not missing, f"write an entry in kvnode/http/openapi/data.py or administration.py for: {', '.join(missing)}"
    assert not set(OPERATIONS) - routed, "entries in kvnode/http/openapi/ for what is no route"


async def test_the_document_holds_together(node: Served) -> None:
    document = await described(node)
    assert document["openapi"] == "3.1.0"
    text = json.dumps(document)
    for reference in re.findall(r'"#/([^"]+)"', text):
        found: Any = document
        for part in reference.split("/"):
            found = found[part]
    for kind, known in (("parameters", PARAMETERS), ("schemas", SCHEMAS)):
        assert {name for name in known if f'"#/components/{kind}/{name}"' not in text} == set(), f"unused {kind}"
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
    for path, methods in document["paths"].items():
        assert set(methods) <= METHODS
        for operation in methods.values():
            used = [PARAMETERS[each["$ref"].rpartition("/")[2]] for each in operation["parameters"]]
            assert {each["name"] for each in used if each["in"] == "path"} == set(re.findall(r"{(\w+)}", path)), path
    assert {code for operation in OPERATIONS.values() for code in operation.refusals} <= set(STATUS_OF)


def test_a_live_node_keeps_to_the_document(tmp_path: Path) -> None:
    """Valid and invalid values of every parameter and body: no 500, no other status, body or header than described."""
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(SETTINGS)
    with Cluster(tmp_path / "cluster", size=1).start() as cluster:
        # Not by its script's path: `make test-aiohttp` runs this under an interpreter that has no scripts beside it.
        program = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
        options = [
            "--phases=coverage,fuzzing",
            "--max-examples=5",
            "--warnings=off",
            "--exclude-method=HEAD",
            "--no-color",
        ]
        done = subprocess.run(
            [*program, f"--config-file={settings}", "run", *CHECKS, *options, cluster.url("n1", "/openapi.json")],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-1_000:]
        assert "unexpectedly" not in cluster.log("n1")
        drained = cluster.request("n1", "POST", "/admin/api/v1/drain", b'{"force":true}')
        assert (drained.status, drained.json()["draining"]) == (200, True)
    assert (match := re.search(r"([0-9]+) generated", done.stdout))
    assert int(match[1]) > 500, "so many were tried that it means something"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_document_is_the_same_every_time(node: Served, method: str) -> None:
    first, again = await node.ask(method, "/openapi.json"), await node.ask(method, "/openapi.json")
    assert (first.status, first.body) == (200, again.body)
    assert first.headers["content-type"] == "application/json"
