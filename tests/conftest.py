"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from kvnode.http.audit import ANONYMOUS
from kvnode.logs.rate_limited import FAULTS, LINES
from tests.cluster import Cluster

# No test trusts a public certificate authority, and each of the hundreds of processes that the tests start would load
# some hundred and forty of them: an eighth of a node's start.
os.environ.update(SSL_CERT_FILE=os.devnull, SSL_CERT_DIR=os.devnull)

# An example's time says more of what runs beside it than of the code: the benchmarks measure the latter.
hypothesis.settings.register_profile("kvnode", deadline=None)
hypothesis.settings.load_profile("kvnode")

CLUSTERS = pytest.StashKey[list[Cluster]]()
LOG_TAIL_CHARS = 6_000


@pytest.fixture(autouse=True)
def _all_lines_again() -> None:
    """What one test made a log leave out is not left out of the next one's."""
    for each in (LINES, FAULTS, ANONYMOUS):
        each.forget()


@pytest.fixture
def make_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters (with `Cluster`'s options), not started yet, and always takes them down."""
    made = request.node.stash.setdefault(CLUSTERS, [])

    def make(**options: Any) -> Cluster:
        cluster = Cluster(tmp_path / f"cluster-{len(made) + 1}", **options)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three real nodes, ready, one of them the confirmed leader."""
    return make_cluster().start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Puts the end of every node's log under the report of a test that failed."""
    report = yield
    if report.failed:
        for cluster in item.stash.get(CLUSTERS, []):
            for name in cluster.nodes:
                report.sections.append((f"log of {name}", cluster.log(name)[-LOG_TAIL_CHARS:]))
    return report
