"""Checks that the weights of a file fit a network, and copies those that match."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.checkpoints import checkpoint
from dltrain.runtime.errors import ConfigError, InputError, printable
from dltrain.training import build


def check_weights(node: dict[str, Any], known: dict[str, Any], weights: dict[str, Tensor], path: Path) -> nn.Module:
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
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(f"{path}: its weights do not fit the model: {'; '.join(faults[:3])}{more}")
    return network


def initial_weights(node: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Load the weights of a file to start a model from.

    Raises InputError if no weight of a checkpoint is the model's; that needs no data to be read.
    """
    weights, known = checkpoint.load_weights(checkpoint.find(path, "best.pt"))
    if known is not None:
        _matching(_model_of_checkpoint(node, known), weights, path)
    return weights


def pretrained_weights(network: nn.Module, node: dict[str, Any]) -> dict[str, Tensor] | None:
    """Return the weights of a model with a method `pretrained_weights()`, else None. Raises ConfigError."""
    if (load := getattr(network, "pretrained_weights", None)) is None:
        return None
    try:
        weights: dict[str, Tensor] = load()
    except ValueError as error:
        raise ConfigError(f"model={node['name']}: {error}") from error
    return weights


def _model_of_checkpoint(node: dict[str, Any], known: dict[str, Any]) -> nn.Module:
    """Build the model for the data of a checkpoint; built-in ones without memory, as a file may claim any size."""
    with contextlib.nullcontext() if ":" in node["name"] else torch.device("meta"):
        return build.model(node, tuple(known["input_shape"]), known["outputs"])


def copy_matching(network: nn.Module, weights: dict[str, Tensor], path: Path) -> list[str]:
    """Copy the weights that match by name and shape; return a line for each that does not, in either direction.

    Raises InputError if none does.
    """
    state = network.state_dict()
    matching = _matching(network, weights, path)
    network.load_state_dict(matching, strict=False)
    lines = []
    for key in sorted(weights.keys() | state.keys()):
        if key not in state:
            lines.append(f"{printable(key[:80])} {tuple(weights[key].shape)}: not in the model")
        elif key not in weights:
            lines.append(f"{key} {tuple(state[key].shape)}: not in the file, left as initialised")
        elif key not in matching:
            lines.append(f"{key}: {tuple(weights[key].shape)} in the file, {tuple(state[key].shape)} in the model")
    return lines


def _matching(network: nn.Module, weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    state = network.state_dict()
    matching = {
        key: value
        for key, value in weights.items()
        if key in state and state[key].shape == value.shape and state[key].is_complex() == value.is_complex()
    }
    if not matching:
        raise InputError(f"{path}: no weight in it matches the model by name and shape; is it for another model?")
    return matching
