"""Dashboard and alerts ask for what is on the page of metrics, and the alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvnode.http.credentials import COOKIE
from tests.cluster import PROJECT, Cluster
from tests.deploy.proxy import DEPLOY
from tests.observability.page import page

ALERTS = DEPLOY / "prometheus" / "alerts.yml"
PROMTOOL = shutil.which("promtool")
NAME = re.compile(r"\b(?:kvnode|process)_[a-z_]+\b")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("alone"), size=1) as cluster:
        yield cluster.start()


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "kvnode.json").read_text())  # type: ignore[no-any-return]


def test_dashboard_alerts_and_manual_name_what_is_on_the_page(alone: Cluster) -> None:
    on_page = page(alone, "n1").names() | {"kvnode_raft_peer_lag", "kvnode_raft_peer_reachable"}  # it has no peer
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in on_page}
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    asked = {name for query in queries for name in NAME.findall(query)}
    asked |= {name for rule in rules() for name in NAME.findall(rule["expr"])}
    assert len(asked) > 20
    assert asked <= on_page, asked - on_page
    manual = (PROJECT / "docs" / "OPERATIONS.md").read_text()
    named = set(re.findall(r"`(kvnode_[a-z_]+)`", manual)) - {COOKIE}
    assert named == {name for name in families if name.startswith("kvnode_")}
    for rule in rules():
        assert f"`{rule['alert']}`" in manual


def test_each_panel_has_a_place_of_its_own_and_each_alert_says_what_to_do() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["action"].endswith(".")


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: apt-get install prometheus")
def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    shutil.copytree(DEPLOY / "prometheus", tmp_path, dirs_exist_ok=True)
    shutil.copy(Path(__file__).parent / "alerts_test.yml", tmp_path)
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [PROMTOOL, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
