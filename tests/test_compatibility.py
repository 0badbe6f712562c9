"""What commit 5bb6990 wrote stays usable: its runs, sweeps and searches are evaluated, resumed and reported.

`fixtures/5bb6990` has a run that was stopped at step 7 of 12; a sweep over a textbook experiment that was killed when
jobs 0 and 1 had ended, 2 had begun and 3 had not; a search whose 2 trials have ended; and the keys of that commit.
"""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dltrain.checkpoints import checkpoint
from dltrain.config import composition, registry, saved_config, signatures
from dltrain.data import splits
from dltrain.sweeps import plan, sweep_file
from dltrain.sweeps.executors import data_cache
from support.command import Command
from support.hostile import digested, saved
from support.sweeping import events, rows

FIXTURES = Path(__file__).parent / "fixtures" / "5bb6990"
KEYS: dict[str, list[str]] = json.loads((FIXTURES / "keys.json").read_text())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURES / "run", tmp_path / "run")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURES / "sweep", tmp_path / "sweep")


@pytest.fixture
def search(tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURES / "search", tmp_path / "search")


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def of_event(folder: Path, event: str) -> list[dict[str, Any]]:
    return [each for each in events(folder) if each["event"] == event]


def test_a_run_evaluates_to_the_accuracy_of_its_summary(dltrain: Command, run: Path) -> None:
    result = dltrain("eval", "ckpt=run", "device=cpu")
    assert (result.code, result.err) == (0, "")
    measured = json.loads((run / "checkpoints" / "eval.json").read_text())
    # Of 359 examples one or two may be on the edge on another CPU or in another torch.
    assert measured["accuracy"] == pytest.approx(summary(run)["test"]["accuracy"], abs=2.5 / 359)
    assert measured["loss"] == pytest.approx(summary(run)["test"]["loss"], rel=1e-4)


def test_a_run_split_by_the_rules_of_that_time_keeps_its_split(dltrain: Command, tmp_path: Path) -> None:
    """Where a rare class lost all its training examples; the checkpoint is as that commit wrote it, without `rules`."""
    for name, count in (("defect", 2), ("ok", 60)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), 3 * number).save(tmp_path / "photos" / name / f"{number}.png")
    words = ("data=folder", f"data.root={tmp_path / 'photos'}", "data.size=[8,8]", "model=linear", "device=cpu")
    with splits.by_rules(1):
        old = dltrain("train", *words, "epochs=2", "limit_steps=1")
    told = "classes without a training example (1 of 2): defect"
    assert (old.code, told in old.out + old.err) == (0, True)
    path = old.folder / "checkpoints" / "last.pt"
    assert not {"rules", "levels"} & checkpoint.load(path)["data"].keys()
    resumed = dltrain("train", f"resume={old.folder}", "limit_steps=null")
    assert (resumed.code, told in resumed.out + resumed.err) == (0, True)
    assert not {"rules", "levels"} & checkpoint.load(path)["data"].keys()
    for split in ("train", "val", "test"):
        result = dltrain("eval", f"ckpt={old.folder}", f"split={split}")
        assert (result.code, "not the examples" in result.out + result.err) == (0, False)
    new = dltrain("train", *words, "epochs=2")
    assert (new.code, told in new.out + new.err) == (0, False)
    assert checkpoint.load(new.folder / "checkpoints" / "last.pt")["data"]["rules"] == 2


def test_a_worker_of_a_sweep_keeps_data_of_other_rules_apart() -> None:
    cache, node = data_cache.DataCache(), composition.preview("train", []).config["data"]
    with splits.by_rules(1):
        before = cache(node, 0)
        assert cache(node, 0) is before
    now = cache(node, 0)
    assert (before.rules, now.rules) == (1, 2)


def test_a_worker_of_a_sweep_reads_data_once_for_all_folds() -> None:
    cache, node = data_cache.DataCache(), composition.preview("train", ["data.folds=3", "data.fold=0"]).config["data"]
    first, source = cache(node, 0), cache.source
    second = cache(node | {"fold": 1}, 0)
    assert cache.source is source
    assert first.digests["val"] != second.digests["val"]
    assert first.digests["test"] == second.digests["test"]
    assert cache(node, 0).digests == first.digests
    assert cache(node | {"folds": None, "fold": None}, 0).digests["val"] != first.digests["val"]


def test_a_run_by_rules_that_are_not_known_yet_is_refused(dltrain: Command, run: Path) -> None:
    path = run / "checkpoints" / "last.pt"
    content = checkpoint.load(path)
    for key, value, told in (
        ("rules", 3, "data.rules must be 1 or 2. If it is higher, install a newer dltrain"),
        ("rules", True, "data.rules must be"),
        ("rules", None, "data.rules must be"),
        ("levels", [0, float("inf")], "data.levels must be two numbers, the lower first"),
        ("levels", [5, 5], "data.levels must be"),
        ("levels", [1.0], "data.levels must be"),
        ("levels", "ab", "data.levels must be"),
    ):
        changed = content | {"data": content["data"] | {key: value}}
        path.write_bytes(digested(saved(changed)))
        result = dltrain("train", "resume=run")
        assert (result.code, told in result.err) == (66, True), result.err


@pytest.mark.usefixtures("run")
def test_a_run_is_inspected(dltrain: Command) -> None:
    result = dltrain("inspect", "run")
    assert result.code == 0
    assert "checkpoint of format 2" in result.out
    assert "4 tensors, 6,370 numbers" in result.out


def test_a_run_is_resumed_to_its_end_and_reported(dltrain: Command, run: Path) -> None:
    result = dltrain("train", "resume=run", "limit_steps=null", "device=cpu")
    assert (result.code, result.err) == (0, "")
    assert "resumed at step 7" in result.out
    assert (summary(run)["status"], summary(run)["steps"]) == ("done", 12)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["split"] == "val"] == [3, 6, 9, 12]
    assert checkpoint.load(run / "checkpoints" / "last.pt")["step"] == 12
    assert dltrain("report", "run").code == 0
    assert "<!doctype html>" in (run / "report.html").read_text().lower()


@pytest.mark.usefixtures("run")
def test_the_weights_of_a_run_are_exported_predicted_with_and_started_from(dltrain: Command, tmp_path: Path) -> None:
    exported = dltrain("export", "ckpt=run", "format=safetensors", "output=weights.safetensors")
    assert (exported.code, Path("weights.safetensors").is_file()) == (0, True), exported.err
    Image.new("L", (28, 28)).save(tmp_path / "black.png")
    predicted = dltrain("predict", "ckpt=run", "input=black.png")
    assert (predicted.code, "black.png" in predicted.out) == (0, True), predicted.err
    words = ("model=mlp", "model.hidden=[8]", "data.limit=100", "epochs=1", "report=false", "logger=none")
    started = dltrain("train", "init=run", *words)
    assert (started.code, "init:" in started.out) == (0, False), started.err


def test_a_killed_sweep_resumes_and_runs_nothing_twice(dltrain: Command, sweep: Path) -> None:
    before = {number: rows(sweep)[number] for number in (0, 1)}
    result = dltrain("train", "-m", "sweep.resume=sweep")
    assert result.code == 0, result.err
    assert "resuming sweep: 2 of 4 jobs left to run" in result.out
    assert [each["job"] for each in of_event(sweep, "begun")] == [0, 1, 2, 2, 3]
    assert len(of_event(sweep, "planned")) == 4
    assert [row["status"] for row in rows(sweep)] == ["done"] * 4
    assert {number: rows(sweep)[number] for number in (0, 1)} == before
    continued = sweep / of_event(sweep, "planned")[2]["folder"]
    assert "resumed at step " in (continued / "train.log").read_text()
    assert (summary(continued)["status"], summary(continued)["steps"]) == ("done", 300)
    assert dltrain("report", "sweep").code == 0


def test_a_search_resumes_with_another_trial(dltrain: Command, search: Path) -> None:
    result = dltrain("train", "-m", "sweep.resume=search", "sweep.trials=3")
    assert result.code == 0, result.err
    assert [each["job"] for each in of_event(search, "begun")] == [0, 1, 2]
    assert [row["status"] for row in rows(search)] == ["done"] * 3
    assert dltrain("report", "search").code == 0


def test_no_key_is_gone_and_every_new_one_has_a_value_for_older_configs() -> None:
    for node, before in KEYS.items():
        group, _, option = node.partition(".")
        assert not option or option in registry.options(group, [registry.config_folder()]), f"{group}={option} is gone"
        signature = registry.of_option(group, option) if option else signatures.builtin(*registry.COMMANDS["train"][:2])
        now = set(signature.keys) - ({"name"} if option else set()) if signature else set()  # logger=none has none
        assert set(before) <= now, f"keys of {node} are gone"
        names = {key: {f"{group}.{key}", f"{node}.{key}"} if option else {key} for key in now - set(before)}
        assert all(saved_config.ADDED.keys() & each for each in names.values()), f"{names} must be in ADDED"


NEW = {"data.shear": 0, "model.mlp.bias": True, "model.lenet.bias": True, "shadow": None}


@pytest.mark.parametrize(
    ("changes", "is_same_job"),
    [
        ({}, True),
        ({"data": {"shear": 0}, "model": {"bias": True}, "shadow": None}, True),
        ({"data": {"shear": 1}}, False),
        ({"model": {"bias": False}}, False),
        ({"shadow": 0.5}, False),
        ({"model": {"other": True}}, False),
    ],
    ids=str,
)
def test_a_sweep_knows_its_jobs_by_all_values_but_those_of_new_keys_that_behave_as_before(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], is_same_job: bool
) -> None:
    composed = composition.preview("train", ["model=mlp"])
    before = plan.check(composed, "train")[0].digest
    monkeypatch.setattr(saved_config, "ADDED", saved_config.ADDED | NEW)
    config = copy.deepcopy(composed.config)
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    after = plan.check(dataclasses.replace(composed, config=config), "train")[0].digest
    assert (after == before) == is_same_job


def test_a_sweep_of_evaluations_knows_its_jobs_without_the_key_of_ensembles() -> None:
    composed = composition.preview("eval", ["ckpt=run"])
    older = {key: value for key, value in composed.config.items() if key != "ensemble"}
    chosen = composed.config | {"ensemble": True}
    now, before, other = (
        plan.check(dataclasses.replace(composed, config=config), "eval")[0].digest
        for config in (composed.config, older, chosen)
    )
    assert before == now != other


def test_an_older_config_is_read_with_the_values_of_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_config, "ADDED", NEW | {"logger.mlflow.tags": None})
    older = {"data": {"name": "digits", "shear": 3}, "model": {"name": "mlp"}, "logger": {"mlflow": {}}}
    assert saved_config.with_added(older) == {
        "data": {"name": "digits", "shear": 3},
        "model": {"name": "mlp", "bias": True},
        "logger": {"mlflow": {"tags": None}},
        "shadow": None,
    }
    assert older["model"] == {"name": "mlp"}
    assert saved_config.with_added({"data": "mnist", "logger": {}}) == {"data": "mnist", "logger": {}, "shadow": None}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("+experiment=lenet_mnist", "+experiment=textbook/lenet_mnist"),
        (
            "+experiment=mlp_mnist,mnist_mlp,'cnn_mnist'",
            "+experiment=textbook/mlp_mnist,mnist_mlp,'textbook/cnn_mnist'",
        ),
        ("+experiment=choice(lenet_mnist,a-cnn_mnist)", "+experiment=choice(textbook/lenet_mnist,a-cnn_mnist)"),
        ("+experiment=textbook/lenet_mnist", "+experiment=textbook/lenet_mnist"),
        ("+experiment=mine", "+experiment=mine"),
        ("name=lenet_mnist", "name=lenet_mnist"),
    ],
)
def test_a_sweep_finds_experiments_that_have_moved(before: str, now: str) -> None:
    assert sweep_file._moved(before, None) == now


def test_an_experiment_of_the_user_is_not_taken_for_one_that_has_moved(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "lenet_mnist.yaml").touch()
    assert sweep_file._moved("+experiment=lenet_mnist", str(tmp_path)) == "+experiment=lenet_mnist"
