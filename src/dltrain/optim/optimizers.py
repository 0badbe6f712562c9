"""Optimizers, from torch except Muon: each public function is an option of the group `optim`.

They take named parameters, so that biases and norms can be excluded from weight decay.
"""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import nn

from dltrain.optim.muon import Muon

Rate = Annotated[float, Interval(gt=0)]
Decay = Annotated[float, Interval(ge=0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Parameters = Iterable[tuple[str, nn.Parameter]]


def sgd(
    named_parameters: Parameters,
    *,
    lr: Rate,
    momentum: Fraction,
    nesterov: bool,
    weight_decay: Decay,
    decay_biases: bool,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum.

    Args:
        lr: learning rate
        momentum: fraction of the last update that is kept
        nesterov: look ahead along the momentum (needs momentum > 0)
        weight_decay: pull of the weights towards zero (L2)
        decay_biases: decay biases and norm weights too
    """
    groups = _groups(named_parameters, weight_decay, decay_biases)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


def adam(
    named_parameters: Parameters, *, lr: Rate, beta1: Fraction, beta2: Fraction, weight_decay: Decay, decay_biases: bool
) -> torch.optim.Optimizer:
    """Adam (Kingma, Ba, 2015).

    Args:
        lr: learning rate
        beta1: decay of the running mean of the gradients
        beta2: decay of the running mean of their squares
        weight_decay: pull of the weights towards zero (L2, through the gradient)
        decay_biases: decay biases and norm weights too
    """
    groups = _groups(named_parameters, weight_decay, decay_biases)
    return torch.optim.Adam(groups, lr=lr, betas=(beta1, beta2), fused=True)


def adamw(
    named_parameters: Parameters, *, lr: Rate, beta1: Fraction, beta2: Fraction, weight_decay: Decay, decay_biases: bool
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov, Hutter, 2019).

    Args:
        lr: learning rate
        beta1: decay of the running mean of the gradients
        beta2: decay of the running mean of their squares
        weight_decay: pull of the weights towards zero, times the learning rate
        decay_biases: decay biases and norm weights too
    """
    groups = _groups(named_parameters, weight_decay, decay_biases)
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), fused=True)


def rmsprop(
    named_parameters: Parameters,
    *,
    lr: Rate,
    alpha: Fraction,
    momentum: Fraction,
    weight_decay: Decay,
    decay_biases: bool,
) -> torch.optim.Optimizer:
    """RMSprop: gradients divided by a running mean of their size (Hinton, 2012).

    Args:
        lr: learning rate
        alpha: decay of the running mean of the squared gradients
        momentum: fraction of the last update that is kept
        weight_decay: pull of the weights towards zero (L2)
        decay_biases: decay biases and norm weights too
    """
    groups = _groups(named_parameters, weight_decay, decay_biases)
    return torch.optim.RMSprop(groups, lr=lr, alpha=alpha, momentum=momentum)


def muon(
    named_parameters: Parameters,
    *,
    lr: Rate,
    momentum: Fraction,
    iterations: Annotated[int, Interval(ge=1, le=99)],
    rescale: bool,
    plain_momentum: Fraction,
    weight_decay: Decay,
    decay_biases: bool,
) -> torch.optim.Optimizer:
    """Muon for filters and matrices before the last layer, Nesterov momentum for the others (Jordan et al., 2024).

    Args:
        lr: learning rate; for the other parameters times head_factor, bias_factor and norm_factor
        momentum: fraction of the last update of a matrix that is kept
        iterations: Newton-Schulz iterations that make an update of a matrix orthogonal
        rescale: scale each matrix to the norm of an orthogonal one before its update
        plain_momentum: fraction of the last update of the others that is kept
        weight_decay: pull of the weights towards zero, times the learning rate
        decay_biases: decay biases and norm weights too
    """
    named = list(named_parameters)
    weights = [parameter for name, parameter in named if "weight" in name and _layer(name) != _layer(named[-1][0])]
    matrices = {weight for weight in weights if weight.ndim > 1 and not weight.is_complex()}
    groups = []
    for group in _groups(named, weight_decay, decay_biases):
        for steps, decay in ((iterations, momentum), (0, plain_momentum)):
            chosen = [parameter for parameter in group["params"] if (parameter in matrices) == bool(steps)]
            options = {"lr": lr, "momentum": decay, "iterations": steps, "rescale": rescale}
            groups.append(group | options | {"params": chosen})
    return Muon([group for group in groups if group["params"]])


def scale_lr(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    head_factor: Rate = 1.0,
    bias_factor: Rate = 1.0,
    norm_factor: Rate = 1.0,
) -> torch.optim.Optimizer:
    """Scale the learning rates of the last layer, biases and norms; return the optimizer. Factors multiply.

    Args:
        head_factor: factor on the rate of the last layer that has parameters
        bias_factor: factor on the rate of biases
        norm_factor: factor on the rate of the weights of norms
    """
    if head_factor == bias_factor == norm_factor == 1:
        return optimizer
    names = {parameter: name for name, parameter in model.named_parameters()}
    head = _layer(list(names.values())[-1])

    def factor(parameter: nn.Parameter) -> float:
        layer, _, kind = names[parameter].rpartition(".")
        by_kind = bias_factor if "bias" in kind else norm_factor if parameter.ndim <= 1 else 1.0
        return by_kind * (head_factor if layer == head else 1.0)

    groups = []
    for group in optimizer.param_groups:
        # The unscaled parameters come first, since the first group's learning rate is the one that is recorded.
        for scale in sorted(set(map(factor, group["params"])), key=lambda scale: (scale != 1, scale)):
            chosen = [parameter for parameter in group["params"] if factor(parameter) == scale]
            groups.append(group | {"params": chosen, "lr": group["lr"] * scale})
    optimizer.param_groups[:] = groups
    return optimizer


def _layer(name: str) -> str:
    """Return the name of a parameter's layer: `features.3` for `features.3.weight`."""
    return name.rpartition(".")[0]


def _groups(named_parameters: Parameters, weight_decay: float, decay_biases: bool) -> list[dict[str, Any]]:
    """Return groups of parameters with and without decay; those of at most one dimension are biases and norms."""
    parameters = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    if decay_biases or not weight_decay:
        return [{"params": parameters, "weight_decay": weight_decay}]
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    undecayed = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
