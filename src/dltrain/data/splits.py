"""The examples of a split as tensors, and the split into training and validation sets."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Annotated, Any, NamedTuple

import numpy
import torch
from annotated_types import Interval
from torch import Tensor

from dltrain.data.levels import Levels
from dltrain.runtime.errors import ConfigError, InputError

log = logging.getLogger(__name__)

rules: ContextVar[int] = ContextVar("rules", default=2)  # of splitting and scaling: 1 as commit 5bb6990 did, 2 as now

Fraction = Annotated[float, Interval(ge=0, lt=1)]
Count = Annotated[int, Interval(ge=0)]
Amount = Fraction | Count
Folds = Annotated[int, Interval(ge=2)] | None


class Examples(NamedTuple):
    """uint8 images (N, C, H, W) with int64 labels (N,) and class names; or float32 inputs with numbers (N, K)."""

    images: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    levels: Levels = None  # of images of more than 8 bits, see levels.py


Source = Callable[[str], Any]


@contextlib.contextmanager
def by_rules(number: int) -> Iterator[None]:
    """Split and scale data by these rules within a `with` block."""
    token = rules.set(number)
    try:
        yield
    finally:
        rules.reset(token)


def read_split(source: Source, split: str) -> Examples | None:
    """Read one split; a map-style Dataset is read into memory once. Raises InputError for other content."""
    data = source(split)
    if data is None:
        return None
    data, levels = (data[:3], data.levels) if isinstance(data, Examples) else (data, None)
    has_tensors = isinstance(data, list) and any(isinstance(part, Tensor) for part in data)
    data = tuple(data) if has_tensors or isinstance(data, tuple) else _read_dataset(data)
    if len(data) != 3 or not all(isinstance(part, Tensor) for part in data[:2]):
        kinds = ", ".join(type(part).__name__ for part in data)
        raise InputError(f"data: expected (images, labels, class names), the first two tensors; got ({kinds})")
    images, targets, classes = data
    classes = tuple(classes or ()) if isinstance(classes, Iterable | None) else (classes,)
    if not all(isinstance(name, str) for name in classes):
        raise InputError(f"data: class names must be a list of strings, got {str(data[2])[:60]}")
    if targets.is_floating_point() and targets.ndim == 1:
        targets = targets.unsqueeze(1)  # one number for each example
    if not classes and not targets.is_floating_point() and len(targets):
        classes = tuple(str(label) for label in range(int(targets.max()) + 1))
    examples = Examples(images, targets, classes, levels)
    if problem := _problem(examples):
        raise InputError(f"data: the {split} split {problem}")
    return examples


def _read_dataset(dataset: Any) -> tuple[Tensor, Tensor, Any]:
    """Read a map-style Dataset of (image, label) into tensors; images are tensors (C, H, W), PIL images or arrays."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(f"data: expected (images, labels, class names) or a Dataset; got {type(dataset).__name__}")
    if not (items := [dataset[index] for index in range(len(dataset))]):
        raise InputError("data: the data set is empty")
    if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
        raise InputError("data: each item of the data set must be (image, label)")
    images = [image if isinstance(image, Tensor) else channels_first(image) for image, _ in items]
    if len(shapes := {tuple(image.shape) for image in images}) > 1:
        raise InputError(f"data: images must have one size, the data set has {', '.join(map(str, sorted(shapes)[:4]))}")
    try:
        targets = torch.stack([torch.as_tensor(label) for _, label in items])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"data: labels must be numbers, or tensors of one shape ({error})") from error
    return torch.stack(images), targets, getattr(dataset, "classes", None)


def channels_first(image: Any) -> Tensor:
    """Convert a PIL image or an array, (H, W) or (H, W, C), to a tensor (C, H, W)."""
    pixels = torch.from_numpy(numpy.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _problem(examples: Examples) -> str:
    images, targets, classes, _ = examples
    if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
        return f"must be uint8 or float32 images (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
    if not len(images):
        return "is empty"
    if len(images) != len(targets):
        return f"has {len(images)} images but {len(targets)} labels"
    if targets.is_floating_point():
        return ""
    if duplicates := [name for name in dict.fromkeys(classes) if classes.count(name) > 1]:
        return f"has two classes of one name: {', '.join(duplicates[:5])}"
    if targets.ndim != 1 or targets.dtype != torch.int64:
        return f"must have int64 labels (N,), got {targets.dtype} {tuple(targets.shape)}"
    if int(targets.min()) < 0 or int(targets.max()) >= len(classes):
        return f"has labels from {int(targets.min())} to {int(targets.max())} but {len(classes)} classes"
    return ""


def split_train_val(
    source: Source, *, val: Amount, limit: Amount | None, seed: int, folds: Folds = None, fold: Count | None = None
) -> tuple[Examples, Examples | None]:
    """Return the training set, cut to `limit`, and the validation set: the data set's own, or a part of the former.

    Args:
        val: fraction (0.1) or number (5000) of training examples held out to choose the best checkpoint; 0 for none
        limit: fraction or number of training examples to use; null for all
        folds: number of parts that the training set is divided into, whatever the seed; null for no cross validation
        fold: which of these parts, from 0, is the validation set in place of data.val
    """
    train = read_split(source, "train")
    if train is None:
        raise InputError("data: the data set has no train split")
    if limit is not None:
        keep = _count(limit, len(train.images), "data.limit")
        if not 0 < keep <= len(train.images):
            raise ConfigError(f"data.limit={limit} leaves {keep} of {len(train.images)} training examples; raise it")
        train = _take(train, stratified(train.targets, keep, seed, is_training=True))
    validation = read_split(source, "val") if val or folds else None
    if folds and validation is not None:
        problem = "the data set has a validation set of its own, and folds divide only the training set"
        raise ConfigError(f"data.folds={folds}: {problem}\nMove its examples into the training set, or leave folds out")
    if folds or (val and validation is None):
        if folds:
            chosen = _orders(train.targets, seed=0)[1][fold::folds].sort().values
        else:
            chosen = stratified(train.targets, _count(val, len(train.images), "data.val"), seed)
        if not 0 < len(chosen) < len(train.images):
            key = f"data.folds={folds}" if folds else f"data.val={val}"
            raise ConfigError(f"{key} takes {len(chosen)} of {len(train.images)} training examples; change it")
        rest = torch.ones(len(train.images)).index_fill(0, chosen, 0).nonzero().flatten()
        train, validation = _take(train, rest), _take(train, chosen)
    if absent := [name for label, name in enumerate(train.classes) if label not in train.targets]:
        named = ", ".join([*absent[:5], "…"][: len(absent)])
        log.warning("classes without a training example (%d of %d): %s", len(absent), len(train.classes), named)
    return train, validation


def stratified(targets: Tensor, count: int, seed: int, *, is_training: bool = False) -> Tensor:
    """Return sorted indices (count,) of a random subset that keeps each class's fraction to within one example.

    An example of each class stays for training where that can be: in the subset if it `is_training`, else outside.
    """
    shuffled, by_class = _orders(targets, seed)
    # Evenly spaced picks from a list sorted by class take the same fraction of each.
    chosen = by_class[torch.arange(count) * len(targets) // max(1, count)]
    training = torch.full((len(targets),), not is_training).index_fill(0, chosen, is_training)
    if rules.get() > 1 and not targets.is_floating_point() and len(targets[training].unique()) < len(targets.unique()):
        # One of each class first, then as each class's share is due (Sainte-Laguë); of equals not the first by name.
        _, label, sizes = targets[by_class].unique(return_inverse=True, return_counts=True)
        place = torch.arange(len(targets)) - (sizes.cumsum(0) - sizes)[label]
        due = (place + 0.5).double() / sizes[label] - (place == 0).double()
        ranked = by_class[shuffled[due[shuffled].argsort(stable=True)]]
        chosen = ranked[:count] if is_training else ranked[len(targets) - count :]
    return chosen.sort().values


def _orders(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return shuffled indices of all examples, and the same sorted by class, of which every n-th are a fold."""
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed % 2**32))
    return shuffled, shuffled if targets.is_floating_point() else shuffled[targets[shuffled].argsort(stable=True)]


def fixed_part(targets: Tensor, split: str) -> Tensor:
    """Return a mask (N,) of `train` or `test`, which is 20 % of each class whatever the seed, of undivided data."""
    test = stratified(targets, round(0.2 * len(targets)), seed=0)
    return torch.full((len(targets),), split == "train").index_fill(0, test, split == "test")


def _count(amount: float, total: int, key: str) -> int:
    """Convert a fraction (float) or a number (int) to a number of examples."""
    count = amount if isinstance(amount, int) else round(amount * total)
    if count > total:
        raise ConfigError(f"{key}={amount} is more than the {total} training examples")
    return count


def _take(examples: Examples, indices: Tensor) -> Examples:
    # For bytes ten times as fast as images[indices].
    return examples._replace(images=examples.images.index_select(0, indices), targets=examples.targets[indices])
