"""`predict` takes pictures of any size and mode as the training took its own, and reports damaged ones by name."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from dltrain.commands import prediction
from dltrain.data import image_reader
from dltrain.data.datasets.digits import digits
from support import corpus, faults, generated
from support.command import Command, Trained


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
def run_folder(trained: Trained) -> Path:
    return trained("model=mlp", "epochs=10").absolute()


def read(path: str = "predictions.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_images_of_any_size_and_mode_are_recognised(dltrain: Command, run_folder: Path) -> None:
    labels = write_digits(Path("shots"), 16)
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots")
    rows = read()
    assert result.code == 0
    assert sum(row["class_1"] == str(label) for row, label in zip(rows, labels, strict=True)) >= 15
    assert [Path(row["file"]).stem for row in rows] == [f"{index:02}" for index in range(16)]


def test_an_image_of_the_data_set_gives_the_same_probabilities_as_in_training(
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


def test_a_damaged_image_is_a_named_row_and_the_others_are_predicted(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("shots"), 3)
    Path("shots/01x.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots")
    rows = {Path(row["file"]).name: row for row in read()}
    assert result.code == 0
    assert rows["01x.png"]["error"]
    assert not rows["01x.png"]["class_1"]
    assert all(row["class_1"] for name, row in rows.items() if name != "01x.png")
    assert "4 images, 1 damaged" in result.out


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


def test_no_image_is_code_66(dltrain: Command, run_folder: Path) -> None:
    Path("empty").mkdir()
    for text in ("empty", "'empty/*.png'"):
        result = dltrain("predict", f"ckpt={run_folder}", f"input={text}")
        assert (result.code, "no image found" in result.err) == (66, True)


def test_each_file_of_a_folder_gets_a_row_also_those_that_are_no_images(dltrain: Command, run_folder: Path) -> None:
    root = corpus.write_odd_files(Path("photos").absolute())
    assert dltrain("predict", f"ckpt={run_folder}", "input=photos/cat").code == 0
    errors = {Path(row["file"]).name: row["error"] for row in read()}
    assert set(corpus.odd_files()) <= {name for name, error in errors.items() if not error}
    assert {"nowhere.png", "linked", *corpus.NO_IMAGES} <= {name for name, error in errors.items() if error}
    assert (root / "cat" / "pipe").exists() and "pipe" not in errors


@pytest.mark.parametrize("text", ["photos", "photos/1.png"])
def test_an_input_that_is_not_there_is_reported_as_such(dltrain: Command, run_folder: Path, text: str) -> None:
    result = dltrain("predict", f"ckpt={run_folder}", f"input={text}")
    assert (result.code, f"input={text}: no such file or folder" in result.err) == (66, True)


def test_only_damaged_images_are_code_66_and_still_written(dltrain: Command, run_folder: Path) -> None:
    Path("bad.png").write_bytes(b"no picture")
    result = dltrain("predict", f"ckpt={run_folder}", "input=bad.png")
    assert (result.code, len(read())) == (66, 1)


def test_a_model_that_is_no_classifier_is_code_2(dltrain: Command, trained: Trained) -> None:
    folder = trained("model=autoencoder", "task=reconstruction", "epochs=1", "data.limit=50")
    write_digits(Path("shots"), 1)
    result = dltrain("predict", f"ckpt={folder}", "input=shots")
    assert (result.code, "predict needs task=classification or regression" in result.err) == (2, True)


def test_an_output_that_cannot_be_written_is_code_74(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("shots"), 1)
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots", "output=no/such/folder.csv")
    assert (result.code, "output=no/such/folder.csv: could not be written" in result.err) == (74, True)


def test_a_full_disk_leaves_the_old_table_as_it_was(
    dltrain: Command, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(Path("shots"), 2)
    Path("predictions.csv").write_text("the old table")
    faults.limited(monkeypatch, prediction, "atomic_write", at=1)
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots")
    assert (result.code, "output=predictions.csv: could not be written (File too large)" in result.err) == (74, True)
    assert Path("predictions.csv").read_text() == "the old table"
    assert not list(Path().glob(".predictions*"))


def test_an_output_that_is_a_link_or_a_device_is_written_and_not_replaced(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("shots"), 2)
    Path("link.csv").symlink_to("target.csv")
    assert dltrain("predict", f"ckpt={run_folder}", "input=shots", "output=link.csv").code == 0
    assert Path("link.csv").is_symlink()
    assert len(read("target.csv")) == 2
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert dltrain("predict", f"ckpt={run_folder}", "input=shots", "output=pipe").code == 0
    assert os.read(reader, 1 << 16) == Path("target.csv").read_bytes()
    os.close(reader)
    assert Path("pipe").is_fifo()


def test_more_images_than_wait_in_threads_are_rows_in_order(dltrain: Command, run_folder: Path) -> None:
    Path("shots").mkdir()
    count = image_reader.READ_AHEAD + 20
    for index in range(count):  # the first ones take the longest
        Image.new("L", (8, 400 if index < 9 else 8)).save(f"shots/{index:03}.png")
    Path("shots/050.png").write_bytes(b"damaged")
    assert dltrain("predict", f"ckpt={run_folder}", "input=shots", "batch_size=7").code == 0
    assert [Path(row["file"]).stem for row in read()] == [f"{index:03}" for index in range(count)]
    assert [index for index, row in enumerate(read()) if row["error"]] == [50]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_that_a_spreadsheet_would_run_is_written_with_an_apostrophe(text: str, tmp_path: Path) -> None:
    rows = [{"file": text, "class_1": text, "probability_1": 0.5, "error": text}]
    prediction._write(tmp_path / "a.csv", rows, list(rows[0]))
    assert read(str(tmp_path / "a.csv")) == [
        {"file": f"'{text}", "class_1": f"'{text}", "probability_1": "0.5", "error": f"'{text}"}
    ]


def test_a_file_name_like_a_formula_is_defused_in_the_table_alone(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("=1+1"), 1)
    result = dltrain("predict", f"ckpt={run_folder}", "input='=1+1'", "--json")
    assert [row["file"] for row in read()] == ["'=1+1/00.png"]
    assert [row["file"] for row in json.loads(result.out)] == ["=1+1/00.png"]


LIGHT = """
import torch

def light(split):
    if split == "val":
        return None
    images = torch.randint(0, 256, (60, 1, 4, 4), generator=torch.Generator().manual_seed(len(split)))
    images = torch.cat([images // 2, images // 2 + 128]).to(torch.uint8)
    means = images.float().mean((1, 2, 3)) / 255
    return images, torch.stack([means, -2 * means], 1), []
"""


def test_a_network_for_numbers_predicts_them_as_they_were_in_training(dltrain: Command) -> None:
    Path("light.py").write_text(LIGHT)
    words = (
        "data=custom",
        "data.name=light:light",
        "trust=[light]",
        "task=regression",
        "model=linear",
        "optim.lr=0.01",
    )
    folder = dltrain("train", *words, "epochs=60", "report=false", "logger=none").folder
    Path("shots").mkdir()
    for level in (51, 204):
        Image.new("L", (9, 5), level).save(f"shots/{level:03}.png")
    Path("shots/bad.png").write_bytes(b"no picture")
    result = dltrain("predict", f"ckpt={folder}", "input=shots", "trust=[light]", "--json")
    sys.modules.pop("light", None)
    *good, bad = json.loads(result.out)
    assert result.code == 0, result.err
    assert [list(row) for row in read()] == [["file", "value_1", "value_2", "error"]] * 3
    assert [row[name] for row in good for name in ("value_1", "value_2")] == pytest.approx(
        [0.2, -0.4, 0.8, -1.6], abs=0.1
    )
    assert [float(row["value_2"]) for row in read()[:2]] == [row["value_2"] for row in good]
    assert list(bad) == ["file", "error"]
    assert "3 images, 1 damaged" in result.err


@pytest.mark.slow
def test_a_folder_of_300_odd_images_trains_and_predicts(dltrain: Command) -> None:
    bad = generated.write_odd_pictures(Path("photos"), count=300, damaged=12)
    result = dltrain("train", "data=folder", "data.root=photos", "data.size=[24,32]", "model=cnn", "epochs=4")
    assert result.code == 0, result.err
    kept = (result.folder / "train.log").read_text()
    names = [path.relative_to("photos") for path in bad]
    assert all(str(name) in kept for name in names)
    assert "left out: 1" in result.out and str(names[0]) not in result.out
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
def test_an_image_of_any_name_is_a_row(dltrain: Command, run_folder: Path, name: str) -> None:
    write_digits(Path("shots"), 2)
    (Path("shots") / "00.png").rename(Path("shots") / name)
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots")
    assert (result.code, result.err, "\x1b" in result.out) == (0, "", False)
    with Path("predictions.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2


def draw(path: Path, size: int, pen: int, place: tuple[float, float, float, float]) -> None:
    """A 7 as people draw it: black pen on white paper; place is left, top, right, bottom as shares of the paper."""
    picture = Image.new("L", (size, size), 255)
    left, top, right, bottom = (size * share for share in place)
    line = [(left, top), (right, top), (left + (right - left) * 0.4, bottom)]
    ImageDraw.Draw(picture).line(line, fill=0, width=pen, joint="curve")
    path.parent.mkdir(exist_ok=True)
    picture.save(path)


def write_negatives(folder: Path, count: int) -> list[int]:
    """Test digits, dark on light; returns their labels."""
    folder.mkdir()
    test = digits("test")
    assert test is not None
    for index in range(count):
        Image.fromarray(255 - test.images[index, 0].numpy()).save(folder / f"{index:02}.png")
    return test.targets[:count].tolist()


def right(labels: list[int]) -> int:
    return sum(row["class_1"] == str(label) for row, label in zip(read(), labels, strict=True))


def test_the_negative_of_a_negative_is_predicted_as_the_image(dltrain: Command, run_folder: Path) -> None:
    write_negatives(Path("dark"), 5)
    test = digits("test")
    assert test is not None
    Path("light").mkdir()
    for index in range(5):
        Image.fromarray(test.images[index, 0].numpy()).save(Path("light") / f"{index:02}.png")
    dltrain("predict", f"ckpt={run_folder}", "input=dark", "invert=true", "center=false")
    inverted = read()
    dltrain("predict", f"ckpt={run_folder}", "input=light")
    for one, other in zip(inverted, read(), strict=True):
        assert {key: value for key, value in one.items() if key != "file"} == {
            key: value for key, value in other.items() if key != "file"
        }


def test_auto_inverts_only_dark_on_light_images_and_reports_which(dltrain: Command, run_folder: Path) -> None:
    labels = write_digits(Path("mixed"), 8)
    labels += write_negatives(Path("negatives"), 8)
    for path in Path("negatives").iterdir():
        path.rename(Path("mixed") / f"x{path.name}")
    dltrain("predict", f"ckpt={run_folder}", "input=mixed", "invert=auto", "center=false")
    assert [row["inverted"] for row in read()] == ["False"] * 8 + ["True"] * 8
    assert right(labels) >= 14


def test_auto_is_refused_if_the_checkpoint_lacks_the_mean(dltrain: Command, trained: Trained) -> None:
    folder = trained("model=linear", "data.mean=[0.5]", "data.std=[0.5]", "epochs=1")
    write_digits(Path("shots"), 1)
    result = dltrain("predict", f"ckpt={folder}", "input=shots", "invert=auto")
    assert (result.code, "is neither dark nor light. Set invert=true" in result.err) == (2, True)


def test_only_json_is_on_stdout_and_it_has_the_rows_of_the_file(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("shots"), 2)
    Path("shots/bad.png").write_bytes(b"no picture")
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots", "--json")
    rows = json.loads(result.out)
    assert result.code == 0
    assert [{key: str(value) for key, value in row.items() if value != ""} for row in rows] == [
        {key: value for key, value in row.items() if value} for row in read()
    ]
    assert "3 images, 1 damaged" in result.err


def test_json_of_an_image_of_any_name_is_a_document(dltrain: Command, run_folder: Path) -> None:
    write_digits(Path("shots"), 1)
    (Path("shots") / "00.png").rename(Path("shots") / "\x1b[2J\udcff.png")
    result = dltrain("predict", f"ckpt={run_folder}", "input=shots", "--json")
    assert "\x1b" not in result.out
    assert json.loads(result.out)[0]["file"] == "shots/\x1b[2J\udcff.png"


@pytest.fixture
def lenet(trained: Trained, real_data: Path) -> Path:
    """LeNet-5 after 4,000 real digits."""
    words = ("model=lenet", "data=mnist", f"data.root={real_data}", "data.limit=4000", "data.val=0", "epochs=4")
    return trained(*words, "optim.lr=0.02").absolute()


def test_a_drawn_digit_is_predicted_right_by_a_network_trained_on_mnist(dltrain: Command, lenet: Path) -> None:
    draw(Path("drawn/large.png"), 1000, 60, (0.3, 0.2, 0.7, 0.8))
    draw(Path("drawn/small.png"), 28, 2, (0.3, 0.2, 0.7, 0.8))
    draw(Path("drawn/thin.png"), 280, 5, (0.2, 0.1, 0.8, 0.9))
    draw(Path("drawn/aside.png"), 400, 12, (0.05, 0.05, 0.25, 0.35))
    for invert in ("true", "auto"):
        assert dltrain("predict", f"ckpt={lenet}", "input=drawn", f"invert={invert}").code == 0
        assert [row["class_1"] for row in read()] == ["7"] * 4
    dltrain("predict", f"ckpt={lenet}", "input=drawn")
    assert [row["class_1"] for row in read()] != ["7"] * 4


def test_real_digits_dark_on_light_are_predicted_as_those_light_on_dark(
    dltrain: Command, lenet: Path, real_data: Path
) -> None:
    from dltrain.data.datasets.mnist import mnist

    test = mnist("test", root=str(real_data))
    assert test is not None
    Path("light").mkdir()
    Path("dark").mkdir()
    for index in range(200):
        Image.fromarray(test.images[index, 0].numpy()).save(f"light/{index:03}.png")
        Image.fromarray(255 - test.images[index, 0].numpy()).resize((300, 300)).save(f"dark/{index:03}.png")
    labels = test.targets[:200].tolist()
    found = []
    for folder in ("light", "dark"):
        dltrain("predict", f"ckpt={lenet}", f"input={folder}", "invert=auto")
        found.append(right(labels))
    assert found[0] >= 185
    assert abs(found[0] - found[1]) <= 6


@pytest.mark.parametrize(
    "words", [("predict", "input=a.png"), ("export", "format=state_dict"), ("export", "format=safetensors")]
)
def test_jobs_that_would_write_one_file_are_refused(dltrain: Command, run_folder: Path, words: tuple[str, ...]) -> None:
    Image.new("L", (8, 8)).save("a.png")
    other = shutil.copytree(run_folder, Path("other"))
    checkpoints = f"ckpt={run_folder},{other}"
    result = dltrain(words[0], "-m", checkpoints, *words[1:])
    assert (result.code, "2 jobs would write this file" in result.err) == (2, True)
    assert dltrain(words[0], "-m", checkpoints, *words[1:], "output=${ckpt}/found").code == 0
    assert (run_folder / "found").is_file() and (other / "found").is_file()
