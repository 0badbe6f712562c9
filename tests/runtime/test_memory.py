"""How a network lies in memory: channels last, except where torch would then write past the end; free memory."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dltrain.runtime.devices import Runtime
from dltrain.runtime.memory import free_memory, to_device
from support.tiers import mostly_slow

# The freed memory around the gradients shows what was written past their ends: the process aborts.
TRAIN = """
import torch
from torch import nn
from dltrain.runtime.devices import Runtime
from dltrain.runtime.memory import to_device
channels = CHANNELS
network = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, 10, 1, stride=2))
network = to_device(network, Runtime(torch.device("cpu"), "fp32", 1), (1, 28, 28))
for _ in range(40):
    network(torch.randn(4, 1, 28, 28)).sum().backward()
    junk = [torch.randn(size) for size in (3, 17, 100, 1000, 5000)]
"""


@pytest.mark.parametrize("channels", mostly_slow([2, 4, 7, 12, 16], fast=[4]))
def test_a_strided_1x1_convolution_writes_only_to_its_own_gradient(channels: int) -> None:
    code = TRAIN.replace("CHANNELS", str(channels))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("channels", "is_last"), [(4, False), (15, False), (16, True)])
def test_a_network_with_a_strided_1x1_convolution_of_few_channels_keeps_its_layout(
    channels: int, is_last: bool
) -> None:
    network = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 20, 1, stride=2))
    to_device(network, Runtime(torch.device("cpu"), "fp32", 1), (3, 16, 16))
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last) == is_last


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_channels_last_is_tried_in_the_precision_of_the_training(precision: str) -> None:
    dtypes: list[torch.dtype] = []

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 16, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.layer(images)
            dtypes.append(outputs.dtype)
            return outputs

    network = to_device(Network(), Runtime(torch.device("cpu"), precision, 1), (3, 8, 8))
    assert dtypes == [torch.bfloat16 if precision == "bf16" else torch.float32] * 2
    assert network.layer.weight.grad is None
    assert network.layer.weight.is_contiguous(memory_format=torch.channels_last)


def kernel(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Let the kernel's files have these contents, and no others exist."""

    def read_text(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)


MACHINE = {"/proc/meminfo": "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    5000 kB\n"}
VERSION_2 = MACHINE | {
    "/proc/self/cgroup": "0::/jobs/one\n",
    "/sys/fs/cgroup/jobs/one/memory.max": "max\n",
    "/sys/fs/cgroup/jobs/one/memory.current": "900\n",
    "/sys/fs/cgroup/jobs/memory.max": "3000\n",
    "/sys/fs/cgroup/jobs/memory.current": "2000\n",
    "/sys/fs/cgroup/jobs/memory.stat": "anon 1300\nactive_file 300\ninactive_file 400\nworkingset_active_file 7\n",
}
VERSION_1 = MACHINE | {
    "/proc/self/cgroup": "5:cpu:/\n4:memory:/docker/unseen\n0::/\n",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "4000\n",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
    "/sys/fs/cgroup/memory/memory.stat": "cache 9\nactive_file 1\ninactive_file 2\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [(MACHINE, 5_120_000), (VERSION_2, 1700), (VERSION_1, 3003), ({}, math.inf)],
    ids=["machine", "version 2", "version 1", "no Linux"],
)
def test_free_memory_is_the_least_of_the_machine_and_its_control_groups(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: float
) -> None:
    kernel(monkeypatch, files)
    assert free_memory() == expected


def test_this_machine_has_free_memory() -> None:
    assert free_memory() > 0
