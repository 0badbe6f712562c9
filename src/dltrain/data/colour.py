"""Changes of colour for batches of floats in 0..255 (B, C, H, W), by factors (B,) in 0..2; 1 changes nothing."""

import torch
from torch import Tensor

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


def posterize(images: Tensor, factors: Tensor) -> Tensor:
    """Keep the highest 8 bits of a byte, or up to 4 fewer."""
    steps = 2 ** (4 * (factors - 1).abs()).round().view(-1, 1, 1, 1)
    return (images / steps).floor_() * steps


def solarize(images: Tensor, factors: Tensor) -> Tensor:
    """Invert the pixels from a threshold on."""
    thresholds = 255 * (1 - (factors - 1).abs()).view(-1, 1, 1, 1)
    return torch.where(images >= thresholds, 255 - images, images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel so that it reaches from 0 to 255; a channel of one colour is kept."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * (255 / (high - low)), images)


OPERATIONS = (brightness, contrast, saturation, posterize, solarize, autocontrast)


def recolour(images: Tensor, factors: Tensor, levels: tuple[Tensor, Tensor] | None) -> Tensor:
    """Apply OPERATIONS with factors (B, 6) on the CPU to bytes, or to floats of which `levels` are black and white."""
    if levels is not None:
        black, scale = levels[0], 255 / (levels[1] - levels[0]).clamp(min=1e-30)
        return recolour((images - black) * scale, factors, None) / scale + black
    images = images.float()
    for change, column in zip(OPERATIONS, factors.unbind(1), strict=True):
        if len(chosen := (column != 1).nonzero().flatten()):
            at, by = (part.to(images.device, non_blocking=True) for part in (chosen, column[chosen]))
            images = change(images, by) if len(at) == len(images) else images.index_copy(0, at, change(images[at], by))
    return images


def _blend(others: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    return ((images - others) * factors.view(-1, 1, 1, 1)).add_(others).clamp_(0, 255)


def _grey(images: Tensor) -> Tensor:
    """Return grey images (B, 1, H, W)."""
    if images.shape[1] != len(LUMA):
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
