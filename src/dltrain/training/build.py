"""Builds the parts of a run from a checked config: data, model, optimizer. Shared by train, eval and predict."""

import functools
import hashlib
import itertools
import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.config import registry, settings
from dltrain.config.metric_names import smaller_is_better
from dltrain.data.augmentation import Augmentation, effective
from dltrain.data.loader import Statistics, TensorLoader, normalization
from dltrain.data.mapped_images import blocks
from dltrain.data.splits import Examples, Source, read_split, rules, split_train_val
from dltrain.optim import optimizers
from dltrain.optim.metrics import WithMetric
from dltrain.optim.step import Task
from dltrain.runtime import no_dynamo
from dltrain.runtime.devices import Runtime
from dltrain.runtime.errors import ConfigError, InputError
from dltrain.training.checks import check_classes

# Evaluation keeps no activations for a backward pass: larger batches need no more memory.
EVAL_BATCHES = 4
MOST_COMPARED = 2**30  # bytes of images; more would take seconds
INIT_IMAGES, INIT_VALUES = 5000, 1 << 26  # limits of what `initialize` passes: images, and values in them


@dataclass(frozen=True)
class Data:
    """The splits of a data set, and what a network trained on them needs to process other data."""

    train: Examples
    val: Examples | None
    test: Examples | None
    statistics: Statistics
    rules: int = field(default_factory=rules.get)

    @property
    def splits(self) -> dict[str, Examples]:
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {split: examples for split, examples in splits.items() if examples is not None}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of an image (C, H, W)."""
        return tuple(self.train.images.shape[1:])

    @property
    def outputs(self) -> int:
        """Number of classes, or of values to predict."""
        return len(self.train.classes) or self.train.targets.shape[-1]

    @functools.cached_property
    def range(self) -> list[float] | None:
        """Smallest and largest finite value in the training images; None for uint8."""
        images = self.train.images
        if images.dtype == torch.uint8:
            return None
        ends = images.aminmax()
        return [*map(float, ends if all(map(math.isfinite, ends)) else images.nan_to_num(0, 0, 0).aminmax())]

    @functools.cached_property
    def class_counts(self) -> dict[str, list[int]]:
        """Number of examples of each class in each split; empty without classes."""
        if not (classes := len(self.train.classes)) or self.train.targets.is_floating_point():
            return {}
        return {split: part.targets.bincount(minlength=classes).tolist() for split, part in self.splits.items()}

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the examples of each split."""
        return {split: digest(examples) for split, examples in self.splits.items()}

    @functools.cached_property
    def shared_images(self) -> list[str]:
        """How many images of a split, byte for byte, are in another one too."""
        splits = {split: part.images for split, part in self.splits.items()}
        if sum(images.nbytes for images in splits.values()) > MOST_COMPARED:
            return []
        # Nearly all images have sums of their own; the bytes of the others are compared.
        sums = [_word_sums(images) for images in splits.values()]
        _, places, counts = torch.cat(sums).unique(return_inverse=True, return_counts=True)
        alike = (counts[places] > 1).split([*map(len, sums)])
        hashes = {
            split: [
                hash(image.tobytes()) for rows in some.nonzero().flatten().split(100) for image in images[rows].numpy()
            ]
            for (split, images), some in zip(splits.items(), alike, strict=True)
        }
        shared = []
        for split, other in itertools.combinations(reversed(hashes), 2):
            if found := sum(map(set(hashes[other]).__contains__, hashes[split])):
                shared.append(f"{found:,} of {len(splits[split]):,} {split} images are in {other}")
        return shared


def _word_sums(images: Tensor) -> Tensor:
    """Return the sum (N,) of each image's bytes, eight at a time as a whole number."""
    sums, start = torch.empty(len(images), dtype=torch.int64), 0  # one tensor: small ones would fragment freed memory
    for block in blocks(images):
        rows = nn.functional.pad(block.contiguous().flatten(1), (0, -block[0].numel() % 8))
        sums[start : start + len(rows)] = rows.flatten().view(torch.int64).view(len(rows), -1).sum(1)
        start += len(rows)
    return sums


def digest(examples: Examples) -> str:
    """Return the SHA-256 of examples: shape, class names, images and targets."""
    sha256 = hashlib.sha256(repr((examples.images.shape, examples.classes)).encode())
    for tensor in (examples.images, examples.targets):
        for block in blocks(tensor):
            sha256.update(block.contiguous().numpy().data)
    return sha256.hexdigest()


def data(node: dict[str, Any], seed: int, source: Source | None = None) -> Data:
    """Load all splits. Raises InputError for missing or damaged files, ConfigError for a split that cannot be made."""
    source = source or registry.partial_call("data", node)
    train, val = train_and_val(node, seed, source)
    if node.get("balance") and train.targets.is_floating_point():
        problem = "needs data with classes; this data has numbers"
        raise ConfigError(f"data.balance={node['balance']}: {problem}. Set data.balance=0")
    test = read_split(source, "test")
    for split, examples in (("val", val), ("test", test)):
        if examples is not None and examples.images.shape[1:] != train.images.shape[1:]:
            shapes = [tuple(part.images.shape[1:]) for part in (train, examples)]
            raise InputError(f"data: the train split has images of {shapes[0]}, the {split} split of {shapes[1]}")
        if examples is not None:
            check_classes(train.classes, examples, split)
    return Data(train, val, test, normalization(train.images, mean=node["mean"], std=node["std"]))


def train_and_val(node: dict[str, Any], seed: int, source: Source) -> tuple[Examples, Examples | None]:
    """Load the training and the validation set as the node `data` divides them."""
    keys = {key: node[key] for key in ("val", "limit", "folds", "fold") if key in node}
    return split_train_val(source, seed=seed, **keys)


def training_batches(data: Data, runtime: Runtime, node: dict[str, Any], train: settings.Train) -> TensorLoader:
    """Return a loader of the training set: shuffled, augmented as in `node`, divided among the ranks."""
    # Older checkpoints have fewer keys.
    options = {key.name: node[key.name] for key in fields(Augmentation) if key.name in node}
    return TensorLoader(
        data.train,
        runtime.device,
        batch_size=train.batch_size * train.accumulate,
        statistics=data.statistics,
        augmentation=effective(Augmentation(**options), data.input_shape[0]),
        balance=node.get("balance", 0.0),
        seed=train.seed,
        processes=runtime.processes,
    )


def evaluation_batches(examples: Examples, runtime: Runtime, statistics: Statistics, batch_size: int) -> TensorLoader:
    """Return a loader for evaluation: without augmentation, with larger batches than in training."""
    size = min(EVAL_BATCHES * batch_size, len(examples.images))
    return TensorLoader(examples, runtime.device, batch_size=size, statistics=statistics)


def task(values: dict[str, Any], classes: int, class_counts: list[int] | None) -> Task:
    """Build the task of a config, which scores by `metric` if that is set; `class_counts` are of the training set."""
    built: Task = registry.partial_call("task", values["task"], class_counts=class_counts)()
    name = values["metric"]
    return built if name is None else WithMetric(built, name, smaller_is_better(name), classes)


def model(node: dict[str, Any], input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build a network with fresh weights on the CPU. Raises ConfigError if its keys do not fit the data."""
    try:
        network = registry.partial_call("model", node, input_shape=input_shape, num_classes=outputs)()
    except ConfigError:
        raise
    except Exception as error:  # a check in the constructor, or any error in the code of a user
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"model={node['name']} cannot be built for data of {input_shape}: {kind}{error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model={node['name']}: expected a torch.nn.Module, got {type(network).__name__}")
    return network


def initialize(network: nn.Module, data: Data) -> None:
    """Call `initialize_from_images(images)` of a network that has it, with the first training images, normalised."""
    if callable(initialize_from := getattr(network, "initialize_from_images", None)):
        count = max(1, min(INIT_IMAGES, INIT_VALUES // math.prod(data.input_shape)))
        batches = TensorLoader(data.train, torch.device("cpu"), batch_size=count, statistics=data.statistics)
        initialize_from(next(batches.in_order())[0])


def optimizer(node: dict[str, Any], network: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer, with `initial_lr` in each group. Raises ConfigError for keys that exclude each other."""
    no_dynamo.skip_dynamo_import()
    factors = {key: node[key] for key in ("head_factor", "bias_factor", "norm_factor") if key in node}
    options = {key: value for key, value in node.items() if key not in factors}
    try:
        built: torch.optim.Optimizer = registry.partial_call("optim", options)(network.named_parameters())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optim={node['name']}: {error}") from error
    if not isinstance(built, torch.optim.Optimizer):
        raise ConfigError(f"optim={node['name']}: expected a torch.optim.Optimizer, got {type(built).__name__}")
    trained = {parameter for group in built.param_groups for parameter in group["params"] if parameter.requires_grad}
    if trained.isdisjoint(network.parameters()):
        raise ConfigError(f"optim={node['name']}: no weights to train; are they frozen, or layers in a plain list?")
    built = optimizers.scale_lr(built, network, **factors)
    for group in built.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return built


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
