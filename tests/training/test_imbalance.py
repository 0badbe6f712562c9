"""Runs on uneven classes: weights, focal loss and balanced epochs in train, resume, eval and predict."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from dltrain.checkpoints import checkpoint, content_check
from support.command import Command
from support.tiers import mostly_slow

QUICK = ("train", "model=mlp", "model.hidden=[8]", "data.limit=100", "epochs=3", "batch_size=20", "log_every=2")
QUICK += ("optim.lr=0.1", "device.threads=1", "report=false", "logger=none")
OPTIONS = {
    "weights and focal": ("task.class_weights=balanced", "task.focal=2", "task.label_smoothing=0.1", "data.mixup=0.3"),
    "balance": ("data.balance=0.8", "data.flip=alternate", "data.mixup=0.3"),
}
OPTIONS["all"] = OPTIONS["weights and focal"] + OPTIONS["balance"]


def content(folder: Path, name: str = "last") -> dict[str, Any]:
    return checkpoint.load(folder / "checkpoints" / f"{name}.pt")


def weights(folder: Path) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in content(folder)["model"].items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "examples_per_second"} for record in records]


@pytest.mark.parametrize("option", mostly_slow(OPTIONS, fast=["all"]))
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(dltrain: Command, option: str) -> None:
    whole = dltrain(*QUICK, *OPTIONS[option]).folder
    stopped = dltrain(*QUICK, *OPTIONS[option], "limit_steps=7").folder
    assert dltrain("train", f"resume={stopped}", "limit_steps=null").code == 0
    assert (weights(stopped), lines(stopped)) == (weights(whole), lines(whole))


def test_micro_batches_make_the_update_of_one_batch(dltrain: Command) -> None:
    words = (*QUICK[:-3], "task.class_weights=[0.1,5,1,1,0,1,9,1,1,1]", "task.focal=1.5", "data.balance=0.5")
    words += ("report=false", "logger=none", "epochs=1")
    one = content(dltrain(*words, "batch_size=18").folder)["model"]
    parts = content(dltrain(*words, "batch_size=6", "accumulate=3").folder)["model"]
    for key, value in one.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A file of 60 dark and 5 light images for training, and 20 of each for the test."""
    generator, arrays = numpy.random.default_rng(0), {}
    for split, counts in (("train", (60, 5)), ("test", (20, 20))):
        labels = arrays[f"y_{split}"] = numpy.repeat([0, 1], counts)
        images = generator.integers(0, 150, (len(labels), 6, 6)) + 12 * labels[:, None, None]
        arrays[f"x_{split}"] = images.astype(numpy.uint8)
    numpy.savez(tmp_path / "rare.npz", **arrays)
    return tmp_path / "rare.npz"


ARRAYS = ("train", "data=arrays", "data.val=0", "model=linear", "epochs=4", "batch_size=11", "logger=none")


def test_the_test_loss_is_the_weighted_one_and_eval_repeats_it_from_the_checkpoint(
    dltrain: Command, uneven: Path
) -> None:
    words = (*ARRAYS, f"data.file={uneven}", "report=false", "device.threads=1")
    result = dltrain(*words, "task.class_weights=balanced")
    assert result.code == 0, result.err
    assert "uneven" not in result.out + result.err
    summary = json.loads((result.folder / "summary.json").read_text())
    assert content(result.folder, "best")["data"]["class_counts"] == [60, 5]
    evaluated = dltrain("eval", f"ckpt={result.folder}")
    assert evaluated.code == 0, evaluated.err
    found = json.loads((result.folder / "checkpoints" / "eval.json").read_text())
    assert found["loss"] == pytest.approx(summary["test"]["loss"], rel=1e-6)
    given = dltrain(*words, f"task.class_weights=[{65 / 2 / 60},{65 / 2 / 5}]")
    assert weights(given.folder) == weights(result.folder)
    plain = dltrain(*words)
    assert "uneven classes: in train" in plain.out + plain.err
    assert plain.folder.joinpath("train.log").read_text().count("task.class_weights=balanced or data.balance=1") == 1
    path = uneven.with_name("one.png")
    Image.new("L", (6, 6)).save(path)
    predicted = dltrain("predict", f"ckpt={result.folder}", f"input={path}")
    assert (predicted.code, "one.png" in predicted.out) == (0, True), predicted.err


def test_balanced_epochs_find_the_rare_class_more_often(dltrain: Command, uneven: Path) -> None:
    words = (*ARRAYS, f"data.file={uneven}", "report=false", "device.threads=1", "optim.lr=0.02")
    found = {}
    for balance in (0, 1):
        folder = dltrain(*words, f"data.balance={balance}").folder
        assert dltrain("eval", f"ckpt={folder}").code == 0
        analyzed = json.loads((folder / "checkpoints" / "eval.json").read_text())["classes"]
        found[balance] = analyzed["1"]["recall"]
    assert found[1] > found[0]


def test_weights_for_another_number_of_classes_are_refused_with_that_number(dltrain: Command) -> None:
    result = dltrain(*QUICK, "task.class_weights=[1,2,3]")
    assert result.code == 2
    assert "task.class_weights has 3 numbers, the data has 10 classes" in result.err


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ("task.class_weights=even", "must be balanced or a list, each a number >= 0 or null"),
        ("task.class_weights=[-1,2]", "must be balanced or a list, each a number >= 0 or null"),
        ("task.focal=-1", "must be a number >= 0"),
        ("data.balance=2", "must be a number >= 0, <= 1"),
        ("task.class_counts=[1,2]", "class_counts"),
    ],
)
def test_values_out_of_range_are_refused(dltrain: Command, word: str, rule: str) -> None:
    result = dltrain(*QUICK, word)
    assert result.code == 2
    assert rule in result.err


def test_numbers_to_predict_cannot_be_balanced(dltrain: Command) -> None:
    result = dltrain("train", "data=line", "model=linear", "task=regression", "data.balance=0.5")
    assert result.code == 2
    assert "data.balance=0.5: needs data with classes; this data has numbers. Set data.balance=0" in result.err


def test_a_resumed_run_may_change_none_of_the_keys(dltrain: Command) -> None:
    folder = dltrain(*QUICK, "limit_steps=1").folder
    for word in ("task.class_weights=balanced", "task.focal=1", "data.balance=1"):
        result = dltrain("train", f"resume={folder}", word)
        assert (result.code, "cannot change in a resumed run" in result.err) == (2, True), word


def test_counts_of_classes_in_a_checkpoint_are_checked_and_may_be_missing(dltrain: Command) -> None:
    path = dltrain(*QUICK, "limit_steps=1").folder / "checkpoints" / "best.pt"
    content = checkpoint.load(path)
    for counts in ([1] * 9, [-1] * 10, [0.5] * 10, [10**30] * 10, "ab", {}):
        changed = content | {"data": content["data"] | {"class_counts": counts}}
        assert "data.class_counts must be" in content_check.validation_error(changed)
    del content["data"]["class_counts"]
    checkpoint.save(path, content)
    assert dltrain("eval", f"ckpt={path}").code == 0
