"""Arrays saved by numpy: images and labels found by name or shape, bytes kept, only refusals raised."""

import io
import json
import logging
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from dltrain.data.datasets import arrays as module
from dltrain.data.datasets.arrays import arrays
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError
from support.command import Command
from support.tiers import counts

RNG = numpy.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 6, 5), dtype=numpy.uint8)
LABELS = numpy.arange(20) % 3
Read = Callable[..., Examples | None]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function that saves arrays in an .npz file and reads a split of it."""

    def run(split: str = "train", **saved: Any) -> Examples | None:
        numpy.savez_compressed(tmp_path / "a.npz", **saved)
        return arrays(split, file=str(tmp_path / "a.npz"), labels=None)

    return run


def loaded(examples: Examples | None) -> Examples:
    assert examples is not None
    return examples


def refusal(path: Path, labels: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        arrays("train", file=str(path), labels=labels and str(labels))
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("x", "y"),
        ("X", "Y"),
        ("images", "labels"),
        ("data", "target"),
        ("image", "label"),
        ("arr_0", "arr_1"),
        ("a", "b"),
    ],
)
def test_arrays_without_splits_are_found_and_a_fixed_fifth_is_the_test_set(
    read: Read, images: str, labels: str
) -> None:
    saved = {images: IMAGES, labels: LABELS}
    train, test = loaded(read("train", **saved)), loaded(read("test", **saved))
    assert read("val", **saved) is None
    assert (train.images.shape, train.images.dtype, len(test.images)) == ((16, 1, 6, 5), torch.uint8, 4)
    assert train.classes == test.classes == ("0", "1", "2")
    found = torch.cat([train.images, test.images])[:, 0].tolist()
    order = [IMAGES.tolist().index(image) for image in found]
    assert sorted(order) == list(range(20))
    assert torch.cat([train.targets, test.targets]).tolist() == LABELS[order].tolist()


@pytest.mark.parametrize(
    "names",
    [
        "x_train y_train x_test y_test",
        "train_images train_labels test_images test_labels",
        "X_TRAIN Y_TRAIN X_TEST Y_TEST",
        "xtrain ytrain xtest ytest",
        "images-training labels-training testx testy",
    ],
)
def test_arrays_of_splits_are_found(read: Read, names: str) -> None:
    saved = dict(zip(names.split(), (IMAGES[:15], LABELS[:15], IMAGES[15:], LABELS[15:]), strict=True))
    assert torch.equal(loaded(read(**saved)).images[:, 0], torch.from_numpy(IMAGES[:15]))
    test = loaded(read("test", **saved))
    assert torch.equal(test.images[:, 0], torch.from_numpy(IMAGES[15:]))
    assert test.targets.tolist() == LABELS[15:].tolist()
    assert read("val", **saved) is None


def test_own_validation_arrays_are_used(read: Read) -> None:
    saved = {"x_train": IMAGES, "y_train": LABELS, "x_valid": IMAGES[:3], "y_valid": LABELS[:3]}
    assert len(loaded(read("val", **saved)).images) == 3
    assert read("test", **saved) is None


def test_classes_are_those_of_all_splits_and_named_by_their_number(read: Read) -> None:
    labels = numpy.array([10, 2, -1, 2])
    saved = {"x_train": IMAGES[:4], "y_train": labels, "x_test": IMAGES[:2], "y_test": numpy.array([7, 10])}
    train, test = loaded(read(**saved)), loaded(read("test", **saved))
    assert train.classes == test.classes
    assert [train.classes[label] for label in train.targets] == ["10", "2", "-1", "2"]
    assert [test.classes[label] for label in test.targets] == ["7", "10"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (LABELS[:, None], ("0", "1", "2")),
        (numpy.eye(3)[LABELS], ("0", "1", "2")),
        (numpy.eye(3, dtype=bool)[LABELS], ("0", "1", "2")),
        (numpy.array(["cat", "dog", "ant"])[LABELS], ("ant", "cat", "dog")),
        (LABELS.astype(">i2"), ("0", "1", "2")),
        (LABELS > 1, ("False", "True")),
    ],
    ids=["column", "one-hot", "one-hot of bool", "texts", "big-endian", "bool"],
)
def test_labels_of_any_kind_are_classes(read: Read, labels: Any, classes: tuple[str, ...]) -> None:
    found = loaded(read(x=IMAGES, y=labels))
    assert (found.classes, found.targets.dtype) == (classes, torch.int64)


@pytest.mark.parametrize("width", [None, 1, 2])
def test_floats_are_numbers_to_predict(read: Read, width: int | None) -> None:
    labels = RNG.normal(size=20 if width is None else (20, width))
    found = loaded(read(x_train=IMAGES, y_train=labels))
    assert (found.classes, found.targets.shape) == ((), (20, width or 1))
    torch.testing.assert_close(found.targets, torch.from_numpy(labels).float().view(20, -1))


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (RNG.integers(0, 256, (20, 6, 5, 3), dtype=numpy.uint8), (3, 6, 5)),
        (RNG.integers(0, 256, (20, 3, 6, 5), dtype=numpy.uint8), (3, 6, 5)),
        (RNG.integers(0, 256, (20, 6, 5, 1), dtype=numpy.uint8), (1, 6, 5)),
        (RNG.integers(0, 256, (20, 64, 64, 13), dtype=numpy.uint8), (13, 64, 64)),
        (RNG.integers(0, 256, (20, 30), dtype=numpy.uint8), (1, 1, 30)),
        (numpy.asfortranarray(IMAGES), (1, 6, 5)),
    ],
    ids=lambda value: str(getattr(value, "shape", "")),
)
def test_channels_may_be_first_or_last(read: Read, images: Any, shape: tuple[int, ...]) -> None:
    found = loaded(read(x_train=images, y_train=LABELS)).images
    assert (tuple(found.shape[1:]), found.dtype) == (shape, torch.uint8)
    expected = images.reshape(20, *shape) if images.shape[-1] > 13 or images.ndim < 4 else None
    if shape == (3, 6, 5):
        expected = images if images.shape[1] == 3 else images.transpose(0, 3, 1, 2)
    if expected is not None:
        assert torch.equal(found, torch.from_numpy(numpy.ascontiguousarray(expected)))


def test_numbers_are_kept_and_their_scale_follows_from_the_type_alone(
    read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    def first(images: Any) -> torch.Tensor:
        return loaded(read(x_train=images, y_train=LABELS)).images[:, 0]

    floats = (RNG.normal(size=IMAGES.shape) * 300).astype(numpy.float64)
    assert torch.equal(first(floats), torch.from_numpy(floats).float())
    assert torch.equal(first(IMAGES.astype(numpy.int64)), torch.from_numpy(IMAGES))
    with caplog.at_level(logging.INFO):
        deep = first(IMAGES.astype(numpy.uint16) * 257)
    torch.testing.assert_close(deep, torch.from_numpy(IMAGES).float() / 255)
    assert "16 bits are divided by 65535" in caplog.text
    features = RNG.integers(-5, 900, (20, 7))
    assert torch.equal(first(features)[:, 0], torch.from_numpy(features).float())


def test_two_npy_files_are_read(tmp_path: Path) -> None:
    numpy.save(tmp_path / "images.npy", IMAGES)
    numpy.save(tmp_path / "labels.npy", LABELS)
    files = {"file": str(tmp_path / "images.npy"), "labels": str(tmp_path / "labels.npy")}
    assert len(loaded(arrays("train", **files)).images) == 16
    assert "labels.npy" in refusal(tmp_path / "images.npy")  # not in the current folder


# --- refusals


@pytest.mark.parametrize(
    "saved",
    [
        {"x": IMAGES},
        {"y": LABELS},
        {"x": IMAGES, "images": IMAGES, "y": LABELS},
        {"a": IMAGES, "b": IMAGES, "c": LABELS},
        {"a": IMAGES, "b": LABELS, "c": LABELS},
        {"x_train": IMAGES, "x_test": IMAGES, "y_test": LABELS},
        {"x": IMAGES, "y": LABELS[:-1]},
        {"x": IMAGES, "y": numpy.array(3)},
    ],
    ids=lambda saved: " ".join(saved),
)
def test_arrays_that_are_not_clear_are_listed_with_their_shapes(read: Read, tmp_path: Path, saved: Any) -> None:
    with pytest.raises(InputError, match=r"expected images and as many labels.*; found .*\(20|expected .*\(\)|unsized"):
        read(**saved)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (numpy.full((20, 6, 5), numpy.nan), LABELS, "no finite numbers"),
        (IMAGES, LABELS + numpy.inf, "no finite numbers"),
        (IMAGES, LABELS * 0, "1 classes in 20 examples"),
        (IMAGES, numpy.arange(40).reshape(20, 2), "several whole numbers"),
        (IMAGES.astype(numpy.int32) * 9, LABELS, "int32 images are not from 0 to 255"),
        (IMAGES.astype(complex), LABELS, "complex128 is empty or has values that are no finite numbers"),
        (IMAGES.astype(str), LABELS, "no finite numbers"),
        (IMAGES.astype("datetime64[s]"), LABELS, "no finite numbers"),
        (IMAGES[:0], LABELS[:0], "is empty"),
        (IMAGES[:, :0], LABELS, "is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype} {value.shape}",
)
def test_values_that_no_network_can_use_are_refused(read: Read, images: Any, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(x=images, y=labels)


def test_objects_are_refused_without_being_unpickled(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "a.npz", x=IMAGES, y=numpy.array([{}] * 20, dtype=object))
    assert "it holds Python objects; save numbers" in refusal(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps({"x": IMAGES}))
    assert "neither .npz nor .npy" in refusal(tmp_path / "b.npz")
    numpy.save(tmp_path / "c.npy", numpy.array([{}] * 20, dtype=object))
    assert "it holds Python objects; save numbers" in refusal(tmp_path / "c.npy", tmp_path / "c.npy")


def npy(shape: str, content: bytes, dtype: str = "|u1") -> bytes:
    """A .npy file whose header claims a shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    "shape", ["(9999999999999,)", "(-1,)", "(20, 1000000000000)", "(1" + "0" * 400 + ",)", "()", "(" * 500]
)
def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path, shape: str) -> None:
    (tmp_path / "a.npy").write_bytes(npy(shape, bytes(20)))
    refusal(tmp_path / "a.npy", tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy(shape, bytes(20)))
        archive.writestr("y.npy", npy("(20,)", bytes(20)))
    refusal(tmp_path / "a.npz")


def test_arrays_larger_than_the_free_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy.savez_compressed(tmp_path / "a.npz", x=numpy.zeros((20, 300, 300)), y=LABELS)
    assert (tmp_path / "a.npz").stat().st_size < 30_000
    monkeypatch.setattr(module, "free_memory", lambda: 1e7)
    monkeypatch.setattr(module, "_pairs", None)
    assert "more memory than is free" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"x,y\n1,2", bytes(1000)], ids=repr)
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_another_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)
    refusal(tmp_path / name, tmp_path / name)
    refusal(tmp_path / "missing.npz")


@counts(60, 1000, 20000)
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.filterwarnings("ignore")
def test_mutated_bytes_are_read_or_refused(tmp_path: Path, name: str, count: int) -> None:
    stream = io.BytesIO()
    if name == "a.npz":
        numpy.savez_compressed(stream, x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS)
    else:
        numpy.save(stream, IMAGES)
        numpy.save(tmp_path / "labels.npy", LABELS)
    base, rng, file = stream.getvalue(), random.Random(0), tmp_path / name
    for _ in range(count):
        data = bytearray(base)
        for _ in range(rng.choice((1, 1, 4, 40))):
            at = rng.randrange(min(len(data), 200) if rng.random() < 0.5 else len(data) + 1)
            data[at : at + rng.choice((0, 1, 1, 9))] = rng.choice((b"", b"\0", b"\xff", rng.randbytes(2)))
        file.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data) + 1)))])
        try:
            arrays("train", file=str(file), labels=None if name == "a.npz" else str(tmp_path / "labels.npy"))
        except InputError:
            continue


def test_arrays_train_and_evaluate(dltrain: Command) -> None:
    numpy.savez("a.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS)
    result = dltrain("train", "data=arrays", "data.file=a.npz", "model=mlp", "epochs=2", "logger=none", "report=false")
    assert result.code == 0, result.err
    evaluated = dltrain("eval", f"ckpt={result.folder}", "--json")
    assert (evaluated.code, "accuracy" in json.loads(evaluated.out)) == (0, True), evaluated.err
