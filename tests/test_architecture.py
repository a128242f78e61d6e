"""The rooms and their arrows, as the code imports them. A new room is a decision: it gets a line here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.measure import circles
from tests.measure import modules as measured_modules

PACKAGE = Path(__file__).parent.parent / "kvnode"
FILE_LINES_MAX = 600  # a bound on monoliths; a lower one made people split a noun over several files

# Room -> the rooms of this project that it may import. The longest name that fits a module is its room.
ARROWS: dict[str, set[str]] = {
    "kvnode": set(),
    "kvnode.errors": set(),
    "kvnode.configuration": set(),
    "kvnode.deadline": set(),
    "kvnode.host": set(),
    # What strangers can make a node write is bounded there: every room that meets them imports it.
    "kvnode.logs": set(),
    "kvnode.net": {"kvnode.errors", "kvnode.logs"},
    # The replicated state machine: pure, total, deterministic.
    "kvnode.state": {"kvnode.errors"},
    "kvnode.config.values": set(),
    "kvnode.config": {"kvnode", "kvnode.config.values", "kvnode.errors", "kvnode.net", "kvnode.state"},
    # Counting is part of many rooms; making a page of it is one of its own.
    "kvnode.metrics.recent": set(),
    "kvnode.metrics.meters": {"kvnode.metrics.recent"},
    "kvnode.metrics": {"kvnode.configuration", "kvnode.metrics.meters", "kvnode.node.status"},
    # Who watches what: fed by node/, read by http/, and as free of clocks and sockets as the state.
    "kvnode.watch": {"kvnode.errors", "kvnode.state"},
    "kvnode.storage": {"kvnode.configuration", "kvnode.errors", "kvnode.host", "kvnode.metrics.meters", "kvnode.state"},
    "kvnode.raft.messages": set(),
    "kvnode.raft": {"kvnode.configuration", "kvnode.errors", "kvnode.raft.messages", "kvnode.storage"},
    "kvnode.peers": {"kvnode.errors", "kvnode.logs", "kvnode.net", "kvnode.raft.messages", "kvnode.state"},
    "kvnode.node.status": {"kvnode.configuration"},
    "kvnode.node.pace": set(),
    "kvnode.node": {
        "kvnode.configuration",
        "kvnode.deadline",
        "kvnode.errors",
        "kvnode.host",
        "kvnode.logs",
        "kvnode.metrics.meters",
        "kvnode.net",
        "kvnode.node.pace",
        "kvnode.node.status",
        "kvnode.peers",
        "kvnode.raft",
        "kvnode.raft.messages",
        "kvnode.state",
        "kvnode.storage",
        "kvnode.watch",
    },
    # Which aiohttp: looked at by a node's start and by the doctor.
    "kvnode.http.release": {"kvnode.errors"},
    # What HTTP asks of a group is a Protocol (http/group.py), so it needs no room of node/ but the frozen status.
    "kvnode.http": {
        "kvnode.config.values",
        "kvnode.deadline",
        "kvnode.errors",
        "kvnode.logs",
        "kvnode.metrics",
        "kvnode.metrics.meters",
        "kvnode.metrics.recent",
        "kvnode.net",
        "kvnode.node.pace",
        "kvnode.node.status",
        "kvnode.state",
        "kvnode.storage",  # backup files alone
        "kvnode.watch",
    },
    "kvnode.client": {"kvnode.errors", "kvnode.net"},
    "kvnode.server": {
        "kvnode",
        "kvnode.client",
        "kvnode.config",
        "kvnode.config.values",
        "kvnode.configuration",
        "kvnode.errors",
        "kvnode.http",
        "kvnode.http.release",
        "kvnode.logs",
        "kvnode.metrics.meters",
        "kvnode.net",
        "kvnode.node",
        "kvnode.node.status",
        "kvnode.storage",
    },
    # Look at a machine and a cluster, and put load on one, from outside of them.
    "kvnode.tools": {
        "kvnode",
        "kvnode.client",
        "kvnode.config",
        "kvnode.config.values",
        "kvnode.errors",
        "kvnode.http.release",
        "kvnode.node",
        "kvnode.raft",
    },
    "kvnode.cli": {
        "kvnode",
        "kvnode.client",
        "kvnode.config",
        "kvnode.config.values",
        "kvnode.errors",
        "kvnode.logs",
        "kvnode.server",
        "kvnode.storage",  # a data directory is verified, recovered and restored by it, without a node
        "kvnode.tools",
    },
    "kvnode.__main__": {"kvnode.cli"},
}

# Library -> the rooms that may know it.
LIBRARIES: dict[str, set[str]] = {
    "pysyncobj": {"kvnode.raft"},
    "aiohttp": {"kvnode.http", "kvnode.http.release", "kvnode.server", "kvnode.client"},
    "sortedcontainers": {"kvnode.state"},
    "click": {"kvnode.cli"},
    "rich": {"kvnode.cli"},
    "prometheus_client": {"kvnode.metrics"},
    "opentelemetry": {"kvnode.http"},
}

# What would make the state machine differ between nodes, or wait. Consensus has neither clock nor chance of its own,
# and calls nobody: it says what is to be done (`raft/ready.py`).
IMPURE = {"time", "random", "secrets", "uuid", "os", "io", "socket", "logging", "asyncio", "threading", "datetime"}
FORBIDDEN: dict[str, set[str]] = dict.fromkeys(("kvnode.state", "kvnode.watch", "kvnode.raft"), IMPURE)
# The core reads a clock of its own, which is set there.
ALLOWED: dict[str, set[str]] = {"kvnode.raft.core": {"time"}}

# A member's step (`node/member.py`) and what it is made of: what waits or reads the machine stands in the other files.
STEP = ("catchup", "compaction", "disk_health", "divergence", "feature_level", "gauges", "known_peers", "member",
        "members", "observed_status", "outstanding", "promises", "proposals", "read_index", "replicated_clock",
        "restore_contents", "status", "writes")  # fmt: skip
FORBIDDEN |= dict.fromkeys((f"kvnode.node.{name}" for name in STEP), IMPURE - {"logging"})


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(("kvnode", *path.relative_to(PACKAGE).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    # The bare package is a room of its own (its version), not the house around all others.
    fits = [room for room in ARROWS if module == room or (room != "kvnode" and module.startswith(room + "."))]
    assert fits, f"{module} belongs to no room"
    return max(fits, key=len)


def imports_of(path: Path) -> set[str]:
    """Absolute names of all that a file imports, at any depth: functions and TYPE_CHECKING blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which hides the arrow"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else node.module)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    room = room_of(module)
    for name in imports_of(MODULES[module]):
        if name == "kvnode" or name.startswith("kvnode."):
            target = room_of(name)
            assert target == room or target in ARROWS[room], f"{module} must not import {name}"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_rooms(module: str) -> None:
    room = room_of(module)
    for name in imports_of(MODULES[module]):
        library = name.partition(".")[0]
        assert room in LIBRARIES.get(library, {room}), f"{module} must not import {library}"
        forbidden = (FORBIDDEN.get(room, set()) | FORBIDDEN.get(module, set())) - ALLOWED.get(module, set())
        assert library not in forbidden, f"{module} must stay pure: {library}"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_can_be_read_in_one_go(module: str) -> None:
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= FILE_LINES_MAX, f"{module} has {lines} lines: which noun in it wants a room of its own?"


def test_no_room_is_named_for_nothing() -> None:
    for module in MODULES:
        assert not {"utils", "util", "helpers", "common", "misc", "base"} & set(module.split("."))


def test_no_two_rooms_need_each_other() -> None:
    below: dict[str, set[str]] = {}
    for room, arrows in ARROWS.items():
        below.setdefault(room, set()).update(arrows)
    for _ in below:
        for arrows in below.values():
            arrows.update(*(below[room] for room in arrows.copy()))
    assert [room for room, arrows in below.items() if room in arrows] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(measured_modules()) == []


def test_a_circle_of_imports_is_found(tmp_path: Path) -> None:
    first, second, third = (measured_modules()[number] for number in (0, 1, 2))
    first.tree = ast.parse(f"from {second.name} import x")
    second.tree = ast.parse(f"import {third.name}")
    third.tree = ast.parse(f"from {first.name} import y")
    assert circles([first, second, third]) == [sorted((first.name, second.name, third.name))]


def test_the_table_names_no_room_that_is_gone() -> None:
    for room in ARROWS:
        assert room in MODULES, room


def test_the_test_sees_through_every_form_of_import(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text("def f():\n    import os.path\nfrom kvnode.node import status\nfrom kvnode import __version__\n")
    assert imports_of(source) == {"os.path", "kvnode.node.status", "kvnode"}
