"""Layers that compute the same as torch's, faster on CPUs. The rules for their use are measured in docs/LOG.md."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dltrain.runtime.devices import Runtime

Result = TypeVar("Result")
IMAGES_PER_THREAD = 64  # with fewer, torch's layers are as fast
CHANNELS = 8  # with more, torch's pool is as fast: AVX-512 takes 16 at once, and fewer one by one


def with_fast_layers(step: Callable[..., Result], network: nn.Module, runtime: Runtime) -> Callable[..., Result]:
    """Return a training step that computes some layers of the network faster; the step itself if it has none of them.

    They have another class only during the step: summary, evaluation and export see torch's own.
    """
    layers = [
        layer
        for layer in network.modules()
        if type(layer) is nn.Sequential and any(_is_pair(*pair) for pair in itertools.pairwise(layer))
    ]
    where = runtime.device.type, runtime.precision, runtime.processes.world_size
    # With vectors of 8, as AVX2 has them, a grey image's kernels with a row and a column more cost more than they save.
    if not layers or where != ("cpu", "fp32", 1) or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return step

    def faster_step(*args: Any, **kwargs: Any) -> Result:
        switched = [layer for layer in layers if type(layer) is nn.Sequential]  # a hook may have changed it
        try:
            for layer in switched:
                layer.__class__ = PairedSequential
            return step(*args, **kwargs)
        finally:
            for layer in switched:
                layer.__class__ = nn.Sequential

    return faster_step


class PairedSequential(nn.Sequential):
    """Computes each pair of a convolution and a pool together where that is faster."""

    def forward(self, images: Tensor) -> Tensor:
        layers = [*self]
        while layers:
            layer = layers.pop(0)
            if layers and _is_pair(layer, layers[0]) and _pays(layer, images):
                images = conv_pool(layer, images)
                layers.pop(0)
            else:
                images = layer(images)
        return images


def _is_pair(conv: nn.Module, pool: nn.Module) -> TypeGuard[nn.Conv2d]:
    """True for a convolution of few channels and a pool of 2x2, without hooks, which would not be called."""
    if type(conv) is not nn.Conv2d or type(pool) is not nn.MaxPool2d or conv.out_channels > CHANNELS:
        return False
    options = conv.stride, conv.dilation, conv.groups, conv.padding_mode, isinstance(conv.padding, str)
    of_pool = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices
    is_plain = options == ((1, 1), (1, 1), 1, "zeros", False) and of_pool == (2, 2, 0, 1, False, False)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return is_plain and not any(getattr(layer, name) for layer in (conv, pool) for name in hooks)


def _pays(conv: nn.Conv2d, images: Tensor) -> bool:
    """True for many images that need no gradient and give even sides, unless torch transforms or compiles the step."""
    assert not isinstance(conv.padding, str)
    sides = zip(images.shape[-2:], conv.padding, conv.kernel_size, strict=True)
    return (
        conv.training
        and images.ndim == 4
        and not images.requires_grad
        and len(images) >= IMAGES_PER_THREAD * torch.get_num_threads()
        and all((side + 2 * padding - kernel) % 2 for side, padding, kernel in sides)
        and not nn.modules.module._has_any_global_hook()
        and not (torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling())
    )


def conv_pool(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """Return a convolution and its pool of 2x2, (B, C, H, W) to (B, O, H / 2, W / 2); H and W are even.

    The four values of each place of the pool are channels of one convolution with a stride of 2, whose kernels are the
    same, moved by a row, a column or both. So the pool compares whole images, not a few channels at each place.
    """
    count, channels, (height, width) = len(images), conv.out_channels, conv.kernel_size
    # So that its gradient lies as it does, also where it has one channel and strides that mean nothing.
    weight = conv.weight.as_strided(conv.weight.shape, conv.weight.stride())
    kernels = weight.flatten(2) @ _moves(height, width, weight.dtype)
    kernels = kernels.unflatten(2, (4, height + 1, width + 1)).transpose(1, 2).flatten(0, 1)  # (4 * O, C, …)
    bias = None if conv.bias is None else conv.bias.repeat_interleave(4)
    phases = F.conv2d(images, kernels, bias, stride=2, padding=conv.padding)
    # As images of four rows and one column, whose channels are all values of a phase: they lie side by side.
    rows = phases.reshape(count * channels, 4, 1, -1).permute(0, 3, 1, 2)
    # Permuted before it is viewed as images: otherwise its gradient would be copied twice.
    return F.max_pool2d(rows, (4, 1)).permute(0, 2, 3, 1).reshape(count, channels, *phases.shape[2:])


@functools.cache
def _moves(height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix of zeros and ones that moves a kernel to the four places in one with a row and column more."""
    ones = torch.eye(height * width, dtype=dtype, device="cpu").unflatten(1, (height, width))
    return torch.stack([F.pad(ones, (x, 1 - x, y, 1 - y)) for y in (0, 1) for x in (0, 1)], dim=1).flatten(1)
