from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three real nodes that log in JSON, for all tests of a file."""
    with Cluster(tmp_path_factory.mktemp("trio"), args=("--log-format", "json")) as cluster:
        yield cluster.start()
