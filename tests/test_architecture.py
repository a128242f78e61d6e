"""The rooms and their arrows, as the code imports them. A new room is a decision: it gets a line here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kvnode"
FILE_LINES_MAX = 600  # a bound on monoliths; a lower one made people split a noun over several files

# Room -> the rooms of this project that it may import. The longest name that fits a module is its room.
ARROWS: dict[str, set[str]] = {
    "kvnode": set(),
    "kvnode.errors": set(),
    "kvnode.limits": set(),
    "kvnode.commands": {"kvnode.limits"},
    "kvnode.values": set(),
    # Counting is part of many rooms; making a page of it is one of its own.
    "kvnode.meters": set(),
    "kvnode.metrics": {"kvnode.meters", "kvnode.raft.status"},
    "kvnode.trace": set(),
    "kvnode.deadline": set(),
    # What strangers can make a node write: whoever meets strangers imports it.
    "kvnode.rate_limited_log": set(),
    "kvnode.logs": {"kvnode.rate_limited_log", "kvnode.trace"},
    "kvnode.options": {"kvnode", "kvnode.errors", "kvnode.values"},
    "kvnode.security": {"kvnode", "kvnode.errors", "kvnode.options", "kvnode.proxies", "kvnode.values"},
    "kvnode.config": {
        "kvnode",
        "kvnode.errors",
        "kvnode.options",
        "kvnode.security",
        "kvnode.session",
        "kvnode.values",
    },
    "kvnode.tls": {"kvnode.errors"},
    "kvnode.proxies": set(),
    "kvnode.reception": {"kvnode.proxies", "kvnode.rate_limited_log", "kvnode.tls"},
    "kvnode.table": set(),
    "kvnode.changes": set(),
    "kvnode.results": {"kvnode.items", "kvnode.limits"},
    "kvnode.entries": {"kvnode.commands"},
    "kvnode.items": {"kvnode.limits"},
    "kvnode.order": set(),
    "kvnode.outcomes": {"kvnode.commands", "kvnode.limits", "kvnode.results", "kvnode.table"},
    "kvnode.leases": {
        "kvnode.changes",
        "kvnode.commands",
        "kvnode.items",
        "kvnode.limits",
        "kvnode.order",
        "kvnode.results",
        "kvnode.table",
    },
    "kvnode.transactions": {
        "kvnode.changes",
        "kvnode.commands",
        "kvnode.items",
        "kvnode.leases",
        "kvnode.limits",
        "kvnode.results",
    },
    "kvnode.beside": {
        "kvnode.staging",
        "kvnode.commands",
        "kvnode.leases",
        "kvnode.limits",
        "kvnode.results",
        "kvnode.session",
        "kvnode.store",  # its type alone
        "kvnode.view",
    },
    "kvnode.staging": {"kvnode.items", "kvnode.leases", "kvnode.limits", "kvnode.table"},
    "kvnode.session": {"kvnode.commands", "kvnode.errors", "kvnode.limits", "kvnode.results"},
    "kvnode.tokens": {"kvnode.commands", "kvnode.limits", "kvnode.results"},
    "kvnode.ended_sessions": {"kvnode.limits", "kvnode.results", "kvnode.session"},
    "kvnode.view": {
        "kvnode.staging",
        "kvnode.ended_sessions",
        "kvnode.session",
        "kvnode.tokens",
        "kvnode.commands",
        "kvnode.items",
        "kvnode.leases",
        "kvnode.limits",
        "kvnode.outcomes",
        "kvnode.table",
    },
    "kvnode.store": {
        "kvnode.staging",
        "kvnode.ended_sessions",
        "kvnode.beside",
        "kvnode.session",
        "kvnode.changes",
        "kvnode.commands",
        "kvnode.items",
        "kvnode.leases",
        "kvnode.limits",
        "kvnode.order",
        "kvnode.outcomes",
        "kvnode.results",
        "kvnode.table",
        "kvnode.tokens",
        "kvnode.transactions",
        "kvnode.view",
    },
    "kvnode.backup": {
        "kvnode.session",
        "kvnode.items",
        "kvnode.limits",
        "kvnode.outcomes",
        "kvnode.store",
        "kvnode.tokens",
        "kvnode.view",
    },
    # Who watches what: fed by raft/, read by http/, and as free of clocks and sockets as the store.
    "kvnode.watch": {"kvnode.changes", "kvnode.errors"},
    "kvnode.raft.status": set(),
    "kvnode.raft.pace": set(),
    "kvnode.raft": {
        "kvnode.rate_limited_log",
        "kvnode.reception",
        "kvnode.tls",
        "kvnode.raft.pace",
        "kvnode.session",
        "kvnode.raft.status",
        "kvnode.watch",
        "kvnode.store",
        "kvnode.view",
        "kvnode.table",
        "kvnode.commands",
        "kvnode.limits",
        "kvnode.entries",
        "kvnode.beside",
        "kvnode.results",
        "kvnode.errors",
        "kvnode.meters",
        "kvnode.trace",
        "kvnode.deadline",
    },
    # Reads a data directory as a start does, for the command line: the one part of raft/ that needs no node.
    "kvnode.raft.verify": {"kvnode.raft", "kvnode.raft.replay", "kvnode.store", "kvnode.errors"},
    "kvnode.raft.replay": {
        "kvnode.raft",
        "kvnode.commands",
        "kvnode.entries",
        "kvnode.results",
        "kvnode.store",
        "kvnode.transactions",
    },
    "kvnode.raft.salvage": {"kvnode.limits", "kvnode.outcomes", "kvnode.store", "kvnode.view"},
    # What HTTP asks of a group is a Protocol (http/group.py), so it needs no room of raft/ but the frozen status.
    "kvnode.raft.recover": {
        "kvnode.raft",
        "kvnode.limits",
        "kvnode.raft.replay",
        "kvnode.raft.salvage",
        "kvnode.store",
        "kvnode.errors",
    },
    "kvnode.raft.restore": {"kvnode.raft", "kvnode.store", "kvnode.errors"},
    # Which aiohttp: looked at by a node's start and by the doctor.
    "kvnode.http.release": {"kvnode.errors"},
    "kvnode.http": {
        "kvnode.rate_limited_log",
        "kvnode.beside",
        "kvnode.session",
        "kvnode.proxies",
        "kvnode.tokens",
        "kvnode.backup",
        "kvnode.raft.pace",
        "kvnode.values",
        "kvnode.raft.status",
        "kvnode.changes",
        "kvnode.watch",
        "kvnode.store",
        "kvnode.items",
        "kvnode.leases",
        "kvnode.transactions",
        "kvnode.commands",
        "kvnode.limits",
        "kvnode.results",
        "kvnode.errors",
        "kvnode.meters",
        "kvnode.metrics",
        "kvnode.trace",
        "kvnode.deadline",
        "kvnode.logs",
    },
    "kvnode.joining": {"kvnode.client", "kvnode.raft", "kvnode.errors", "kvnode.values"},
    "kvnode.front": {
        "kvnode",
        "kvnode.config",
        "kvnode.errors",
        "kvnode.http",
        "kvnode.meters",
        "kvnode.proxies",
        "kvnode.raft",
        "kvnode.rate_limited_log",
        "kvnode.reception",
        "kvnode.tls",
        "kvnode.values",
        "kvnode.security",
    },
    "kvnode.server": {
        "kvnode.security",
        "kvnode.client",
        "kvnode.front",
        "kvnode.tls",
        "kvnode",
        "kvnode.joining",
        "kvnode.http",
        "kvnode.http.release",
        "kvnode.raft",
        "kvnode.raft.status",
        "kvnode.config",
        "kvnode.errors",
        "kvnode.values",
        "kvnode.logs",
        "kvnode.meters",
    },
    "kvnode.client": {"kvnode.errors", "kvnode.tls"},
    # Looks at a machine and a cluster from outside of them.
    "kvnode.doctor": {
        "kvnode",
        "kvnode.client",
        "kvnode.config",
        "kvnode.errors",
        "kvnode.http.release",
        "kvnode.raft",
        "kvnode.security",
        "kvnode.values",
    },
    # Load on a cluster, from outside of it.
    "kvnode.bench": {"kvnode.client", "kvnode.errors"},
    "kvnode.cli": {
        "kvnode",
        "kvnode.bench",
        "kvnode.doctor",
        "kvnode.client",
        "kvnode.server",
        "kvnode.backup",
        "kvnode.raft.recover",
        "kvnode.raft.restore",
        "kvnode.raft.verify",
        "kvnode.config",
        "kvnode.errors",
        "kvnode.options",
        "kvnode.values",
        "kvnode.logs",
    },
    "kvnode.__main__": {"kvnode.cli"},
}

# Library -> the rooms that may know it.
LIBRARIES: dict[str, set[str]] = {
    "pysyncobj": {"kvnode.raft"},
    "aiohttp": {"kvnode.http", "kvnode.http.release", "kvnode.front", "kvnode.client"},
    "sortedcontainers": {"kvnode.store", "kvnode.leases", "kvnode.order", "kvnode.staging"},
    "click": {"kvnode.cli"},
    "rich": {"kvnode.cli"},
    "prometheus_client": {"kvnode.metrics"},
    "opentelemetry": {"kvnode.http"},
}

# What would make the state machine differ between nodes, or wait.
FORBIDDEN: dict[str, set[str]] = {
    room: {"time", "random", "secrets", "uuid", "os", "io", "socket", "logging", "asyncio", "threading", "datetime"}
    for room in (
        *(
            "kvnode.store",
            "kvnode.session",
            "kvnode.beside",
            "kvnode.view",
            "kvnode.items",
            "kvnode.outcomes",
            "kvnode.table",
            "kvnode.tokens",
        ),
        *("kvnode.commands", "kvnode.limits", "kvnode.entries", "kvnode.results", "kvnode.changes", "kvnode.watch"),
    )
}


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
        assert library not in FORBIDDEN.get(room, set()), f"{module} must stay pure: {library}"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_can_be_read_in_one_go(module: str) -> None:
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= FILE_LINES_MAX, f"{module} has {lines} lines: which noun in it wants a room of its own?"


def test_no_room_is_named_for_nothing() -> None:
    for module in MODULES:
        assert not {"utils", "util", "helpers", "common", "misc", "base"} & set(module.split("."))


def test_the_table_names_no_room_that_is_gone() -> None:
    for room in ARROWS:
        assert room in MODULES, room


def test_the_test_sees_through_every_form_of_import(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text("def f():\n    import os.path\nfrom kvnode.raft import status\nfrom kvnode import __version__\n")
    assert imports_of(source) == {"os.path", "kvnode.raft.status", "kvnode"}
