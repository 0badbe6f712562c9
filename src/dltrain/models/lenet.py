"""LeNet-5 with max pooling and ReLU.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. Proc. IEEE, 1998.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MANY = 64  # examples from which on the first pool is faster in another way; measured in docs/LOG.md


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
        convolution, pool, *others = self.features
        if self.training and images.is_cpu and len(images) >= MANY:
            assert isinstance(convolution, nn.Conv2d)
            pictures = pooled_by_phases(images, convolution)
        else:
            pictures = pool(convolution(images))
        for layer in others:
            pictures = layer(pictures)  # (B, 6, 14, 14) -> (B, 16, 5, 5)
        return self.classifier(pictures)  # (B, K)


def pooled_by_phases(images: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A convolution and a pool of 2x2 behind it, (B, C, H, W) to (B, O, H', W') with channels last.

    The four numbers of which a pool takes the greatest are four channels of one convolution with a stride of two, whose
    kernels are the same, each moved by a row, a column or both. So the pool compares whole pictures instead of places
    of six channels, for which CPUs have no fast way. Of equal numbers the first one gets the gradient, as in a pool.
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
    greatest = F.max_pool2d(rows, (4, 1)).permute(0, 2, 3, 1).reshape(count, -1, height, width)
    return greatest.contiguous(memory_format=torch.channels_last)
