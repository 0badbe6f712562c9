"""The table of a sweep: ranked by its metric, grouped over seeds with an honest interval, written whole."""

import csv
import math
import random
from pathlib import Path

import pytest
import scipy.stats

from dltrain.commands.jobs import JobResult
from dltrain.report.run_rows import Metric, group_by_data, interval, metric
from dltrain.sweeps import results
from dltrain.sweeps.journal import Entry
from dltrain.sweeps.live_view import View


def entry(number: int, overrides: str, code: int = 0, status: str = "done", **metrics: float) -> Entry:
    return Entry(
        number,
        overrides.split(),
        str(number),
        f"{number}_x",
        1,
        JobResult(code, status, metrics, 1.0, f"/x/{number}_x"),
    )


def ranked(entries: list[Entry], by: Metric) -> list[str]:
    (group,) = group_by_data(results.run_rows(Path(), entries), by)
    return [run.label for run in group.runs]


def test_jobs_are_ranked_by_validation_and_those_without_a_metric_come_last() -> None:
    entries = [
        entry(0, "a", val_accuracy=0.2, test_accuracy=0.9),
        entry(1, "b", 1, "RuntimeError"),
        entry(2, "c", val_accuracy=0.8, test_accuracy=0.1),
        entry(3, "d", val_accuracy=math.nan),
    ]
    by = metric([entry.metrics for entry in entries])
    assert (by.name, by.smaller_is_better) == ("val_accuracy", False)
    assert ranked(entries, by) == ["job 2", "job 0", "job 1", "job 3"]
    by = metric([entry.metrics for entry in entries], "test_accuracy", "minimize")
    assert ranked(entries, by)[:2] == ["job 2", "job 0"]


@pytest.mark.parametrize("count", [3, 5, 30])
def test_the_interval_is_that_of_students_t(count: int) -> None:
    draw = random.Random(count)
    values = [draw.gauss(0, 1) for _ in range(count)]
    low, high = scipy.stats.t.interval(0.95, count - 1, scipy.stats.tmean(values), scipy.stats.sem(values))
    assert interval(values) == pytest.approx((high - low) / 2)


def test_the_interval_covers_the_mean_nineteen_times_of_twenty() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(2000):
        values = [draw.gauss(3.0, 2.0) for _ in range(4)]
        covered += abs(sum(values) / 4 - 3.0) <= interval(values)
    assert 0.935 <= covered / 2000 <= 0.965


def test_a_nan_metric_and_two_runs_have_no_interval() -> None:
    assert math.isnan(interval([math.nan, 1.0, 1.0]))
    assert math.isnan(interval([math.inf, 1.0, 1.0]))
    assert math.isnan(interval([0.9, 1.0]))


def test_jobs_that_differ_only_by_seed_form_one_group() -> None:
    entries = [entry(i, f"optim.lr={lr} seed={seed}", val_loss=lr + seed) for i, (lr, seed) in enumerate(
        [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]
    )]  # fmt: skip
    entries.append(entry(9, "optim.lr=0.2 seed=3", 1, "failed"))
    (group,) = group_by_data(results.run_rows(Path(), entries))
    one, other = group.settings
    assert (group.label(one), one.count, one.mean) == ("optim.lr=0.1", 2, {"val_loss": pytest.approx(1.6)})
    assert (group.label(other), other.count) == ("optim.lr=0.2", 2)
    assert math.isnan(other.spread["val_loss"])


def test_results_are_written_whole_with_brackets_commas_and_quotes(tmp_path: Path) -> None:
    overrides = 'name="a,b" model.hidden=[1,2]'
    results.write_results(tmp_path / "results.csv", [entry(1, "x", val_loss=1.0), entry(0, overrides, 2, "a\nb")])
    with (tmp_path / "results.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["job"] for row in found] == ["0", "1"]
    assert found[0]["overrides"] == overrides
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_a_large_table_is_cut_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [entry(number, f"seed={number}", val_loss=number) for number in range(100)]
    results.show(group_by_data(results.run_rows(Path(), entries)), "job", "results.csv")
    shown = capsys.readouterr().out
    assert shown.count("job ") == results.MOST_ROWS
    assert "70 more rows: results.csv" in shown


def test_the_live_view_shows_running_done_failed_best_and_the_time_left() -> None:
    entries = {number: Entry(number, ["optim.lr=0.1", f"seed={number}"], str(number), "x") for number in range(4)}
    view = View(4, entries, {"optim.lr=0.1"})
    view.on_start(0)
    view.on_start(1)
    view.on_start(2)
    entries[0].outcome = JobResult(0, "done", {"val_accuracy": 0.75}, 2.0)
    view.on_end(0, entries[0].outcome)
    entries[1].outcome = JobResult(137, "killed by SIGKILL", {}, 1.0)
    view.on_end(1, entries[1].outcome)
    view.on_metrics(2, 1.5, "val", {"loss": 0.5, "accuracy": 0.25})
    with view.console.capture() as captured:
        view.console.print(view.render())
    shown = captured.get()
    assert "1 done, 1 failed, 1 running of 4" in shown
    assert "job 2  seed=2  0 s  epoch 1.50: val loss 0.5000 accuracy 0.2500" in shown
    assert "best  job 0  val_accuracy 0.7500  seed=0" in shown
    assert " left" in shown


def test_without_a_terminal_each_job_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    entries = {0: Entry(0, ["seed=\x1b[31m0"], "0", "x")}
    view = View(1, entries, set())
    view.on_start(0)
    entries[0].outcome = JobResult(0, "done", {"val_accuracy": 0.75}, 2.0)
    view.on_end(0, entries[0].outcome)
    assert capsys.readouterr().out == "1/1  job 0  done  val_accuracy 0.7500  2.0 s  seed=?[31m0\n"
