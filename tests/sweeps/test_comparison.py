"""`dltrain report`: what differs between runs, their figures, and means over seeds; as a table and as JSON."""

import json
from pathlib import Path

import pytest

from support.command import Command
from support.sweeping import QUICK, sweep_folder


@pytest.fixture
def folders(dltrain: Command) -> list[Path]:
    """A sweep of two rates and two seeds, of which one rate fails, and a run by itself."""
    sweep = sweep_folder(
        dltrain("train", "-m", *QUICK, "epochs=3", "optim.lr=0.1,1e30", "seed=1,2", "device.threads=1")
    )
    return [sweep, dltrain("train", "model=linear", "task=classification", *QUICK[2:], "device.threads=1").folder]


def test_runs_and_sweeps_are_compared_by_what_differs(dltrain: Command, folders: list[Path]) -> None:
    result = dltrain("report", *folders, "--json")
    found = json.loads(result.out)
    assert result.code == 0
    assert set(found["differing"]) >= {"model.name", "optim.lr", "seed", "epochs"}
    assert "optim.momentum" not in found["differing"]
    assert sorted(run["status"] for run in found["runs"]) == ["done", "done", "done", "failed", "failed"]
    for run in found["runs"]:
        if run["status"] == "done":
            summary = json.loads((Path(run["folder"]) / "summary.json").read_text())
            assert run["figures"]["test_accuracy"] == summary["test"]["accuracy"]
            assert run["figures"]["val_accuracy"] == summary["best"]["accuracy"]
    assert sorted(group["n"] for group in found["seeds"]) == [1, 2]
    values = [run["figures"]["val_accuracy"] for run in found["runs"] if run["figures"]]
    assert values == sorted(values, reverse=True)


def test_settings_are_compared_over_their_folds_on_the_console_the_page_and_in_json(dltrain: Command) -> None:
    rates = ("optim.lr=0.1,0.0001", "data.folds=3", "data.fold=range(3)")
    result = dltrain("train", "-m", "model=linear", "data.limit=200", "epochs=2", *rates, "device.threads=1")
    folder = sweep_folder(result)
    sentence = "optim.lr=0.1 better than optim.lr=0.0001: in 3 of 3 folds"
    for out in (result.out, dltrain("report", folder).out, (folder / "report.html").read_text()):
        assert sentence in out
    assert "over folds: mean" in result.out
    assert '"title": "data.fold"' not in (folder / "report.html").read_text()  # a mean over folds has no colour of one
    found = json.loads(dltrain("report", folder, "--json").out)
    assert [group["n"] for group in found["seeds"]] == [3, 3]
    (compared,) = found["comparisons"]
    assert (compared["best"], compared["n"], compared["wins"]) == ("optim.lr=0.1", 3, 3)
    assert 0 < compared["p"] < 0.05


def test_a_job_that_failed_before_writing_its_config_differs_by_its_overrides(dltrain: Command) -> None:
    overrides = ("patience=2", "data.val=0.1,0", "seed=0,1", "device.threads=1")
    folder = sweep_folder(dltrain("train", "-m", *QUICK, *overrides))
    found = json.loads(dltrain("report", folder, "--json").out)
    assert sorted(run["status"] for run in found["runs"]) == ["done", "done", "failed", "failed"]
    assert sorted(found["differing"]) == ["data.val", "seed"]
    assert [(group["config"], group["n"]) for group in found["seeds"]] == [("data.val=0.1", 2)]


def test_the_text_form_has_a_row_for_each_run_and_one_for_each_group_of_seeds(
    dltrain: Command, folders: list[Path]
) -> None:
    result = dltrain("report", *folders)
    assert result.code == 0
    assert "digits: 5 runs, 2 failed, best val_accuracy first" in result.out
    assert f"{folders[0].name} job 0" in result.out
    assert "mean ± half of its 95 % interval" in result.out
    assert ".lr" in result.out


def test_a_parent_folder_stands_for_every_run_in_it_once(dltrain: Command, folders: list[Path]) -> None:
    assert len(json.loads(dltrain("report", "outputs", folders[0], "--json").out)["runs"]) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "usage: dltrain report FOLDER"),
        (["--html", "x"], 2, "usage: dltrain report FOLDER"),
        (["nowhere"], 66, "nowhere: no such folder"),
        (["empty"], 66, "empty: contains no run"),
        (["broken"], 66, "summary.json: cannot be read"),
        (["bomb"], 66, "config.yaml: its aliases stand for more than"),
    ],
)
def test_a_folder_that_cannot_be_reported_is_refused(
    dltrain: Command, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    for name in ("empty", "broken", "bomb/.hydra"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "broken" / "summary.json").write_text("[]")
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8))]
    (tmp_path / "bomb" / ".hydra" / "config.yaml").write_text("\n".join(lines))
    result = dltrain("report", *arguments)
    assert (result.code, message in result.err) == (code, True), result.err
    assert len(result.err.splitlines()) == 1
