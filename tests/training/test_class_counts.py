"""What a run trains on is shown: examples of each class in each split, what is missing, and images in two splits."""

import json
import logging
from pathlib import Path

import pytest
import torch

from dltrain.data.loader import normalization
from dltrain.data.splits import Examples
from dltrain.training import class_counts
from dltrain.training.build import Data
from support import corpus
from support.command import Command


def examples(*labels: int, classes: int, seed: int = 0) -> Examples:
    """Return random images with these labels."""
    images = torch.randint(0, 256, (len(labels), 1, 4, 4), generator=torch.Generator().manual_seed(seed)).byte()
    return Examples(images, torch.tensor(labels), tuple(f"c{label}" for label in range(classes)))


def data(train: Examples, val: Examples | None = None, test: Examples | None = None) -> Data:
    return Data(train, val, test, normalization(train.images, mean=None, std=None))


def shown(loaded: Data, caplog: pytest.LogCaptureFixture, *, balanced: bool = False) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, "dltrain.training.class_counts"):
        class_counts.show(loaded, balanced=balanced)
    return [f"{record.levelname[0]} {record.getMessage()}" for record in caplog.records]


def test_each_class_is_a_row_with_its_examples_in_each_split(caplog: pytest.LogCaptureFixture) -> None:
    loaded = data(examples(0, 0, 1, classes=2), test=examples(0, 1, classes=2, seed=1))
    assert class_counts.count(loaded) == {"c0": {"train": 2, "test": 1}, "c1": {"train": 1, "test": 1}}
    assert [line.split() for line in shown(loaded, caplog)] == [
        ["I", "class", "train", "test"],
        ["I", "c0", "2", "1"],
        ["I", "c1", "1", "1"],
    ]


def test_of_many_classes_ten_are_shown_with_the_smallest_and_the_largest(caplog: pytest.LogCaptureFixture) -> None:
    lines = shown(data(examples(*range(100), *[50] * 5, classes=100)), caplog)
    assert len(lines) == 12
    assert lines[-1] == "I   … 90 more; smallest and largest in train: c0 1, c50 6"


def test_numbers_to_predict_have_no_table(caplog: pytest.LogCaptureFixture) -> None:
    train = Examples(torch.zeros(3, 1, 1, 1), torch.zeros(3, 1), ())
    assert class_counts.count(data(train)) == {}
    assert shown(data(train), caplog) == []


def test_a_class_that_a_split_lacks_is_told_once_for_the_split(caplog: pytest.LogCaptureFixture) -> None:
    loaded = data(examples(0, 1, 2, classes=3), examples(0, 1, 2, classes=3, seed=1), examples(1, classes=3, seed=2))
    warnings = [line for line in shown(loaded, caplog) if line.startswith("W")]
    assert warnings == ["W no test examples of 2 of 3 classes: c0, c2"]


def test_uneven_classes_are_told_with_the_keys_that_help_unless_one_is_set(caplog: pytest.LogCaptureFixture) -> None:
    assert not any(line.startswith("W") for line in shown(data(examples(0, *[1] * 10, classes=2)), caplog))
    uneven = data(examples(0, *[1] * 11, classes=2))
    message = "W uneven classes: in train c0 1, c1 11. Consider task.class_weights=balanced or data.balance=1"
    assert shown(uneven, caplog)[-1] == message
    assert not any(line.startswith("W") for line in shown(uneven, caplog, balanced=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_that_are_in_two_splits_are_counted(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    train, val, test = (examples(0, 1, 1, 0, classes=2, seed=seed) for seed in range(3))
    val.images[2] = train.images[0]
    test.images[:2] = train.images[3]
    test.images[3] = val.images[1]
    parts = [part._replace(images=part.images.to(dtype)) for part in (train, val, test)]
    line = "W the same images are in two splits, so that metrics look too good: 1 of 4 test images are in val, "
    assert shown(data(*parts), caplog)[-1] == line + "2 of 4 test images are in train, 1 of 4 val images are in train"


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_images_are_compared_whole_whatever_their_size(side: int, caplog: pytest.LogCaptureFixture) -> None:
    train, test = (examples(*[0, 1] * 20, classes=2, seed=seed) for seed in range(2))
    train, test = (part._replace(images=part.images.repeat(1, 1, 2, 2)[:, :, :side, :side]) for part in (train, test))
    seen = {image.numpy().tobytes() for image in train.images}
    count = sum(image.numpy().tobytes() in seen for image in test.images)
    warned = [line for line in shown(data(train, test=test), caplog) if line.startswith("W the same")]
    expected = (
        f"W the same images are in two splits, so that metrics look too good: {count} of 40 test images are in train"
    )
    assert warned == [expected] * bool(count)


def test_images_of_the_same_bytes_in_another_order_are_others(caplog: pytest.LogCaptureFixture) -> None:
    train = examples(0, 1, classes=2)
    test = train._replace(images=train.images.flatten(1).roll(8, 1).view_as(train.images))
    assert not any(line.startswith("W") for line in shown(data(train, test=test), caplog))


def test_an_image_that_differs_in_one_value_is_another(caplog: pytest.LogCaptureFixture) -> None:
    train = examples(0, 1, classes=2)
    test = train._replace(images=train.images.clone())
    test.images[:, 0, 3, 3] ^= 1
    assert not any(line.startswith("W") for line in shown(data(train, test=test), caplog))


def test_the_table_is_on_the_console_in_the_log_the_summary_and_the_page(dltrain: Command) -> None:
    corpus.write(Path("photos"), corpus.below("train", "test"))
    result = dltrain("train", "data=folder", "data.root=photos", "data.val=0", "model=linear", "epochs=1")
    assert result.code == 0, result.err
    texts = result.out, (result.folder / "train.log").read_text()
    assert all(["dog", "2", "2"] in [line.split()[-3:] for line in text.splitlines()] for text in texts)
    counts = {"train": 2, "test": 2}
    assert json.loads((result.folder / "summary.json").read_text())["examples"] == {"cat": counts, "dog": counts}
    page = (result.folder / "report.html").read_text()
    assert '<tr><td>dog</td><td class="n" data-value="2">2</td><td class="n" data-value="2">2</td></tr>' in page


def test_a_classifier_of_one_class_is_refused_by_name(dltrain: Command) -> None:
    corpus.write(Path("photos"), tuple(f"cat/{number}.png" for number in range(10)))
    result = dltrain("train", "data=folder", "data.root=photos", "model=linear")
    assert (result.code, "data: all examples are of one class, cat;" in result.err) == (66, True)


def test_one_folder_of_images_can_be_reconstructed(dltrain: Command) -> None:
    corpus.write(Path("photos"), tuple(f"all/{number}.png" for number in range(10)))
    arguments = (
        "data=folder",
        "data.root=photos",
        "data.val=0",
        "model=autoencoder",
        "task=reconstruction",
        "epochs=1",
    )
    result = dltrain("train", *arguments)
    assert result.code == 0, result.err
