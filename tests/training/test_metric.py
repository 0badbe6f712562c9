"""`metric=` chooses best.pt, patience, pruning and the rank of a sweep's jobs, and is written wherever metrics are."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dltrain.checkpoints import checkpoint
from dltrain.engine import Record
from dltrain.optim.metrics import WithMetric
from dltrain.optim.tasks import Classification
from dltrain.training import run as runs
from dltrain.training.progress import Progress
from support.command import Command, Trained
from support.lives import outcome
from support.sweeping import rows, sweep_folder
from support.tiers import mostly_slow

QUICK = ("model=mlp", "model.hidden=[8]", "data.limit=200", "device.threads=1", "epochs=2", "logger=none")
F1 = {"metric": "f1_macro", "values": [0.2, 0.6, 0.4], "accuracies": [0.9, 0.5, 0.8], "losses": [0.1, 0.3, 0.2]}


def records(folder: Path, split: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    "metric", mostly_slow(["f1_macro", "balanced_accuracy", "top5_accuracy", "auroc"], fast=["auroc"])
)
def test_the_metric_is_in_every_record_and_file_and_eval_gives_that_of_training(
    dltrain: Command, metric: str, trained: Trained
) -> None:
    folder = trained(*QUICK, f"metric={metric}", "logger=csv")
    assert all(metric in each for split in ("val", "test") for each in records(folder, split))
    assert all((metric in each) == (metric != "auroc") for each in records(folder, "train"))
    found = summary(folder)
    assert {metric in found[split] for split in ("val", "best", "test")} == {True}
    assert metric in (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert found["best"][metric] == max(each[metric] for each in records(folder, "val"))
    result = dltrain("eval", f"ckpt={folder}", "--json")
    document = json.loads(result.out)
    assert {name: document[name] for name in ("loss", "accuracy", metric)} == found["test"]
    assert document["metric"] == metric


def test_a_metric_without_a_validation_set_says_that_it_chooses_no_weights(dltrain: Command) -> None:
    result = dltrain("train", *QUICK, "metric=auroc", "data.val=0", "report=false", "epochs=1")
    assert "metric=auroc: chooses nothing without a validation set; best.pt has the last weights" in result.out
    assert "auroc" in summary(result.folder)["test"]


def test_without_a_metric_records_have_loss_and_accuracy_alone(trained: Trained) -> None:
    folder = trained(*QUICK)
    assert set(records(folder, "val")[0]) == {"split", "step", "epoch", "loss", "accuracy"}


def test_console_and_page_show_the_metric_that_chooses_the_best(dltrain: Command) -> None:
    result = dltrain("train", *QUICK, "metric=balanced_accuracy")
    assert "best val balanced_accuracy 0." in result.out
    assert "balanced_accuracy ┃" in result.out
    page = (result.folder / "report.html").read_text()
    assert "<dt>test balanced accuracy</dt>" in page
    assert "balanced accuracy over epochs" in page
    assert '<th class="n">balanced_accuracy</th>' in page
    assert "<td>macro average</td>" in page


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Validation records with given metrics in place of the real ones."""
    script: dict[str, Any] = dict(F1)
    fit = runs.fit

    def play(*arguments: Any, **named: Any) -> Iterator[list[Record]]:
        for chunk in fit(*arguments, **named):
            for record in chunk:
                if record.split == "val":
                    place = int(record.epoch) - 1
                    record.values.update(
                        {script["metric"]: script["values"][place]},
                        accuracy=script["accuracies"][place],
                        loss=script["losses"][place],
                    )
            yield chunk

    monkeypatch.setattr(runs, "fit", play)
    yield script


def test_best_and_patience_follow_the_metric_where_accuracy_says_otherwise(
    dltrain: Command, scripted: dict[str, Any]
) -> None:
    def ended(*overrides: str) -> tuple[str, float, int]:
        folder = dltrain("train", *QUICK, "epochs=3", "report=false", "patience=1", *overrides).folder
        best = checkpoint.load(folder / "checkpoints" / "best.pt")["best"]
        found = summary(folder)
        assert (best["epoch"], best["f1_macro"]) == (found["best"]["epoch"], found["best"]["f1_macro"])
        return found["status"], best["epoch"], len(records(folder, "val"))

    assert ended("metric=f1_macro") == ("done", 2.0, 3)
    assert ended() == ("patience", 1.0, 2)
    scripted["losses"] = [0.3, 0.2, 0.1]
    assert ended("metric=loss") == ("done", 3.0, 3)


def test_a_metric_that_is_not_finite_never_becomes_best() -> None:
    import torch

    from dltrain.optim.step import TrainState

    model = torch.nn.Linear(1, 1)
    state, progress = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1)), Progress()
    task = WithMetric(Classification(label_smoothing=0.0), "auroc", False, 3)
    for epoch, value in enumerate((0.5, float("nan"), 0.4), 1):
        progress.note(Record("val", epoch, float(epoch), {"loss": 1.0, "accuracy": 0.9, "auroc": value}), task, state)
    assert (progress.best["epoch"], progress.stale_epochs) == (1.0, 2)


@pytest.mark.parametrize("metric", mostly_slow(["f1_macro", "auroc"], fast=["f1_macro"]))
def test_a_run_stopped_inside_an_interval_ends_with_the_same_bits(
    dltrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    words = (*QUICK, "report=false", "epochs=3", "batch_size=25", "log_every=4", f"metric={metric}", "patience=2")
    for name, stops in (("whole", ()), ("stopped", (3, 14))):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        first, *later = [f"limit_steps={stop}" for stop in stops] + ["limit_steps=null"]
        folder = dltrain("train", *words, first).folder
        for limit in later:
            assert dltrain("train", f"resume={folder}", limit).code == 0
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_a_resume_with_another_metric_is_refused(dltrain: Command, trained: Trained) -> None:
    for overrides, other in (((), "metric=f1_macro"), (("metric=f1_macro",), "metric=null")):
        folder = trained(*QUICK, *overrides)
        result = dltrain("train", f"resume={folder}", other, "epochs=3")
        assert (result.code, result.err.count("resume: metric cannot change in a resumed run")) == (2, 1)


def test_a_checkpoint_without_the_key_goes_by_the_usual_metric(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK, "limit_steps=4")
    for name in ("last.pt", "best.pt"):
        path = folder / "checkpoints" / name
        content = checkpoint.load(path)
        assert content["config"].pop("metric") is None
        checkpoint.save(path, content)
    assert dltrain("eval", f"ckpt={folder}").code == 0
    assert dltrain("train", f"resume={folder}", "limit_steps=null").code == 0
    assert set(records(folder, "val")[0]) == {"split", "step", "epoch", "loss", "accuracy"}


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (("metric=f1",), 2, "metric=f1: no such metric of task=classification; there are loss, accuracy, f1_macro, "),
        (("metric=f1_marco",), 2, "metric=f1_marco: no such metric of task=classification; did you mean f1_macro?"),
        (("metric=accuracy", "task=regression"), 2, "no such metric of task=regression; there are loss, mae, r2"),
        (("metric=mae", "task=reconstruction"), 2, "no such metric of task=reconstruction; there are loss"),
        (("metric=3",), 2, "metric=3: must be"),
    ],
)
def test_a_metric_that_the_task_lacks_is_refused_at_once_with_those_it_has(
    dltrain: Command, overrides: tuple[str, ...], code: int, message: str
) -> None:
    result = dltrain("train", *overrides)
    assert (result.code, message in result.err) == (code, True), result.err
    assert not Path("outputs").exists()


def test_the_auroc_of_a_validation_set_of_one_class_is_refused_before_the_first_step(dltrain: Command) -> None:
    Path("one_class.py").write_text(
        "import torch\n"
        "def data(split):\n"
        "    labels = torch.zeros(8, dtype=torch.int64) if split == 'val' else torch.arange(8) % 2\n"
        "    return torch.rand(8, 1, 4, 4), labels, ['a', 'b']\n"
    )
    result = dltrain("train", "data=custom", "data.name=one_class:data", "model=linear", "metric=auroc")
    assert (result.code, "the validation set has a single class" in result.err) == (66, True), result.err


# --- checkpoints and sweeps


def test_checkpoints_are_ranked_by_the_metric_of_their_runs_and_by_the_usual_one_if_it_differs(
    dltrain: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (trained(*QUICK, "metric=f1_macro", f"seed={seed}") for seed in (0, 1))
    plain = trained(*QUICK)
    from dltrain.commands import evaluation

    f1 = {str(one): 0.9, str(two): 0.1, str(plain): 0.5}
    accuracy = {str(one): 0.1, str(two): 0.9, str(plain): 0.5}
    now: list[str] = []
    evaluate, load = evaluation.evaluate, evaluation.load_trained

    def noted(ckpt: str, config: Any) -> Any:
        now.append(ckpt)
        return load(ckpt, config)

    def scripted(*arguments: Any) -> dict[str, float]:
        metrics = evaluate(*arguments)
        return metrics | {"accuracy": accuracy[now[-1]]} | ({"f1_macro": f1[now[-1]]} if "f1_macro" in metrics else {})

    monkeypatch.setattr(evaluation, "load_trained", noted)
    monkeypatch.setattr(evaluation, "evaluate", scripted)

    def order(*folders: Path) -> list[str]:
        result = dltrain("eval", f"ckpt=[{','.join(map(str, folders))}]")
        assert ("trained with different tasks or metrics" in result.out) == (plain in folders)
        lines = [line for line in result.out.splitlines() if line.startswith("│")]
        return [next(str(folder) for folder in folders if f"{folder}/" in line) for line in lines]  # …-2 may exist too

    assert order(two, one) == [str(one), str(two)]
    assert order(one, plain, two) == [str(two), str(plain), str(one)]


def test_the_results_of_a_sweep_are_ranked_by_the_metric_of_its_jobs(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "metric=balanced_accuracy", "optim.lr=1e-4,0.1", "seed=1,2")
    folder = sweep_folder(result)
    assert "best val_balanced_accuracy first" in result.out
    values = [float(row["val_balanced_accuracy"]) for row in rows(folder)]
    ranked = [int(line.split()[1]) for line in result.out.splitlines() if line.startswith("job ")]
    assert [values[job] for job in ranked[:4]] == sorted(values, reverse=True)
    assert "4 runs, best val_balanced_accuracy first" in dltrain("report", folder, "outputs").out


@pytest.mark.slow
def test_without_validation_the_test_metric_of_the_jobs_ranks_them(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "metric=loss", "optim.lr=1e-4,0.1", "data.val=0")
    assert "best test_loss first" in result.out


@pytest.mark.slow
def test_jobs_of_different_metrics_are_ranked_by_the_usual_one(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "metric=f1_macro,loss")
    assert "best val_accuracy first" in result.out
    assert "2 runs, best val_accuracy first" in dltrain("report", sweep_folder(result), "outputs").out


@pytest.mark.slow
def test_a_metric_typed_for_the_sweep_comes_before_that_of_the_jobs(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "metric=f1_macro", "sweep.metric=val_loss", "seed=1,2")
    assert "best val_loss first" in result.out


@pytest.mark.parametrize(
    ("metric", "direction"), [("f1_macro", "MAXIMIZE"), pytest.param("loss", "MINIMIZE", marks=pytest.mark.slow)]
)
def test_a_search_and_its_pruner_improve_the_metric_of_the_jobs(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, metric: str, direction: str
) -> None:
    import optuna

    from dltrain.sweeps.search import Search

    judged: list[dict[str, float]] = []
    judge = Search.judge

    def noted(self: Search, number: int, epoch: float, metrics: dict[str, float]) -> str:
        judged.append(metrics)
        return judge(self, number, epoch, metrics)

    monkeypatch.setattr(Search, "judge", noted)
    space = ("optim.lr=tag(log,interval(0.001,1.0))", "sweep.search=random", "sweep.trials=2", "sweep.pruner=median")
    folder = sweep_folder(dltrain("train", "-m", *QUICK, f"metric={metric}", *space))
    study = optuna.load_study(study_name="dltrain", storage=f"sqlite:///{folder / 'study.db'}")
    assert study.direction.name == direction
    assert [trial.value for trial in study.trials] == [float(row[f"val_{metric}"]) for row in rows(folder)]
    reported = sorted(value for trial in study.trials for value in trial.intermediate_values.values())
    assert reported == sorted(each[metric] for each in judged)


@pytest.mark.slow
def test_a_sweep_of_evaluations_has_the_metric_in_its_results(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK, "metric=f1_macro")
    sweep = sweep_folder(dltrain("eval", "-m", f"ckpt={folder}", "split=val,test"))
    with (sweep / "results.csv").open(newline="") as file:
        names = csv.DictReader(file).fieldnames
    assert names is not None
    assert {"val_f1_macro", "test_f1_macro", "test_accuracy"} <= set(names)
