"""Which commands of the pages are run by tests, and which are not, and why: no block of commands is overlooked."""

from __future__ import annotations

import re

import pytest

from tests.cluster import PROJECT

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?P<run><!-- run -->\n)?```console\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^[$#] (.*)$", re.MULTILINE)
RUN_WHOLE = {"CLIENT.md"}  # by tests/test_documentation.py, as are the marked ones of README.md and ETCD.md
GUIDES = {path.name for path in (PROJECT / "docs" / "guides").glob("*.md")}
RUN_BY = {"README.md", "ETCD.md", "OPERATIONS.md"} | GUIDES  # by tests/test_operating.py and tests/test_guides.py

# (page, the beginning of the block's first command) -> what stands for it, or why nothing does.
NOT_RUN = {
    ("README.md", "make dev"): "tests/cli/test_dev.py runs what it runs",
    ("README.md", "kill -9"): "tests/processes/ and tests/haproxy/ kill leaders",
    ("README.md", "PEERS="): "the nodes of every test of real processes are started so (tests/cluster.py)",
    ("README.md", "kvnode serve --node-id n4"): "tests/processes/ add members so",
    ("README.md", "make compose-up"): "needs a container engine, as `make compose-test` does",
    ("CONTRIBUTING.md", "make dev"): "tests/cli/test_dev.py runs what it runs; make test is this run",
    ("OPERATIONS.md", "kvnode recover --data-dir data/n1 --skip-entry"): "tests/processes/test_poison.py does it",
    ("OPERATIONS.md", "mkdir certs"): "tests/certificates.py makes the same certificates without openssl",
    ("OPERATIONS.md", "kvnode serve --node-id n1 --http 127.0.0.1:8301"): "tests/processes/ start secured nodes so",
    ("OPERATIONS.md", "export KVNODE_URL="): "goes on from the secured cluster",
    ("OPERATIONS.md", "curl http://127.0.0.1:9301/readyz"): "goes on from the secured cluster",
    ("OPERATIONS.md", "kvnode verify --data-dir kvnode-data/n1"): "tests/cli/ and tests/storage/ verify directories",
    ("OPERATIONS.md", "kvnode verify --data-dir bad"): "needs a damaged directory: tests/storage/ makes some",
    ("OPERATIONS.md", "kvnode status"): "its output is of a cluster in trouble",
    ("OPERATIONS.md", "kvnode doctor"): "tests/cli/ and tests/processes/ run the doctor",
    ("OPERATIONS.md", "OTEL_EXPORTER_OTLP_ENDPOINT="): "tests/observability/test_spans.py has a collector",
    ("OPERATIONS.md", "prometheus --config.file"): "needs Prometheus; tests/deploy/test_monitoring.py reads its files",
    ("OPERATIONS.md", "python3 -m venv /opt/kvnode"): "tests/deploy/test_manifests.py checks the unit",
    ("OPERATIONS.md", "make compose-up-secure"): "needs a container engine, as `make compose-test` does",
    ("first-cluster.md", "python3 -m venv"): "tests/packaging/ installs the wheel in an empty environment",
    ("patroni.md", "pip install"): "`make patroni` installs them",
    ("kubernetes.md", "docker build"): "needs a container engine and a registry",
    ("kubernetes.md", "kubectl"): "needs kubectl; tests/test_guides.py compares its names with the manifests",
}  # fmt: skip


def blocks() -> list[tuple[str, bool, str]]:
    """(page, whether a test runs it, its first command) of every block that shows a command."""
    found = []
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text()):
            command = COMMAND.search(block["text"])
            if command is not None:
                is_run = page.name in RUN_WHOLE or (block["run"] is not None and page.name in RUN_BY)
                found.append((page.name, is_run, command[1]))
    return found


@pytest.mark.parametrize(("page", "is_run", "command"), blocks())
def test_a_block_of_commands_is_run_or_it_is_said_why_not(page: str, is_run: bool, command: str) -> None:
    reasons = [key for key in NOT_RUN if key[0] == page and command.startswith(key[1])]
    assert is_run is not bool(reasons), f"{page}: {command}"


def test_no_reason_is_left_without_its_block() -> None:
    shown = [(page, command) for page, _, command in blocks()]
    assert [key for key in NOT_RUN if not any(page == key[0] and text.startswith(key[1]) for page, text in shown)] == []
