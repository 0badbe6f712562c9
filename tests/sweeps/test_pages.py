"""Pages in Chromium with the network cut: all is drawn, in light and dark, wide and narrow; tables sort and filter."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dltrain.report.html import charts, comparison_page, run_page
from dltrain.report.run_rows import Metric, group_by_data
from support import pages as folders
from support.browser import chromium, faint, not_drawn, opened, overlapping

pytestmark = pytest.mark.skipif(not run_page.page.VEGA.exists(), reason="needs dltrain to be installed")

ACCURACY = Metric("val_accuracy", smaller_is_better=False)
SIZES = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 400)]
SOME_SLOW = [pytest.param(*size, marks=[] if size == ("dark", 400) else pytest.mark.slow) for size in SIZES]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ["automobile", *map(str, range(1, 10))]
    folder = folders.write_run(tmp_path_factory.mktemp("run") / "run", names)
    analysis = folders.analysis(names)  # with cells of all shades and counts of four digits
    analysis["confusion"] = [[(7 * true + 3 * claimed) % 40 * 30 for claimed in range(10)] for true in range(10)]
    bins = [
        {"from": i / 15, "to": (i + 1) / 15, "count": 10**i, "confidence": i / 15, "accuracy": 1} for i in range(15)
    ]
    analysis["calibration"]["bins"] = bins
    (folder / "analysis.json").write_text(json.dumps(analysis))
    with (folder / "metrics.jsonl").open("a") as file:  # a logarithm cannot show it
        file.write(json.dumps({"split": "val", "step": 30, "epoch": 3.0, "loss": 0.0}) + "\n")
    run_page.write(folder / "report.html", folder, {"model": {"name": "mlp"}, "data": {"name": "digits"}})
    return folder / "report.html"


def written_set(folder: Path, count: int) -> Path:
    members = folders.write_set(folder, count)
    comparison_page.write(folder / "report.html", f"{count} runs", group_by_data(members, ACCURACY))
    return folder / "report.html"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_set(tmp_path_factory.mktemp("set"), 24)


def column(page: Any, number: int) -> list[str]:
    """Texts of a column of the table of runs, of the rows that are shown."""
    return page.eval_on_selector_all(
        "#runs tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{number}].textContent)"
    )


@pytest.mark.parametrize(("scheme", "width"), SOME_SLOW)
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_page_is_drawn_whole_legible_and_as_wide_as_the_screen(
    browser: Any, kind: str, scheme: str, width: int, request: pytest.FixtureRequest
) -> None:
    with opened(browser, request.getfixturevalue(kind), scheme=scheme, width=width) as page:
        assert page.locator("figure.drawn").count() >= 4
        assert not_drawn(page) == []
        assert overlapping(page) == []
        assert faint(page) == []
        assert len(set(page.eval_on_selector_all(".headline div", "all => all.map(it => it.offsetHeight)"))) == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")


@pytest.mark.slow
def test_the_page_of_500_runs_is_drawn(browser: Any, tmp_path: Path) -> None:
    with opened(browser, written_set(tmp_path, 500)) as page:
        assert not_drawn(page) == []
        assert len(column(page, 0)) == 500


@pytest.mark.slow
def test_the_button_changes_the_colours_of_page_and_charts(browser: Any, run: Path) -> None:
    with opened(browser, run) as page:
        grid = "document.querySelector('.mark-rule.role-axis-grid line').getAttribute('stroke')"
        before = page.evaluate(grid)
        page.click("#theme")
        page.wait_for_function(f"{grid} !== {before!r}")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"


def test_a_table_is_sorted_by_click_and_keyboard_with_empty_cells_last(browser: Any, sweep: Path) -> None:
    with opened(browser, sweep) as page:
        head = page.locator("#runs th", has_text="test_accuracy").locator("button")
        head.click()
        found = column(page, 6)
        assert found[-3:] == ["", "", ""]
        assert [float(it) for it in found[:-3]] == sorted(float(it) for it in found[:-3])
        head.focus()
        page.keyboard.press("Enter")
        turned = column(page, 6)
        assert [float(it) for it in turned[:-3]] == sorted((float(it) for it in turned[:-3]), reverse=True)
        assert turned[-3:] == ["", "", ""]
        assert page.locator("#runs th[aria-sort=descending]").count() == 1


@pytest.mark.slow
def test_a_table_is_filtered_by_text(browser: Any, sweep: Path) -> None:
    with opened(browser, sweep) as page:
        page.fill("input[type=search]", "failed lenet")
        statuses, models = column(page, 1), column(page, 2)
        assert statuses
        assert set(zip(statuses, models, strict=True)) == {("failed", "lenet")}
        assert page.text_content("[data-shown=runs]") == f"{len(statuses)} of 24"
        page.fill("input[type=search]", "")
        assert len(column(page, 0)) == 24


def test_columns_that_do_not_fit_are_hidden_until_they_are_chosen(browser: Any, sweep: Path) -> None:
    with opened(browser, sweep, width=400) as page:
        heads = page.locator("#runs th")
        hidden = [
            it.strip() for it in page.eval_on_selector_all("#runs th[hidden]", "all => all.map(it => it.textContent)")
        ]
        assert 0 < len(hidden) < heads.count()
        chooser = page.locator("[data-columns=runs]")
        assert f"{heads.count() - len(hidden)} of {heads.count()} shown" in chooser.text_content()
        chooser.locator("summary").click()
        chooser.locator("label", has_text=hidden[0]).locator("input").check()
        assert page.locator("#runs th[hidden]").count() == len(hidden) - 1
        assert page.locator("#runs tbody td:not([hidden])").count() == 24 * (heads.count() - len(hidden) + 1)


@pytest.mark.slow
def test_a_run_without_a_page_of_its_own_opens_a_view_of_its_row(browser: Any, sweep: Path) -> None:
    with opened(browser, sweep) as page:
        page.locator("#runs tbody tr a[data-run]").first.click()
        row = page.locator("#runs tbody tr").first.locator("td").first.text_content()
        assert f"run  {row}" in page.locator("dialog[open] pre").text_content()
        assert re.fullmatch(rf"dltrain report '{sweep.parent}/\d+_job'", page.locator("dialog code").text_content())
        assert re.search(r"\d+_job/report\.html$", page.locator("dialog a").get_attribute("href"))
        page.locator("dialog button").click()
        assert page.locator("dialog[open]").count() == 0


@pytest.mark.slow
def test_a_loss_is_drawn_on_a_log_axis_on_demand(browser: Any, run: Path) -> None:
    with opened(browser, run) as page:
        figure = page.locator("figure", has=page.locator("[data-log]")).first
        before = figure.locator(".canvas").inner_html()
        figure.locator("[data-log]").check()
        page.wait_for_function(
            "before => document.querySelector('figure:has([data-log]) .canvas').innerHTML !== before", arg=before
        )
        figure.locator("[data-log]").uncheck()
        page.wait_for_function(
            "before => document.querySelector('figure:has([data-log]) .canvas').innerHTML === before", arg=before
        )
        assert not_drawn(page) == []


@pytest.mark.slow
def test_every_control_is_reachable_by_keyboard(browser: Any, sweep: Path) -> None:
    with opened(browser, sweep) as page:
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert {"theme", "INPUT", "BUTTON", "A"} <= reached


def test_untrusted_texts_do_nothing_in_a_browser(browser: Any, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=\"document.title='caught'\"></script><script>document.title='caught'</script>"
    folder = folders.write_run(tmp_path / "run", [hostile, "b"])
    run_page.write(folder / "report.html", folder, {"model": {"name": hostile}, "data": {"name": "digits"}})
    with opened(browser, folder / "report.html") as page:
        assert page.title().endswith("· dltrain")
        assert not_drawn(page) == []


def test_a_chart_that_cannot_be_drawn_says_so_and_the_others_are_drawn(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        charts, "reliability", lambda bins: {"description": "x", "height": 1, "data": {"values": []}, "mark": 7}
    )
    folder = folders.write_run(tmp_path / "run", ["a", "b"])
    run_page.write(folder / "report.html", folder, {})
    with opened(browser, folder / "report.html") as page:
        assert not_drawn(page) == ["x"]
        assert "could not be drawn" in page.text_content("figure[data-drawn=no]")
