"""`eval` rebuilds everything from a checkpoint alone and finds the figures of the training."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from dltrain.checkpoints import checkpoint
from dltrain.commands import evaluation
from dltrain.data.datasets.digits import digits
from dltrain.report import run_files
from dltrain.runtime.errors import OutputError
from support.command import Command, Trained
from support.tiers import mostly_slow

CLASSIFIERS = ("linear", "mlp", "lenet", "cnn", "resnet", "fastnet", "lstm", "attention")
QUICK = ("model=mlp", "model.hidden=[32]", "epochs=5")


def figures(folder: Path, name: str = "eval.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_eval_gives_the_same_metrics_as_training(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK)
    assert dltrain("eval", f"ckpt={folder}").code == 0
    found = figures(folder / "checkpoints")
    assert {key: found[key] for key in ("loss", "accuracy")} == summary(folder)["test"]


@pytest.mark.parametrize("model", mostly_slow(CLASSIFIERS, fast=["mlp", "lstm"]))
def test_every_classifier_is_rebuilt_from_its_checkpoint_alone(dltrain: Command, trained: Trained, model: str) -> None:
    folder = trained(f"model={model}", "epochs=1", "data.limit=100")
    trained = summary(folder)["test"]
    moved = shutil.copy(folder / "checkpoints" / "best.pt", "alone.pt")
    shutil.rmtree("outputs")
    assert dltrain("eval", f"ckpt={moved}").code == 0
    found = figures(Path(), "alone-eval.json")
    assert {key: found[key] for key in ("loss", "accuracy")} == trained


def test_eval_of_val_gives_the_best_validation_metrics(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK, "seed=3")
    dltrain("eval", f"ckpt={folder}", "split=val")
    assert figures(folder / "checkpoints", "eval-val.json")["accuracy"] == summary(folder)["best"]["accuracy"]


def test_eval_of_val_gives_the_examples_of_the_fold(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK, "data.folds=4", "data.fold=1", "epochs=1")
    dltrain("eval", f"ckpt={folder}", "split=val")
    found = figures(folder / "checkpoints", "eval-val.json")
    assert found["accuracy"] == summary(folder)["best"]["accuracy"]
    assert found["examples"] == 360  # of 1438; two folds have one more than the others
    assert dltrain("eval", f"ckpt={folder}", "split=val").out.count("not the examples of the training") == 0


def test_eval_of_train_leaves_the_validation_examples_out(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK)
    dltrain("eval", f"ckpt={folder}", "split=train")
    assert figures(folder / "checkpoints", "eval-train.json")["examples"] == 1294


def test_eval_prints_four_decimals_and_a_row_for_each_class(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK)
    out = dltrain("eval", f"ckpt={folder}").out
    assert f"{summary(folder)['test']['accuracy']:.4f}" in out
    rows = [line.split()[1] for line in out.splitlines() if line.startswith("│")]
    assert rows[-11:] == [*map(str, range(10)), "macro"]


def test_precision_and_recall_are_those_of_scikit_learn(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK, "epochs=1")
    dltrain("eval", f"ckpt={folder}")
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    test = digits("test")
    assert test is not None
    (mean,), (std,) = content["data"]["statistics"]
    pixels = ((test.images / 255 - mean) / std).flatten(1)
    hidden = (pixels @ content["model"]["layers.1.weight"].T + content["model"]["layers.1.bias"]).relu()
    predicted = (hidden @ content["model"]["layers.3.weight"].T + content["model"]["layers.3.bias"]).argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(test.targets, predicted, zero_division=0)
    found = figures(folder / "checkpoints")["classes"].values()
    assert [row["precision"] for row in found] == pytest.approx(list(precision))
    assert [row["recall"] for row in found] == pytest.approx(list(recall))
    assert [row["f1"] for row in found] == pytest.approx(list(f1))
    assert [row["examples"] for row in found] == list(support)
    macro = precision_recall_fscore_support(test.targets, predicted, average="macro", zero_division=0)[:3]
    assert list(figures(folder / "checkpoints")["macro"].values()) == pytest.approx(macro)
    assert figures(folder / "checkpoints")["confusion"] == confusion_matrix(test.targets, predicted).tolist()


def test_another_batch_size_gives_the_same_accuracy(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK)
    dltrain("eval", f"ckpt={folder}", "batch_size=7")
    assert figures(folder / "checkpoints")["accuracy"] == summary(folder)["test"]["accuracy"]


def test_a_relative_data_root_that_is_not_here_is_reported_with_where_it_was_relative_to(
    dltrain: Command, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data_root, tmp_path / "first")
    folder = dltrain("train", *QUICK, "data=mnist", "data.root=first", "epochs=1", "report=false").folder.absolute()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    result = dltrain("eval", f"ckpt={folder}")
    assert result.code == 66
    assert "data.root=first is relative to the folder where the training was started" in result.err
    assert result.err.endswith(f"Give data.root={tmp_path / 'first'}\n")
    assert dltrain("eval", f"ckpt={folder}", f"data.root={tmp_path / 'first'}").code == 0
    shutil.rmtree(tmp_path / "first")
    assert "Give data.root=…" in dltrain("eval", f"ckpt={folder}").err
    assert not list((tmp_path / "other").iterdir())


def test_data_may_have_moved_since_the_training(dltrain: Command, data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path / "first")
    folder = dltrain("train", *QUICK, "data=mnist", "data.root=first", "epochs=1", "report=false").folder
    (tmp_path / "first").rename(tmp_path / "second")
    assert dltrain("eval", f"ckpt={folder}", "data.root=second").code == 0
    assert figures(folder / "checkpoints")["accuracy"] == summary(folder)["test"]["accuracy"]


def test_a_root_for_data_without_one_is_code_2(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK)
    result = dltrain("eval", f"ckpt={folder}", "data.root=elsewhere")
    assert (result.code, result.err) == (2, "error: data.root=elsewhere: data=digits has no root\n")


def test_regression_and_reconstruction_are_evaluated_without_classes(dltrain: Command, trained: Trained) -> None:
    regression = trained("data=line", "model=linear", "task=regression", "epochs=50")
    assert dltrain("eval", f"ckpt={regression}").code == 0
    assert {"loss", "mae", "r2"} <= figures(regression / "checkpoints").keys()
    reconstruction = trained("model=autoencoder", "task=reconstruction", "epochs=1")
    assert dltrain("eval", f"ckpt={reconstruction}").code == 0
    assert figures(reconstruction / "checkpoints")["loss"] == summary(reconstruction)["test"]["loss"]


def test_a_missing_split_is_code_2(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK, "data.val=0")
    result = dltrain("eval", f"ckpt={folder}", "split=val")
    assert (result.code, "split=val: data=digits had no such split" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"not a checkpoint", "a text, not weights"),
        (b"PK\x03\x04 half an archive", "incomplete, its end is missing"),
    ],
    ids=["empty", "text", "cut"],
)
def test_a_damaged_checkpoint_is_code_66_and_one_line(dltrain: Command, content: bytes, what: str) -> None:
    Path("bad.pt").write_bytes(content)
    result = dltrain("eval", "ckpt=bad.pt")
    assert result.code == 66
    assert result.err.startswith(f"error: bad.pt: {what}")
    assert len(result.err.splitlines()) == 1


def test_a_checkpoint_whose_config_was_changed_is_refused(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK)
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    content["config"]["model"]["hidden"] = "many"
    checkpoint.save(Path("changed.pt"), content)
    result = dltrain("eval", "ckpt=changed.pt")
    assert result.code == 66
    assert "its config is refused" in result.err
    assert "model.hidden=many" in result.err


def test_a_checkpoint_cannot_name_code_through_a_reference(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK)
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


def test_weights_of_another_shape_are_refused_by_name(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK)
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    content["config"]["model"]["hidden"] = [31]
    checkpoint.save(Path("changed.pt"), content)
    result = dltrain("eval", "ckpt=changed.pt")
    expected = "its weights do not fit the model: layers.1.weight is torch.float32 (32, 784), the model has"
    assert (result.code, expected in result.err) == (66, True), result.err
    assert len(result.err.splitlines()) <= 3


def test_evaluations_of_other_splits_views_and_checkpoints_are_kept_side_by_side(
    dltrain: Command, trained: Trained
) -> None:
    folder = trained(*QUICK, "epochs=1") / "checkpoints"
    for words in ([], ["split=val"], ["tta=flip"], ["split=val", "tta=flip_shift"]):
        dltrain("eval", f"ckpt={folder}", *words)
    dltrain("eval", f"ckpt={folder / 'last.pt'}")
    assert {path.name for path in folder.glob("*.json")} == {
        "eval.json",
        "eval-val.json",
        "eval-test-flip.json",
        "eval-val-flip_shift.json",
        "last-eval.json",
    }
    found = figures(folder, "eval-val-flip_shift.json")
    assert (found["split"], found["tta"], found["checkpoint"]) == ("val", "flip_shift", str(folder / "best.pt"))


def test_views_of_an_image_are_averaged(dltrain: Command, trained: Trained) -> None:
    """Of a network that sees pictures and their mirror images with equal eyes nothing changes; of another it does."""
    folder = trained(*QUICK, "epochs=2") / "checkpoints"
    content = torch.load(folder / "best.pt", weights_only=True)
    first = content["model"]["layers.1.weight"].view(-1, 28, 28)
    content["model"]["layers.1.weight"] = ((first + first.flip(2)) / 2).flatten(1)
    checkpoint.save(Path("even.pt"), content)
    losses = {}
    for path in (folder / "best.pt", Path("even.pt")):
        for views in ("none", "flip"):
            result = dltrain("eval", f"ckpt={path}", f"tta={views}", "--json")
            losses[path.name, views] = json.loads(result.out)["loss"]
    assert losses["even.pt", "flip"] == pytest.approx(losses["even.pt", "none"], rel=1e-5)
    assert losses["best.pt", "flip"] != pytest.approx(losses["best.pt", "none"], rel=1e-2)


def test_views_need_a_classifier(dltrain: Command, trained: Trained) -> None:
    folder = trained("data=line", "model=linear", "task=regression", "epochs=1")
    result = dltrain("eval", f"ckpt={folder}", "tta=flip")
    assert (result.code, "tta=flip: needs a classifier" in result.err) == (2, True)


def test_per_class_metrics_add_up_to_the_accuracy(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK, "epochs=1")
    out = dltrain("eval", f"ckpt={folder}").out
    found = figures(folder / "checkpoints")
    matrix = torch.tensor(found["confusion"])
    assert int(matrix.sum()) == found["examples"]
    assert int(matrix.diagonal().sum()) / found["examples"] == pytest.approx(found["accuracy"])
    assert [row["examples"] for row in found["classes"].values()] == matrix.sum(dim=1).tolist()
    bins = found["calibration"]["bins"]
    assert sum(each["count"] * each["accuracy"] for each in bins) == pytest.approx(int(matrix.diagonal().sum()))
    assert f"{found['calibration']['error']:.4f}" in out
    assert "image" not in json.dumps(found)


def test_the_confusion_matrix_is_printed_with_true_classes_as_rows(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK, "epochs=1")
    lines = dltrain("eval", f"ckpt={folder}").out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("confusion"))
    shown = [line.split() for line in lines[start : start + 14]]
    found = figures(folder / "checkpoints")["confusion"]
    for digit, row in enumerate(found):
        assert [str(digit), *(str(count) if count else "·" for count in row)] in shown


def test_several_checkpoints_are_ranked_in_one_table(dltrain: Command, trained: Trained) -> None:
    good = trained(*QUICK)
    bad = trained(*QUICK, "epochs=1", "optim.lr=1e-6")
    result = dltrain("eval", f"ckpt=[{bad},{good}]")
    assert result.code == 0
    rows = [line for line in result.out.splitlines() if line.startswith("│")]
    assert [str(folder) in row for folder, row in zip((good, bad), rows, strict=True)] == [True, True]
    for folder, row in zip((good, bad), rows, strict=True):
        found = figures(folder / "checkpoints")
        assert {key: found[key] for key in ("loss", "accuracy")} == summary(folder)["test"]
        assert f"{found['accuracy']:.4f}" in row


def test_a_bad_checkpoint_among_several_is_reported_and_the_others_are_evaluated(
    dltrain: Command, trained: Trained
) -> None:
    folder = trained(*QUICK, "epochs=1")
    Path("bad.pt").write_bytes(b"not a checkpoint")
    result = dltrain("eval", f"ckpt=[bad.pt,{folder},nowhere]", "--json")
    documents = json.loads(result.out)
    assert result.code == 66
    assert "2 of 3 checkpoints could not be evaluated; the first: bad.pt: a text, not weights" in result.err
    assert ["error" in each for each in documents] == [True, False, True]
    assert documents[2] == {"checkpoint": "nowhere", "error": "nowhere: no such file or folder"}
    assert figures(folder / "checkpoints")["accuracy"] == documents[1]["accuracy"]


def probabilities(folder: Path, images: Any) -> Any:
    """What a network of one hidden layer says of the test set, computed by numpy."""
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    weights = {key: value.numpy().astype("float64") for key, value in content["model"].items()}
    (mean,), (std,) = content["data"]["statistics"]
    pixels = (images.reshape(len(images), -1) / 255 - mean) / std
    hidden = numpy.maximum(pixels @ weights["layers.1.weight"].T + weights["layers.1.bias"], 0)
    logits = hidden @ weights["layers.3.weight"].T + weights["layers.3.bias"]
    exponents = numpy.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_an_ensemble_averages_probabilities_of_networks_with_statistics_of_their_own(
    dltrain: Command, trained: Trained
) -> None:
    members = [
        trained(*QUICK, "epochs=1"),
        trained("model=mlp", "model.hidden=[9]", "epochs=1", "data.mean=[0.1]", "data.std=[0.7]", "seed=3"),
    ]
    result = dltrain("eval", f"ckpt=[{members[0]},{members[1]}]", "ensemble=true", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    test = digits("test")
    assert test is not None
    labels = test.targets.numpy()
    mean = sum(probabilities(folder, test.images.numpy()) for folder in members) / 2
    assert found["loss"] == pytest.approx(-numpy.log(mean[range(len(labels)), labels]).mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((mean.argmax(axis=1) == labels).mean())
    assert found["confusion"] == confusion_matrix(labels, mean.argmax(axis=1)).tolist()
    assert found["checkpoint"] == "ensemble of 2"
    for folder, member in zip(members, found.pop("members"), strict=True):
        assert member == figures(folder / "checkpoints")
        assert member["accuracy"] == summary(folder)["test"]["accuracy"]
    assert found == figures(members[0] / "checkpoints", "ensemble-eval.json")
    result = dltrain("eval", f"ckpt=[{members[0]},{members[1]}]", "ensemble=true", "tta=flip")
    assert "ensemble of 2, tta=flip" in result.out
    assert figures(members[0] / "checkpoints", "ensemble-eval-test-flip.json")["loss"] != found["loss"]


def test_an_ensemble_for_numbers_averages_them(dltrain: Command, trained: Trained) -> None:
    line = ("data=line", "model=linear", "task=regression", "epochs=2")
    one, two = trained(*line), trained(*line, "seed=1")
    assert dltrain("eval", f"ckpt=[{one},{two}]", "ensemble=true").code == 0
    weights = [torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"] for run in (one, two)]
    slope, shift = (sum(float(value) for each in weights for key, value in each.items() if name in key) / 2
                    for name in ("weight", "bias"))  # fmt: skip
    x = numpy.linspace(-2, 2, 100) + 2 / 99
    found = figures(one / "checkpoints", "ensemble-eval.json")
    assert found["loss"] == pytest.approx(((slope * x + shift - 2 * x) ** 2).mean(), rel=1e-4)
    assert found["mae"] == pytest.approx(abs(slope * x + shift - 2 * x).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data=line", "model=linear", "task=regression", "epochs=2"), "(data=line task=regression) are not those of"),
        (("model=autoencoder", "task=reconstruction", "epochs=1"), "needs classification or regression"),
        (None, "needs several checkpoints"),
    ],
)
def test_what_has_no_mean_is_no_ensemble(
    dltrain: Command, trained: Trained, overrides: tuple[str, ...] | None, message: str
) -> None:
    first = trained(*QUICK, "epochs=1")
    second = f",{trained(*overrides)}" if overrides else ""
    result = dltrain("eval", f"ckpt=[{first}{second}]", "ensemble=true")
    assert (result.code, message in result.err) == (2, True), result.err
    assert not list(first.rglob("ensemble-*"))


SORTED = """
import torch

def images(split, has_val=False):
    numbers = torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).repeat(1, 1, 4, 4)
    return None if split == "val" and not has_val else (numbers, torch.arange(60) // 30, ["low", "high"])
"""


def test_networks_of_different_folds_or_seeds_are_no_ensemble_on_their_validation_sets_even_if_labels_are_the_same(
    dltrain: Command,
) -> None:
    Path("sorted_set.py").write_text(SORTED)
    of_set = ("data=custom", "data.name=sorted_set:images", "model=linear", "epochs=1", "report=false", "logger=none")
    folds, seeds, own = (
        [dltrain("train", *of_set, *each).folder for each in pair]
        for pair in (
            (("data.folds=3", "data.fold=0"), ("data.folds=3", "data.fold=1")),
            (("seed=0",), ("seed=1",)),
            (("+data.has_val=true", "seed=0"), ("+data.has_val=true", "seed=1")),
        )
    )
    for one, two in (folds, seeds):
        for split, code in (("val", 2), ("test", 0)):
            result = dltrain("eval", f"ckpt=[{one},{two}]", "ensemble=true", f"split={split}", "trust=[sorted_set]")
            assert (result.code, "examples or task (data=sorted_set:" in result.err) == (code, bool(code)), result.err
    # A validation set of the data set's own is the same for all seeds.
    assert dltrain("eval", f"ckpt=[{own[0]},{own[1]}]", "ensemble=true", "split=val", "trust=[sorted_set]").code == 0


def test_checkpoints_with_other_test_examples_are_not_ranked_in_one_list(
    dltrain: Command, trained: Trained, data_root: Path
) -> None:
    digit = trained(*QUICK, "epochs=1")
    other = trained("data=mnist", f"data.root={data_root}", "model=linear", "epochs=1", "data.limit=50")
    result = dltrain("eval", f"ckpt=[{digit},{other},{digit}]", "--json")
    documents = json.loads(result.out)
    assert result.code == 2
    assert f"its test examples or task (data=mnist task=classification) are not those of {digit}" in result.err
    assert ["error" in each for each in documents] == [False, True, False]


def test_only_bad_checkpoints_are_an_error_and_no_checkpoint_is_one_too(dltrain: Command) -> None:
    assert dltrain("eval", "ckpt=[nowhere,neither]").code == 66
    assert dltrain("eval", "ckpt=[]").code == 2


def test_a_loss_that_is_no_number_ranks_last(dltrain: Command, trained: Trained) -> None:
    folder = trained("data=line", "model=linear", "task=regression", "epochs=2")
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    content["model"] = {key: value * torch.nan for key, value in content["model"].items()}
    checkpoint.save(Path("nan.pt"), content)
    result = dltrain("eval", f"ckpt=[nan.pt,{folder}]")
    rows = [line for line in result.out.splitlines() if line.startswith("│")]
    assert (result.code, str(folder) in rows[0], "nan.pt" in rows[1]) == (0, True, True)


def test_only_json_is_on_stdout_and_it_equals_the_file(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK, "epochs=1")
    result = dltrain("eval", "--json", f"ckpt={folder}")
    assert result.code == 0
    assert json.loads(result.out) == figures(folder / "checkpoints")
    assert "per class" in result.err


def test_json_of_an_error_is_nothing_on_stdout(dltrain: Command) -> None:
    result = dltrain("eval", "ckpt=nowhere", "--json")
    assert (result.code, result.out, result.err) == (66, "", "error: nowhere: no such file or folder\n")


@pytest.mark.parametrize("line", [["eval", "-m", "ckpt=a,b"], ["predict", "-m", "ckpt=a,b", "input=."]])
def test_a_sweep_prints_no_json(dltrain: Command, line: list[str]) -> None:
    result = dltrain(*line, "--json")
    assert (result.code, "--json: a sweep prints no document" in result.err) == (2, True)


def test_of_many_classes_the_most_frequent_confusions_are_shown() -> None:
    names = [f"class {number}" for number in range(21)]
    counts = [[0] * 21 for _ in names]
    counts[3][3], counts[3][4], counts[5][6] = 6, 2, 7
    console = Console(file=io.StringIO(), width=120)
    console.print(evaluation.table(names, counts))
    rows = [line.split("│")[1:5] for line in console.file.getvalue().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["class 5", "class 6", "7", "1.0000"],
        ["class 3", "class 4", "2", "0.2500"],
    ]


@pytest.mark.parametrize(("columns", "kind"), [("80", "most frequent"), ("120", "confusion (rows")])
def test_a_matrix_too_wide_for_the_terminal_is_not_squeezed(
    columns: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes that for a terminal
    monkeypatch.setenv("COLUMNS", columns)
    shown = evaluation.table([str(number) for number in range(20)], [[100] * 20] * 20)
    assert str(shown.title).startswith(kind)


def test_names_of_classes_cannot_steer_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=120, markup=False)
    console.print(evaluation.table(["\x1b[31mred", "[bold]b[/]"], [[1, 2], [3, 4]]))
    assert "\x1b" not in console.file.getvalue()
    assert "[bold]b[/]" in console.file.getvalue()


def test_the_metrics_of_a_read_only_run_are_shown(
    dltrain: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained("epochs=1", "limit_steps=3")

    def refused(path: Path, *_: object) -> None:
        raise OutputError(f"{path}: could not be written (Permission denied)")

    monkeypatch.setattr(run_files, "write_json", refused)
    result = dltrain("eval", f"ckpt={folder}", "--json")
    assert result.code == 0
    assert "could not be written (Permission denied)" in result.err
    assert 0 <= json.loads(result.out)["accuracy"] <= 1


def test_eval_warns_if_it_computes_in_another_precision(dltrain: Command, trained: Trained) -> None:
    folder = trained(*QUICK, "device.precision=bf16")
    told = "computed in fp32, trained in bf16"
    same, other = dltrain("eval", f"ckpt={folder}"), dltrain("eval", f"ckpt={folder}", "device=cpu")
    assert (same.code, told in same.out + same.err) == (0, False)
    assert (other.code, told in other.out + other.err) == (0, True)


def test_a_checkpoint_of_a_gpu_is_evaluated_on_a_cpu_as_a_run_there_would_be(
    dltrain: Command, trained: Trained
) -> None:
    path = trained(*QUICK, "epochs=1") / "checkpoints" / "best.pt"
    content = checkpoint.load(path)
    assert content["runtime"].keys() == {"precision", "threads"}
    content["runtime"] = {"precision": "tf32", "threads": 1000, "device": "cuda"}
    checkpoint.save(path, content)
    torch.set_num_threads(2)
    result = dltrain("eval", f"ckpt={path}", "device=cpu")
    assert result.code == 0
    assert "computed in fp32, trained in tf32" in result.out
    assert figures(path.parent)["device"] == "cpu, 2 threads, fp32"
    content["runtime"]["device"] = "abacus"
    checkpoint.save(path, content)
    assert dltrain("eval", f"ckpt={path}").code == 66


def test_an_lstm_trained_in_bf16_is_evaluated_in_fp32_on_a_cpu_that_has_none_in_bf16(
    dltrain: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained("model=lstm", "model.hidden=4", "epochs=1") / "checkpoints" / "best.pt"
    content = checkpoint.load(path)
    content["runtime"]["precision"] = "bf16"
    checkpoint.save(path, content)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    result = dltrain("eval", f"ckpt={path}")
    assert result.code == 0, result.err
    assert "computed in fp32, trained in bf16" in result.out
    assert dltrain("eval", f"ckpt={path}", "device.precision=bf16").code == 69


def test_eval_warns_if_a_split_differs_from_the_training(dltrain: Command, trained: Trained, tmp_path: Path) -> None:
    for label, level in (("dark", 20), ("light", 200)):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(30):
            Image.new("L", (8, 8), level + number).save(tmp_path / "pictures" / label / f"{number}.png")
    words = ("data=folder", f"data.root={tmp_path / 'pictures'}", "data.size=[8,8]", "model=linear", "epochs=1")
    folder = trained(*words)
    told = "test: not the examples of the training run;"
    same = dltrain("eval", f"ckpt={folder}")
    assert (same.code, told in same.out + same.err) == (0, False)
    Image.new("L", (8, 8), 99).save(tmp_path / "pictures" / "dark" / "another.png")
    other = dltrain("eval", f"ckpt={folder}")
    assert (other.code, told in other.out + other.err) == (0, True)
