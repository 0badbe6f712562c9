"""A checked config to the parts of a run: data, model, optimizer. Shared by train, eval and predict."""

import contextlib
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dltrain import checkpoint, compiler, runtime, schema
from dltrain.data.batches import Batches, Statistics, normalization
from dltrain.data.examples import Examples, Source, read, train_and_val
from dltrain.errors import ConfigError, InputError, printable
from dltrain.step import Task

# Evaluation keeps no activations for a backward pass: larger batches need no more memory.
EVAL_BATCHES = 4


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
    def digests(self) -> dict[str, str]:
        """SHA-256 of the examples of each split."""
        digests = {}
        for split, examples in (("train", self.train), ("val", self.val), ("test", self.test)):
            if examples is not None:
                digest = hashlib.sha256(repr((examples.images.shape, examples.classes)).encode())
                for tensor in (examples.images, examples.targets):
                    digest.update(tensor.contiguous().numpy().data)
                digests[split] = digest.hexdigest()
        return digests


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
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model={node['name']} does not fit data of {tuple(shape)}: {reason}") from error
    finally:
        network.train()
    if problem := task.mismatch(targets, tuple(shape), output_shape, outputs):
        raise ConfigError(problem)


def check_last_batch(network: nn.Module, examples: int, batch_size: int, accumulate: int, processes: int = 1) -> None:
    """Raise ConfigError where an epoch ends with one example alone, of which batch norm has no variance."""
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
    if alone and any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
        where = "the last batch" if processes == 1 else f"a batch that {processes} processes share"
        raise ConfigError(
            f"batch_size={batch_size}: of {examples} examples one is left alone in {where}, "
            "which batch norm cannot use; choose another"
        )


def has_batch_norm(network: nn.Module) -> bool:
    """Whether what it computes of an example depends on the others of its batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def optimizer(node: dict[str, Any], network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer, each group with its `initial_lr`. Raises ConfigError for keys that exclude each other."""
    compiler.leave_out()
    try:
        built: torch.optim.Optimizer = schema.bind("optim", node)(network.named_parameters())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optim={node['name']}: {error}") from error
    if not isinstance(built, torch.optim.Optimizer):
        raise ConfigError(f"optim={node['name']}: expected a torch.optim.Optimizer, got {type(built).__name__}")
    for group in built.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return built


def check_weights(node: dict[str, Any], known: dict[str, Any], weights: dict[str, Tensor], path: Path) -> nn.Module:
    """Raise InputError where weights are not exactly the model's; returns it, without its weights."""
    network = _claimed(node, known)
    own = network.state_dict()
    faults = [f"{key} is missing" for key in own if key not in weights]
    faults += [f"{printable(key[:80])} is unknown to the model" for key in weights if key not in own]
    for key in [key for key in own if key in weights]:
        found, expected = ((tuple(tensor.shape), tensor.dtype) for tensor in (weights[key], own[key]))
        if found != expected:
            faults.append(f"{key} is {found[1]} {found[0]}, the model has {expected[1]} {expected[0]}")
    held = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in weights.values()}
    needed = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    if not faults and needed > sum(held.values()):  # many that lie in one place
        faults = [f"the model has {needed:,} bytes of them, the file {sum(held.values()):,}"]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(f"{path}: its weights do not fit the model: {'; '.join(faults[:3])}{more}")
    return network


def starting_weights(node: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of a file that a model is to start from.

    Raises InputError, for a checkpoint before any data is read, where none of them is the model's.
    """
    weights, known = checkpoint.load_weights(checkpoint.find(path, "best.pt"))
    if known is not None:
        _matching(_claimed(node, known), weights, path)
    return weights


def _claimed(node: dict[str, Any], known: dict[str, Any]) -> nn.Module:
    """The model for the data that a checkpoint knows; a built-in one without memory: a stranger may claim any size."""
    with contextlib.nullcontext() if ":" in node["name"] else torch.device("meta"):
        return model(node, tuple(known["input_shape"]), known["outputs"])


def load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path) -> list[str]:
    """Copy the weights whose name and shape match; returns a line for each that did not, in either direction.

    Raises InputError where none does.
    """
    own = network.state_dict()
    matching = _matching(network, weights, path)
    network.load_state_dict(matching, strict=False)
    lines = []
    for key in sorted(weights.keys() | own.keys()):
        if key not in own:
            lines.append(f"{printable(key[:80])} {tuple(weights[key].shape)}: not in the model")
        elif key not in weights:
            lines.append(f"{key} {tuple(own[key].shape)}: not in the file, left as initialised")
        elif key not in matching:
            lines.append(f"{key}: {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the model")
    return lines


def _matching(network: nn.Module, weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    own = network.state_dict()
    matching = {
        key: value
        for key, value in weights.items()
        if key in own and own[key].shape == value.shape and own[key].is_complex() == value.is_complex()
    }
    if not matching:
        raise InputError(f"{path}: no weight in it matches the model by name and shape; is it for another model?")
    return matching


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
