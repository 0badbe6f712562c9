"""The data sets that are always there: scikit-learn's digits with their fixed split, and the line y = 2x."""

import hashlib

import numpy
import pytest
import torch
from sklearn.datasets import load_digits

from dltrain.data.datasets.digits import FILE, digits
from dltrain.data.datasets.line import line
from dltrain.data.splits import Examples

DIGESTS = {
    "train": "a90d043b80fd4a5cd3259b06bc70f88c178e8ed22a5dcaad8b24a3135527e702",
    "test": "c4aabbda180704592cf6d9d0b9fb21fa2468554fb3917015a244a8170ac15a29",
}


@pytest.fixture(scope="module")
def splits() -> tuple[Examples, Examples]:
    train, test = digits("train"), digits("test")
    assert train is not None and test is not None
    return train, test


def contents(examples: Examples) -> set[bytes]:
    """The pictures by their bytes: no two of the 1,797 are alike."""
    return {image.numpy().tobytes() for image in examples.images}


def test_the_digits_are_1797_uint8_images_of_28_by_28(splits: tuple[Examples, Examples]) -> None:
    train, test = splits
    assert train.images.dtype == test.images.dtype == torch.uint8
    assert train.images.shape[1:] == test.images.shape[1:] == (1, 28, 28)
    assert len(train.images) + len(test.images) == 1797


def test_the_digits_have_ten_classes_and_int64_labels(splits: tuple[Examples, Examples]) -> None:
    for part in splits:
        assert part.classes == tuple("0123456789")
        assert part.targets.dtype == torch.int64


def test_a_fifth_of_each_digit_is_for_testing(splits: tuple[Examples, Examples]) -> None:
    share = len(splits[1].images) / 1797
    assert share == pytest.approx(0.2, abs=0.5 / 1797)
    found = torch.bincount(splits[1].targets, minlength=10).tolist()
    counts = numpy.bincount(load_digits().target).tolist()
    assert all(abs(have - share * count) < 1 for have, count in zip(found, counts, strict=True))


def test_no_digit_is_for_training_and_testing(splits: tuple[Examples, Examples]) -> None:
    train, test = (contents(part) for part in splits)
    assert len(train | test) == 1797
    assert not train & test


def test_the_digits_are_split_the_same_each_time(splits: tuple[Examples, Examples]) -> None:
    torch.manual_seed(123)  # and whatever the program's own seed is
    again = digits("test")
    assert again is not None
    assert torch.equal(again.images, splits[1].images)
    assert torch.equal(again.targets, splits[1].targets)


def test_the_digits_pixels_go_from_0_to_255(splits: tuple[Examples, Examples]) -> None:
    for part in splits:
        assert (int(part.images.min()), int(part.images.max())) == (0, 255)


def test_the_labels_are_those_of_the_images(splits: tuple[Examples, Examples]) -> None:
    train, test = splits
    means = torch.stack([train.images[train.targets == label].float().mean(0).flatten() for label in range(10)])
    nearest = torch.cdist(test.images.float().flatten(1), means).argmin(1)
    assert (nearest == test.targets).float().mean() > 0.85


def test_the_digits_have_no_validation_split() -> None:
    assert digits("val") is None


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("count", [2, 3, 100])
def test_the_line_is_y_twice_x_as_float32(split: str, count: int) -> None:
    found = line(split, count=count)
    assert found is not None
    assert found.images.dtype == found.targets.dtype == torch.float32
    assert found.images.shape == (count, 1, 1, 1)
    assert torch.equal(found.targets, 2 * found.images.view(count, 1))
    assert found.classes == ()


def test_the_line_is_evenly_spaced_between_minus_2_and_2() -> None:
    found = line("train", count=5)
    assert found is not None
    assert found.images.flatten().tolist() == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize("count", [2, 3, 100])
def test_no_point_of_the_line_is_for_training_and_testing(count: int) -> None:
    train, test = line("train", count=count), line("test", count=count)
    assert train is not None and test is not None
    distances = torch.cdist(train.images.view(-1, 1), test.images.view(-1, 1))
    assert distances.min() > 1 / (count - 1)  # a quarter of the spacing


def test_the_line_has_no_validation_split() -> None:
    assert line("val", count=10) is None


def test_the_digits_are_those_of_scikit_learn_to_the_bit() -> None:
    expected = load_digits()
    with numpy.load(FILE, allow_pickle=False) as file:
        assert sorted(file) == ["images", "labels"]
        assert numpy.array_equal(file["images"], expected.images)
        assert numpy.array_equal(file["labels"], expected.target)


def test_the_digits_are_the_tensors_that_older_checkpoints_know_by_their_digest() -> None:
    """SHA-256 of what 5bb6990 made from scikit-learn's file: `resume` and `eval` compare the data with it."""
    found = {}
    for split in ("train", "test"):
        part = digits(split)
        assert part is not None
        content = hashlib.sha256(part.images.numpy().tobytes())
        content.update(part.targets.numpy().tobytes())
        found[split] = content.hexdigest()
    assert found == DIGESTS
