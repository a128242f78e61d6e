"""Fixtures: a real Chromium, and pages in it that keep an account of what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.console.browser import Browser, Visit, open_browser


# For one file at a time: as long as Playwright runs, it holds the event loop of its thread, which other files' tests
# want for themselves.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens pages, each of somebody else; all of them are checked at the end of the test."""
    visits: list[Visit] = []

    def open_page(url: str, **options: Any) -> Visit:
        visits.append(Visit(browser, url, **options))
        return visits[-1]

    yield open_page
    for each in visits:
        each.close()
    for each in visits:
        each.check()
