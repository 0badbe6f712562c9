"""The weights of a file and the network they are for: do they fit, and what is taken from them."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.checkpoints import checkpoint
from dltrain.runtime.errors import ConfigError, InputError, printable
from dltrain.training import build


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


def initial_weights(node: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of a file that a model is to start from.

    Raises InputError, for a checkpoint before any data is read, where none of them is the model's.
    """
    weights, known = checkpoint.load_weights(checkpoint.find(path, "best.pt"))
    if known is not None:
        _matching(_claimed(node, known), weights, path)
    return weights


def pretrained_weights(network: nn.Module, node: dict[str, Any]) -> dict[str, Tensor] | None:
    """What a model that has a method `pretrained_weights()` starts from. Raises ConfigError where that fails."""
    if (given := getattr(network, "pretrained_weights", None)) is None:
        return None
    try:
        found: dict[str, Tensor] = given()
    except ValueError as error:
        raise ConfigError(f"model={node['name']}: {error}") from error
    return found


def _claimed(node: dict[str, Any], known: dict[str, Any]) -> nn.Module:
    """The model for the data that a checkpoint knows; a built-in one without memory: a stranger may claim any size."""
    with contextlib.nullcontext() if ":" in node["name"] else torch.device("meta"):
        return build.model(node, tuple(known["input_shape"]), known["outputs"])


def copy_matching(network: nn.Module, weights: dict[str, Tensor], path: Path) -> list[str]:
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
