"""Your own images: a sub-folder for each class, in train/, val/ and test/ folders or all in one."""

import contextlib
import itertools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Interval, Len

from dltrain.data import image_search
from dltrain.data.image_reader import read_images
from dltrain.data.splits import Examples, fixed_part, rules
from dltrain.runtime.errors import InputError, listed
from dltrain.runtime.folders import expand_user

log = logging.getLogger(__name__)

# Words in the name of a folder, such as seg_train, and the split that they mean.
SPLITS = {"train": "train", "training": "train", "trainset": "train", "test": "test", "testing": "test"}
SPLITS |= {"testset": "test", "val": "val", "valid": "val", "validation": "val", "valset": "val", "dev": "val"}


def folder(
    split: str,
    *,
    root: str,
    size: Annotated[list[Annotated[int, Interval(ge=1, le=8192)]], Len(2, 2)],
    channels: Literal[1, 3],
    fit: Literal["resize", "crop"],
    range: Annotated[list[float], Len(2, 2)] | None,
    memory: bool | None,
) -> Examples | None:
    """Your own images of any format, size and mode, in a sub-folder for each class.

    Decoded images are cached for the next start, see image_cache.py.

    Args:
        root: folder with a sub-folder for each class, or with train/, test/ and optionally val/ folders of such
        size: height and width that every image is resized to
        channels: 3 for colour, 1 for greyscale
        fit: `resize` may distort the image, `crop` keeps its aspect ratio and cuts off the edges
        range: numbers that become black and white in images of 16 bits, 32 bits or floats; null to find them
        memory: true to keep decoded images in memory, false to leave them in a file on disk; null: by their size

    Raises InputError if no image can be read.
    """
    base = expand_user(root)
    files, classes, left_out = find_files(base, split)
    if not files:
        return None
    paths = [path for path, _ in files]
    train: list[str] = []
    with contextlib.suppress(InputError):  # `eval` needs no training images
        train = [] if split == "train" else [path for path, _ in find_files(base, "train", warns=False)[0]]
    decoded = read_images(base, paths, split, train, size, channels, fit, range, memory, left_out.items())
    labels = [label for index, (_, label) in enumerate(files) if index not in decoded.left_out]
    if split == "train" and rules.get() > 1 and (lost := {label for _, label in files} - set(labels)):
        names = listed([classes[label] for label in sorted(lost)])
        raise InputError(f"{base}: no image of {names} can be read. Repair the files, or remove the class")
    return Examples(decoded.images, torch.tensor(labels), classes, decoded.levels)


def find_files(
    root: Path, split: str, *, warns: bool = True
) -> tuple[list[tuple[str, int]], tuple[str, ...], dict[str, str]]:
    """Return the image files of a split with labels, if there is one, the class names, and why others are left out."""
    if not root.is_dir():
        raise InputError(f"data.root={root}: no such folder. Set it to a folder with a sub-folder for each class")
    warn = log.warning if split == "train" and warns else log.debug  # each warning once
    classes = image_search.folders_with_images(root)
    if split != "train" and "train" in set(image_search.folders(root)) - set(classes):  # its images are elsewhere
        splits = {name: root / name for name in image_search.folders(root) if name in SPLITS.values()}
        classes = image_search.folders(root / "train")
    elif splits := _split_folders(root, classes, warn):
        classes = image_search.folders_with_images(splits["train"])
    _check_classes(root, splits.get("train", root), classes, warn)
    if split not in (splits or ("train", "test")):
        return [], tuple(classes), {}
    base = splits.get(split, root)
    if splits and (unknown := sorted(set(image_search.folders_with_images(base)) - set(classes))):
        raise InputError(f"{base}: classes that are not in {splits['train']}: {', '.join(unknown)}")
    files, left_out = [], dict.fromkeys(image_search.images_in(base), "not in a class folder")
    for label, name in enumerate(classes):
        if (base / name).is_dir():
            images, others = image_search.find_images(base / name)
            files += [(path, label) for path in images]
            left_out |= others
    if not files:
        raise InputError(f"{base}: expected images in the class folders, found none")
    if splits:
        return files, tuple(classes), left_out
    chosen = fixed_part(torch.tensor([label for _, label in files]), split).tolist()
    return list(itertools.compress(files, chosen)), tuple(classes), left_out if split == "train" else {}


def _split_folders(root: Path, folders: list[str], warn: Callable[..., None]) -> dict[str, Path]:
    """Return the folder of each split; none if the folders in `root` are classes, one of which may be `train`."""
    if rules.get() == 1:
        return {name: root / name for name in folders if name in SPLITS.values()} if "train" in folders else {}
    named: dict[str, Path] = {}
    for name in sorted(folders, key=lambda name: name in SPLITS.values()):  # the last, such as train, wins
        meant = {SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLITS}
        named |= {split: root / name for split in meant if len(meant) == 1}
    nested = {split: path for split, path in named.items() if image_search.folders_with_images(path)}
    others = [name for name in folders if root / name not in named.values()]
    if not named or (others and not nested):
        return {}
    if "train" not in named:
        raise InputError(f"{root}: has {' and '.join(folders)} but no train folder. Add one with the class folders")
    if "train" not in nested:
        raise InputError(f"{named['train']}: has images but no folders of classes\n{_advice(root)}")
    if others and len(named) == 1:
        train = named["train"].name
        raise InputError(f"{root}: is {train} a split, or a class like {listed(others)}? Move one of them")
    if unused := [name for name in folders if root / name not in nested.values()]:
        warn("not used: %s. Only splits with class folders are; for the rest there is dltrain predict", listed(unused))
    return nested


def _check_classes(root: Path, base: Path, classes: list[str], warn: Callable[..., None]) -> None:
    """Warn of folders that are no classes; raise InputError if the classes are probably elsewhere."""
    if not classes:
        there = listed(sorted(path.name for path in base.iterdir())) or "nothing"
        raise InputError(f"{base}: expected a sub-folder of images for each class, there is {there}\n{_advice(root)}")
    if rules.get() == 1:
        return
    if empty := sorted(set(image_search.folders(base)) - set(classes)):
        warn("folders without images, not used as classes: %s", listed(empty))
    inside = image_search.folders(base / classes[0])
    if len(classes) == 1 and inside:
        hint = f"Did you mean data.root={base / classes[0]}?" if base == root else "Move them one level up"
        raise InputError(f"{base}: the only folder is {classes[0]}, with {listed(inside)} in it\n{hint}")
    if len(classes) == 1 and (tables := sorted(root.glob("*.[ct]sv"))):
        raise InputError(f"{base}: the only folder is {classes[0]}, beside {tables[0].name}\n{_advice(root)}")
    alike = len(inside) > 1 and all(image_search.folders(base / name) == inside for name in classes)
    if alike and not image_search.images_in(base / classes[0]):
        warn("the folder of each class has the same folders in it: %s. Are these the classes?", listed(inside))


def _advice(root: Path) -> str:
    table = min(root.glob("*.[ct]sv"), default="labels.csv")
    return f"Put the images into a folder for each class, or list them with their labels: data=table data.file={table}"
