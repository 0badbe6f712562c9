"""Multi-layer perceptron: fully connected layers on the flattened image."""

import math
from typing import Annotated, Literal

from annotated_types import Interval, Len
from torch import Tensor, nn

Width = Annotated[int, Interval(ge=1, le=1_000_000)]
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class MLP(nn.Module):
    """Fully connected layers, by default with 128 and 64 hidden units.

    Args:
        hidden: units of each hidden layer, first to last
        activation: non-linearity after each hidden layer
        dropout: fraction of hidden units dropped in training
        batch_norm: normalise each hidden layer over the batch, before the activation
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        hidden: Annotated[list[Width], Len(1, 1000)],
        activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid"],
        dropout: Annotated[float, Interval(ge=0, lt=1)],
        batch_norm: bool,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(input_shape)
        for units in hidden:
            layers.append(nn.Linear(width, units))
            if batch_norm:
                layers.append(nn.BatchNorm1d(units))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = units
        layers.append(nn.Linear(width, num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # (B, C, H, W) -> (B, K)
