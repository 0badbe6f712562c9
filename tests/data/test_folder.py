"""A user's own images: every layout of folders, labels by folder name, damaged files left out and named."""

import logging
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from dltrain.data.datasets.folder import find_files, folder
from dltrain.data.splits import Examples
from dltrain.runtime.errors import InputError

SIZE = [8, 8]


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What the reader logs, as lines "LEVEL message"; at the place where it logs, whatever is set up above."""
    logger = logging.getLogger("dltrain.data.image_reader")
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.levelname} {record.getMessage()}")

    handler, level = Collect(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def make(root: Path, *names: str) -> Path:
    """Small grey pictures of these names; returns root."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), 100).save(path)
    return root


def read(root: Path, split: str, *, channels: int = 1, fit: str = "resize") -> Examples | None:
    return folder(split, root=str(root), size=SIZE, channels=channels, fit=fit, memory=None)  # type: ignore[arg-type]


def load(root: Path, split: str) -> Examples:
    found = read(root, split)
    assert found is not None
    return found


def names(root: Path, split: str) -> list[str]:
    """Which files make a split."""
    files, _ = find_files(root, split)
    return [Path(path).relative_to(root).as_posix() for path, _ in files]


def refusal(root: Path | str, split: str = "train") -> str:
    """What a person reads when there is nothing to train on; the exit code is that of a missing or damaged input."""
    with pytest.raises(InputError) as caught:
        folder(split, root=str(root), size=SIZE, channels=1, fit="resize", memory=None)
    assert caught.value.exit_code == 66
    return str(caught.value)


# --- three hundred odd pictures

GREYS = {"чёрный": 30, "mid grey": 128, "white": 225}  # the class of a picture can be told from its pixels
CLASSES = sorted(GREYS)
COUNT, DAMAGED = 300, 12
SIDES = [(1, 1), (1, 40), (40, 1), (7, 5), (64, 48), (13, 100), (30, 30), (2, 2)]
KINDS = [
    ("L", "png"),
    ("RGB", "JPG"),
    ("RGBA", "png"),
    ("P", "gif"),
    ("CMYK", "jpeg"),
    ("LA", "PNG"),
    ("RGB", "webp"),
    ("L", "bmp"),
    ("I;16", "png"),
    ("F", "tiff"),
    ("RGB", "Tif"),
    ("I;16", "TIFF"),
    ("RGB", "ppm"),
    ("L", "pgm"),
    ("YCbCr", "jpg"),
]
PLACES = ["{}.{}", "with space {}.{}", "sub/{}.{}", "sub folder/ünter/{}.{}", "снимок {}.{}"]


def odd_picture(mode: str, sides: tuple[int, int], grey: int) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(numpy.full(sides[::-1], grey * 257, dtype=numpy.uint16))
    if mode == "F":
        return Image.fromarray(numpy.full(sides[::-1], grey / 255, dtype=numpy.float32))
    return Image.new("L" if mode == "P" else "RGB", sides, grey if mode == "P" else (grey, grey, grey)).convert(mode)


def damage(path: Path, kind: int) -> None:
    """Make a picture file unreadable, in one of six ways."""
    content = path.read_bytes()
    path.write_bytes([b"", b"text\n", b"<html></html>", content[:9], b"\0" * 3000, b"\xff\xd8\xff" + bytes(50)][kind])


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """300 pictures of every kind in three classes; and which of them are damaged."""
    root = tmp_path_factory.mktemp("odd pictures")
    paths = []
    kinds, sides, places = cycle(KINDS), cycle(SIDES), cycle(PLACES)
    for number in range(COUNT):
        name = CLASSES[number % 3]
        mode, ending = next(kinds)
        path = root / name / next(places).format(number, ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (400, 300) if number % 50 == 7 else next(sides)
        odd_picture(mode, shape, GREYS[name]).save(path)
        paths.append(path)
    damaged = paths[5 :: COUNT // DAMAGED]
    for number, path in enumerate(damaged):
        damage(path, number % 6)
    for name in CLASSES:
        (root / name / "notes.txt").write_text("no picture")
    return root, damaged


def test_odd_images_are_all_read_but_the_damaged_ones(odd: tuple[Path, list[Path]]) -> None:
    root, damaged = odd
    train, test = load(root, "train"), load(root, "test")
    assert len(damaged) == DAMAGED
    assert len(train.images) + len(test.images) == COUNT - DAMAGED


def test_damaged_images_are_named_in_the_log_with_a_reason(odd: tuple[Path, list[Path]], log: list[str]) -> None:
    root, damaged = odd
    for split in ("train", "test"):
        load(root, split)
    warned = [line.removeprefix("WARNING left out ") for line in log if line.startswith("WARNING")]
    assert sorted(line.partition(": ")[0] for line in warned) == sorted(str(path.relative_to(root)) for path in damaged)
    assert all(line.partition(": ")[2] for line in warned)


def test_how_many_were_read_and_left_out_is_logged(odd: tuple[Path, list[Path]], log: list[str]) -> None:
    root, damaged = odd
    files, _ = find_files(root, "train")
    left_out = len({Path(path) for path, _ in files} & set(damaged))
    load(root, "train")
    assert log[-1] == f"INFO train: {len(files) - left_out} images decoded, damaged files left out: {left_out}"


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_odd_images_have_the_label_of_their_folder(
    split: str, channels: int, fit: str, odd: tuple[Path, list[Path]]
) -> None:
    found = read(odd[0], split, channels=channels, fit=fit)
    assert found is not None
    assert found.classes == tuple(CLASSES)
    assert (found.images.dtype, found.images.shape[1:]) == (torch.uint8, (channels, *SIZE))
    greys = found.images.float().mean((1, 2, 3))
    expected = torch.tensor([float(GREYS[CLASSES[label]]) for label in found.targets])
    assert (greys - expected).abs().max() < 8  # what JPEG may miss


def test_labels_are_int64_numbers_of_the_sorted_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "train/dog/1.png", "train/cat/1.png", "train/cat/2.png", "train/ant/1.png")
    found = load(tmp_path, "train")
    assert found.classes == ("ant", "cat", "dog")
    assert found.targets.dtype == torch.int64
    assert found.targets.tolist() == [0, 1, 1, 2]


def test_height_comes_before_width(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png")
    found = folder("train", root=str(tmp_path), size=[4, 9], channels=3, fit="crop", memory=None)
    assert found is not None
    assert found.images.shape == (1, 3, 4, 9)


def test_a_tilde_in_root_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "birds/train/a/1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load(Path("~/birds"), "train").images) == 1


# --- class folders only

MANY = [*(f"big/{i}.png" for i in range(40)), *(f"small/{i}.png" for i in range(12))]


def test_of_class_folders_a_fifth_of_each_class_is_the_test_set(tmp_path: Path) -> None:
    make(tmp_path, *MANY)
    test = names(tmp_path, "test")
    assert len(test) == 10
    assert abs(sum(name.startswith("small") for name in test) - 10 * 12 / 52) < 1


def test_class_folders_are_split_without_overlap_or_loss(tmp_path: Path) -> None:
    make(tmp_path, *MANY)
    assert sorted(names(tmp_path, "train") + names(tmp_path, "test")) == sorted(MANY)


def test_the_test_set_is_the_same_in_another_place_and_order_and_under_another_seed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = names(make(tmp_path / "one", *MANY), "test")
    torch.manual_seed(2)
    assert names(make(tmp_path / "two", *reversed(MANY)), "test") == one


def test_class_folders_have_no_validation_split(tmp_path: Path) -> None:
    assert read(make(tmp_path, *MANY), "val") is None


def test_too_few_images_for_a_test_set_are_all_for_training(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png")
    assert len(load(tmp_path, "train").images) == 2
    assert read(tmp_path, "test") is None


# --- folders of splits

SPLITS = ["train/a/1.png", "train/b/2.png", "train/b/3.png", "test/a/4.png", "test/b/5.png"]


def test_train_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS)
    assert names(tmp_path, "train") == SPLITS[:3]
    assert names(tmp_path, "test") == SPLITS[3:]


def test_train_and_test_folders_have_no_validation_split(tmp_path: Path) -> None:
    assert read(make(tmp_path, *SPLITS), "val") is None


def test_a_val_folder_is_the_validation_split(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS, "val/b/6.png")
    assert load(tmp_path, "val").targets.tolist() == [1]
    assert names(tmp_path, "train") == SPLITS[:3]


def test_a_train_folder_alone_has_no_test_split(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS[:3])
    assert len(load(tmp_path, "train").images) == 3
    assert read(tmp_path, "test") is None


def test_a_class_without_test_images_keeps_the_labels_of_the_others(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS[:3], "test/b/5.png")
    found = load(tmp_path, "test")
    assert found.targets.tolist() == [1]
    assert found.classes == ("a", "b")


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_class_that_training_does_not_have_is_refused_by_name(split: str, tmp_path: Path) -> None:
    make(tmp_path, *SPLITS, f"{split}/zebra/1.png")
    message = refusal(tmp_path, split)
    assert str(tmp_path / split) in message
    assert message.endswith("zebra")
    assert "a, " not in message


# --- hidden things


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png", ".git/1.png")
    assert load(tmp_path, "train").classes == ("a", "b")


def test_hidden_files_and_folders_in_a_class_are_not_read(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS, "train/a/.thumbnails/1.png", "train/a/.2.png")
    assert names(tmp_path, "train") == SPLITS[:3]


def test_files_beside_the_class_folders_are_not_read(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS, "train/cover.png", "cover.png")
    assert names(tmp_path, "train") == SPLITS[:3]


# --- nothing to train on


def test_a_missing_folder_is_named_with_what_to_set(tmp_path: Path) -> None:
    message = refusal(tmp_path / "missing")
    assert f"data.root={tmp_path / 'missing'}: no such folder" in message
    assert "a sub-folder for each class" in message


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "archive.zip").touch()
    assert f"data.root={tmp_path / 'archive.zip'}: no such folder" in refusal(tmp_path / "archive.zip")


@pytest.mark.parametrize("kind", ["empty", "pictures without class folders", "an empty train folder"])
def test_a_folder_without_class_folders_is_refused(kind: str, tmp_path: Path) -> None:
    place = tmp_path
    if kind == "pictures without class folders":
        make(tmp_path, "1.png", "2.png")
    elif kind == "an empty train folder":
        place = tmp_path / "train"
        place.mkdir()
    assert refusal(tmp_path) == f"{place}: expected a sub-folder of images for each class, found none"


def test_class_folders_without_images_are_refused_with_the_endings_that_count(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").touch()
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: expected images (")
    assert ".jpg, " in message


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS)
    (tmp_path / "val" / "a").mkdir(parents=True)
    assert refusal(tmp_path, "val").startswith(f"{tmp_path / 'val'}: expected images (")


def test_when_every_image_is_damaged_the_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "train/b/2.png", "train/b/3.png")
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    assert refusal(tmp_path) == f"{tmp_path}: none of the 3 images of the train split can be read"


def test_hidden_folders_are_no_classes_also_below_train(tmp_path: Path) -> None:
    for name in ("train/cat", "train/.ipynb_checkpoints", "test/cat", "test/.hidden"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    files, classes = find_files(tmp_path, "test")
    assert (len(files), classes) == (1, ("cat",))


def test_test_without_train_is_refused(tmp_path: Path) -> None:
    for name in ("val/cat", "test/cat"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    with pytest.raises(InputError, match="has test and val but no train folder"):
        find_files(tmp_path, "train")
