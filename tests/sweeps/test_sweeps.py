"""Sweeps: every job has its folder and its row, a failed one does not stop the others, the table is ranked."""

import functools
import itertools
import json
from pathlib import Path

import pytest
import torch

from dltrain.sweeps.executors import select
from support.command import Command
from support.sweeping import QUICK, rows, sweep_folder

SHORT = ("model=linear", "data.limit=50", "epochs=1", "report=false", "logger=none")


def test_every_job_has_a_folder_named_by_number_and_overrides_and_a_row(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "optim.lr=0.1,0.01", "seed=1,2")
    folder = sweep_folder(result)
    found = rows(folder)
    assert result.code == 0
    assert folder.parent.parent == Path("outputs/sweeps")
    assert [row["job"] for row in found] == ["0", "1", "2", "3"]
    assert found[1]["overrides"].endswith("optim.lr=0.1 seed=2")
    assert all(row["status"] == "done" and float(row["seconds"]) > 0 for row in found)
    for row in found:
        assert row["folder"].startswith(f"{row['job']}_")
        summary = json.loads((folder / row["folder"] / "summary.json").read_text())
        assert float(row["test_accuracy"]) == summary["test"]["accuracy"]
        assert float(row["val_accuracy"]) == summary["best"]["accuracy"]


def test_result_columns_have_the_promised_order(dltrain: Command) -> None:
    found = rows(sweep_folder(dltrain("train", "-m", *QUICK, "seed=1,2")))
    figures = ["test_loss", "test_accuracy", "val_loss", "val_accuracy"]
    assert list(found[0]) == ["job", "overrides", "status", *figures, "seconds", "folder"]


def test_a_failed_job_is_a_row_and_the_others_still_run(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "optim.lr=0.1,1e30,0.01", "epochs=3")
    found = rows(sweep_folder(result))
    assert result.code == 1
    assert [row["status"].split(":")[0] for row in found] == ["done", "failed (1)", "done"]
    assert "the loss is not finite" in found[1]["status"]
    assert "3 jobs, 1 failed" in result.out
    (line,) = [line for line in result.out[result.out.index("3 jobs") :].splitlines() if line.startswith("job 1: ")]
    assert "the loss is not finite" in line


def test_jobs_of_a_sweep_lower_their_rates_each_by_its_own_validations(dltrain: Command) -> None:
    words = (*QUICK, "epochs=6", "optim.lr=0.000001", "schedule=plateau", "schedule.threshold=0.5")
    folder = sweep_folder(dltrain("train", "-m", *words, "schedule.patience=1,3"))
    rates = []
    for row in rows(folder):
        lines = (folder / row["folder"] / "metrics.jsonl").read_text().splitlines()
        rates.append([round(json.loads(line)["lr"] / 1e-6, 4) for line in lines if '"train"' in line])
    assert rates == [[1, 1, 0.1, 0.01, 0.001, 0.001], [1, 1, 1, 1, 0.1, 0.1]]


def test_jobs_that_share_the_cores_say_so_unless_their_threads_are_chosen(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With more than one thread a job could hang here: OpenMP does not survive a fork of the tests' own process.
    monkeypatch.setattr(select, "all_threads", functools.cache(lambda: 2))
    line = "each job has at most 1 of 2 threads: a single run with device.threads=1 gives equal results"
    assert line in dltrain("train", "-m", *SHORT, "seed=0,1", "device.name=cpu", "sweep.workers=2").out
    chosen = dltrain("train", "-m", *SHORT, "seed=0,1", "device.name=cpu", "sweep.workers=2", "device.threads=1")
    assert "each job has" not in chosen.out


def test_the_final_table_is_ranked_from_best_to_worst(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "optim.lr=0.000001,0.1", "epochs=10")
    table = result.out[result.out.index("2 jobs, 0 failed") :]
    assert table.index("job 1") < table.index("job 0")  # 0.1 before 1e-06


def test_a_sweep_of_evaluations_keeps_the_metrics_of_each_split_and_can_be_reported(dltrain: Command) -> None:
    run = dltrain("train", *QUICK).folder
    sweep = sweep_folder(dltrain("eval", "-m", f"ckpt={run}", "split=val,test"))
    (row, other) = rows(sweep)
    found = json.loads(dltrain("report", sweep, "--json").out)
    assert [(it["status"], it["config"]["split"]) for it in found["runs"]] == [("done", "val"), ("done", "test")]
    assert dltrain("report", sweep).code == 0
    assert '<a href="#" data-run>job 0</a>' in (sweep / "report.html").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert float(row["val_accuracy"]) == summary["best"]["accuracy"]
    assert float(other["test_accuracy"]) == summary["test"]["accuracy"]


def test_the_whole_sweep_grammar_of_hydra_is_supported(dltrain: Command) -> None:
    result = dltrain("train", "-m", *QUICK, "seed=range(2)", "optim=choice(sgd,adam)", "schedule=glob(c*)")
    assert len(rows(sweep_folder(result))) == 2 * 2 * 2


def test_a_refused_sweep_leaves_nothing_behind(dltrain: Command) -> None:
    assert dltrain("train", "-m", "model=mlp,lennet").code == 2
    assert not list(Path("outputs").rglob("*.yaml"))


MODELS = ("mlp", "lenet", "lstm", "attention")


@pytest.mark.parametrize(
    ("workers", "models", "seeds"),
    [
        (1, ("mlp", "lstm"), (4,)),
        pytest.param(1, MODELS, (4, 5), marks=pytest.mark.slow),
        pytest.param(2, MODELS, (4, 5), marks=pytest.mark.slow),
    ],
)
def test_a_job_equals_the_same_run_started_alone_with_the_same_threads(
    dltrain: Command, tmp_path: Path, workers: int, models: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    """Whatever ran before it in its worker, and whoever read its data."""
    same = ("data.limit=200", "data.flip=true", "data.crop=1", "epochs=2", "optim=adam", "device.threads=1")
    overrides = (f"model={','.join(models)}", f"seed={','.join(map(str, seeds))}", f"sweep.workers={workers}")
    folder = sweep_folder(dltrain("train", "-m", *same, *overrides))
    for row, (model, seed) in zip(rows(folder), itertools.product(models, seeds), strict=True):
        alone = dltrain("train", *same, f"model={model}", f"seed={seed}").folder
        for name in ("last.pt", "best.pt"):
            one, other = (
                torch.load(it / "checkpoints" / name, weights_only=True)["model"]
                for it in (alone, folder / row["folder"])
            )
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one), (model, seed, name)
        assert records(alone) == records(folder / row["folder"])


def records(folder: Path) -> list[dict[str, object]]:
    """metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]


def test_log_lines_of_a_job_are_only_in_its_log(dltrain: Command) -> None:
    folder = sweep_folder(dltrain("train", "-m", *QUICK, "seed=4,5"))
    for row in rows(folder):
        assert (folder / row["folder"] / "train.log").read_text().count("parameters") == 1


def check_eight_pairs(dltrain: Command, root: Path, *overrides: str) -> list[dict[str, str]]:
    """Train four models on two data sets in one sweep; evaluate each from its checkpoint alone to the same figure."""
    models = "model=mlp,lenet,lstm,attention"
    result = dltrain("train", "-m", models, "data=mnist,cifar10", f"data.root={root}", "epochs=1", *overrides)
    folder = sweep_folder(result)
    found = rows(folder)
    assert result.code == 0
    assert len(found) == 8
    for row in found:
        run = folder / row["folder"]
        assert dltrain("eval", f"ckpt={run}").code == 0
        figures = json.loads((run / "checkpoints" / "eval.json").read_text())
        assert figures["accuracy"] == float(row["test_accuracy"])
        assert figures["loss"] == float(row["test_loss"])
        assert len(figures["classes"]) == 10
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("cifar10_sums")
def test_four_models_and_two_data_sets_train_checkpoint_evaluate_and_sweep(dltrain: Command, data_root: Path) -> None:
    check_eight_pairs(dltrain, data_root)


@pytest.mark.slow
def test_four_models_and_two_real_data_sets_train_checkpoint_evaluate_and_sweep(
    dltrain: Command, real_data: Path
) -> None:
    found = check_eight_pairs(dltrain, real_data, "data.limit=2000", "optim=adam", "optim.lr=0.003")
    chance = 0.1
    assert all(float(row["test_accuracy"]) > 1.5 * chance for row in found)


@pytest.mark.slow
def test_an_epoch_of_the_real_mnist_gives_95_percent(dltrain: Command, real_data: Path) -> None:
    result = dltrain("train", "data=mnist", f"data.root={real_data}", "model=mlp", "epochs=1")
    assert json.loads((result.folder / "summary.json").read_text())["test"]["accuracy"] >= 0.95


@pytest.mark.parametrize("sweep", ["seed=range(0)", "seed=glob(*)"])
def test_a_sweep_over_nothing_is_refused(dltrain: Command, sweep: str) -> None:
    result = dltrain("train", "-m", *QUICK, sweep)
    assert (result.code, f"{sweep}: gives no jobs" in result.err) == (2, True)
