"""Your own arrays of images and labels, saved by numpy: an .npz file or two .npy files, read without pickle."""

import logging
import re
from typing import Any

import numpy
import torch
from torch import Tensor

from dltrain.data.datasets.folder import SPLITS
from dltrain.data.datasets.table import class_targets
from dltrain.data.splits import Examples, fixed_part
from dltrain.runtime.errors import InputError, first_line
from dltrain.runtime.folders import expand_user
from dltrain.runtime.memory import free_memory

log = logging.getLogger(__name__)

Array = numpy.ndarray[Any, Any]
WORD = f"({'|'.join(SPLITS)})?"
USUAL = f"{WORD}(?:(x|images?|imgs?|data|features|inputs?)|y|labels?|targets?|class|classes){WORD}"  # names of arrays


def arrays(split: str, *, file: str, labels: str | None) -> Examples | None:
    """Your own arrays of images and labels, saved by numpy; labels that are floats are for task=regression.

    Args:
        file: .npz file with images and labels, such as x_train, y_train, x_test and y_test; or .npy file of images
        labels: .npy file of the labels, if `file` is one of the images; null for labels.npy in the current folder
    """
    source = expand_user(file)
    try:
        with source.open("rb") as opened:
            stored: Any = numpy.load(opened, allow_pickle=False)
            if isinstance(stored, numpy.ndarray):
                own = numpy.load(expand_user(labels or "labels.npy"), allow_pickle=False)
                stored = {"images": stored, "labels": own}
            elif (size := sum(entry.file_size for entry in stored.zip.infolist())) > free_memory():
                raise ValueError(f"its arrays take {size / 1e9:.1f} GB, more memory than is free")
            pairs = _pairs(dict(stored))
        name = "all" if "all" in pairs else split
        if name not in pairs or (name == "all" and split == "val"):
            return None
        images, own = pairs.pop(name)
        pixels = _pixels(images)
        targets, classes = _targets(numpy.concatenate([own, *(others for _, others in pairs.values())]))
    except Exception as error:  # damaged files raise nearly anything
        # numpy takes any other file for a pickle, and advises to load it unsafely.
        objects = "neither .npz nor .npy, or it holds Python objects; save numbers"
        raise InputError(f"{source}: {objects if 'pickle' in str(error) else first_line(error)}") from error
    if split == "train":
        log.info("%s: images %s %s, %d classes", source.name, images.dtype, images.shape, len(classes))
    if name == split:
        return Examples(pixels, targets[: len(pixels)], classes)
    chosen = fixed_part(targets, split)
    return Examples(pixels[chosen], targets[chosen], classes)


def _pairs(stored: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
    """Return images and labels of each split, or of all; by the names of the arrays, else by their shapes."""
    found: dict[str, tuple[list[str], list[str]]] = {"all": ([], [])}
    for name in stored:
        if match := re.fullmatch(USUAL, re.sub("[^a-z]", "", name.lower())):
            found.setdefault(SPLITS.get(match[1] or match[3], "all"), ([], []))[match[2] is None].append(name)
    whole = found.pop("all")
    if "train" not in found:
        by_shape = [[name for name in stored if stored[name].ndim in sizes] for sizes in ((3, 4), (1, 2))]
        found = {"all": whole if all(whole) else (by_shape[0], by_shape[1])}
    for pair in found.values():
        if [len(names) for names in pair] != [1, 1] or len({len(stored[name]) for (name,) in pair}) > 1:
            shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in stored.items())
            raise ValueError(f"expected images and as many labels, such as x_train and y_train; found {shapes}")
    return {part: (stored[images], stored[labels]) for part, ((images,), (labels,)) in found.items()}


def _pixels(images: Array) -> Tensor:
    """Return images (N, H, W), (N, H, W, C) or (N, C, H, W), or features (N, K), as bytes or floats (N, C, H, W)."""
    dtype: Any = numpy.uint8 if images.dtype == numpy.uint8 else numpy.float32
    if images.ndim < 3:
        images = images.reshape(len(images), 1, 1, -1)
    elif images.dtype == numpy.uint16:
        log.info("images of 16 bits are divided by 65535")
        images = images / numpy.float32(65535)
    elif images.dtype.kind in "iu" and dtype is not numpy.uint8:  # more bits than they need
        dtype = numpy.uint8
        if images.min() < 0 or images.max() > 255:
            raise ValueError(f"{images.dtype} images are not from 0 to 255; save them as uint8, uint16 or float32")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] < images.shape[1]:
        images = images.transpose(0, 3, 1, 2)
    return torch.from_numpy(_finite(images, dtype))


def _targets(labels: Array) -> tuple[Tensor, tuple[str, ...]]:
    """Return class indices of whole numbers, texts or one-hot rows; floats as numbers to predict."""
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] > 1 and set(numpy.unique(labels).tolist()) == {0, 1} and (labels.sum(1) == 1).all():
        labels = labels.argmax(1)[:, None]
    if labels.dtype.kind == "f":
        return torch.from_numpy(_finite(labels, numpy.float32)), ()
    if labels.shape[1] != 1:
        raise ValueError("several whole numbers as labels of an image; save numbers to predict as floats")
    return class_targets([str(label) for label in labels[:, 0].tolist()])


def _finite(array: Array, dtype: Any) -> Array:
    if array.dtype.kind not in "biuf" or not array.size or not numpy.isfinite(array).all():
        raise ValueError(f"an array of {array.dtype} is empty or has values that are no finite numbers")
    return numpy.array(array, dtype, order="C")
