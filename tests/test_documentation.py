"""The examples of docs/CLIENT.md, and those of other pages marked so, run as they stand on one cluster of three."""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import environment
from tests.cluster import PROJECT, Cluster

PAGES = {
    "CLIENT.md": PROJECT / "docs" / "CLIENT.md",
    "README.md": PROJECT / "README.md",
    "ETCD.md": PROJECT / "docs" / "ETCD.md",
}
MARK = "<!-- run -->\n"  # whose other examples start clusters, kill nodes and the like; of CLIENT.md all are run
ANYTHING = "…"


@dataclass(frozen=True)
class Example:
    """A fenced block: its page and language, the line that it begins at, and its text."""

    page: str
    language: str
    line: int
    text: str


def examples() -> list[Example]:
    found = []
    for name, path in PAGES.items():
        page, mark = path.read_text(), "" if name == "CLIENT.md" else MARK
        for match in re.finditer(rf"^{mark}```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            found.append(Example(name, match[1], page[: match.start(2)].count("\n") + 1, match[2]))
    return found


def matches(expected: str, printed: str) -> bool:
    return re.fullmatch(".*?".join(map(re.escape, expected.split(ANYTHING))), printed, re.DOTALL) is not None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("documentation")).start() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """The Python examples go on from each other."""
    return {}


def addressed(text: str, cluster: Cluster, folder: Path) -> str:
    """With this cluster's addresses in the place of those of `make dev`."""
    for number, node in enumerate(cluster.nodes.values(), 1):
        text = text.replace(f"127.0.0.1:800{number}", f"{node.http[0]}:{node.http[1]}")
        text = text.replace("127.0.0.1:8080", f"{node.http[0]}:{node.http[1]}")  # HAProxy; each node does as well
    return text.replace("/tmp/", f"{folder}/")


def test_no_example_is_overlooked() -> None:
    assert len(examples()) > 15
    assert {each.page for each in examples()} == set(PAGES)


@pytest.mark.parametrize("example", examples(), ids=lambda each: f"{each.page}-{each.line}")
def test_an_example_does_what_the_page_says(
    example: Example, cluster: Cluster, namespace: dict[str, Any], tmp_path: Path
) -> None:
    text = addressed(example.text, cluster, tmp_path)
    if example.language == "python":
        run_python(example, text, namespace)
    else:
        assert example.language == "console", example
        run_console(text, cluster)


def run_python(example: Example, text: str, namespace: dict[str, Any]) -> None:
    """What each `print` prints stands behind it as a comment."""
    code = compile("\n" * (example.line - 1) + text, example.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    out = io.StringIO()
    with redirect_stdout(out):
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, namespace))  # as `python -m asyncio` does
        else:
            exec(code, namespace)
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", text, re.MULTILINE)
    printed = out.getvalue().splitlines()
    assert len(printed) == len(expected)
    assert all(map(matches, expected, printed)), printed


def run_console(text: str, cluster: Cluster) -> None:
    """`$ ` begins a command, `> ` continues it, and the rest is what they print; one shell runs them all."""
    script = re.sub(r"^> ", "", "".join(re.findall(r"^[$>] .*\n", text, re.MULTILINE)), flags=re.MULTILINE)
    script = re.sub(r"^\$ ", "", script, flags=re.MULTILINE)
    expected = "".join(re.findall(r"^(?![$>] ).*\n", text, re.MULTILINE))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-uc", script],
        env=environment({"PATH": path, "KVNODE_URL": ",".join(cluster.url(name) for name in cluster.nodes)}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        cwd=PROJECT,
    )
    # A value ends without a line break, and the page cannot show that.
    assert matches(expected.replace("\n", ""), done.stdout.replace("\n", "")), done.stdout
