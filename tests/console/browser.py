"""A real Chromium, driven by Playwright, and a visit to the console that keeps an account of itself."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What is asked for by a test takes milliseconds; a loaded machine is given its time.
TIMEOUT_MS = 10_000

Browser = Any
Page = Any


@contextmanager
def open_browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    with playwright.sync_playwright() as running:
        # A sandbox needs namespaces that containers and root do not have; the pages are this project's own.
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def expect(locator: Any) -> Any:
    """Playwright's assertions, which wait for what they expect."""
    from playwright.sync_api import expect

    expect.set_options(timeout=TIMEOUT_MS)
    return expect(locator)


class Visit:
    """One person's page. `check` holds what was never to happen: an error, or a request to another origin.

    `refusals`: the statuses that the test brings about. The browser writes a line for each answer of 400 and more.
    """

    def __init__(self, browser: Browser, url: str, path: str = "/admin/", **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1360, "height": 1000}, **options)
        self.context.set_default_timeout(TIMEOUT_MS)
        self.page: Page = self.context.new_page()
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.refusals: set[int] = set()
        self.may_break = False  # a node is killed: connections fail
        self.origins = {_origin(url)}
        self.page.on("pageerror", lambda error: self.faults.append(f"{error}\n{error.stack}"))
        self.page.on("console", self._said)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"{url}{path}")

    def _said(self, message: Any) -> None:
        if message.type not in ("error", "warning"):
            return
        if "net::ERR_NETWORK_CHANGED" in message.text:
            return  # an interface of this machine came or went, as those of containers do
        refused = re.search(r"responded with a status of (\d+)", message.text)
        if refused and int(refused[1]) in self.refusals:
            return
        if self.may_break and (refused or "net::ERR" in message.text):
            return
        self.faults.append(message.text)

    def may_go_to(self, urls: Sequence[str]) -> None:
        self.origins |= set(map(_origin, urls))

    def check(self) -> None:
        assert not self.faults, self.faults
        foreign = [url for url in self.requests if _origin(url) not in self.origins and not url.startswith("data:")]
        assert not foreign, f"requests to another origin: {foreign[:5]}"

    def close(self) -> None:
        self.context.close()

    # --- the words of the page -----------------------------------------------------------------------

    def member(self, node: str) -> Any:
        rows = self.page.get_by_role("table", name="Members").get_by_role("row")
        return rows.filter(has=self.page.get_by_role("rowheader", name=re.compile(rf"^{node}\b")))

    @property
    def status(self) -> Any:
        return self.page.get_by_role("status")

    @property
    def keys(self) -> Any:
        return self.page.get_by_role("table", name="Keys")

    @property
    def prefix(self) -> Any:
        return self.page.get_by_label("Prefix")

    @property
    def value(self) -> Any:
        return self.page.get_by_label("Value", exact=True).and_(self.page.locator("textarea"))

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def dialog(self) -> Any:
        return self.page.get_by_role("dialog", name="Are you sure?")

    def choose_key(self, key: str) -> None:
        self.prefix.fill(key)
        self.keys.get_by_role("button", name=key, exact=True).click()

    def answer_yes(self) -> None:
        self.dialog.get_by_role("button", name=re.compile("^Yes")).click()


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
