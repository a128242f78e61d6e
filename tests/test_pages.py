"""What pages name is there: files, every room, the headings that links lead to, the contents of a long page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PAGE = (PROJECT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
ROOMS = [path for path in (PROJECT / "kvnode").iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`((?:[\w.]+/)*[\w]+\.py|(?:\w+/)+)`", PAGE))
    assert len(named) > 60
    roots = [PROJECT, PROJECT / "kvnode", *ROOMS]
    missing = {name for name in named if not any((root / name).exists() for root in roots)}
    assert missing == set()


def test_the_page_has_a_row_for_every_room_and_file_at_the_top() -> None:
    table = PAGE[PAGE.index("## The rooms") : PAGE.index("## The step of a node")]
    rooms = {f"{path.name}/" for path in ROOMS}
    files = {path.name for path in (PROJECT / "kvnode").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert {name for name in rooms | files if f"`{name}`" not in table} == set()


def test_every_hazard_and_rule_has_its_row() -> None:
    for letter, count in (("R", 19), ("Q", 11), ("G", 10)):
        for number in range(1, count + 1):
            if (letter, number) != ("R", 15):  # a remark on style in the review, and no fault
                assert re.search(rf"\| (?:[RQG]\d+, )*{letter}{number}\b", PAGE), f"{letter}{number}"


def test_functions_that_the_page_names_are_there() -> None:
    for cls, name in re.findall(r"`([A-Z]\w+)\.(\w+)`", PAGE):
        sources = [path.read_text(encoding="utf-8") for path in (PROJECT / "kvnode").rglob("*.py")]
        bodies = [source[source.index(f"class {cls}") :] for source in sources if f"class {cls}" in source]
        assert any(f"def {name}(" in body for body in bodies), f"{cls}.{name}"


def headings(page: Path) -> list[str]:
    """Where links into the page can lead, in its order: its headings, as GitHub makes anchors of them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#{1,6} (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in headings(target), link


def test_the_contents_of_the_operators_page_are_its_headings() -> None:
    page = PROJECT / "docs" / "OPERATIONS.md"
    contents = page.read_text(encoding="utf-8").partition("\n## ")[0]
    assert re.findall(r"\(#([^)]+)\)", contents) == headings(page)[1:]
