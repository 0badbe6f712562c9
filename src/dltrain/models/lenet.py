"""LeNet-5 with max pooling and ReLU.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proc. IEEE, 1998.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

MANY = 64  # examples from which on other operations are faster; measured in docs/LOG.md


class LeNet(nn.Module):
    """LeNet-5: two 5x5 convolutions and three linear layers (LeCun et al., 1998).

    Raises ValueError for pictures too small for two 5x5 convolutions and pools.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        # LeNet was made for 32x32: a 28x28 picture is padded, so that both reach the linear layers as 16x5x5.
        padding = 2 if min(height, width) < 32 else 0
        rows, columns = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
        if min(rows, columns) < 1:
            raise ValueError(f"lenet needs pictures of at least 12x12 pixels, the data has {height}x{width}")
        # A pool before its ReLU: the same as after it, to the bit, with a quarter of the ReLU's work.
        self.features = nn.Sequential(
            PhasedConv2d(channels, 6, 5, padding=padding),
            PhasedMaxPool2d(6),
            nn.ReLU(),
            NarrowConv2d(6, 16, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * rows * columns, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))  # (B, C, H, W) -> (B, 16, 5, 5) -> (B, K)


def faster_otherwise(layer: nn.Module, pictures: Tensor) -> bool:
    """Whether a layer below leaves its plain way: for many examples of training, on the CPU; bf16 gains nothing."""
    return layer.training and len(pictures) >= MANY and pictures.is_cpu and not torch.is_autocast_enabled("cpu")


class PhasedConv2d(nn.Conv2d):
    """A convolution before a pool of 2x2; with many examples the four numbers of each place of the pool are channels.

    That is one convolution with a stride of two, (B, C, H, W) to (B, 4 * O, H / 2, W / 2), whose kernels are the same,
    moved by a row, a column or both. The pool compares whole pictures then, and not a few channels at each place, one
    number at a time. The same but for rounding, of finite pictures. Stride and dilation are one.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, padding: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)

    def forward(self, pictures: Tensor) -> Tensor:
        if not faster_otherwise(self, pictures):
            return super().forward(pictures)
        # So that its gradient lies as it does, also where it has one channel and strides that mean nothing.
        weight = self.weight.as_strided(self.weight.shape, self.weight.stride())
        moved = [F.pad(weight, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
        kernels = torch.cat(moved)
        # Not with channels last, which contiguous() would leave of one channel: phases shall lie one after another.
        kernels = kernels.flatten().view(kernels.shape)
        bias = None if self.bias is None else self.bias.repeat(4)
        return F.conv2d(pictures, kernels, bias, stride=2, padding=self.padding)


class PhasedMaxPool2d(nn.MaxPool2d):
    """The pool of 2x2 behind a PhasedConv2d of so many channels; of equal numbers the first gets the gradient."""

    def __init__(self, channels: int) -> None:
        super().__init__(2)
        self.channels = channels

    def forward(self, phases: Tensor) -> Tensor:
        if phases.shape[1] != 4 * self.channels:
            return super().forward(phases)
        count, _, height, width = phases.shape
        # As a picture of four rows and one column whose channels are all that a phase holds: they lie side by side.
        rows = phases.reshape(count, 4, 1, -1).permute(0, 3, 1, 2)
        # Permuted before it is viewed as pictures: otherwise its gradient would be copied twice.
        return F.max_pool2d(rows, (4, 1)).permute(0, 2, 3, 1).reshape(count, -1, height, width)


class NarrowConv2d(nn.Conv2d):
    """A convolution of few channels, plain but for its gradients with many examples: see Narrow.

    Stride and dilation are one, there is no padding.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)

    def forward(self, pictures: Tensor) -> Tensor:
        if not faster_otherwise(self, pictures):
            return super().forward(pictures)
        return Narrow.apply(pictures.contiguous(memory_format=torch.channels_last), self.weight, self.bias)


class Narrow(torch.autograd.Function):
    """A convolution whose input's gradient is computed without channels last; of few channels that is faster there."""

    @staticmethod
    def forward(ctx: Any, pictures: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(pictures, weight)  # setup_context would take as long as a small layer
        return F.conv2d(pictures, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pictures, weight = ctx.saved_tensors
        of_pictures = conv2d_input(pictures.shape, weight.contiguous(), gradient.contiguous())
        return of_pictures, conv2d_weight(pictures, weight.shape, gradient), gradient.sum(dim=(0, 2, 3))
