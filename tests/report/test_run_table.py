"""Tables of mixed runs: each fits its terminal, shows metrics whole, and names what it leaves out."""

import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from dltrain.report import console
from dltrain.report.run_rows import RunRow, data_name, group_by_data, model_name
from dltrain.report.run_table import columns_of, key_ranks, mean_text
from dltrain.sweeps import results
from support.command import Command
from support.mixed_runs import mixed_rows, write_mixed

GROUPS = group_by_data(mixed_rows(60))


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, *asked: str) -> str:
    monkeypatch.setattr(console, "columns", lambda: width)
    results.show(GROUPS, "run", "report.html", asked)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_table_fits_its_terminal_with_whole_metrics_and_names_what_it_leaves_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    shown = printed(capsys, monkeypatch, width)
    assert max(map(cell_len, shown.splitlines())) <= width
    assert not re.search(r"\d…", shown)
    for group in GROUPS:
        for run in group.runs[: results.MOST_ROWS]:
            assert console.format_number(run.metrics[group.by.name]) in shown
    assert shown.count(" more column") >= len(GROUPS)
    assert "--columns=NAME,… or report.html" in " ".join(shown.split())


def test_a_wider_terminal_shows_the_columns_of_a_narrower_one_and_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [printed(capsys, monkeypatch, width).split("─")[0].count(".") for width in (40, 60, 80, 200)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_columns_that_are_asked_for_are_shown_and_all_shows_every_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "weight_decay" in printed(capsys, monkeypatch, 60, "optim.weight_decay").split("─")[0]
    assert " more column" not in printed(capsys, monkeypatch, 60, "all")


def test_runs_of_several_data_sets_are_ranked_apart_each_by_its_metric() -> None:
    assert {group.data for group in GROUPS} == {"digits", "mnist", "cifar10", "photos", "line"}
    for group in GROUPS:
        accuracies = [run.metrics["val_accuracy"] for run in group.runs]
        assert accuracies == sorted(accuracies, reverse=True)
        assert not any(key.startswith("data.mean") for key in key_ranks(group))


def test_paths_and_keys_that_an_option_implies_are_shown_only_on_demand() -> None:
    (digits,) = (group for group in GROUPS if group.data == "digits")
    ranks = {column.name: column.rank for column in columns_of(digits)}
    assert ranks["optim.lr"] < 12
    assert (ranks["init"], ranks["optim.momentum"]) == (100, 100)


def test_names_are_the_architecture_and_the_folder_where_these_say_more() -> None:
    config = {"model.name": "torchvision", "model.arch": "resnet18", "data.name": "folder", "data.root": "/a/photos"}
    assert (model_name(config), data_name(config)) == ("resnet18", "photos")
    assert (model_name({"model": "mlp"}), data_name({"data.name": "mnist", "data.root": "/a"})) == ("mlp", "mnist")


def test_a_job_without_its_config_is_ranked_with_the_jobs_beside_it() -> None:
    rows = [
        RunRow(Path("a"), "a", {"data.name": "digits", "seed": 1}, "done", {"val_loss": 1.0}, 1.0),
        RunRow(Path("b"), "b", {"seed": 2}, "failed", {}, 1.0, is_part=True),
    ]
    assert [len(group.runs) for group in group_by_data(rows)] == [2]


@pytest.mark.parametrize(
    ("mean", "spread", "text"),
    [
        (0.98123, 0.00031, "0.9812 ± 0.0003"),
        (0.98123, 0.0, "0.9812 ± 0.0000"),
        (0.000312, 0.0000412, "0.000312 ± 0.000041"),
        (123456.7, 1234.5, "123,457 ± 1,234"),
        (0.5, float("nan"), "0.5000"),
    ],
)
def test_a_spread_has_as_many_decimals_as_its_mean(mean: float, spread: float, text: str) -> None:
    assert mean_text(mean, spread) == text


def test_report_compares_mixed_runs_by_data_set(dltrain: Command, tmp_path: Path) -> None:
    write_mixed(tmp_path / "outputs", 22, epochs=3)
    result = dltrain("report", "outputs")
    assert result.code == 0
    for title in ("digits: ", "mnist: ", "photos: ", "cifar10: ", "line, mlp: "):
        assert title in result.out
    assert "not done" in result.out  # a killed run shows what it has
    assert max(map(cell_len, result.out.splitlines())) <= 200
    page = (tmp_path / "report.html").read_text()
    assert "against data." not in page
    assert page.count('<table id="runs') == 5
    assert dltrain("report", "outputs", "--columns=optim.lrr").code == 2
    assert "did you mean optim.lr?" in dltrain("report", "outputs", "--columns=optim.lrr").err
    assert "more column" not in dltrain("report", "outputs", "--columns=all").out
