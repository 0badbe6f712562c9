"""A small convolutional network: 3x3 convolutions, each followed by a 2x2 pool, and one hidden layer."""

from typing import Annotated

from annotated_types import Interval, Len
from torch import Tensor, nn

Width = Annotated[int, Interval(ge=1, le=1_000_000)]


class CNN(nn.Module):
    """3x3 convolutions with 2x2 max pools, by default 32 and 64 channels, and a hidden layer.

    Args:
        widths: channels of each convolution, first to last; each is followed by a pool
        hidden: units of the hidden layer
        dropout: fraction of hidden units dropped in training
        batch_norm: normalise each convolution's channels over the batch

    Raises ValueError if the image is too small for that many pools.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        widths: Annotated[list[Width], Len(1, 1000)],
        hidden: Width,
        dropout: Annotated[float, Interval(ge=0, lt=1)],
        batch_norm: bool,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        rows, columns = height >> len(widths), width >> len(widths)
        if min(rows, columns) < 1:
            raise ValueError(f"cnn: {height}x{width} is too small for {len(widths)} pools; set fewer model.widths")
        layers: list[nn.Module] = []
        for out_channels in widths:
            layers.append(nn.Conv2d(channels, out_channels, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out_channels))
            layers += [nn.MaxPool2d(2), nn.ReLU()]  # as ReLU before the pool, for a quarter of its work
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * rows * columns, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))  # (B, C, H, W) -> (B, widths[-1], h, w) -> (B, K)
