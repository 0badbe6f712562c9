"""Checks that the weights of a file fit a network, and copies those that match."""

import contextlib
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.checkpoints import checkpoint
from dltrain.runtime.errors import ConfigError, InputError, listed, printable
from dltrain.training import build

DEEPEST = 8  # parts of a name that may be a prefix
SHOWN = 3  # weights that do not fit and are named
Weights = dict[str, Tensor]


def check_weights(node: dict[str, Any], known: dict[str, Any], weights: Weights, path: Path) -> nn.Module:
    """Raise InputError unless weights have the names, shapes and types of the model; return the model, without them."""
    network = _model_of_checkpoint(node, known)
    state = network.state_dict()
    faults = [f"{key} is missing" for key in state if key not in weights]
    faults += [f"the model has no {printable(key[:80])}" for key in weights if key not in state]
    for key in [key for key in state if key in weights]:
        actual, expected = ((tuple(tensor.shape), tensor.dtype) for tensor in (weights[key], state[key]))
        if actual != expected:
            faults.append(f"{key} is {actual[1]} {actual[0]}, the model has {expected[1]} {expected[0]}")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights.values()}
    needed = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    if not faults and needed > sum(storages.values()):  # tensors that share storage
        faults = [f"the model has {needed:,} bytes of them, the file {sum(storages.values()):,}"]
    if faults:
        raise InputError(f"{path}: its weights do not fit the model: {listed(faults, SHOWN, '; ')}")
    return network


def initial_weights(node: dict[str, Any], path: Path, *, is_partial: bool) -> Weights:
    """Load the weights of a file to start from; those of a checkpoint are checked at once, as by `copy_matching`."""
    weights, known = checkpoint.load_weights(checkpoint.find(path, "best.pt"))
    if known is not None:
        _matching(_model_of_checkpoint(node, known).state_dict(), weights, path, is_partial)
    return weights


def pretrained_weights(network: nn.Module, node: dict[str, Any]) -> Weights | None:
    """Return the weights of a model with a method `pretrained_weights()`, else None. Raises ConfigError."""
    if (load := getattr(network, "pretrained_weights", None)) is None:
        return None
    try:
        return load()
    except ValueError as error:
        raise ConfigError(f"model={node['name']}: {error}") from error


def _model_of_checkpoint(node: dict[str, Any], known: dict[str, Any]) -> nn.Module:
    """Build the model for the data of a checkpoint; built-in ones without memory, as a file may claim any size."""
    with contextlib.nullcontext() if ":" in node["name"] else torch.device("meta"):
        return build.model(node, tuple(known["input_shape"]), known["outputs"])


def copy_matching(network: nn.Module, weights: Weights, path: Path, *, is_partial: bool) -> list[str]:
    """Copy the weights that match by name and shape; return lines on the others, in either direction.

    Raises InputError if none does, or without `is_partial` if they are less than half of the model's numbers.
    """
    matching, lines = _matching(network.state_dict(), weights, path, is_partial)
    network.load_state_dict(matching, strict=False)
    return lines


def _matching(state: Weights, weights: Weights, path: Path, is_partial: bool) -> tuple[Weights, list[str]]:
    weights, lines = _without_prefix(weights, state)
    matching = {
        key: value
        for key, value in weights.items()
        if key in state and state[key].shape == value.shape and state[key].is_complex() == value.is_complex()
    }
    if not matching:
        raise InputError(f"{path}: no weight in it matches the model by name and shape; is it for another model?")
    faults = []
    for key in sorted(weights.keys() | state.keys()):
        if key not in state:
            faults.append(f"{printable(key[:80])} {tuple(weights[key].shape)}: not in the model")
        elif key not in weights:
            faults.append(f"{key} {tuple(state[key].shape)}: not in the file, left as initialised")
        elif key not in matching:
            faults.append(f"{key}: {tuple(weights[key].shape)} in the file, {tuple(state[key].shape)} in the model")
    if not faults:
        return matching, lines
    taken, total = (sum(state[key].numel() for key in keys) for keys in (matching, state))
    summary = f"{len(matching)} of {len(state)} tensors taken, {100 * taken // total or 'less than 1'} % of the numbers"
    # The last layer may be another one, as for other classes: then it is not expected in the file.
    head = next(reversed(state)).rpartition(".")[0]
    of_head = [key for key in state if key.rpartition(".")[0] == head]
    if not matching.keys() & of_head:
        total -= sum(state[key].numel() for key in of_head)
    if 2 * taken < total and not is_partial:
        advice = "To start from these weights all the same, add init_partial=true"
        raise InputError(f"{path}: {summary}; is it for another model?\n{'; '.join(faults[:2])}\n{advice}")
    more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return matching, [*lines, summary, *faults[:SHOWN], *more]


def _without_prefix(weights: Weights, known: Weights) -> tuple[Weights, list[str]]:
    """Remove the start of most names, such as `module.`, that hides names of the model; return also a line on it."""
    counts: Counter[str] = Counter()
    for name in weights:
        for start in itertools.accumulate((f"{part}." for part in name.split(".", DEEPEST)[:-1]), initial=""):
            if name.removeprefix(start) in known:
                counts[start] += 1
    best = max(counts, key=lambda start: (counts[start], -len(start)), default="")
    having = sum(name.startswith(best) for name in weights)
    if not best or 2 * having <= len(weights):
        return weights, []
    share = "all" if having == len(weights) else f"{having} of {len(weights)}"
    renamed = {name.removeprefix(best): value for name, value in weights.items()}
    return renamed, [f"stripped '{printable(best[:80])}' from {share} names"]
