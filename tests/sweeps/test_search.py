"""A search draws what it says, improves its metric, and ends with the exact number of trials, however often killed."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from dltrain.config.composition import compose
from dltrain.config.settings import Sweep
from dltrain.report.run_rows import differing_keys, group_by_seed
from dltrain.sweeps import journal
from dltrain.sweeps.executors import select
from dltrain.sweeps.executors.local import Workers
from dltrain.sweeps.results import run_rows
from dltrain.sweeps.search import Search
from support.command import Command
from support.lives import Nursery
from support.sweeping import events, generate_pictures, rows, sweep_folder, wait_for_no_orphan
from support.tiers import mostly_slow

QUICK = ("model=mlp", "model.hidden=[8]", "data.limit=200", "device.threads=1", "epochs=1")
SPACE = ("optim.lr=tag(log,interval(0.001,1.0))", "batch_size=choice(16,32,64)", "model.hidden=[4],[8]")


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="dltrain", storage=f"sqlite:///{folder / 'study.db'}")


def drawn(folder: Path) -> list[list[str]]:
    return [row["overrides"].split()[len(QUICK) - 1 :] for row in rows(folder)]


@pytest.mark.parametrize("search", mostly_slow(["random", "tpe"], fast=["tpe"]))
def test_a_search_runs_its_trials_within_the_space(dltrain: Command, search: str) -> None:
    overrides = (
        *SPACE,
        f"sweep.search={search}",
        "sweep.trials=4",
        "optim.momentum=interval(0.5,0.9)",
        "log_every=range(1,9,2)",
    )
    result = dltrain("train", "-m", *QUICK, *overrides)
    folder = sweep_folder(result)
    assert (result.code, len(rows(folder))) == (0, 4)
    for row in rows(folder):
        values = dict(override.split("=") for override in row["overrides"].split())
        assert 0.001 <= float(values["optim.lr"]) <= 1.0
        assert 0.5 <= float(values["optim.momentum"]) <= 0.9
        assert int(values["log_every"]) in (1, 3, 5, 7)
        assert values["batch_size"] in ("16", "32", "64")
        assert values["model.hidden"] in ("[4]", "[8]")
        summary = json.loads((folder / row["folder"] / "summary.json").read_text())
        assert summary["status"] == "done"
    found = study(folder)
    assert [trial.value for trial in found.trials] == [float(row["val_accuracy"]) for row in rows(folder)]
    assert found.direction == optuna.study.StudyDirection.MAXIMIZE


@pytest.mark.slow
def test_the_same_seed_samples_the_same_trials_with_several_workers(dltrain: Command) -> None:
    arguments = ("-m", *QUICK, *SPACE, "sweep.search=random", "sweep.trials=4", "sweep.workers=2")
    one, same, other = (drawn(sweep_folder(dltrain("train", *arguments, f"sweep.seed={seed}"))) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_trials_added_to_a_study_are_those_that_its_seed_samples_and_another_seed_samples_others(
    dltrain: Command,
) -> None:
    overrides = (*QUICK, *SPACE, "sweep.search=random", "sweep.workers=1")
    whole = drawn(sweep_folder(dltrain("train", "-m", *overrides, "sweep.trials=2")))
    folder = sweep_folder(dltrain("train", "-m", *overrides, "sweep.trials=1"))
    assert dltrain("train", f"sweep.resume={folder}", "sweep.trials=2").code == 0
    assert drawn(folder) == whole
    assert len(study(folder).trials) == 2
    assert drawn(sweep_folder(dltrain("train", "-m", *overrides, "sweep.trials=1", "sweep.seed=2")))[0] != whole[0]


@pytest.mark.parametrize(
    ("overrides", "direction"),
    [
        pytest.param(["sweep.metric=val_loss"], "MINIMIZE", marks=pytest.mark.slow),
        pytest.param(["sweep.metric=test_accuracy"], "MAXIMIZE", marks=pytest.mark.slow),
        (["sweep.metric=val_loss", "sweep.direction=maximize"], "MAXIMIZE"),
    ],
)
def test_the_metric_and_its_direction_can_be_chosen(dltrain: Command, overrides: list[str], direction: str) -> None:
    result = dltrain("train", "-m", *QUICK, *SPACE, "sweep.search=random", "sweep.trials=2", *overrides)
    folder = sweep_folder(result)
    name = overrides[0].partition("=")[2]
    assert study(folder).direction.name == direction
    assert [trial.value for trial in study(folder).trials] == [float(row[name]) for row in rows(folder)]
    values = sorted((float(row[name]) for row in rows(folder)), reverse=direction == "MAXIMIZE")
    table = [line for line in result.out.splitlines() if line.startswith("job ")]
    assert f"{values[0]:.4f}" in table[0]


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_bad_jobs_are_pruned(dltrain: Command, pruner: str) -> None:
    overrides = (
        "optim.lr=0.05,0.04,1e-7",
        "sweep.search=random",
        "sweep.trials=16",
        "epochs=30",
        f"sweep.pruner={pruner}",
    )
    result = dltrain("train", "-m", *QUICK[:-1], *overrides, "data.val=0.5", "sweep.workers=2", "sweep.seed=3")
    folder = sweep_folder(result)
    assert result.code == 0
    pruned = [row for row in rows(folder) if row["status"] == "pruned"]
    assert pruned
    assert any("optim.lr=1e-07" in row["overrides"] for row in pruned)
    # Good ones may be stopped too, for better ones; never one that is better than all that went on.
    scores = {
        status: [float(row["val_accuracy"]) for row in rows(folder) if row["status"] == status]
        for status in ("pruned", "done")
    }
    assert max(scores["done"]) >= max(scores["pruned"])
    lines = (folder / pruned[0]["folder"] / "metrics.jsonl").read_text().splitlines()
    assert sum('"val"' in line for line in lines) < 30
    states = [trial.state for trial in study(folder).trials]
    assert states.count(optuna.trial.TrialState.PRUNED) == len(pruned)


def test_a_failed_trial_is_a_row_and_the_search_continues(dltrain: Command) -> None:
    overrides = ("optim.lr=0.05,1e30", "sweep.search=random", "sweep.trials=6", "epochs=3")
    result = dltrain("train", "-m", *QUICK[:-1], *overrides)
    statuses = [row["status"].split(":")[0] for row in rows(sweep_folder(result))]
    assert (result.code, len(statuses), set(statuses)) == (1, 6, {"done", "failed (1)"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "nothing to search"),
        (["optim.lr=interval(1,0)"], "optim.lr=interval(1,0): "),
        (["optim.lr=tag(log,interval(0,1.0))"], "optim.lr="),
        (["optim.lr=interval(-1.0,1.0)"], "optim.lr=-1.0: must be a number > 0"),
        (["optim.lr=0.1,0.2", "data.val=0"], "needs a validation set"),
        (["optim.lr=0.1,0.2", "sweep.pruner=median", "sweep.metric=test_loss"], "needs a metric of val"),
        (["optim.lr=0.1,0.2", "sweep.trials=0"], "sweep.trials=0: must be a whole number >= 1"),
        (["model=mlp,lennet"], "did you mean lenet?"),
    ],
)
def test_an_impossible_search_is_refused_before_it_begins(dltrain: Command, overrides: list[str], message: str) -> None:
    result = dltrain("train", "-m", "sweep.search=tpe", *overrides)
    assert (result.code, message in result.err) == (2, True), result.err
    assert not Path("outputs").exists()


def check_killed_search(lives: Nursery, tmp_path: Path, kills: int, trials: int, seed: int) -> None:
    """Kill the parent of a search again and again: in the end there is each trial once, in study, journal and table."""
    (tmp_path / "sweep").mkdir()
    arguments = ("train", "-m", *QUICK[:-1], *SPACE, "epochs=20", "sweep.search=tpe", f"sweep.trials={trials}")
    arguments = (*arguments, "sweep.resume=sweep", "sweep.workers=2", "sweep.pruner=median")
    draw = random.Random(seed)
    for _ in range(kills):
        life = lives.start(tmp_path, *arguments)
        time.sleep(draw.uniform(0.3, 2.5))
        if lives.has_ended(life):
            lives.wait(life)
            break
        os.kill(life.pid, signal.SIGKILL)
        lives.wait(life)
        wait_for_no_orphan(tmp_path, set())
    assert lives.run(tmp_path, *arguments) == 0, (tmp_path / "life.log").read_text()[-2000:]
    folder = tmp_path / "sweep"
    found: list[Any] = study(folder).trials
    assert [trial.number for trial in found] == list(range(trials))
    assert all(trial.state.is_finished() for trial in found)
    assert [int(row["job"]) for row in rows(folder)] == list(range(trials))
    planned = [event["job"] for event in events(folder) if event["event"] == "planned"]
    assert planned == list(range(trials))
    for trial, row in zip(found, rows(folder), strict=True):
        if row["status"] == "done":
            assert trial.value == float(row["val_accuracy"])


@pytest.mark.parametrize(("kills", "trials"), [(1, 2), pytest.param(3, 10, marks=pytest.mark.slow)])
def test_a_killed_search_ends_with_the_exact_number_of_trials(
    lives: Nursery, tmp_path: Path, kills: int, trials: int
) -> None:
    check_killed_search(lives, tmp_path, kills=kills, trials=trials, seed=3)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(30))
def test_thirty_killed_searches_end_with_the_exact_number_of_trials(lives: Nursery, tmp_path: Path, seed: int) -> None:
    check_killed_search(lives, tmp_path, kills=5, trials=12, seed=seed)


def test_a_search_uses_the_requested_number_of_workers(tmp_path: Path) -> None:
    config = compose("train", ["device=cpu"])
    settings = Sweep(**config["sweep"] | {"workers": 8})
    pool = select.executor([config], settings, tmp_path, jobs=100, waits=False)
    pool.close()
    assert isinstance(pool, Workers)
    assert pool.count == 8


def test_a_failed_trial_can_be_retried_with_a_pruner(dltrain: Command, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    overrides = ("data=folder", "data.root=photos", "model=mlp", "epochs=2", "data.val=0.5", "device.threads=1")
    search = ("optim.lr=0.01,0.1", "sweep.search=random", "sweep.trials=2", "sweep.pruner=median")
    result = dltrain("train", "-m", *overrides, *search)
    folder = sweep_folder(result)
    assert result.code == 1
    generate_pictures(tmp_path / "photos")
    again = ("sweep.retry_failed=true", "sweep.pruner=median")
    assert dltrain("train", f"sweep.resume={folder}", *again).code == 0
    assert [row["status"] for row in rows(folder)] == ["done", "done"]


def test_a_grid_is_not_resumed_as_a_search_nor_the_reverse(dltrain: Command) -> None:
    grid = sweep_folder(dltrain("train", "-m", *QUICK, "optim.lr=0.1,0.2"))
    search = sweep_folder(dltrain("train", "-m", *QUICK, *SPACE, "sweep.search=random", "sweep.trials=2"))
    before = [rows(grid), rows(search)]
    found = dltrain("train", "-m", *QUICK, *SPACE, "sweep.search=random", "sweep.trials=2", f"sweep.resume={grid}")
    assert (found.code, "job 0 belongs to a grid" in found.err) == (2, True)
    found = dltrain("train", "-m", *QUICK, "optim.lr=0.1,0.2", f"sweep.resume={search}")
    assert (found.code, "job 0 belongs to a search" in found.err) == (2, True)
    assert [rows(grid), rows(search)] == before


def test_a_search_with_a_lost_study_overwrites_no_job(dltrain: Command) -> None:
    folder = sweep_folder(dltrain("train", "-m", *QUICK, *SPACE, "sweep.search=random", "sweep.trials=2"))
    before = rows(folder)
    (folder / "study.db").unlink()
    found = dltrain("train", f"sweep.resume={folder}", "sweep.trials=4")
    assert (found.code, "study.db: lacks jobs of this sweep" in found.err) == (2, True)
    assert rows(folder) == before


def test_an_unfinished_job_sampled_from_other_overrides_is_reported(dltrain: Command) -> None:
    own = ("optim.lr=interval(0.001,1.0)", "batch_size=choice(16,32)", "optim.momentum=choice(0.5,0.9)")
    folder = sweep_folder(dltrain("train", "-m", *QUICK, *own, "sweep.search=random", "sweep.trials=2"))
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(line for line in lines if '"ended", "job": 1' not in line))
    (folder / rows(folder)[1]["folder"] / "summary.json").unlink()
    for overrides, message in (
        (["optim.lr=interval(2.0,3.0)", "batch_size=choice(16,32)"], "a job of this sweep has optim.lr="),
        (["optim.lr=interval(0.001,1.0)", "batch_size=choice(8,64)"], "a job of this sweep has batch_size=batch_size="),
        (["optim.momentum=interval(0.1,0.95)"], "a job of this sweep has optim.momentum=optim.momentum="),
        (["optim.weight_decay=interval(0.0,0.9)"], "a job of this sweep lacks it"),
    ):
        found = dltrain("train", "-m", *QUICK, *overrides, "sweep.search=random", f"sweep.resume={folder}")
        assert (found.code, message in found.err) == (2, True), found.err


def test_means_over_seeds_exclude_pruned_runs_and_count_duplicates_once(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("sweep.search=random", "sweep.trials=6", "sweep.workers=1", "optim.lr=0.01,0.1", "seed=1,2")
    monkeypatch.setattr(Search, "judge", lambda self, number, step, figures: "pruned" if number == 2 else "")
    result = dltrain("train", "-m", *QUICK[:-1], "epochs=2", *overrides, "sweep.pruner=median")
    found = rows(sweep_folder(result))
    whole = {row["overrides"]: row for row in found if row["status"] == "done"}
    assert sum(row["status"] == "pruned" for row in found) == 1
    assert len(whole) < 5  # of six draws from four
    entries = journal.read(sweep_folder(result))
    jobs = run_rows(Path(), entries)
    assert sum(group.count for group in group_by_seed(jobs, differing_keys(jobs))) == len(whole)
    as_json = json.loads(dltrain("report", sweep_folder(result), "--json").out)
    assert sum(group["n"] for group in as_json["seeds"]) == len(whole)
