"""Changes of the colours of images, for whole batches: floats (B, C, H, W) from 0 (black) to 255 (white).

A factor (B,) of 1 changes nothing, 0 takes all brightness, contrast, saturation or sharpness away, as in Pillow.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the images by their factors."""
    return (images * factors.view(-1, 1, 1, 1)).clamp_(0, 255)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the distance of the images from their mean grey."""
    return _blend(_grey(images).mean((1, 2, 3), keepdim=True), images, factors)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the distance of the pixels from their grey; images that have other than 3 channels are kept."""
    return _blend(_grey(images), images, factors) if images.shape[1] == len(LUMA) else images


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the distance of the pixels from the mean of their neighbourhood; those at the edge are kept."""
    kernel = torch.ones(1, 1, 3, 3, device=images.device)
    kernel[..., 1, 1] = 5
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(images.flatten(0, 1).unsqueeze(1), kernel / 13).view_as(images[..., 1:-1, 1:-1])
    return _blend(smooth, images, factors)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` (B,) of the 8 of a byte."""
    steps = 2 ** (8 - bits).view(-1, 1, 1, 1)
    return (images / steps).floor_() * steps


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the pixels from a threshold (B,) on."""
    return torch.where(images >= thresholds.view(-1, 1, 1, 1), 255 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel so that it reaches from 0 to 255; a channel of one colour is kept."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * (255 / (high - low)), images)


def equalize(images: Tensor) -> Tensor:
    """Spread the levels of each channel, so that each range of them has equally many pixels, as Pillow does."""
    levels = images.round().long().flatten(2)  # (B, C, pixels)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    steps = (levels.shape[2] - counts.gather(2, levels.amax(2, keepdim=True))) // 255
    table = ((counts.cumsum(2) - counts + steps // 2) // steps.clamp(min=1)).clamp(max=255)
    return torch.where(steps > 0, table.gather(2, levels), images.flatten(2)).view_as(images)


def _blend(others: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    return ((images - others) * factors.view(-1, 1, 1, 1)).add_(others).clamp_(0, 255)


def _grey(images: Tensor) -> Tensor:
    """Return grey images (B, 1, H, W)."""
    if images.shape[1] != len(LUMA):
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
