"""How a network lies in memory: channels last, except where torch would then write past the end of a tensor."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from dltrain.runtime.devices import Runtime
from dltrain.runtime.memory import to_device
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
