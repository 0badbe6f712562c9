"""Choose the number of CPU threads by a rule: from the work of a training step and the cores, never from a timing."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.runtime import system_info

# Measured in docs/LOG.md. Writing a number to memory takes as long as so many operations of a matrix product.
FLOPS_OF_A_WRITE = 500
# Two threads pay from four times as much work in a step. All threads wait for each other after each operation, which
# takes the longer the more there are: so n threads need n times n as much.
FLOPS_FOR_A_THREAD = 56e6


def available() -> int:
    """Return how many threads may be used: torch's number, which OMP_NUM_THREADS and a sweep set, on usable cores."""
    return max(1, min(torch.get_num_threads(), int(system_info.usable_cores())))


def choose(flops: float, most: int) -> int:
    """Return the number of threads, at most `most`, for a training step of so many floating-point operations."""
    return max(1, min(most, math.isqrt(int(flops / FLOPS_FOR_A_THREAD))))


@torch.no_grad()
def step_flops(network: nn.Module, shape: Sequence[int], batch_size: int) -> float:
    """Estimate the operations of a training step from a forward pass of two examples of `shape` (C, H, W).

    A weight is used once for each position of its layer's output; the backward pass takes twice as long as the forward.
    """
    products = writes = 0.0

    def count(layer: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal products, writes
        output = output[0] if isinstance(output, tuple | list) and output else output  # an LSTM returns its state too
        if isinstance(output, Tensor) and output.ndim > 1 and output.layout is torch.strided:
            channels = output.shape[1 if output.ndim == 4 else -1]
            weights = sum(weight.numel() for weight in layer.parameters(recurse=False) if weight.ndim > 1)
            products += 2 * weights * output.numel() / 2 / max(1, channels)
            is_view = any(isinstance(each, Tensor) and each.data_ptr() == output.data_ptr() for each in inputs)
            writes += 0 if is_view or list(layer.children()) else output.numel() / 2

    was_training = network.training
    network.eval()
    layers = [layer for layer in network.modules() if not isinstance(layer, torch.jit.ScriptModule)]  # takes no hooks
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        network(torch.zeros(2, *shape, device=next(network.parameters(), torch.empty(())).device))
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was_training)
    return batch_size * (3 * products + FLOPS_OF_A_WRITE * writes)
