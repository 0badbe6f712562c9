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


def overlapping(page: Any) -> list[str]:
    """Return the texts of charts that overlap another one or are cut off by the edge of their chart."""
    return page.eval_on_selector_all(
        ".canvas svg",
        """all => all.flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            const texts = [...svg.querySelectorAll('text')]
                .filter(it => it.textContent && it.getAttribute('opacity') !== '0')
                .map(it => ({name: it.textContent, box: it.getBoundingClientRect()}));
            const across = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const down = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            return texts.flatMap(({name, box}, index) => [
                ...[name]
                    .filter(() => across(box, frame) < box.width - 1 || down(box, frame) < box.height - 1)
                    .map(() => `${name} is cut off`),
                ...texts.slice(index + 1).filter(it => across(box, it.box) > 1 && down(box, it.box) > 2.5)
                    .map(it => `${name} overlaps ${it.name}`),
            ]);
        })""",
    )


def faint(page: Any) -> list[str]:
    """Return the visible texts whose contrast to what lies behind them is below 4.5."""
    return page.evaluate(
        """() => {
            const numbers = colour => {
                const probe = document.body.appendChild(document.createElement('i'));
                probe.style.color = colour;
                const [r, g, b, a = 1] = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
                probe.remove();
                return [r, g, b, a];
            };
            const over = ([r, g, b, a], below) => [r, g, b].map((part, i) => part * a + below[i] * (1 - a));
            const light = colour => colour.map(part => part / 255)
                .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
                .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
            const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const node = walker.currentNode, element = node.parentElement, range = document.createRange();
                range.selectNodeContents(node);
                const box = range.getBoundingClientRect();
                if (!node.textContent.trim() || !box.width) continue;
                const isChart = element instanceof SVGElement;
                const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
                const cells = isChart ? element.ownerSVGElement.querySelectorAll('.role-mark.mark-rect path') : [];
                let ground = [255, 255, 255];
                const parents = [];
                for (let it = element; it; it = it.parentElement) parents.unshift(it);
                parents.forEach(it => { ground = over(numbers(getComputedStyle(it).backgroundColor), ground); });
                for (const cell of cells) {
                    const it = cell.getBoundingClientRect();
                    const isUnder = it.left <= x && x <= it.right && it.top <= y && y <= it.bottom;
                    if (isUnder) ground = over(numbers(cell.getAttribute('fill')), ground);
                }
                const painted = isChart ? element.getAttribute('fill') : getComputedStyle(element).color;
                const colour = over(numbers(painted), ground);
                const [dark, bright] = [light(colour), light(ground)].sort((a, b) => a - b);
                if ((bright + 0.05) / (dark + 0.05) < 4.5) found.push(`${node.textContent.trim()} on ${ground}`);
            }
            return found;
        }"""
    )
