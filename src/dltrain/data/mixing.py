"""Boxes that are erased from images or pasted into them, and blends of two images, for whole batches."""

import torch
from torch import Tensor


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Set boxes (B, 4) of images (B, C, H, W) to zero: first and last row, first and last column."""
    return images.masked_fill(_inside(images, boxes[:, 0::2], boxes[:, 1::2]), 0.0)


def mix_images(images: Tensor, others: Tensor, fractions: Tensor, boxes: Tensor) -> Tensor:
    """Paste boxes (B, 4) of the others into images (B, C, H, W); blend the two where the box is empty."""
    inside = _inside(images, boxes[:, 0::2], boxes[:, 1::2])
    is_cut = (boxes[:, 1] > boxes[:, 0]).view(-1, 1, 1, 1)
    fractions = fractions.view(-1, 1, 1, 1)
    return torch.where(is_cut, torch.where(inside, others, images), fractions * images + (1 - fractions) * others)


def _inside(images: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return masks (B, 1, H, W) of boxes from `first` (included) to `last` (excluded), both (B, 2): row, column."""
    H, W = images.shape[2:]
    rows, columns = torch.arange(H, device=images.device), torch.arange(W, device=images.device)
    down = (rows >= first[:, :1]) & (rows < last[:, :1])
    right = (columns >= first[:, 1:]) & (columns < last[:, 1:])
    return (down.unsqueeze(2) & right.unsqueeze(1)).unsqueeze(1)
