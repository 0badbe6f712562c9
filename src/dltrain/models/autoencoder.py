"""Fully connected autoencoder: compresses an image to a few numbers and reconstructs it.

Hinton, Salakhutdinov: Reducing the dimensionality of data with neural networks. Science, 2006.
"""

import itertools
import math
from typing import Annotated

from annotated_types import Interval, Len
from torch import Tensor, nn

Width = Annotated[int, Interval(ge=1, le=1_000_000)]


class Autoencoder(nn.Module):
    """Fully connected encoder and a decoder that mirrors it, for task=reconstruction.

    Args:
        hidden: units of each encoder layer; the last one is the code, the decoder has them in reverse
    """

    def __init__(self, *, input_shape: tuple[int, int, int], hidden: Annotated[list[Width], Len(1, 1000)]) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden]
        self.encoder = nn.Sequential(nn.Flatten(), *_layers(widths))
        self.decoder = nn.Sequential(*_layers(widths[::-1]), nn.Unflatten(1, input_shape))

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))  # (B, C, H, W) -> (B, hidden[-1]) -> (B, C, H, W)


def _layers(widths: list[int]) -> list[nn.Module]:
    """Return linear layers with ReLU between them; none at the end, so that code and image may be negative."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]
