"""`predict` takes pictures of any size and mode as the training took its own, and reports damaged ones by name."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import generated
from conftest import Command
from dltrain.data.digits import digits


def write_digits(folder: Path, count: int) -> list[int]:
    """Pictures of test digits of changing size, mode and format; returns their labels."""
    folder.mkdir()
    test = digits("test")
    assert test is not None
    for index in range(count):
        picture = Image.fromarray(test.images[index, 0].numpy())
        picture = picture.resize((28 + 7 * index, 28 + 3 * index)).convert(("L", "RGB", "RGBA", "CMYK")[index % 4])
        picture.save(folder / f"{index:02}.{('png', 'webp', 'png', 'tiff')[index % 4]}")
    return test.targets[:count].tolist()


@pytest.fixture
def run_folder(dltrain: Command) -> Path:
    return dltrain("train", "model=mlp", "epochs=10").folder.absolute()


def read(path: str = "predictions.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_of_any_size_and_mode_are_recognised(dltrain: Command, run_folder: Path) -> None:
    labels = write_digits(Path("shots"), 16)
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots")
    rows = read()
    assert result.code == 0
    assert sum(row["class_1"] == str(label) for row, label in zip(rows, labels, strict=True)) >= 15
    assert [Path(row["file"]).stem for row in rows] == [f"{index:02}" for index in range(16)]


def test_a_picture_of_the_data_set_gives_the_same_probabilities_as_in_training(
    dltrain: Command, run_folder: Path
) -> None:
    test = digits("test")
    assert test is not None
    Image.fromarray(test.images[0, 0].numpy()).save("one.png")
    dltrain("predict", f"ckpt={run_folder}", "input=one.png", "top_k=10")
    content = torch.load(run_folder / "checkpoints" / "best.pt", weights_only=True)
    weights = content["model"]
    (mean,), (std,) = content["data"]["statistics"]
    x = ((test.images[:1] / 255 - mean) / std).flatten(1)
    for layer in (1, 3):
        x = (x @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]).relu()
    expected = (x @ weights["layers.5.weight"].T + weights["layers.5.bias"]).softmax(1)[0]
    (row,) = read()
    found = {int(row[f"class_{rank}"]): float(row[f"probability_{rank}"]) for rank in range(1, 11)}
    assert [found[label] for label in range(10)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_damaged_picture_is_a_named_row_and_the_others_are_predicted(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("shots"), 3)
    Path("shots/01x.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots")
    rows = {Path(row["file"]).name: row for row in read()}
    assert result.code == 0
    assert rows["01x.png"]["error"]
    assert not rows["01x.png"]["class_1"]
    assert all(row["class_1"] for name, row in rows.items() if name != "01x.png")
    assert "4 pictures, 1 damaged" in result.out


def test_input_may_be_a_pattern(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("shots"), 6)
    dltrain("predict", f"ckpt={run_folder}", "input='shots/*.webp'", "output=mine.csv")
    assert [Path(row["file"]).name for row in read("mine.csv")] == ["01.webp", "05.webp"]


def test_top_k_is_at_most_the_number_of_classes(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("shots"), 1)
    dltrain("predict", f"ckpt={run_folder}", "input=shots", "top_k=99")
    (row,) = read()
    assert sum(float(row[f"probability_{rank}"]) for rank in range(1, 11)) == pytest.approx(1, abs=1e-5)
    assert "class_11" not in row


def test_batches_do_not_change_the_predictions(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("shots"), 5)
    dltrain("predict", f"ckpt={run_folder}", "input=shots")
    dltrain("predict", f"ckpt={run_folder}", "input=shots", "batch_size=2", "output=small.csv")
    one, other = ([float(row["probability_1"]) for row in read(path)] for path in ("predictions.csv", "small.csv"))
    assert one == pytest.approx(other, abs=1e-6)


def test_no_picture_is_code_66(dltrain: Command, run_folder: Path) -> None:
    Path("empty").mkdir()
    for text in ("nowhere.png", "empty", "'empty/*.png'"):
        result = dltrain("predict", f"ckpt={run_folder}", f"input={text}")
        assert (result.code, "no picture found" in result.err) == (66, True)


def test_only_damaged_pictures_are_code_66_and_still_written(dltrain: Command, run_folder: Path) -> None:
    Path("bad.png").write_bytes(b"no picture")
    result = dltrain("predict", f"ckpt={run_folder}", "input=bad.png")
    assert (result.code, len(read())) == (66, 1)


def test_a_model_that_is_no_classifier_is_code_2(dltrain: Command) -> None:
    folder = dltrain("train", "model=autoencoder", "task=reconstruction", "epochs=1", "data.limit=50").folder
    write_digits(Path("shots"), 1)
    result = dltrain("predict", f"ckpt={folder}", "input=shots")
    assert (result.code, "predict needs a classifier" in result.err) == (2, True)


def test_an_output_that_cannot_be_written_is_code_74(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("shots"), 1)
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots", "output=no/such/folder.csv")
    assert (result.code, "output=no/such/folder.csv: cannot be written" in result.err) == (74, True)


def test_a_folder_of_300_odd_pictures_trains_and_predicts(dltrain: Command) -> None:
    bad = generated.write_odd_pictures(Path("photos"), count=300, damaged=12)
    result = dltrain("train", "data=folder", "data.root=photos", "data.size=[24,32]", "model=cnn", "epochs=4")
    assert result.code == 0, result.err
    kept = (result.folder / "train.log").read_text()
    names = [path.relative_to("photos") for path in bad]
    assert all(f"left out {name}: " in text for name in names for text in (result.out, kept))
    assert "3x24x32, 2 classes" in result.out
    assert json.loads((result.folder / "summary.json").read_text())["test"]["accuracy"] >= 0.9
    assert dltrain("eval", f"ckpt={result.folder}").code == 0
    assert dltrain("predict", f"ckpt={result.folder}", "input=photos").code == 0
    rows = read()
    assert len(rows) == 300
    assert {Path(row["file"]) for row in rows if row["error"]} == set(bad)
    good = [row for row in rows if not row["error"]]
    assert sum(row["class_1"] in row["file"] for row in good) >= 0.9 * len(good)


@pytest.mark.parametrize("name", ["[red]x.png", "\x1b[2Jx.png", "x\udcff.png", "a,b\n.png"])
def test_a_picture_of_any_name_is_a_row(dltrain: Command, run_folder: Path, name: str) -> None:
    write_digits(Path("shots"), 2)
    (Path("shots") / "00.png").rename(Path("shots") / name)
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots")
    assert (result.code, result.err, "\x1b" in result.out) == (0, "", False)
    with Path("predictions.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2
