"""How the code is shaped, in figures: `make measure`.

For each room its files, lines and functions; over all of them import circles, Protocols, and classes of one name in two
rooms. `tests/node/path_of_a_put.py` counts the files and the calls that a PUT passes.
"""

from __future__ import annotations

import ast
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parent.parent / "kvnode"
LONG_FUNCTION_LINES: Final = 50


class Module:
    """One file of the package: its room, its text, and what it imports when it is loaded."""

    def __init__(self, path: Path) -> None:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        self.name = ".".join(("kvnode", *parts)).removesuffix(".__init__")
        self.room = parts[0] + "/" if len(parts) > 1 else "(top)"
        text = path.read_text()
        self.lines = text.count("\n")
        self.tree = ast.parse(text)
        nodes = list(ast.walk(self.tree))
        self.functions = [
            (node.end_lineno or node.lineno) - node.lineno + 1
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        self.classes = [node for node in nodes if isinstance(node, ast.ClassDef)]

    @property
    def protocols(self) -> list[str]:
        return [each.name for each in self.classes if any(_name_of(base) == "Protocol" for base in each.bases)]

    def imports(self, known: set[str]) -> set[str]:
        """The modules of the package that this one imports at its own level: later imports make no circle."""
        found: set[str] = set()
        for node in self.tree.body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name for name in inner if name in known} or {node.module}
        return (found & known) - {self.name}


def _name_of(base: ast.expr) -> str:
    base = base.value if isinstance(base, ast.Subscript) else base
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def modules() -> list[Module]:
    return [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]


def circles(found: list[Module]) -> list[list[str]]:
    """The groups of modules that import each other in a circle, also through others (Tarjan 1972)."""
    known = {module.name for module in found}
    arrows = {module.name: sorted(module.imports(known)) for module in found}
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(name: str) -> None:
        numbers[name] = lowest[name] = len(numbers)
        stack.append(name)
        for other in arrows[name]:
            if other not in numbers:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], numbers[other])
        if lowest[name] == numbers[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                result.append(sorted(group))

    for name in arrows:
        if name not in numbers:
            visit(name)
    return result


def names_in_two_rooms(found: list[Module]) -> dict[str, list[str]]:
    """Public classes of one name in several rooms, but for Protocols, which name what another room has."""
    where: dict[str, set[str]] = defaultdict(set)
    for module in found:
        for each in module.classes:
            if not each.name.startswith("_") and each.name not in module.protocols:
                where[each.name].add(module.room)
    return {name: sorted(rooms) for name, rooms in sorted(where.items()) if len(rooms) > 1}


def main() -> None:
    found = modules()
    print(
        f"{'room':<12}{'files':>6}{'lines':>8}{'longest file':>14}{'functions':>11}{'median lines':>14}{'over 50':>9}"
    )
    rooms = [*sorted({module.room for module in found}), "all"]
    for room in rooms:
        inside = [module for module in found if room in ("all", module.room)]
        lengths = [length for module in inside for length in module.functions]
        longest = max(module.lines for module in inside)
        over = sum(length > LONG_FUNCTION_LINES for length in lengths)
        lines, median = sum(module.lines for module in inside), statistics.median(lengths)
        print(f"{room:<12}{len(inside):>6}{lines:>8,}{longest:>14}{len(lengths):>11,}{median:>14.0f}{over:>9}")
    protocols = sorted(f"{module.name}.{name}" for module in found for name in module.protocols)
    print(f"\n{len(protocols)} Protocols: {', '.join(protocols)}")
    print(f"{len(circles(found))} import circles: " + "; ".join(", ".join(group) for group in circles(found)))
    twice = names_in_two_rooms(found)
    print(
        f"{len(twice)} class names in two rooms: " + ", ".join(f"{name} ({' '.join(of)})" for name, of in twice.items())
    )


if __name__ == "__main__":
    main()
