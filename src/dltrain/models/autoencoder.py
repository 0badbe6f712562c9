"""Fully connected autoencoder: squeezes an image through a few numbers and draws it again.

Hinton, Salakhutdinov: Reducing the dimensionality of data with neural networks. Science, 2006.
"""

import itertools
import math
from typing import Annotated

from annotated_types import Interval, Len
from torch import Tensor, nn

Width = Annotated[int, Interval(ge=1, le=1_000_000)]


class Autoencoder(nn.Module):
    """Encoder of fully connected layers and its mirror image, for task=reconstruction.

    Args:
        hidden: units of each encoder layer; the last is the code, the decoder mirrors them
    """

    def __init__(self, *, input_shape: tuple[int, int, int], hidden: Annotated[list[Width], Len(1, 1000)]) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden]
        self.encoder = nn.Sequential(nn.Flatten(), *_layers(widths))
        self.decoder = nn.Sequential(*_layers(widths[::-1]), nn.Unflatten(1, input_shape))

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))  # (B, C, H, W) -> (B, hidden[-1]) -> (B, C, H, W)


def _layers(widths: list[int]) -> list[nn.Module]:
    """Linear layers through `widths` with ReLU between them: neither the code nor the picture is cut at zero."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]
