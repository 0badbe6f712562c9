"""A user's own images: every layout of folders, labels by folder name, damaged files left out and named."""

import logging
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from dltrain.data import image_files
from dltrain.data.datasets.folder import find_files, folder
from dltrain.data.splits import Examples, rules, split_train_val
from dltrain.runtime.errors import InputError
from support import corpus

SIZE = [8, 8]


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is logged while data is read, as lines "LEVEL message"."""
    logger = logging.getLogger("dltrain.data")
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.levelname} {record.getMessage()}")

    handler, level = Collect(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
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
    return folder(split, root=str(root), size=SIZE, channels=channels, fit=fit, range=None, memory=None)  # type: ignore[arg-type]


def load(root: Path, split: str) -> Examples:
    found = read(root, split)
    assert found is not None
    return found


def names(root: Path, split: str) -> list[str]:
    """Which files make a split."""
    files, *_ = find_files(root, split)
    return [Path(path).relative_to(root).as_posix() for path, _ in files]


def refusal(root: Path | str, split: str = "train") -> str:
    """What a person reads when there is nothing to train on; the exit code is that of a missing or damaged input."""
    with pytest.raises(InputError) as caught:
        folder(split, root=str(root), size=SIZE, channels=1, fit="resize", range=None, memory=None)
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
    lines = [line.removeprefix("DEBUG left out: ") for line in log if line.startswith("DEBUG left out: ")]
    listed = [name for line in lines for name in line.partition(" (")[0].split(", ")]
    notes = [f"{name}/notes.txt" for name in CLASSES]
    assert sorted(listed) == sorted([str(path.relative_to(root)) for path in damaged] + notes)


def test_how_many_were_read_and_left_out_is_logged(odd: tuple[Path, list[Path]], log: list[str]) -> None:
    root, damaged = odd
    files, *_ = find_files(root, "train")
    left_out = len({Path(path) for path, _ in files} & set(damaged))
    load(root, "train")
    start = f"WARNING train: {len(files) - left_out} images decoded, {left_out + 3} left out: "
    assert log[-1].startswith(start)
    assert "3 × .txt: not a format that is read" in log[-1]


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
    found = folder("train", root=str(tmp_path), size=[4, 9], channels=3, fit="crop", range=None, memory=None)
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


@pytest.mark.parametrize("is_limited", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [{"defect": 2, "ok": 200}, {"only": 1, "others": 999}, {"a": 999, "b": 1}, {f"{i:02}": 2 for i in range(20)}],
    ids=lambda sizes: "-".join(map(str, [*sizes.values()][:2])),
)
def test_every_class_is_trained_on_through_test_limit_and_val(
    sizes: dict[str, int], is_limited: bool, tmp_path: Path
) -> None:
    for name, count in sizes.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").touch()

    def source(split: str) -> Examples | None:
        files, classes, _ = find_files(tmp_path, split)
        labels = torch.tensor([label for _, label in files])
        return Examples(torch.zeros(len(files), 1, 1, 1), labels, classes) if files else None

    limit = max(24, sum(sizes.values()) // 3) if is_limited else None
    train, val = split_train_val(source, val=0.1, limit=limit, seed=0)
    assert val is not None
    assert set(train.targets.tolist()) == set(range(len(sizes)))
    assert len(names(tmp_path, "test")) == round(0.2 * sum(sizes.values()))


def test_a_class_of_two_keeps_one_for_training_and_one_for_the_test(tmp_path: Path) -> None:
    make(tmp_path, *(f"ok/{i}.png" for i in range(50)), "defect/1.png", "defect/2.png")
    assert sum(name.startswith("defect") for name in names(tmp_path, "train")) == 1


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


@pytest.mark.parametrize("there", ["nothing", "1.png, 2.png", "train", "a, b"])
def test_a_folder_without_class_folders_is_refused_with_what_is_there(there: str, tmp_path: Path) -> None:
    if there == "1.png, 2.png":
        make(tmp_path, "1.png", "2.png")
    elif there != "nothing":
        for name in there.split(", "):
            (tmp_path / name).mkdir()
            (tmp_path / name / "notes.txt").touch()
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: expected a sub-folder of images for each class, there is {there}\n")
    assert message.endswith("data=table data.file=labels.csv")


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS)
    (tmp_path / "val" / "a").mkdir(parents=True)
    assert read(tmp_path, "val") is None


def test_when_every_image_is_damaged_the_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "train/b/2.png", "train/b/3.png")
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    message = f"{tmp_path}: none of the 3 images of the train split can be read\n"
    assert refusal(tmp_path) == message + "3 left out: 3 × not an image, or damaged at its beginning"


def test_hidden_folders_are_no_classes_also_below_train(tmp_path: Path) -> None:
    for name in ("train/cat", "train/.ipynb_checkpoints", "test/cat", "test/.hidden"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    files, classes, _ = find_files(tmp_path, "test")
    assert (len(files), classes) == (1, ("cat",))


def test_test_without_train_is_refused(tmp_path: Path) -> None:
    for name in ("val/cat", "test/cat"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    with pytest.raises(InputError, match="has test and val but no train folder"):
        find_files(tmp_path, "train")


# --- folders as people have them

SIZES = {  # in train, val and test
    "train, test, valid": [4, 4, 4],
    "train, test, validation": [4, 4, 4],
    "train, test, dev": [4, 4, 4],
    "a class called train": [5, 0, 1],
    "a class called test": [5, 0, 1],
    "unlabelled test": [4, 0, 0],
}


@pytest.mark.parametrize("layout", corpus.UNDERSTOOD)
def test_a_folder_as_people_have_them_is_understood(layout: str, tmp_path: Path) -> None:
    root = corpus.write(tmp_path / "photos", corpus.UNDERSTOOD[layout])
    parts = [read(root, split) for split in ("train", "val", "test")]
    has_splits = any(name.startswith(("t", "T", "s")) for name in corpus.UNDERSTOOD[layout])
    sizes = SIZES.get(layout, [4, 0, 4] if has_splits else [3, 0, 1])
    assert [0 if part is None else len(part.images) for part in parts] == sizes
    extra = [layout.split()[-1]] if layout.startswith("a class called") else []
    assert all(part.classes == ("cat", "dog", *extra) for part in parts if part is not None)


REASONS = {
    "one level too high": "the only folder is flowers, with cat, dog in it\nDid you mean data.root={root}/flowers?",
    "one level too high with splits": "with test, train in it\nDid you mean data.root={root}/flowers?",
    "one level too high in train": "{root}/train: the only folder is flowers, with cat, dog in it\nMove them ",
    "images and a table": "the only folder is images, beside labels.csv\n",
    "flat train": "{root}/train: has images but no folders of classes\n",
    "flat": "expected a sub-folder of images for each class, there is cat.0.png, dog.0.png\n",
    "test without train": "has test and val but no train folder",
    "classes beside test": "has cat and dog and test but no train folder",
    "train beside others": "is train a split, or a class like extra?",
    "empty": "there is nothing\n",
}


@pytest.mark.parametrize("layout", corpus.REFUSED)
def test_a_folder_that_would_train_on_the_wrong_thing_is_refused_with_what_is_there(
    layout: str, tmp_path: Path
) -> None:
    root = corpus.write(tmp_path / "photos", corpus.REFUSED[layout])
    message = refusal(root)
    assert REASONS[layout].format(root=root) in message
    assert len(message.splitlines()) <= 3


def test_a_table_beside_the_images_is_named_as_the_way_to_go(tmp_path: Path) -> None:
    root = corpus.write(tmp_path, corpus.REFUSED["images and a table"])
    assert refusal(root).endswith(f"data=table data.file={root / 'labels.csv'}")


@pytest.mark.parametrize(
    ("layout", "warning"),
    [
        (
            "unlabelled test",
            "not used: test. Only splits with class folders are; for the rest there is dltrain predict",
        ),
        (
            "a folder beside the splits",
            "not used: extra. Only splits with class folders are; for the rest there is dltrain predict",
        ),
        ("an empty folder", "folders without images, not used as classes: empty, notes"),
    ],
)
def test_a_folder_that_is_not_used_is_named_once(layout: str, warning: str, tmp_path: Path, log: list[str]) -> None:
    root = corpus.write(tmp_path, corpus.UNDERSTOOD[layout])
    for split in ("train", "val", "test"):
        read(root, split)
    assert [line for line in log if line.startswith("WARNING")] == [f"WARNING {warning}"]


def test_class_folders_that_all_have_the_same_folders_in_them_are_doubted(tmp_path: Path, log: list[str]) -> None:
    read(make(tmp_path, *(f"{site}/{name}/1.png" for site in ("site1", "site2") for name in ("a", "b"))), "train")
    assert "WARNING the folder of each class has the same folders in it: a, b. Are these the classes?" in log


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_by_the_older_rules_only_train_val_and_test_are_splits(name: str, tmp_path: Path) -> None:
    make(tmp_path, *SPLITS, f"{name}/a/6.png", "train/empty/1.png")
    (tmp_path / "train" / "empty" / "1.png").unlink()
    token = rules.set(1)
    try:
        assert read(tmp_path, "val") is None
        assert load(tmp_path, "train").classes == ("a", "b", "empty")
    finally:
        rules.reset(token)
    assert len(load(tmp_path, "val").images) == 1


def test_by_the_older_rules_a_new_spelling_of_train_is_a_class(tmp_path: Path) -> None:
    make(tmp_path, "training/a/1.png", "testing/a/2.png")
    token = rules.set(1)
    try:
        assert load(tmp_path, "train").classes == ("testing", "training")
    finally:
        rules.reset(token)


@pytest.mark.parametrize("kind", ["HEIC", "damaged"])
def test_a_class_of_which_no_image_can_be_read_is_refused_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    monkeypatch.setattr(image_files, "HAS_HEIF", False)
    image_files._formats.cache_clear()
    make(tmp_path, "train/a/1.png", "train/b/2.png", "train/c/3.png")
    for path in (tmp_path / "train" / "b" / "2.png", tmp_path / "train" / "c" / "3.png"):
        path.write_bytes(bytes(4) + b"ftypheic" if kind == "HEIC" else b"text")
    assert "no image of b, c can be read. Repair the files, or remove the class" in refusal(tmp_path)
    why = "HEIC: needs pillow-heif; in dltrain's checkout: pip install -e '.[heic]'"
    why = why if kind == "HEIC" else "not an image, or damaged at its beginning"
    assert f"WARNING train: 1 image decoded, 2 left out: 2 × {why}" in log


def test_what_is_left_out_is_counted_by_reason_and_listed(tmp_path: Path, log: list[str]) -> None:
    root = corpus.write_odd_files(tmp_path / "photos")
    (root / "cover.png").write_bytes(corpus.picture("PNG"))
    for number in range(30):
        (root / "dog" / f"{number}.txt").touch()
    load(root, "train")
    (warning,) = [line for line in log if line.startswith("WARNING")]
    assert (
        "left out: 31 × .txt: not a format that is read, 3 × link to nowhere, 2 × link to a folder that is " in warning
    )
    assert "and 4 more" in warning
    assert any(line.startswith("DEBUG left out: cat/") and "and 11 more (.txt: not a" in line for line in log)
    assert "DEBUG left out: cover.png (not in a class folder)" in log
    log.clear()
    load(root, "test")
    assert [line for line in log if "left out" in line] == ["INFO test: 4 images decoded, no file left out"]
