"""Your own images: a sub-folder for each class, in train/, val/ and test/ folders or all in one."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import PIL
import torch
from annotated_types import Interval, Len
from rich.progress import track
from torch import Tensor

from dltrain.data import image_cache, image_files
from dltrain.data.image_cache import DecodedImages
from dltrain.data.splits import Examples, stratified
from dltrain.runtime.errors import InputError
from dltrain.runtime.folders import expand_user

log = logging.getLogger(__name__)

TEST_FRACTION = 0.2


def folder(
    split: str,
    *,
    root: str,
    size: Annotated[list[Annotated[int, Interval(ge=1, le=8192)]], Len(2, 2)],
    channels: Literal[1, 3],
    fit: Literal["resize", "crop"],
) -> Examples | None:
    """Your own images of any format, size and mode, in a sub-folder for each class.

    Decoded images are cached for the next start, see image_cache.py.

    Args:
        root: folder with a sub-folder for each class, or with train/, test/ and optionally val/ folders of such
        size: height and width that every image is resized to
        channels: 3 for colour, 1 for greyscale
        fit: `resize` may distort the image, `crop` keeps its aspect ratio and cuts off the edges

    Raises InputError if no image can be read.
    """
    base = expand_user(root)
    files, classes = find_files(base, split)
    if not files:
        return None
    paths = [path for path, _ in files]
    decode = partial(_try_decode, channels=channels, size=(size[0], size[1]), fit=fit)
    settings = (PIL.__version__, decode.keywords)
    cache = image_cache.cache_path(base.name, base.absolute(), split, settings)
    key = image_cache.fingerprint(base, paths, settings)
    decoded = None if cache is None else image_cache.read(cache, key)
    source, may_cache = "from the cache", False
    if decoded is None:
        source = "decoded"
        decoded, may_cache = _decode_all(paths, decode, split)
    for index, why in decoded.left_out.items():
        # Without root, which may contain a secret from the environment.
        log.warning("left out %s: %s", Path(paths[index]).relative_to(base), why)
    count = len(decoded.images)
    log.info("%s: %d images %s, damaged files left out: %d", split, count, source, len(decoded.left_out))
    if not count:
        raise InputError(f"{root}: none of the {len(files)} images of the {split} split can be read")
    if may_cache and cache is not None:
        image_cache.write(cache, key, decoded)
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


Decode = Callable[[str], Tensor | ValueError]


def _decode_all(paths: list[str], decode: Decode, split: str) -> tuple[DecodedImages, bool]:
    """Decode files in threads, as decoding releases the GIL; return the images, and True if no retry can add any."""
    with image_files.without_pillow_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(
            track(
                pool.map(decode, paths),
                description=f"reading {split}",
                total=len(paths),
                transient=True,
                disable=not os.isatty(1),
            )
        )
    images = [image for image in results if isinstance(image, Tensor)]
    left_out = {index: str(why) for index, why in enumerate(results) if isinstance(why, ValueError)}
    is_final = not any(isinstance(why, image_files.Unreadable) for why in results)
    return DecodedImages(torch.stack(images) if images else torch.empty(0), left_out), is_final


def _try_decode(path: str, *, channels: int, size: tuple[int, int], fit: str) -> Tensor | ValueError:
    try:
        return image_files.decode(path, channels=channels, size=size, fit=fit)
    except ValueError as error:
        return error
