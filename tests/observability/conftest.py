from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster


@pytest.fixture(scope="package")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three real nodes that log in JSON, requests too; every test leaves them as it found them."""
    args = ("--log-format", "json", "--log-requests")
    with Cluster(tmp_path_factory.mktemp("trio"), args=args) as cluster:
        yield cluster.start()
