"""Trackers hold exactly the figures of metrics.jsonl, whatever happens to a run, and no run is harmed by one."""

import csv
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from dltrain import cli
from dltrain.checkpoints import checkpoint
from dltrain.config.composition import compose
from dltrain.report import run_files
from dltrain.report.trackers import lines, run_trackers
from dltrain.report.trackers.csv import CSV
from dltrain.report.trackers.mlflow import MLflow
from dltrain.report.trackers.tensorboard import TensorBoard
from dltrain.sweeps import plan
from dltrain.training.run import train
from support.command import Command, Result
from support.faults import forked
from support.tiers import mostly_slow

ALL = "logger=[tensorboard,csv,mlflow]"
QUICK = ("train", "model=mlp", "model.hidden=[8]", "data.limit=100", "epochs=3", "batch_size=25", "device.threads=1")
OFTEN = (*QUICK, "log_every=2", "checkpoint_every=3")  # 4 steps an epoch: 6 train records, 3 val, 1 test
SUMMARY = {"steps": 4, "status": "done", "device": "cpu", "val": {"loss": 0.5}, "test": None}
SUMMARY |= {"best": {"split": "val", "step": 4, "epoch": 1.0, "loss": 0.5}}
Figures = dict[tuple[str, int], float]


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def in_jsonl(folder: Path) -> Figures:
    found = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for key, value in line.items():
            if key not in ("split", "step", "epoch"):
                assert (f"{line['split']}/{key}", line["step"]) not in found
                found[f"{line['split']}/{key}", line["step"]] = value
    return found


def in_csv(folder: Path) -> Figures:
    found = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if key not in ("split", "step", "epoch") and value:
                    assert (f"{row['split']}/{key}", int(row["step"])) not in found
                    found[f"{row['split']}/{key}", int(row["step"])] = float(value)
    return found


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    read.Reload()
    return read


def in_tensorboard(folder: Path) -> Figures:
    """Its figures are float32."""
    read = events(folder)
    points = [(tag, each.step, each.value) for tag in read.Tags()["scalars"] for each in read.Scalars(tag)]
    assert len({point[:2] for point in points}) == len(points)
    return {(tag, step): value for tag, step, value in points}


def client(store: Path | str = "mlruns") -> Any:
    from mlflow import MlflowClient

    return MlflowClient(str(Path(store).absolute()))


def run_of(folder: Path, store: Path | str = "mlruns") -> Any:
    return client(store).get_run((folder / "mlflow_run_id").read_text().strip())


def in_mlflow(folder: Path) -> Figures:
    run = run_of(folder)
    points = [point for key in run.data.metrics for point in client().get_metric_history(run.info.run_id, key)]
    found = {(point.key, point.step): point.value for point in points}
    assert len(found) == len(points)
    return {place: value for place, value in found.items() if not place[0].startswith("best/")}


def float32(figures: Figures) -> Figures:
    return {place: float(numpy.float32(value)) for place, value in figures.items()}


def assert_exact(folder: Path) -> None:
    """All three hold the figures of metrics.jsonl, each once, and no others."""
    expected = in_jsonl(folder)
    assert in_csv(folder) == expected
    assert in_mlflow(folder) == expected
    assert in_tensorboard(folder) == float32(expected)


def bits(folder: Path) -> tuple[Any, ...]:
    """Weights, generators and records, without what the clock says."""
    content = checkpoint.load(folder / "checkpoints" / "last.pt")
    weights = {key: value.numpy().tobytes() for key, value in content["model"].items()}
    figures = {place: value for place, value in in_jsonl(folder).items() if "per_second" not in place[0]}
    return weights, repr(content["generators"]), figures


def warnings_of(result: Result) -> list[str]:
    return [line for line in result.out.splitlines() if "failed and is switched off" in line]


def test_all_trackers_hold_exactly_the_metrics_of_a_run(dltrain: Command) -> None:
    result = dltrain(*OFTEN, ALL)
    assert (result.code, warnings_of(result)) == (0, [])
    assert len(in_jsonl(result.folder)) == 6 * 4 + 3 * 2 + 2
    assert_exact(result.folder)


def test_trackers_change_no_bit_of_a_run(dltrain: Command) -> None:
    assert bits(dltrain(*OFTEN, ALL).folder) == bits(dltrain(*OFTEN, "logger=none").folder)


PLACES = [
    (run_files.Metrics, "write", 1),
    (run_files.Metrics, "write", 6),
    (run_trackers.Trackers, "write", 5),
    (CSV, "write", 6),
    (MLflow, "write", 6),
    (checkpoint, "save", 5),
    (run_trackers.Trackers, "saved", 2),
    (TensorBoard, "finish", 1),
    (MLflow, "saved", 4),
    (run_trackers.Trackers, "finish", 1),
    (MLflow, "finish", 1),
    (run_trackers.Trackers, "close", 1),
]


FAST = ((CSV, "write"), (MLflow, "saved"), (checkpoint, "save"))
MOSTLY_SLOW = [place if place[:2] in FAST else pytest.param(*place, marks=pytest.mark.slow) for place in PLACES]


def killed_at(owner: Any, name: str, number: int) -> Callable[[], int]:
    """A run that a SIGKILL ends where it calls something for the `number`-th time."""

    def act() -> int:
        real, calls = getattr(owner, name), 0

        def call(*arguments: Any, **settings: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **settings)

        setattr(owner, name, call)
        return cli.main([*OFTEN, ALL])

    return act


@pytest.mark.parametrize(("owner", "name", "number"), MOSTLY_SLOW, ids=lambda it: getattr(it, "__name__", str(it)))
def test_a_killed_and_resumed_run_is_tracked_like_an_uninterrupted_one(
    dltrain: Command, owner: Any, name: str, number: int
) -> None:
    assert forked(killed_at(owner, name, number)).code == -signal.SIGKILL
    (folder,) = Path("outputs").glob("*/*")
    before = (folder / "mlflow_run_id").read_text()
    result = dltrain("train", f"resume={folder}")
    assert (result.code, warnings_of(result)) == (0, [])
    assert_exact(folder)
    assert (folder / "mlflow_run_id").read_text() == before
    assert run_of(folder).info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_that_is_done_and_resumed_is_tracked_the_same(dltrain: Command) -> None:
    folder = dltrain(*OFTEN, ALL).folder
    assert dltrain("train", f"resume={folder}").code == 0
    assert_exact(folder)


def test_an_extended_run_is_tracked_to_its_end(dltrain: Command) -> None:
    folder = dltrain(*OFTEN, "limit_steps=6", ALL).folder
    assert dltrain("train", f"resume={folder}", "limit_steps=null").code == 0
    expected = in_jsonl(folder)
    assert in_csv(folder) == expected
    assert in_tensorboard(folder) == float32(expected)
    # What MLflow was told it keeps: here the test of the weights that were the best ones at step 6.
    assert {place: value for place, value in in_mlflow(folder).items() if place in expected} == expected
    assert {place[0] for place in in_mlflow(folder).keys() - expected.keys()} <= {"test/loss", "test/accuracy"}


@pytest.mark.parametrize("moment", mostly_slow(["__init__", "write", "saved", "finish", "close"], fast=["write"]))
@pytest.mark.parametrize("error", [RuntimeError("it is\nbroken"), OSError(28, "No space left")], ids=["own", "disk"])
def test_a_failing_tracker_is_reported_once_and_the_run_continues(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, moment: str, error: Exception
) -> None:
    expected = bits(dltrain(*OFTEN, "logger=none").folder)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(CSV, moment, fail)
    result = dltrain(*OFTEN, "logger=[csv,tensorboard]")
    assert result.code == 0
    (told,) = warnings_of(result)
    assert told.startswith("logger=csv failed")
    assert told in (result.folder / "train.log").read_text()
    assert bits(result.folder) == expected
    assert in_tensorboard(result.folder) == float32(in_jsonl(result.folder))


@pytest.mark.slow
def test_random_numbers_used_by_a_tracker_do_not_change_the_run(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import random

    expected = bits(dltrain(*OFTEN, "logger=none").folder)
    monkeypatch.setattr(CSV, "write", lambda *_: random.random())
    assert bits(dltrain(*OFTEN, "logger=csv").folder) == expected


def test_an_unreachable_tracking_server_is_reported_without_its_password(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://somebody:canary-word@127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MY_STORE", address)
        first = dltrain(*QUICK, "logger=mlflow")
        second = dltrain(*QUICK, "logger=mlflow", "logger.mlflow.tracking_uri=${oc.env:MY_STORE}")
    for result in (first, second):
        assert result.code == 0
        assert len(warnings_of(result)) == 1
        assert "127.0.0.1" in warnings_of(result)[0]
        assert "canary" not in result.out + result.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if b"canary-word" in path.read_bytes()]


@pytest.mark.parametrize(
    "address", ["http://me:word@host", "postgresql+psycopg://a:b@c/d", "https://:word@host:5000/x"]
)
@pytest.mark.parametrize("sweep", mostly_slow([[], ["-m"]], fast=[[]]), ids=["run", "sweep"])
def test_a_password_is_refused_before_it_gets_into_a_file(dltrain: Command, address: str, sweep: list[str]) -> None:
    result = dltrain(*QUICK, *sweep, "logger=mlflow", f"logger.mlflow.tracking_uri={address}")
    assert result.code == 2
    assert "holds a password" in result.err
    assert "word@" not in result.err
    assert not list(Path("outputs").rglob("*.*"))


@pytest.mark.parametrize(
    "address",
    [None, "mlruns", "http://host:5000/a@b", "http://me@host", "http://${oc.env:A}:${oc.env:B}@host", "a:b@c"],
)
def test_an_address_without_a_password_is_accepted(address: str | None) -> None:
    run_trackers.require({"logger": {"mlflow": {"tracking_uri": address, "experiment": "x"}}})


def test_a_missing_extra_is_reported_before_training(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_trackers, "find_spec", lambda name: None)
    result = dltrain(*QUICK, "logger=[csv,mlflow]")
    assert (result.code, result.err) == (
        2,
        "error: logger=mlflow: needs MLflow; in dltrain's checkout: pip install -e '.[mlflow]'\n",
    )
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(
            ["logger=tensorbord"],
            "logger=tensorbord: no such option; did you mean tensorboard?",
            marks=pytest.mark.slow,
        ),
        (["logger=[csv,tensorbord]"], "logger=tensorbord: no such option; did you mean tensorboard?"),
        (["logger=[csv,mlflow]", "logger.mlflow.experimnt=x"], "did you mean logger.mlflow.experiment?"),
        (["logger=mlflow", "logger.mlflow.experiment=3"], "logger.mlflow.experiment=3: must be text"),
        (["+logger.aim={}"], "logger.aim: no such logger; there are csv, mlflow, tensorboard, wandb"),
        (["logger=[]", "sed=1"], "sed: no such key; did you mean seed?"),
        (["logger.csv=3", "logger=csv"], "logger.csv=3: must be a group of keys"),
        (["logger=3"], "logger=3: no such option"),
    ],
    ids=str,
)
def test_a_misspelt_logger_is_reported_with_the_right_name(dltrain: Command, words: list[str], told: str) -> None:
    result = dltrain(*QUICK, *words)
    assert result.code == 2
    assert told in result.err
    assert len(result.err.splitlines()) <= 3


@pytest.mark.parametrize("word", mostly_slow(["logger=none", "logger=[]", "~logger"], fast=["logger=[]"]))
def test_a_run_without_a_logger_keeps_only_its_records(dltrain: Command, word: str) -> None:
    folder = dltrain(*QUICK, word).folder
    assert not (folder / "tensorboard").exists()
    assert dltrain("eval", f"ckpt={folder}").code == 0


def test_a_changed_logger_is_harmless_and_gets_the_whole_run(dltrain: Command) -> None:
    folder = dltrain(*OFTEN, "limit_steps=6", "logger=none").folder
    result = dltrain("train", f"resume={folder}", "limit_steps=null", ALL)
    assert result.code == 0
    assert "resume: " not in result.out
    assert_exact(folder)


def without_logger(folder: Path) -> None:
    """As a run of before there were trackers."""
    for path in folder.glob("checkpoints/*.pt"):
        content = checkpoint.load(path)
        del content["config"]["logger"]
        checkpoint.save(path, content)
    path = folder / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("logger: {}\n", ""))


def test_a_checkpoint_without_a_logger_is_evaluated_and_resumed(dltrain: Command) -> None:
    folder = dltrain(*OFTEN, "limit_steps=6", "logger=none").folder
    without_logger(folder)
    assert dltrain("eval", f"ckpt={folder}").code == 0
    result = dltrain("train", f"resume={folder}", "limit_steps=8")
    assert (result.code, result.err) == (0, "")
    assert not (folder / "tensorboard").exists()
    assert dltrain("train", f"resume={folder}", "limit_steps=null", "logger=csv").code == 0
    assert in_csv(folder) == in_jsonl(folder)


def test_a_checkpoint_is_evaluated_if_its_tracking_store_is_unknown(
    dltrain: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_STORE", str(tmp_path / "store"))
    folder = dltrain(*QUICK, "logger=mlflow", "logger.mlflow.tracking_uri=${oc.env:MY_STORE}").folder
    assert run_of(folder, tmp_path / "store").info.status == "FINISHED"
    monkeypatch.delenv("MY_STORE")
    assert dltrain("eval", f"ckpt={folder}").code == 0


def test_a_tracking_store_named_by_a_checkpoint_is_used_only_if_overridden(dltrain: Command, tmp_path: Path) -> None:
    store = f"logger.mlflow.tracking_uri={tmp_path / 'store'}"
    folder = dltrain(*OFTEN, "limit_steps=6", "logger=mlflow", store).folder
    (tmp_path / "store").rename(tmp_path / "away")
    result = dltrain("train", f"resume={folder}")
    assert (result.code, (tmp_path / "store").exists()) == (2, False)
    assert "the checkpoint names the logger.mlflow.tracking_uri to send metrics to" in result.err
    (tmp_path / "away").rename(tmp_path / "store")
    assert dltrain("train", f"resume={folder}", "limit_steps=8", store).code == 0
    assert run_of(folder, tmp_path / "store").data.metrics["train/loss"] == in_jsonl(folder)["train/loss", 8]
    assert dltrain("train", f"resume={folder}", "limit_steps=9", "logger=none").code == 0


@pytest.mark.parametrize(
    "word", ["++logger.mlflow={tracking_uri: X, experiment: y}", "+logger={mlflow: {tracking_uri: X}}"]
)
def test_a_sweep_file_that_names_a_store_indirectly_is_refused(dltrain: Command, tmp_path: Path, word: str) -> None:
    (tmp_path / "sent").mkdir()
    words = [*QUICK[1:], "seed=1,2", "logger=mlflow", word.replace("X", str(tmp_path / "store"))]
    content = {"format": 1, "command": "train", "overrides": words}
    (tmp_path / "sent" / "sweep.json").write_text(json.dumps(content))
    result = dltrain("train", "sweep.resume=sent")
    assert (result.code, "this sweep names the logger.mlflow.tracking_uri to send metrics to" in result.err) == (
        2,
        True,
    )
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_sweep_from_a_file_goes_to_no_store_of_its_choice(dltrain: Command, tmp_path: Path) -> None:
    store = f"logger.mlflow.tracking_uri={tmp_path / 'store'}"
    assert dltrain(*QUICK, "-m", "seed=1,2", "epochs=1", "logger=mlflow", store).code == 0
    (tmp_path / "store").rename(tmp_path / "away")
    assert "logger.mlflow.tracking_uri is not taken from" in dltrain("train", "sweep.resume=last").out
    for words in ([], [store], ["logger=none"]):  # it goes on with its own words, whatever is typed of trackers
        result = dltrain("train", "sweep.resume=last", *words)
        assert (result.code, "0 of 2 jobs left to run" in result.out) == (0, True), result.err
        assert not (tmp_path / "store").exists()


def jobs_of(result: Result) -> list[Path]:
    table = next(line for line in result.out.splitlines() if line.startswith("table: "))
    return sorted(path.parent for path in Path(table.removeprefix("table: ")).parent.glob("*/metrics.jsonl"))


@pytest.mark.slow
def test_jobs_of_a_sweep_have_no_tracker_until_one_is_typed(dltrain: Command) -> None:
    untyped = jobs_of(dltrain(*QUICK, "-m", "seed=1,2", "epochs=1"))
    typed = jobs_of(dltrain(*QUICK, "-m", "seed=1,2", "epochs=1", "logger=[tensorboard,csv]"))
    assert (len(untyped), len(typed)) == (2, 2)
    assert not any((folder / "tensorboard").exists() for folder in untyped)
    for folder in typed:
        assert in_csv(folder) == in_jsonl(folder)
        assert in_tensorboard(folder) == float32(in_jsonl(folder))


def test_the_digest_of_a_job_knows_no_logger() -> None:
    def digest(config: dict[str, Any]) -> str:
        return plan.check(plan.Composed(config, [], [], lambda key: ""), "train")[0].digest

    config = compose("train", [])
    bare = {key: value for key, value in config.items() if key != "logger"}
    assert digest(config) == digest(config | {"logger": {}}) == digest(bare)
    assert digest(config) != digest(config | {"seed": 1})


def test_mlflow_holds_config_versions_best_metrics_and_summary(dltrain: Command) -> None:
    folder = dltrain(*OFTEN, "logger=mlflow", "logger.mlflow.experiment=mine").folder
    run, summary = run_of(folder), json.loads((folder / "summary.json").read_text())
    assert client().get_experiment_by_name("mine").experiment_id == run.info.experiment_id
    assert run.data.params["model.hidden"] == "[8]"
    assert run.data.params["patience"] == "null"
    assert not [key for key in run.data.params if key.startswith("logger")]
    assert run.data.metrics["best/accuracy"] == summary["best"]["accuracy"]
    assert run.data.tags["version.torch"] == summary["versions"]["torch"]
    assert run.data.tags["mlflow.source.git.commit"] == (summary["git"] or "none")
    assert run.data.tags["status"] == "done"
    (kept,) = Path("mlruns").rglob("summary.json")
    assert json.loads(kept.read_text()) == summary


def test_mlflow_records_what_a_resumed_run_changed(dltrain: Command) -> None:
    folder = dltrain(*OFTEN, "limit_steps=6", "logger=mlflow").folder
    result = dltrain("train", f"resume={folder}", "limit_steps=9", "logger.mlflow.experiment=other")
    assert (result.code, warnings_of(result)) == (0, [])
    run = run_of(folder)
    assert run.data.params["limit_steps"] == "6"
    assert run.data.tags["resumed.limit_steps"] == "9"


@pytest.mark.slow
def test_mlflow_accepts_long_and_odd_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"model": {"name": "x" * 10_000, "k" * 500: 1, "a=b?": "\ud800"}} | {f"key{n}": n for n in range(250)}
    tracker = MLflow(tmp_path, config, tracking_uri=None, experiment="x")
    for step in range(600):
        tracker.write({"split": "train", "step": step, "epoch": 1.0, "loss": 0.5, "accuracy": None, "lr": 0.1})
    tracker.finish(SUMMARY, [])
    run = run_of(tmp_path)
    assert len(run.data.params) == 253
    assert len(client().get_metric_history(run.info.run_id, "train/loss")) == 600
    assert set(run.data.metrics) == {"train/loss", "train/lr", "best/loss"}


@pytest.mark.slow
def test_a_run_that_its_store_does_not_know_begins_anew(dltrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(Path("first").absolute()))
    folder = dltrain(*OFTEN, "limit_steps=6", "logger=mlflow").folder
    before = run_of(folder, "first").info.run_id
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    result = dltrain("train", f"resume={folder}", "limit_steps=null")
    assert (result.code, warnings_of(result)) == (0, [])
    assert run_of(folder).info.run_id != before
    assert in_mlflow(folder) == in_jsonl(folder)


def test_an_untrusted_run_id_is_not_used_as_a_path(dltrain: Command) -> None:
    folder = dltrain(*OFTEN, "limit_steps=6", "logger=mlflow").folder
    (folder / "mlflow_run_id").write_text("../../secret")
    assert "holds no MLflow run ID" in warnings_of(dltrain("train", f"resume={folder}"))[0]


def test_a_run_that_fails_is_failed_in_mlflow(dltrain: Command) -> None:
    result = dltrain(*OFTEN, "logger=mlflow", "optim.lr=1e30", "log_every=1")
    assert result.code == 1
    (identity,) = Path("outputs").rglob("mlflow_run_id")
    assert run_of(identity.parent).info.status == "FAILED"


def test_tensorboard_holds_hyperparameters_and_mistakes(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    picture = numpy.full((1, 8, 8), 255, dtype=numpy.uint8)
    tracker = TensorBoard(tmp_path, {"optim": {"lr": 0.1, "name": "sgd"}, "seed": 3, "logger": {"csv": {}}})
    tracker.write({"split": "val", "step": 4, "epoch": 1.0, "loss": 0.5})
    tracker.finish(SUMMARY, [(picture, "<b>3</b>, taken for 8"), (picture.repeat(3, axis=0), "a cat")])
    tracker.close()
    read = events(tmp_path)
    assert sorted(read.Tags()["images"]) == ["mistakes/00", "mistakes/01"]
    assert (read.Images("mistakes/00")[0].width, read.Images("mistakes/00")[0].step) == (8, 4)
    assert read.SummaryMetadata("mistakes/00").display_name == "<b>3</b>, taken for 8"
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (values["optim.lr"].number_value, values["optim.name"].string_value) == (0.1, "sgd")
    assert set(values) == {"optim.lr", "optim.name", "seed"}
    content = read.SummaryMetadata("_hparams_/experiment").plugin_data.content
    named = [metric.name.tag for metric in HParamsPluginData.FromString(content).experiment.metric_infos]
    assert named == ["val/loss"]


def test_a_nan_metric_is_an_empty_cell_and_no_point(tmp_path: Path) -> None:
    for tracker in (CSV(tmp_path), board := TensorBoard(tmp_path, {})):
        tracker.write({"split": "train", "step": 1, "epoch": 0.5, "loss": None, "lr": 0.1})
        tracker.write({"split": "train", "step": 2, "epoch": 1.0, "loss": 0.25, "lr": 0.1, "skipped": 1})
    board.close()
    assert (tmp_path / "metrics.csv").read_text() == (
        "split,step,epoch,loss,lr,skipped\ntrain,1,0.5,,0.1,\ntrain,2,1.0,0.25,0.1,1\n"
    )
    assert in_tensorboard(tmp_path)["train/loss", 2] == 0.25
    assert ("train/loss", 1) not in in_tensorboard(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"split": "other", "step": 1}',
        '{"split": "train", "step": "1"}',
        '{"split": "train", "step": 1, "=cmd()": 1}',
        '{"split": "train", "step": 1, "loss": "=cmd()"}',
        '{"split": "train", "step": 1, "loss": [1]}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_a_line_that_no_run_writes_drops_trackers_and_stops_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text + "\n")
    with pytest.raises((ValueError, RecursionError)):
        list(lines.read(tmp_path / "metrics.jsonl"))
    assert run_trackers.Trackers({"csv": {}}, tmp_path, {}).running == {}


def test_a_run_from_python_is_tracked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summary = train(compose("train", [*QUICK[1:], "logger=[tensorboard,csv]"]))
    folder = Path(summary["folder"])
    assert in_csv(folder) == in_jsonl(folder)
    assert in_tensorboard(folder) == float32(in_jsonl(folder))


@pytest.mark.slow
def test_mlflow_warns_if_it_keeps_other_metrics_than_a_run_that_went_back(dltrain: Command) -> None:
    folder = dltrain(*OFTEN, "logger=mlflow", "keep=9").folder

    def gone_back(*words: str) -> int:
        steps = {checkpoint.load(path)["step"]: path for path in folder.glob("checkpoints/last*.pt")}
        result = dltrain("train", f"resume={steps[9]}", *words)
        assert result.code == 0
        return (result.out + result.err).count("logger.mlflow: MLflow keeps other metrics of step")

    assert gone_back() == 0
    assert gone_back("optim.lr=0.9") == 1
