"""/openapi.json is what generators of clients take: one is run, and its client talks to a real node."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster

PROGRAM = """
    import sys
    from http import HTTPStatus
    from io import BytesIO

    from made import Client
    from made.api.keys import batch, delete_key, get_key, list_keys, put_key, transaction
    from made.api.leases import grant_lease
    from made.api.probes import readiness
    from made.models import (
        Batch, BatchOperationsItemDelete, BatchOperationsItemDeleteDelete, BatchOperationsItemPut, Error, Grant,
        OperationPut, PageOfItems, PutKeyIfNoneMatch, PutTextForATime, PutTextOnALease, Txn,
        Written,
    )
    from made.types import File

    client = Client(sys.argv[1], verify_ssl=False)  # it is http: what certificates this machine trusts is no matter
    for key in ("a", "b/c", "é%2F //"):
        written = put_key.sync(key, client=client, body=File(BytesIO(key.encode())))
        assert isinstance(written, Written) and written.key == key, written
    refused = put_key.sync("a", client=client, body=File(BytesIO(b"")), if_none_match=PutKeyIfNoneMatch.VALUE_0)
    assert isinstance(refused, Error) and refused.error == "precondition_failed", refused
    got = get_key.sync_detailed("b/c", client=client)
    assert got.status_code is HTTPStatus.OK and got.parsed.payload.read() == b"b/c", got
    page = list_keys.sync(client=client, limit=2)
    assert isinstance(page, PageOfItems) and [item.key for item in page.items] == ["a", "b/c"], page
    lease = grant_lease.sync(client=client, body=Grant(ttl=60))
    put = OperationPut(put=PutTextOnALease(key="t", text="x", lease=lease.id))
    done = transaction.sync(client=client, body=Txn(success=[put]))
    assert done.succeeded and done.results[0].put.key == "t", done
    operations = [
        BatchOperationsItemPut(put=PutTextForATime(key="d", text="y")),
        BatchOperationsItemDelete(delete=BatchOperationsItemDeleteDelete(key="missing")),
    ]
    results = batch.sync(client=client, body=Batch(operations=operations)).results
    assert (results[0].key, results[1].error) == ("d", "key_not_found"), results
    deleted = delete_key.sync("a", client=client)
    assert deleted.deleted.value == 1, deleted
    assert get_key.sync_detailed("a", client=client).status_code is HTTPStatus.NOT_FOUND
    assert readiness.sync(client=client).status.value == "ok"
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Cluster(tmp_path_factory.mktemp("generated"), size=1).start() as cluster:
        yield cluster.url("n1")


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as answer:
        described: dict[str, Any] = json.load(answer)
    return described


def test_a_client_that_was_generated_puts_gets_lists_and_deletes(
    url: str, document: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    # Without what it would run on its own output to make it pretty.
    (tmp_path / "settings.json").write_text(json.dumps({"package_name_override": "made", "post_hooks": []}))
    generate = ["generate", "--path", "openapi.json", "--config", "settings.json", "--output-path", "out"]
    command = [str(Path(sys.executable).parent / "openapi-python-client"), *generate, "--fail-on-warning"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=80, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    program = textwrap.dedent(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-c", program, url],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_operation_has_a_tag_and_every_object_a_name(document: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert {tag for operation in operations for tag in operation["tags"]} == tags
    assert document["servers"] == [{"url": "/"}]
    assert '"const"' not in json.dumps(document), "generators do not know it in headers"
    for name, schema in document["components"]["schemas"].items():
        assert '"properties"' not in json.dumps([value for word, value in schema.items() if word != "properties"]), name
        assert not any("properties" in each for each in schema.get("properties", {}).values()), name
