"""Test-time augmentation: predictions averaged over several views of each image. Knows tensors only."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))  # pixels to the right and down


class AveragedViews(nn.Module):
    """A classifier that averages the probabilities over all views; returns their logarithms (B, K).

    A softmax gives the probabilities back, so losses and metrics are computed as for any outputs.

    Args:
        views: `flip` for the image and its mirror image, `shift` for the image and its four copies moved by one pixel,
            `flip_shift` for all of these and their mirror images
    """

    def __init__(self, model: nn.Module, views: Literal["flip", "shift", "flip_shift"]) -> None:
        super().__init__()
        self.model = model
        self.flip, self.shift = "flip" in views, "shift" in views

    def forward(self, images: Tensor) -> Tensor:
        views = [images, *(shifted(images, *by) for by in MOVES)] if self.shift else [images]
        views += [view.flip(3) for view in views] if self.flip else []
        return mean_log_probabilities([self.model(view) for view in views])


def mean_log_probabilities(outputs: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the probabilities that outputs (B, K) stand for."""
    log_probabilities = torch.stack([each.float().log_softmax(dim=1) for each in outputs])  # (V, B, K)
    return log_probabilities.logsumexp(dim=0) - math.log(len(outputs))


def shifted(images: Tensor, right: int, down: int) -> Tensor:
    """Return images (B, C, H, W) moved by a pixel; pixels at the edge are replicated."""
    _, _, H, W = images.shape
    return F.pad(images, [1, 1, 1, 1], mode="replicate")[..., 1 - down : 1 - down + H, 1 - right : 1 - right + W]
