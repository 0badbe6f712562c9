"""The precision that `auto` stands for: a fixed rule, never a timing."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dltrain.runtime.devices import Runtime

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and of ARM
FASTER_IN_BF16 = (nn.Linear, nn.Conv2d, nn.RNNBase, nn.BatchNorm1d, nn.BatchNorm2d)


def resolve_precision(runtime: Runtime, network: nn.Module, batch_size: int, task: str) -> Runtime:
    """The precision that `auto` stands for: a rule, so that the same command chooses the same on the same machine."""
    if runtime.precision != "auto":
        return runtime
    reason = _reason_against_bf16(runtime.device, network, batch_size, task)
    if reason:
        return replace(runtime, precision="fp32", reason=reason)
    return replace(runtime, precision="bf16", reason="faster for this network on this hardware")


def _reason_against_bf16(device: torch.device, network: nn.Module, batch_size: int, task: str) -> str:
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
