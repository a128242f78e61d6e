"""What a node loads before it begins: all of it is time in which it does not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import connector

from kvnode.client import Access
from kvnode.errors import StartupError, Unavailable
from kvnode.server import joining
from tests.certificates import Authority
from tests.cluster import PROJECT

LOADS = """
import gc, json, sys
sys.argv = ["kvnode", "serve"]
import kvnode.cli, kvnode.cli.serve
from kvnode.server import run
from aiohttp import connector
contexts = connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED
print(json.dumps([sorted(sys.modules), sum(each.cert_store_stats()["x509_ca"] for each in contexts), gc.isenabled()]))
"""


def test_a_node_loads_no_client_no_authorities_and_nothing_twice(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    env = os.environ | {"PYTHONPATH": str(PROJECT), "SSL_CERT_FILE": str(authority.ca)}
    said = subprocess.run([sys.executable, "-c", LOADS], env=env, capture_output=True, check=True, timeout=60).stdout
    modules, authorities, collects = json.loads(said)
    needless = {"kvnode.client", "kvnode.http.openapi.document", "prometheus_client", "importlib.resources", "zipfile"}
    assert not needless & set(modules)
    assert authorities == 0
    assert not collects, "the collector looks through what imports make, which stays"


@pytest.mark.parametrize(("url", "loaded"), [("https://n1:8001", 1), ("http://n1:8001", 0)])
async def test_a_node_that_joins_by_https_trusts_whom_the_system_trusts(
    url: str, loaded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        loads = 0

        def load_default_certs(self) -> None:
            self.loads += 1

    class Nobody:
        def __init__(self, *_: object, **__: object) -> None: ...

        async def __aenter__(self) -> None:
            raise Unavailable("Nobody answers.")

        async def __aexit__(self, *_: object) -> None: ...

    context = Context()
    monkeypatch.setattr(connector, "_SSL_CONTEXT_VERIFIED", context)
    monkeypatch.setattr(joining, "Client", Nobody)
    with pytest.raises(StartupError):
        await joining.join([url], "n4", ("n4", 7001), "http://n4:8001", Access())
    assert context.loads == loaded
