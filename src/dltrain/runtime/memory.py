"""How a network lies in memory, in which precision it is computed, and what becomes of the memory of its steps."""

import ctypes
import functools
import os
from collections.abc import Sequence

import torch
from torch import nn

from dltrain.runtime.devices import Runtime, preserved_state


def to_device(network: nn.Module, runtime: Runtime, shape: Sequence[int]) -> nn.Module:
    """A network on its device, convolutions with channels last, the layout in which they are fastest.

    `shape` is that of an input (C, H, W). Networks that count on another layout, such as by `view`, keep their own.
    """
    keep_freed_memory()
    network = network.to(runtime.device)
    convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    if runtime.device.type == "cpu":
        gains = not any(map(_corrupts_memory, convolutions))
    else:
        gains = runtime.precision == "bf16"  # which uses the tensor cores
    if gains and convolutions and not _trains_with_channels_last(network, runtime, shape):
        for each in convolutions:
            each.to(memory_format=torch.contiguous_format)
    return network


def _corrupts_memory(convolution: nn.Conv2d) -> bool:
    """True for a strided 1x1 convolution of few channels: with channels last, torch writes past its weight gradient.

    Seen with torch 2.14 on a CPU with AVX2, for fewer channels than a register holds; AVX-512 has registers of 16.
    """
    return convolution.kernel_size == (1, 1) and convolution.stride != (1, 1) and convolution.in_channels < 16


def _trains_with_channels_last(network: nn.Module, runtime: Runtime, shape: Sequence[int]) -> bool:
    """Lay a network's convolutions out anew, and see whether it evaluates and trains two examples; draws nothing."""
    images = torch.zeros(2, *shape, device=runtime.device)
    try:
        with preserved_state(network):
            for each in network.modules():
                # On CPUs bf16's convolution of one channel, kernel of one row, reads memory then that nobody wrote.
                if isinstance(each, nn.Conv2d) and (each.in_channels, each.kernel_size[0]) != (1, 1):
                    each.to(memory_format=torch.channels_last)
            network.eval()
            with torch.no_grad():
                network(images)
            network.train()
            network(images).float().sum().backward()
    except Exception:  # whatever a person's own network does; with another layout it will tell by itself
        return False
    return True


@functools.cache  # once for each process
def keep_freed_memory() -> None:
    """Let glibc keep what a step has freed for the next one.

    It gives large tensors back to the system at once, which zeroes and maps them anew, page by page, in every step: a
    third of the time of a small convolutional network. The peak stays what it is.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None  # of Linux's C library
    if set_option is not None:
        mmap_threshold, trim_threshold = -3, -1
        set_option(mmap_threshold, 1 << 30) or set_option(mmap_threshold, 32 << 20)  # the most that older ones take
        set_option(trim_threshold, 2**31 - 1)
