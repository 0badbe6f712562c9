"""A single linear layer: softmax regression on images, linear regression on numbers."""

import math

from torch import Tensor, nn


class Linear(nn.Module):
    """A single linear layer: softmax regression, or linear regression with task=regression."""

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))  # (B, C, H, W) -> (B, K)
