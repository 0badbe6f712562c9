"""How a network lies in memory, in which precision it is computed, and what becomes of the memory of its steps."""

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dltrain.runtime import Runtime, tried_out

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and of ARM
FASTER_IN_BF16 = (nn.Linear, nn.Conv2d, nn.RNNBase, nn.BatchNorm1d, nn.BatchNorm2d)


def placed(network: nn.Module, runtime: Runtime, shape: Sequence[int]) -> nn.Module:
    """A network on its device, convolutions with channels last, the layout in which they are fastest.

    `shape` is that of an input (C, H, W). Networks that count on another layout, such as by `view`, keep their own.
    """
    keep_freed_memory()
    network = network.to(runtime.device)
    gains = runtime.device.type == "cpu" or runtime.precision == "bf16"  # of GPUs those that use their tensor cores
    convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    if gains and convolutions and not _trains_with_channels_last(network, runtime, shape):
        for each in convolutions:
            each.to(memory_format=torch.contiguous_format)
    return network


def _trains_with_channels_last(network: nn.Module, runtime: Runtime, shape: Sequence[int]) -> bool:
    """Lay a network's convolutions out anew, and see whether it evaluates and trains two examples; draws nothing."""
    images = torch.zeros(2, *shape, device=runtime.device)
    try:
        with tried_out(network):
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


def settled(runtime: Runtime, network: nn.Module, batch_size: int, task: str) -> Runtime:
    """The precision that `auto` stands for: a rule, so that the same command chooses the same on the same machine."""
    if runtime.precision != "auto":
        return runtime
    reason = _against_bf16(runtime.device, network, batch_size, task)
    if reason:
        return replace(runtime, precision="fp32", reason=reason)
    return replace(runtime, precision="bf16", reason="faster for this network on this hardware")


def _against_bf16(device: torch.device, network: nn.Module, batch_size: int, task: str) -> str:
    """Why bf16 would do harm or not be faster; empty where it is. Measured in docs/LOG.md."""
    if task != "classification":  # its outputs are compared with numbers, by errors smaller than bf16's rounding
        return f"{task} needs more digits than bf16 has"
    if device.type == "cuda":  # in hardware from compute capability 8 on
        return "" if torch.cuda.get_device_capability(device) >= (8, 0) else "this GPU has no bf16"
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # younger than the oldest torch that will do
    if not torch.backends.mkldnn.is_available() or not any(has.get(name) for name in NATIVE_BF16):
        return "this CPU has no bf16"
    if "Intel" in has.get("cpu_name", "") and not has.get("amx_bf16"):
        return "slower than fp32 on Intel's CPUs without AMX"
    layers = [each for each in network.modules() if any(True for _ in each.parameters(recurse=False))]
    if others := sorted({type(each).__name__ for each in layers if not isinstance(each, FASTER_IN_BF16)}):
        return f"not faster with {', '.join(others[:3])}"
    is_wide = any(isinstance(each, nn.RNNBase) or getattr(each, "out_channels", 0) >= 32 for each in layers)
    enough = 16 if is_wide else 128  # small products spend their time on being converted
    return "" if batch_size >= enough else f"faster from a batch of {enough} on"


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
