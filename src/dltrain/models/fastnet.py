"""The network of the CIFAR-10 speed records (Jordan: 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024)."""

from typing import Annotated, Literal

import torch
from annotated_types import Interval, Len
from torch import Tensor, nn
from torch.nn import functional as F

Width = Annotated[int, Interval(ge=1, le=1_000_000)]
# Added to the variances of patches before dividing by them: directions of hardly any variance are noise.
FLOOR = 5e-4


class FastNet(nn.Module):
    """Whitened 2x2 patches, then groups of 3x3 convolutions that start as identities, by default 64, 256, 256 channels.

    Args:
        widths: channels of each group, first to last; each halves the image
        depth: convolutions of a group; with three, a shortcut skips the last two
        norm_momentum: weight of the latest batch in the norms' running statistics
        scale: factor on the outputs, which keeps the first steps small
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        widths: Annotated[list[Width], Len(1, 1000)],
        depth: Literal[2, 3],
        norm_momentum: Annotated[float, Interval(gt=0, le=1)],
        scale: Annotated[float, Interval(gt=0)],
    ) -> None:
        super().__init__()
        colours = input_shape[0]
        channels = 2 * 4 * colours
        self.whiten = nn.Conv2d(colours, channels, 2)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        groups: list[nn.Module] = [nn.GELU()]
        for width in widths:
            groups.append(Group(channels, width, depth, norm_momentum))
            channels = width
        self.features = nn.Sequential(*groups)
        self.classifier = nn.Linear(channels, num_classes, bias=False)
        self.scale = scale

    def initialize_from_images(self, images: Tensor) -> None:
        """Set the first layer so that its outputs on patches of normalised images (N, C, H, W) have unit covariance.

        The second half of its filters is the negative of the first.
        """
        size = self.whiten.weight[0].numel()
        products, count = torch.zeros(size, size, dtype=torch.float64), 0
        for chunk in images.split(100):  # the patches of all images would take eight times their memory
            patches = F.unfold(chunk, 2).transpose(1, 2).flatten(0, 1).double()  # (N (H-1) (W-1), 4 C)
            products, count = products + patches.T @ patches, count + len(patches)
        variances, directions = torch.linalg.eigh(products / count)
        filters = (directions / (variances + FLOOR).sqrt()).T.view(-1, *self.whiten.weight.shape[1:])
        with torch.no_grad():
            self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(self.whiten(images))  # (B, C, H, W) -> (B, widths[-1], h, w)
        return self.classifier(features.amax(dim=(2, 3))) * self.scale  # -> (B, K)


class Group(nn.Module):
    """Convolutions with batch norms and GELUs; max pooling after the first halves the image."""

    def __init__(self, channels: int, width: int, depth: int, norm_momentum: float) -> None:
        super().__init__()
        norms = [_norm(width, norm_momentum) for _ in range(depth)]
        self.first = nn.Sequential(_convolution(channels, width), nn.MaxPool2d(2), norms[0], nn.GELU())
        layers: list[nn.Module] = []
        for norm in norms[1:]:
            layers += [_convolution(width, width), norm, nn.GELU()]
        self.others = nn.Sequential(*layers[:-1])  # the last activation comes after the shortcut
        self.has_shortcut = depth > 2

    def forward(self, images: Tensor) -> Tensor:
        halved = self.first(images)  # (B, C, H, W) -> (B, width, H / 2, W / 2)
        outputs = self.others(halved)
        return F.gelu(outputs + halved if self.has_shortcut else outputs)


def _convolution(channels: int, width: int) -> nn.Conv2d:
    """Return a 3x3 convolution: its first filters start as the identity of a channel each, the others as usual."""
    layer = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[: min(channels, width)].data)
    return layer


def _norm(width: int, momentum: float) -> nn.BatchNorm2d:
    """Return a batch norm that learns a shift but no scale."""
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=momentum)
    norm.weight.requires_grad_(False)
    return norm
