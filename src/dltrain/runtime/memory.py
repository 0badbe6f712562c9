"""Free memory, memory layout of a network and reuse of the memory that its steps free."""

import contextlib
import ctypes
import functools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dltrain.runtime.devices import Runtime, preserved_state

CGROUPS = Path("/sys/fs/cgroup")
LIMITS = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}


def free_memory() -> float:
    """Return the bytes that the machine and the control groups of this process leave to it; infinite off Linux."""
    free = [math.inf]
    with contextlib.suppress(OSError):
        free += [1024 * int(size) for size in re.findall(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())]
        for kind, path in re.findall(r"^\d+:(memory|):/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE):
            for group in (CGROUPS / kind / path, *(CGROUPS / kind / path).parents):
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                    limit, used = (int((group / name).read_text()) for name in LIMITS[kind])
                    cached = re.findall(r"^(?:in)?active_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
                    free.append(limit - used + sum(map(int, cached)))
    return max(0, min(free))


def to_device(network: nn.Module, runtime: Runtime, shape: Sequence[int]) -> nn.Module:
    """Move a network to its device, with convolutions in channels-last layout where that is faster.

    `shape` is that of one input (C, H, W). Networks that need the default layout, for example because they use `view`,
    keep it.
    """
    keep_freed_memory()
    network = network.to(runtime.device)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if runtime.device.type == "cpu":
        gains = not any(map(_corrupts_memory, convolutions))
    else:
        gains = runtime.precision == "bf16"  # on tensor cores
    if gains and convolutions and not _trains_with_channels_last(network, runtime, shape):
        for convolution in convolutions:
            convolution.to(memory_format=torch.contiguous_format)
    return network


def _corrupts_memory(convolution: nn.Conv2d) -> bool:
    """True for a strided 1x1 convolution of few channels: with channels last, torch writes past its weight gradient.

    Seen with torch 2.14 on a CPU with AVX2, for fewer channels than a register holds; AVX-512 has registers of 16.
    """
    return convolution.kernel_size == (1, 1) and convolution.stride != (1, 1) and convolution.in_channels < 16


def _trains_with_channels_last(network: nn.Module, runtime: Runtime, shape: Sequence[int]) -> bool:
    """Switch the convolutions to channels last and return whether two examples still pass forward and backward.

    Leaves the random generators and buffers as they were.
    """
    images = torch.zeros(2, *shape, device=runtime.device)
    try:
        with preserved_state(network):
            for module in network.modules():
                # On CPUs, bf16 with one channel and a kernel of one row would read uninitialized memory.
                if isinstance(module, nn.Conv2d) and (module.in_channels, module.kernel_size[0]) != (1, 1):
                    module.to(memory_format=torch.channels_last)
            network.eval()
            with torch.no_grad(), runtime.autocast():
                network(images)
            network.train()
            with runtime.autocast():
                outputs = network(images)
            outputs.float().sum().backward()
    except Exception:  # from user code; if the layout is not to blame, training raises it again
        return False
    return True


@functools.cache  # once per process
def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step.

    By default it returns large blocks to the system, which maps and zeroes them page by page in every step: a third of
    the time of a small convolutional network. Peak memory does not change.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None  # glibc only
    if set_option is not None:
        mmap_threshold, trim_threshold = -3, -1
        set_option(mmap_threshold, 1 << 30) or set_option(mmap_threshold, 32 << 20)  # the limit of older versions
        set_option(trim_threshold, 2**31 - 1)
