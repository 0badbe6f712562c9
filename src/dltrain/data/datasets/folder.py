"""Your own images: a sub-folder for each class, in train/, val/ and test/ folders or all in one."""

from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Interval, Len

from dltrain.data import image_files
from dltrain.data.image_reader import read_images
from dltrain.data.splits import Examples, stratified
from dltrain.runtime.errors import InputError
from dltrain.runtime.folders import expand_user

TEST_FRACTION = 0.2


def folder(
    split: str,
    *,
    root: str,
    size: Annotated[list[Annotated[int, Interval(ge=1, le=8192)]], Len(2, 2)],
    channels: Literal[1, 3],
    fit: Literal["resize", "crop"],
    memory: bool | None,
) -> Examples | None:
    """Your own images of any format, size and mode, in a sub-folder for each class.

    Decoded images are cached for the next start, see image_cache.py.

    Args:
        root: folder with a sub-folder for each class, or with train/, test/ and optionally val/ folders of such
        size: height and width that every image is resized to
        channels: 3 for colour, 1 for greyscale
        fit: `resize` may distort the image, `crop` keeps its aspect ratio and cuts off the edges
        memory: true to keep decoded images in memory, false to leave them in a file on disk; null: by their size

    Raises InputError if no image can be read.
    """
    base = expand_user(root)
    files, classes = find_files(base, split)
    if not files:
        return None
    paths = [path for path, _ in files]
    decoded = read_images(base, paths, split, size=size, channels=channels, fit=fit, memory=memory)
    labels = [label for index, (_, label) in enumerate(files) if index not in decoded.left_out]
    return Examples(decoded.images, torch.tensor(labels), classes)


def find_files(root: Path, split: str) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Return the image files of a split with their labels, and the class names; no files if there is no such split.

    Without train/ and test/ folders a fixed 20 % of each class is the test set.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root}: no such folder. Set it to a folder with a sub-folder for each class")
    has_splits = (root / "train").is_dir()
    base = root / "train" if has_splits else root
    classes = tuple(sorted(path.name for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not classes:
        raise InputError(f"{base}: expected a sub-folder of images for each class, found none")
    if set(classes) <= {"test", "val"}:
        raise InputError(f"{root}: has {' and '.join(classes)} but no train folder. Add one with the class folders")
    if has_splits:
        base = root / split
        if not base.is_dir():
            return [], classes
        unknown = {path.name for path in base.iterdir() if path.is_dir() and path.name[0] != "."} - set(classes)
        if unknown:
            raise InputError(f"{base}: classes that are not in {root / 'train'}: {', '.join(sorted(unknown))}")
    elif split == "val":
        return [], classes
    files = [
        (path, label)
        for label, name in enumerate(classes)
        if (base / name).is_dir()
        for path in image_files.find_images(base / name)
    ]
    if not files:
        raise InputError(f"{base}: expected images ({', '.join(sorted(image_files.EXTENSIONS))}), found none")
    if has_splits:
        return files, classes
    test = set(stratified(torch.tensor([label for _, label in files]), round(TEST_FRACTION * len(files)), 0).tolist())
    return [file for index, file in enumerate(files) if (index in test) == (split == "test")], classes
