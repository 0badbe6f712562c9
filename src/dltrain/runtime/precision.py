"""Resolve precision `auto` by a fixed rule, never a timing."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dltrain.runtime.devices import Runtime

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and ARM
FASTER_IN_BF16 = (nn.Linear, nn.Conv2d, nn.RNNBase, nn.BatchNorm1d, nn.BatchNorm2d)


def resolve_precision(runtime: Runtime, network: nn.Module, batch_size: int, task: str) -> Runtime:
    """Resolve precision `auto`. A rule, so that a command always gets the same precision on the same machine."""
    if runtime.precision != "auto":
        return runtime
    reason = _reason_against_bf16(runtime.device, network, batch_size, task)
    if reason:
        return replace(runtime, precision="fp32", reason=reason)
    return replace(runtime, precision="bf16", reason="faster for this network on this hardware")


def _reason_against_bf16(device: torch.device, network: nn.Module, batch_size: int, task: str) -> str:
    """Return why bf16 would do harm or not be faster, else an empty string. Measured in docs/LOG.md."""
    if task != "classification":  # bf16 rounds by more than the errors it aims for
        return f"{task} needs more digits than bf16 has"
    if device.type == "cuda":  # native from compute capability 8 on
        return "" if torch.cuda.get_device_capability(device) >= (8, 0) else "this GPU has no bf16"
    cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in the oldest supported torch
    if not torch.backends.mkldnn.is_available() or not any(cpu.get(name) for name in NATIVE_BF16):
        return "this CPU has no bf16"
    if "Intel" in cpu.get("cpu_name", "") and not cpu.get("amx_bf16"):
        return "slower than fp32 on Intel CPUs without AMX"
    layers = [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]
    if others := sorted({type(layer).__name__ for layer in layers if not isinstance(layer, FASTER_IN_BF16)}):
        return f"not faster with {', '.join(others[:3])}"
    is_wide = any(isinstance(layer, nn.RNNBase) or getattr(layer, "out_channels", 0) >= 32 for layer in layers)
    enough = 16 if is_wide else 128  # small matrix products cost less than their conversion
    return "" if batch_size >= enough else f"only faster from batch size {enough} on"
