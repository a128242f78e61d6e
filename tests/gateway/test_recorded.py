"""What a real etcd answered, asked of a real cluster again: on its leader and on a follower, to the letter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.gateway.cases import CASES
from tests.gateway.recording import RECORDED, Player

WANTED = json.loads(RECORDED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("recorded")
    with Cluster(folder) as started:
        yield started.start()


@pytest.mark.parametrize("on", ["leader", "follower"])
@pytest.mark.parametrize("case", CASES)
def test_every_answer_is_etcds(cluster: Cluster, case: str, on: str) -> None:
    name = cluster.leader() if on == "leader" else cluster.followers()[0]
    answers = Player(cluster.nodes[name].http, case).play(CASES[case], WANTED[case])
    for number, (answer, wanted) in enumerate(zip(answers, WANTED[case], strict=True)):
        assert answer == wanted, f"answer {number} of {case}"
