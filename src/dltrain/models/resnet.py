"""A residual network for small images (He, Zhang, Ren, Sun: Deep Residual Learning, 2016, section 4.2)."""

from typing import Annotated

from annotated_types import Interval, Len
from torch import Tensor, nn
from torch.nn import functional as F

Width = Annotated[int, Interval(ge=1, le=1_000_000)]


class ResNet(nn.Module):
    """Stages of residual blocks with batch norm, by default ResNet-20: 3 blocks each with 16, 32 and 64 channels.

    Args:
        widths: channels of each stage, first to last; each stage after the first halves the image
        blocks: residual blocks of a stage, of two convolutions each
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        widths: Annotated[list[Width], Len(1, 1000)],
        blocks: Annotated[int, Interval(ge=1, le=1000)],
    ) -> None:
        super().__init__()
        channels = widths[0]
        layers: list[nn.Module] = [_convolution(input_shape[0], channels, 3), nn.BatchNorm2d(channels), nn.ReLU()]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(Block(channels, width, stride=2 if stage and not block else 1))
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)  # (B, C, H, W) -> (B, widths[-1], h, w)
        return self.classifier(features.mean(dim=(2, 3)))  # -> (B, K)


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a 1x1 convolution if the shape changes (option B of the paper)."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = _convolution(channels, width, 3, stride), nn.BatchNorm2d(width)
        self.second, self.second_norm = _convolution(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(_convolution(channels, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.first_norm(self.first(inputs)))
        return F.relu(self.second_norm(self.second(hidden)) + self.shortcut(inputs))


def _convolution(channels: int, width: int, side: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, as batch norm follows, initialised as in the paper (He et al., 2015)."""
    layer = nn.Conv2d(channels, width, side, stride=stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
