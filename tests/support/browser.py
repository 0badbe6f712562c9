"""Headless Chromium without a network, for the tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser from Playwright; skip the test if Chromium or Playwright is not installed."""
    if PROGRAM is None:
        pytest.skip("needs Chromium on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox does not start for root, which CI often is.
        flags = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = driver.chromium.launch(executable_path=PROGRAM, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """Yield the page of a file with all charts drawn; fail on console errors, warnings and requests."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
    )
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-drawn=yes]")
    try:
        yield page
        assert complaints == []
    finally:
        context.close()


def not_drawn(page: Any) -> list[str]:
    """Return the titles of charts that are not visible on a page."""
    return page.eval_on_selector_all(
        "figure.drawn",
        """all => all.filter(figure => {
            const mark = figure.querySelector('.canvas svg, .canvas canvas');
            return figure.dataset.drawn !== 'yes' || !mark || mark.getBoundingClientRect().height < 100;
        }).map(figure => figure.querySelector('figcaption').textContent)""",
    )
