"""A real browser for the tests of pages: Chromium without a window, its network cut."""

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
    """A browser of Playwright's; skips the test where there is none."""
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
    """A page of a file, all its figures drawn; fails if the console has an error or anything was fetched."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda it: told.append(it.url) if not it.url.startswith(("file:", "data:")) else None)
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-drawn=yes]")
    try:
        yield page
        assert told == []
    finally:
        context.close()


def not_drawn(page: Any) -> list[str]:
    """The titles of figures that are not there to be seen."""
    return page.eval_on_selector_all(
        "figure.drawn",
        """all => all.filter(it => {
            const mark = it.querySelector('.canvas svg, .canvas canvas');
            return it.dataset.drawn !== 'yes' || !mark || mark.getBoundingClientRect().height < 100;
        }).map(it => it.querySelector('figcaption').textContent)""",
    )
