"""`eval` rebuilds everything from a checkpoint alone and finds the figures of the training."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from conftest import Command
from dltrain import checkpoint
from dltrain.data.digits import digits

QUICK = ("model=mlp", "model.hidden=[32]", "epochs=5")


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "eval.json").read_text())
    return found


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_eval_finds_the_same_figures_as_the_training(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    assert dltrain("eval", f"ckpt={folder}").code == 0
    found = figures(folder / "checkpoints")
    assert {key: found[key] for key in ("loss", "accuracy")} == summary(folder)["test"]


@pytest.mark.parametrize("model", ["linear", "mlp", "lenet", "cnn", "lstm", "attention"])
def test_every_classifier_is_rebuilt_from_its_checkpoint_alone(dltrain: Command, model: str) -> None:
    folder = dltrain("train", f"model={model}", "epochs=1", "data.limit=100").folder
    trained = summary(folder)["test"]
    moved = shutil.copy(folder / "checkpoints" / "best.pt", "alone.pt")
    shutil.rmtree("outputs")
    assert dltrain("eval", f"ckpt={moved}").code == 0
    assert {key: figures(Path())[key] for key in ("loss", "accuracy")} == trained


def test_eval_of_val_finds_the_best_validation_figures(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "seed=3").folder
    dltrain("eval", f"ckpt={folder}", "split=val")
    assert figures(folder / "checkpoints")["accuracy"] == summary(folder)["best"]["accuracy"]


def test_eval_of_train_leaves_the_validation_examples_out(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    dltrain("eval", f"ckpt={folder}", "split=train")
    assert figures(folder / "checkpoints")["examples"] == 1294


def test_eval_prints_four_decimals_and_a_row_for_each_class(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    out = dltrain("eval", f"ckpt={folder}").out
    assert f"{summary(folder)['test']['accuracy']:.4f}" in out
    assert all(f"│ {digit} │" in out for digit in range(10))


def test_precision_and_recall_are_those_of_scikit_learn(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "epochs=1").folder
    dltrain("eval", f"ckpt={folder}")
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    test = digits("test")
    assert test is not None
    (mean,), (std,) = content["data"]["statistics"]
    pixels = ((test.images / 255 - mean) / std).flatten(1)
    hidden = (pixels @ content["model"]["layers.1.weight"].T + content["model"]["layers.1.bias"]).relu()
    predicted = (hidden @ content["model"]["layers.3.weight"].T + content["model"]["layers.3.bias"]).argmax(1)
    precision, recall, _, support = precision_recall_fscore_support(test.targets, predicted, zero_division=0)
    found = figures(folder / "checkpoints")["classes"].values()
    assert [row["precision"] for row in found] == pytest.approx(list(precision))
    assert [row["recall"] for row in found] == pytest.approx(list(recall))
    assert [row["examples"] for row in found] == list(support)


def test_another_batch_size_gives_the_same_accuracy(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    dltrain("eval", f"ckpt={folder}", "batch_size=7")
    assert figures(folder / "checkpoints")["accuracy"] == summary(folder)["test"]["accuracy"]


def test_data_may_have_moved_since_the_training(dltrain: Command, data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path / "first")
    folder = dltrain("train", *QUICK, "data=mnist", "data.root=first").folder
    (tmp_path / "first").rename(tmp_path / "second")
    assert dltrain("eval", f"ckpt={folder}", "data.root=second").code == 0
    assert figures(folder / "checkpoints")["accuracy"] == summary(folder)["test"]["accuracy"]


def test_a_root_for_data_without_one_is_code_2(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    result = dltrain("eval", f"ckpt={folder}", "data.root=elsewhere")
    assert (result.code, result.err) == (2, "error: data.root=elsewhere: data=digits has no root\n")


def test_regression_and_reconstruction_are_evaluated_without_classes(dltrain: Command) -> None:
    regression = dltrain("train", "data=line", "model=linear", "task=regression", "epochs=50").folder
    assert dltrain("eval", f"ckpt={regression}").code == 0
    assert {"loss", "mae", "r2"} <= figures(regression / "checkpoints").keys()
    reconstruction = dltrain("train", "model=autoencoder", "task=reconstruction", "epochs=1").folder
    assert dltrain("eval", f"ckpt={reconstruction}").code == 0
    assert figures(reconstruction / "checkpoints")["loss"] == summary(reconstruction)["test"]["loss"]


def test_a_split_that_there_is_not_is_code_2(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK, "data.val=0").folder
    result = dltrain("eval", f"ckpt={folder}", "split=val")
    assert (result.code, "split=val: data=digits has none" in result.err) == (2, True)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"PK\x03\x04 half an archive"],
    ids=["empty", "text", "cut"],
)
def test_a_damaged_checkpoint_is_code_66_and_one_line(dltrain: Command, content: bytes) -> None:
    Path("bad.pt").write_bytes(content)
    result = dltrain("eval", "ckpt=bad.pt")
    assert result.code == 66
    assert result.err.startswith("error: bad.pt: no checkpoint, or a damaged one")
    assert len(result.err.splitlines()) == 1


def test_a_checkpoint_whose_config_was_changed_is_refused(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    content["config"]["model"]["hidden"] = "many"
    checkpoint.save(Path("changed.pt"), content)
    result = dltrain("eval", "ckpt=changed.pt")
    assert result.code == 66
    assert "its config is refused" in result.err
    assert "model.hidden=many" in result.err


def test_a_checkpoint_cannot_name_code_through_a_reference(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    for name in ("best.pt", "last.pt"):
        content = torch.load(folder / "checkpoints" / name, weights_only=True)
        content["config"]["name"] = "subprocess:call"
        content["config"]["model"] = {"name": "${name}", "args": "touch PWNED", "shell": True}
        checkpoint.save(folder / "checkpoints" / name, content)
    for arguments in (
        ["eval", f"ckpt={folder}"],
        ["predict", f"ckpt={folder}", "input=."],
        ["export", f"ckpt={folder}"],
        ["train", f"resume={folder}"],
    ):
        result = dltrain(*arguments)
        assert (result.code, "the checkpoint wants to run subprocess:call" in result.err) == (2, True)
    assert not Path("PWNED").exists()


def test_weights_of_another_shape_are_refused_by_name(dltrain: Command) -> None:
    folder = dltrain("train", *QUICK).folder
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    content["config"]["model"]["hidden"] = [31]
    checkpoint.save(Path("changed.pt"), content)
    result = dltrain("eval", "ckpt=changed.pt")
    expected = "its weights do not fit the model: layers.1.weight is torch.float32 (32, 784), the model has"
    assert (result.code, expected in result.err) == (66, True), result.err
    assert len(result.err.splitlines()) <= 3
