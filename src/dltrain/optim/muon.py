"""Muon: momentum whose updates of a matrix are made orthogonal (Jordan et al., 2024). Knows tensors alone.

torch.optim.Muon takes matrices and nothing else; here filters of a convolution are one too, and other parameters have
plain momentum.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Of a x + b x^3 + c x^5, applied again and again: singular values up to 1 soon lie between 0.7 and 1.2.
COEFFICIENTS = 3.4445, -4.7750, 2.0315

TINY = 1e-7  # what a norm counts as at least


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum, orthogonalised in groups that ask for iterations of it.

    Args:
        groups: each with params, lr, momentum, weight_decay (decoupled), iterations (0 for plain momentum) and rescale
            (whether weights are set to the norm of an orthogonal matrix before each update)
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of each parameter that has a gradient; a closure is not taken."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        kept = self.state[weight]
        if "momentum_buffer" not in kept:
            kept["momentum_buffer"] = torch.zeros_like(weight)
        buffer = kept["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        update, rate = gradient.add(buffer, alpha=group["momentum"]), group["lr"]
        if group["iterations"]:
            matrix = update.flatten(1)  # (out, in * height * width)
            rows, columns = matrix.shape
            update = orthogonalize(matrix, group["iterations"]).view(weight.shape)
            if group["rescale"]:
                weight.mul_(math.sqrt(rows) / weight.norm().clamp(min=TINY))
            update *= math.sqrt(max(1, rows / columns))  # tall ones have fewer directions
        weight.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonalize(matrix: Tensor, iterations: int) -> Tensor:
    """A matrix (rows, columns) with all its singular values near 1, by Newton-Schulz iterations in bf16."""
    a, b, c = COEFFICIENTS
    rows, columns = matrix.shape
    found = matrix.bfloat16()
    found = found.T if rows > columns else found  # the products are then smaller
    found = found / found.norm().clamp(min=TINY)  # singular values are at most 1
    for _ in range(iterations):
        square = found @ found.T
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        found = torch.addmm(found, factor, found, beta=a)
    return (found.T if rows > columns else found).to(matrix.dtype)
