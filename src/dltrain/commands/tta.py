"""Test-time augmentation: a network asked about several views of each picture. Knows tensors alone."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))  # pixels to the right and down


class AveragedViews(nn.Module):
    """A classifier whose probabilities are the mean of those for each view; returns their logarithms (B, K).

    A softmax leaves them as they are, so that losses and figures are computed as of any network's outputs.

    Args:
        views: `flip` for the picture and its mirror image, `shift` for it and its four copies moved by one pixel,
            `flip_shift` for both of each
    """

    def __init__(self, model: nn.Module, views: Literal["flip", "shift", "flip_shift"]) -> None:
        super().__init__()
        self.model = model
        self.flip, self.shift = "flip" in views, "shift" in views

    def forward(self, images: Tensor) -> Tensor:
        views = [images, *(shifted(images, *by) for by in MOVES)] if self.shift else [images]
        views += [view.flip(3) for view in views] if self.flip else []
        shares = torch.stack([self.model(view).float().log_softmax(dim=1) for view in views])  # (V, B, K)
        return shares.logsumexp(dim=0) - math.log(len(views))


def shifted(images: Tensor, right: int, down: int) -> Tensor:
    """Images (B, C, H, W) moved by a pixel; what comes in is the pixel at the edge again, whatever the background."""
    _, _, H, W = images.shape
    return F.pad(images, [1, 1, 1, 1], mode="replicate")[..., 1 - down : 1 - down + H, 1 - right : 1 - right + W]
