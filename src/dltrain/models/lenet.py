"""LeNet-5 with max pooling and ReLU.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proc. IEEE, 1998.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
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
            nn.Conv2d(channels, 6, 5, padding=padding),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5),
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
        if self.training and len(images) >= MANY and images.is_cpu and not torch.is_autocast_enabled("cpu"):
            return self.classifier(self._features_of_many(images))
        return self.classifier(self.features(images))  # (B, C, H, W) -> (B, 16, 5, 5) -> (B, K)

    def _features_of_many(self, images: Tensor) -> Tensor:
        """The same as `features` but for rounding, by operations for which CPUs have faster ways."""
        first, _, relu, second, *others = self.features
        assert isinstance(first, nn.Conv2d)
        pictures = ConvolvedFew.apply(relu(pooled_by_phases(images, first)), second.weight, second.bias)
        for layer in others:
            pictures = layer(pictures)
        return pictures


def pooled_by_phases(images: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A convolution and a pool of 2x2 behind it, (B, C, H, W) to (B, O, H', W').

    The four numbers of which a pool takes the greatest are four channels of one convolution with a stride of two, whose
    kernels are the same, each moved by a row, a column or both. So the pool compares whole pictures, and not six
    channels at each place, one number at a time. Of equal numbers the first one gets the gradient, as in a pool.
    """
    moved = [F.pad(convolution.weight, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
    kernels = torch.cat(moved)
    kernels = kernels.flatten().view(kernels.shape)  # not with channels last: the phases shall lie one after another
    assert convolution.bias is not None
    phases = F.conv2d(images, kernels, convolution.bias.repeat(4), stride=2, padding=convolution.padding)
    count, _, height, width = phases.shape
    # As a picture of four rows and one column whose channels are all that a phase holds: they lie side by side.
    rows = phases.reshape(count, 4, 1, -1).permute(0, 3, 1, 2)
    # Permuted before it is viewed as pictures: its gradient is copied into another layout else.
    return F.max_pool2d(rows, (4, 1)).permute(0, 2, 3, 1).reshape(count, -1, height, width)


class ConvolvedFew(torch.autograd.Function):
    """A convolution of few channels, (B, C, H, W) to (B, O, H', W'), with channels last as placement.py would have it.

    All but the gradient of its input, which oneDNN computes in half the time without.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, pictures: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(pictures, weight)
        return F.conv2d(pictures, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pictures, weight = ctx.saved_tensors
        of_pictures = conv2d_input(pictures.shape, weight.contiguous(), gradient.contiguous())
        of_weight = conv2d_weight(pictures, weight.shape, gradient)
        return of_pictures, of_weight, gradient.sum(dim=(0, 2, 3))
