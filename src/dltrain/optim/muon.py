"""Muon: momentum with orthogonalised updates of matrices (Jordan et al., 2024). Knows tensors only.

torch.optim.Muon takes only matrices; here the filters of a convolution count as a matrix too, and other parameters
get plain momentum.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dltrain.optim.step import copy_flat, flattened

# a, b and c of a x + b x^3 + c x^5: applied repeatedly, it brings singular values of at most 1 into 0.7 to 1.2.
COEFFICIENTS = 3.4445, -4.7750, 2.0315

TINY = 1e-7  # least divisor for a norm


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, with orthogonalised updates in groups with iterations > 0.

    Args:
        groups: each with params, lr, momentum, weight_decay (decoupled), iterations (0 for plain momentum) and rescale
            (whether weights are set to the norm of an orthogonal matrix before each update)
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    # Where `found_inf` is set, to a tensor on the device, a step changes nothing if it is 1, as with fused kernels.
    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient; closures are not supported."""
        assert closure is None
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        chosen = [(each, group) for group in self.param_groups for each in group["params"] if each.grad is not None]
        for weight, _ in chosen:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        written = [each for weight, _ in chosen for each in (weight, self.state[weight]["momentum_buffer"])]
        before = {} if found_inf is None else flattened(written)
        for weight, group in chosen:
            update(weight, weight.grad, self.state[weight]["momentum_buffer"], group)
        if found_inf is not None:
            for kind, (after, tensors) in flattened(written).items():
                copy_flat(torch.where(found_inf == 1, before[kind][0], after), tensors)


def update(weight: Tensor, gradient: Tensor, buffer: Tensor, group: Mapping[str, Any]) -> None:
    """Update a weight and its momentum in place, by the options of its group."""
    buffer.mul_(group["momentum"]).add_(gradient)
    change, rate = gradient.add(buffer, alpha=group["momentum"]), group["lr"]
    if group["iterations"]:
        matrix = change.flatten(1)  # (out, in * height * width)
        rows, columns = matrix.shape
        change = orthogonalize(matrix, group["iterations"]).view(weight.shape)
        if group["rescale"]:
            weight.mul_(math.sqrt(rows) / weight.norm().clamp(min=TINY))
        change *= math.sqrt(max(1, rows / columns))  # a tall matrix has fewer singular directions
    weight.mul_(1 - rate * group["weight_decay"])
    if isinstance(rate, Tensor):  # on the device, where `alpha` would have to be read
        weight.addcmul_(change, rate, value=-1)
    else:
        weight.add_(change, alpha=-rate)


def orthogonalize(matrix: Tensor, iterations: int) -> Tensor:
    """Bring all singular values of a matrix (rows, columns) near 1, by Newton-Schulz iterations in bfloat16."""
    a, b, c = COEFFICIENTS
    rows, columns = matrix.shape
    x = matrix.bfloat16()
    x = x.T if rows > columns else x  # makes the products smaller
    x = x / x.norm().clamp(min=TINY)  # singular values are now at most 1
    for _ in range(iterations):
        square = x @ x.T
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        x = torch.addmm(x, factor, x, beta=a)
    return (x.T if rows > columns else x).to(matrix.dtype)
