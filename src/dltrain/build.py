"""A checked config to the parts of a run: data, model, optimizer. Shared by train, eval and predict."""

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from dltrain import compiler, optim, runtime, schema, settings
from dltrain.data.augmentation import Augmentation
from dltrain.data.batches import Batches, Statistics, normalization
from dltrain.data.examples import Examples, Source, read, train_and_val
from dltrain.errors import ConfigError, InputError, first_line
from dltrain.step import Task

# Evaluation keeps no activations for a backward pass: larger batches need no more memory.
EVAL_BATCHES = 4
SEEN, SEEN_NUMBERS = 5000, 1 << 26  # pictures that a network may begin from, and the numbers in them


@dataclass(frozen=True)
class Data:
    """The splits of a data set, and what a network trained on them must know to be used on others."""

    train: Examples
    val: Examples | None
    test: Examples | None
    statistics: Statistics

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W)"""
        return tuple(self.train.images.shape[1:])

    @property
    def outputs(self) -> int:
        """Classes, or numbers to predict."""
        return len(self.train.classes) or self.train.targets.shape[-1]

    @functools.cached_property
    def range(self) -> list[float] | None:
        """Least and greatest number in the training set's images that is finite; None of bytes."""
        images = self.train.images
        if images.dtype == torch.uint8:
            return None
        ends = [float(end) for end in images.aminmax()]
        if not all(map(math.isfinite, ends)):
            ends = [float(end) for end in images.nan_to_num(0, 0, 0).aminmax()]
        return ends

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the examples of each split."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {split: digest(examples) for split, examples in splits.items() if examples is not None}


def digest(examples: Examples) -> str:
    """SHA-256 of examples: their shape, class names, bytes and targets."""
    found = hashlib.sha256(repr((examples.images.shape, examples.classes)).encode())
    for tensor in (examples.images, examples.targets):
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()


def data(node: dict[str, Any], seed: int, source: Source | None = None) -> Data:
    """All splits, in memory. Raises InputError for missing or damaged files, ConfigError for a split that fails."""
    source = source or schema.bind("data", node)
    train, val = train_and_val(source, val=node["val"], limit=node["limit"], seed=seed)
    test = read(source, "test")
    for split, examples in (("val", val), ("test", test)):
        if examples is not None and examples.images.shape[1:] != train.images.shape[1:]:
            shapes = [tuple(part.images.shape[1:]) for part in (train, examples)]
            raise InputError(f"data: the train split has images of {shapes[0]}, the {split} split of {shapes[1]}")
        if examples is not None:
            check_classes(train.classes, examples, split)
    return Data(train, val, test, normalization(train.images, mean=node["mean"], std=node["std"]))


def check_classes(classes: Sequence[str], examples: Examples, split: str) -> None:
    """Raise InputError where a split has other classes than the training had: its figures would be wrong."""
    strangers = [name for name in examples.classes if name not in classes]
    if strangers or examples.classes != tuple(classes)[: len(examples.classes)]:
        raise InputError(
            f"data: the {split} split has classes {', '.join(examples.classes[:20])}; "
            f"trained are {', '.join(classes[:20])}, in that order"
        )


def training_batches(data: Data, place: runtime.Runtime, node: dict[str, Any], own: settings.Train) -> Batches:
    """Batches of the training set, shuffled, augmented as the data's node says, and shared among all processes."""
    # Older checkpoints have less.
    asked = {key.name: node[key.name] for key in fields(Augmentation) if key.name in node}
    return Batches(
        data.train,
        place.device,
        batch_size=own.batch_size * own.accumulate,
        statistics=data.statistics,
        augmentation=Augmentation(**asked),
        seed=own.seed,
        processes=place.processes,
    )


def evaluation_batches(examples: Examples, place: runtime.Runtime, statistics: Statistics, batch_size: int) -> Batches:
    """Batches of a split to be evaluated: without augmentation, and larger than in training."""
    size = min(EVAL_BATCHES * batch_size, len(examples.images))
    return Batches(examples, place.device, batch_size=size, statistics=statistics)


def model(node: dict[str, Any], input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A network with fresh weights on the CPU. Raises ConfigError where its keys do not fit the data."""
    try:
        network = schema.bind("model", node, input_shape=input_shape, num_classes=outputs)()
    except ConfigError:
        raise
    except Exception as error:  # a constructor's own check, or whatever a user's code does
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"model={node['name']} cannot be built for data of {input_shape}: {kind}{error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model={node['name']}: expected a torch.nn.Module, got {type(network).__name__}")
    return network


def initialize(network: nn.Module, data: Data) -> None:
    """Let a network with a method `initialize_from_pictures(images)` see the training set's first ones, normalised."""
    if callable(begin := getattr(network, "initialize_from_pictures", None)):
        few = max(1, min(SEEN, SEEN_NUMBERS // math.prod(data.input_shape)))
        batches = Batches(data.train, torch.device("cpu"), batch_size=few, statistics=data.statistics)
        begin(next(batches.in_order())[0])


def check_fit(
    network: nn.Module, node: dict[str, Any], task: Task, targets: Tensor, shape: Sequence[int], outputs: int
) -> None:
    """Raise ConfigError where model, task and data (`shape` of an input) do not fit; costs a pass of two examples."""
    network.eval()
    device = next(network.parameters(), targets).device
    try:
        with torch.no_grad():
            output = network(torch.zeros(2, *shape, device=device))
        output_shape = tuple(output.shape[1:])
    except Exception as error:
        raise ConfigError(f"model={node['name']} does not fit data of {tuple(shape)}: {first_line(error)}") from error
    finally:
        network.train()
    if problem := task.mismatch(targets, tuple(shape), output_shape, outputs):
        raise ConfigError(problem)


def check_last_batch(
    network: nn.Module, shape: Sequence[int], examples: int, batch_size: int, accumulate: int, processes: int = 1
) -> None:
    """Raise ConfigError where an epoch ends with one example alone, of which batch norm has no variance.

    It has one where a picture still has several pixels; so the network is asked, about an example of `shape`.
    """
    whole = batch_size * accumulate
    last = examples % whole or min(whole, examples)
    # With several processes the parts of whole batches can be as small.
    batches = {last} if processes == 1 else {last, min(whole, examples)}
    owned = {
        max(1, batch * (rank + 1) // processes - batch * rank // processes)
        for batch in batches
        for rank in range(processes)
    }
    alone = any((own % -(-own // accumulate) or -(-own // accumulate)) == 1 for own in owned)
    if alone and has_batch_norm(network) and not _takes_one(network, shape):
        where = "the last batch" if processes == 1 else f"a batch that {processes} processes share"
        raise ConfigError(
            f"batch_size={batch_size}: of {examples} examples one is left alone in {where}, "
            "which batch norm cannot use; choose another"
        )


def _takes_one(network: nn.Module, shape: Sequence[int]) -> bool:
    try:
        with runtime.tried_out(network), torch.no_grad():
            network.train()
            network(torch.zeros(1, *shape))
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    except Exception:  # a fault of another kind: the first step will tell
        return True
    return True


def has_batch_norm(network: nn.Module) -> bool:
    """Whether what it computes of an example depends on the others of its batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def optimizer(node: dict[str, Any], network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer, each group with its `initial_lr`. Raises ConfigError for keys that exclude each other."""
    compiler.leave_out()
    factors = {key: node[key] for key in ("head_factor", "bias_factor", "norm_factor") if key in node}
    own = {key: value for key, value in node.items() if key not in factors}
    try:
        built: torch.optim.Optimizer = schema.bind("optim", own)(network.named_parameters())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optim={node['name']}: {error}") from error
    if not isinstance(built, torch.optim.Optimizer):
        raise ConfigError(f"optim={node['name']}: expected a torch.optim.Optimizer, got {type(built).__name__}")
    built = optim.scaled(built, network, **factors)
    for group in built.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return built


def describe(model_name: str, data_name: str, network: nn.Module, found: Data) -> list[str]:
    """Lines for a person on the model and the data."""
    sizes = {"train": found.train, "val": found.val, "test": found.test}
    counts = ", ".join(f"{len(part.images):,} {split}" for split, part in sizes.items() if part is not None)
    shape = "x".join(map(str, found.input_shape))
    outputs = f"{found.outputs} classes" if found.train.classes else f"{found.outputs} numbers to predict"
    return [
        f"model   {model_name}, {count_parameters(network):,} parameters",
        f"data    {data_name}, {counts} examples of {shape}, {outputs}",
    ]


def count_parameters(network: nn.Module) -> int:
    """Numbers that training can change."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
